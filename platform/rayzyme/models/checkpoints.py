"""Checkpoints by name: where each comes from, fetching, checking and opening them.

Fetched checkpoints live in `<home>/checkpoints/<name>/`, each with the digest that it had when it arrived; a file that
differs from it is never opened.
"""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from rayzyme.errors import NotFound, RayzymeError
from rayzyme.models.checkpoint_files import (
    CheckpointFormat,
    checkpoint_format,
    find_checkpoint,
    open_encoder,
    sha256_of,
)
from rayzyme.models.checkpoint_folder import CheckpointFolder, Manifest
from rayzyme.models.checkpoint_sources import BASELINE, BUILT_IN, CheckpointSource
from rayzyme.models.checkpoint_validation import Check, ExpectedDigest, ValidationReport, validate_checkpoint
from rayzyme.models.download import DEFAULT_RETRIES, Progress, Retries, download
from rayzyme.models.zenodo import ZENODO_API, locate

if TYPE_CHECKING:
    from rayzyme.models.encoder import Encoder

__all__ = [
    "BASELINE",
    "BUILT_IN",
    "Check",
    "CheckpointFormat",
    "CheckpointInfo",
    "CheckpointRegistry",
    "CheckpointSource",
    "ValidationReport",
    "checkpoint_format",
    "default_registry",
]


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A line of the list: `path`, `size`, `sha256` are None while it is not present, `sha256` also where none is recorded."""

    name: str
    source: str
    present: bool
    path: Path | None
    size: int | None
    sha256: str | None
    format: CheckpointFormat | None
    description: str


class CheckpointRegistry:
    """The checkpoints of one home folder.

    Args:
        home: `RAYZYME_HOME`.
        sources: Name -> address, or a mapping with `url` and optionally `sha256`, `md5`, `size`, `description`. A
            built-in name may be given another source, for instance a mirror.
        zenodo_api: Address of the Zenodo API.
        retries: Patience of downloads.
    """

    def __init__(
        self,
        home: Path,
        sources: Mapping[str, str | Mapping[str, Any]] | None = None,
        *,
        zenodo_api: str = ZENODO_API,
        retries: Retries = DEFAULT_RETRIES,
    ) -> None:
        self._root = Path(home) / "checkpoints"
        self._zenodo_api = zenodo_api
        self._retries = retries
        added = {name: CheckpointSource.from_setting(name, setting) for name, setting in (sources or {}).items()}
        self._sources = {source.name: source for source in BUILT_IN} | added

    def names(self) -> list[str]:
        """Every known name, sorted."""
        return sorted(self._sources)

    def require_name(self, name: str) -> None:
        """Take names only, for callers who are to open no file by its path.

        Raises:
            NotFound: No checkpoint has that name; names what there is.
        """
        if name not in self._sources:
            raise NotFound(f"unknown checkpoint {name!r}; known: {', '.join(self.names())}")

    def list(self) -> list[CheckpointInfo]:
        """What is known and what of it is present."""
        return [self._info(self._sources[name]) for name in self.names()]

    def fetch(self, name: str, progress: Progress | None = None, force: bool = False) -> Path:
        """Make a named checkpoint present, downloading and unpacking it where it is not.

        Args:
            name: A known name.
            progress: Told about every block received.
            force: Fetch again although it is present; the present one stays until the new one is complete.

        Raises:
            NotFound: No such name; or a local path that does not exist.
            DownloadFailed: The message says whether running it again resumes. See `rayzyme.models.download.download`.
            CheckpointError: What arrived is no checkpoint or an unsafe archive.
        """
        source = self._sources.get(name)
        if source is None:
            raise self._unknown(name)
        if source.is_local:
            return self.resolve(name)
        folder = self._folder(source)
        with folder.locked():
            if force:
                shutil.rmtree(folder.downloads, ignore_errors=True)
            else:
                present = self._path(source)
                if present is not None:
                    return present
            located = locate(source, self._zenodo_api, self._retries)
            file_name = located.file or Path(unquote(urlsplit(located.url).path)).name or source.name
            received = download(
                located.url,
                folder.downloads / file_name,
                size=located.size,
                md5=located.md5,
                sha256=located.sha256,
                progress=progress,
                retries=self._retries,
            )
            return folder.put(received.path, source.url)

    def resolve(self, name_or_path: str | Path) -> Path:
        """Path of a checkpoint that is present, by name or, where no name fits, by its own path.

        Raises:
            NotFound: Says which names come near, or that the checkpoint has to be fetched first.
            CheckpointError: A folder that holds no checkpoint or several; a damaged manifest.
        """
        source = self._named(name_or_path)
        if source is None:
            path = Path(name_or_path).expanduser()
            if not path.exists():
                raise self._unknown(str(name_or_path))
            return find_checkpoint(path)
        present = self._path(source)
        if present is not None:
            return present
        if source.is_local:
            raise NotFound(f"Checkpoint {source.name!r} should be at {source.url}, where nothing is; check its source.")
        raise NotFound(f"Checkpoint {source.name!r} is not fetched yet. Run: rayzyme checkpoints fetch {source.name}")

    def identify(self, name_or_path: str | Path) -> tuple[str, str]:
        """Name and SHA-256 of a checkpoint, without loading it: those that its encoder would have.

        The digest is the one recorded when the checkpoint was fetched, else that of the file as it is. It is empty for
        a known name that is not present: such a reference is compared by name alone.

        Raises:
            NotFound: Neither a known name nor a file.
            CheckpointError: A folder that holds no checkpoint or several; a damaged manifest.
        """
        source = self._named(name_or_path)
        if source is None:
            path = self.resolve(name_or_path)
            return path.stem, sha256_of(path)
        manifest = self._manifest(source)
        if manifest is not None:
            return source.name, manifest.sha256
        present = self._path(source)
        return source.name, sha256_of(present) if present else ""

    def open(self, name_or_path: str | Path, device: str = "auto") -> Encoder:
        """Load a checkpoint that is present. See `rayzyme.models.load_checkpoint`."""
        from rayzyme.models.devices import resolve_device

        path, source = self.resolve(name_or_path), self._named(name_or_path)
        digest = self._expected_digest(source)
        if digest.sha256 is not None:
            digest.require(path)
        return open_encoder(path, source.name if source else path.stem, resolve_device(device))

    def validate(self, name_or_path: str | Path) -> ValidationReport:
        """Check digest, format, every parameter's shape and value, and a forward pass on a small input.

        Nothing is loaded from a file whose digest or format is wrong.

        Raises:
            NotFound: There is nothing to check. `ValidationReport.raise_for_failure` raises for the rest.
        """
        path, source = self.resolve(name_or_path), self._named(name_or_path)
        return validate_checkpoint(path, source.name if source else path.stem, self._expected_digest(source))

    def _named(self, name_or_path: str | Path) -> CheckpointSource | None:
        return self._sources.get(name_or_path) if isinstance(name_or_path, str) else None

    def _unknown(self, name: str) -> NotFound:
        near = difflib.get_close_matches(name, self.names(), n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        return NotFound(
            f"There is no checkpoint named {name!r} and no file of that path.{hint} Known names: "
            f"{', '.join(self.names())}; add your own in the settings under checkpoints.sources."
        )

    def _folder(self, source: CheckpointSource) -> CheckpointFolder:
        return CheckpointFolder(self._root / (source.folder or source.name), source.name)

    def _manifest(self, source: CheckpointSource) -> Manifest | None:
        manifest = None if source.is_local else self._folder(source).manifest()
        # A source that was given another address since is another checkpoint.
        return manifest if manifest and manifest.url == source.url else None

    def _path(self, source: CheckpointSource) -> Path | None:
        """Where a known checkpoint is; None while it is not present."""
        if source.is_local:
            path = Path(source.url).expanduser()
            return find_checkpoint(path) if path.exists() else None
        manifest = self._manifest(source)
        return self._folder(source).path / manifest.file if manifest else None

    def _expected_digest(self, source: CheckpointSource | None) -> ExpectedDigest:
        if source is None:
            return ExpectedDigest(None)
        if source.is_local:
            return ExpectedDigest(source.sha256, "put the right file there")
        manifest = self._manifest(source)
        remedy = f"run: rayzyme checkpoints fetch {source.name} --force"
        return ExpectedDigest(manifest.sha256 if manifest else None, remedy)

    def _info(self, source: CheckpointSource) -> CheckpointInfo:
        try:
            path = self.resolve(source.name)
            size, kind = path.stat().st_size, checkpoint_format(path)
            # Files in the user's own folders may be large; only the small bundled one is hashed for a list.
            sha256 = sha256_of(path) if source.name == BASELINE else self._expected_digest(source).sha256
        except RayzymeError:
            return CheckpointInfo(source.name, source.url, False, None, None, None, source.format, source.description)
        return CheckpointInfo(source.name, source.url, True, path, size, sha256, kind, source.description)


def default_registry() -> CheckpointRegistry:
    """The registry of the user's home and settings."""
    from rayzyme.settings import get_settings

    settings = get_settings()
    return CheckpointRegistry(settings.home, settings.checkpoints.sources)
