"""Where named checkpoints come from: the built-in ones, and those that users add in their settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from rayzyme.errors import InvalidInput
from rayzyme.models.checkpoint_files import CheckpointFormat
from rayzyme.models.download import check_url

BASELINE: Final = "baseline"
_BUNDLED: Final = Path(__file__).parent / "baseline" / "data" / "weights.safetensors"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_KEYS: Final = ("url", "sha256", "md5", "size", "description")
_HEXADECIMAL_DIGITS: Final = {"md5": 32, "sha256": 64}


@dataclass(frozen=True, slots=True)
class CheckpointSource:
    """Where a named checkpoint comes from.

    Attributes:
        name: What users call it.
        url: `https://` or `file://` address (fetched), or a plain path of a file or folder (used where it is).
        format: Layout of the checkpoint itself, where known beforehand.
        record: Number of the Zenodo record that describes the file (size, MD5, address), where there is one.
        file: Name of the file inside the record.
        size: Bytes of the published file, which may be an archive.
        md5: Its MD5, hexadecimal, lower case.
        sha256: Its SHA-256, hexadecimal, lower case.
        description: One line for people.
        folder: Folder under `checkpoints/`; two names of one file share it. Empty for `name`.
    """

    name: str
    url: str
    format: CheckpointFormat | None = None
    record: int | None = None
    file: str = ""
    size: int | None = None
    md5: str | None = None
    sha256: str | None = None
    description: str = ""
    folder: str = ""

    @property
    def is_local(self) -> bool:
        """Used where it lies, never fetched."""
        return self.name == BASELINE or not urlsplit(self.url).scheme

    @classmethod
    def from_setting(cls, name: str, setting: str | Mapping[str, Any]) -> CheckpointSource:
        """Read one entry of `checkpoints.sources`.

        Raises:
            InvalidInput: The name, an unknown key, a value, or an address that is not fetched.
        """
        where = f"checkpoints.sources.{name}"
        if name == BASELINE:
            raise InvalidInput(f"{where}: {BASELINE!r} is the bundled model; use another name.")
        if not _NAME.fullmatch(name):
            raise InvalidInput(f"{where}: a checkpoint's name is made of letters, digits, '.', '_' and '-'.")
        values = {"url": setting} if isinstance(setting, str) else dict(setting)
        for key in values.keys() - set(_KEYS):
            raise InvalidInput(f"{where}: unknown key {key!r}; known: {', '.join(_KEYS)}.")
        if not values.get("url") or not isinstance(values["url"], str):
            raise InvalidInput(f"{where}: url is missing; give an https:// or file:// address or a path.")
        for key in _HEXADECIMAL_DIGITS.keys() & values.keys():
            digits, values[key] = _HEXADECIMAL_DIGITS[key], str(values[key]).lower()
            if not re.fullmatch(rf"[0-9a-f]{{{digits}}}", values[key]):
                raise InvalidInput(f"{where}: {key} must be {digits} hexadecimal digits, not {values[key]!r}.")
        if "size" in values and (type(values["size"]) is not int or values["size"] <= 0):
            raise InvalidInput(f"{where}: size must be a number of bytes, not {values['size']!r}.")
        source = cls(name=name, **values)
        if not source.is_local:
            check_url(source.url)
        return source


def _published(name: str) -> CheckpointSource:
    return CheckpointSource(
        name,
        "https://zenodo.org/records/11187895",
        CheckpointFormat.TORCH,
        record=11187895,
        file="clipzyme_model.zip",
        description="CLIPZyme as published (arXiv 2402.06748); the archive has 2.4 GB",
        folder="clipzyme_official_v1",
    )


BUILT_IN: Final = (
    CheckpointSource(
        BASELINE,
        str(_BUNDLED),
        CheckpointFormat.SAFETENSORS,
        description="Small bundled model for a first run and for teaching; for discovery bring CLIPZyme's weights",
    ),
    _published("clipzyme_official_v1"),
    _published("clipzyme_v1"),
)
