"""The folder of one fetched checkpoint.

`files/` holds what was published, `manifest.json` what it was when it arrived. The manifest is written last, so a
checkpoint with one is complete.
"""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from rayzyme.errors import CheckpointError
from rayzyme.models.archives import extract_zip
from rayzyme.models.checkpoint_files import checkpoint_format, find_checkpoint, is_archive, sha256_of
from rayzyme.storage.disk import sole_owner


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint was when it arrived.

    Attributes:
        name: The folder's name.
        url: The source's address; a source that was given another one since is another checkpoint.
        file: The checkpoint, relative to the folder.
        sha256: Its SHA-256, hexadecimal.
        size: Its bytes.
        fetched_at: UTC, ISO 8601.
    """

    name: str
    url: str
    file: str
    sha256: str
    size: int
    fetched_at: str


class CheckpointFolder:
    """The folder of one fetched checkpoint.

    Args:
        path: The folder; made by `locked`.
        name: A name of the checkpoint, for messages.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.downloads = path / "download"
        self._name = name
        self._manifest = path / "manifest.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from changing the folder meanwhile."""
        self.path.mkdir(parents=True, exist_ok=True)
        with sole_owner(self._manifest):
            yield

    def manifest(self) -> Manifest | None:
        """None where nothing was fetched, or its file is gone.

        Raises:
            CheckpointError: The manifest is damaged.
        """
        if not self._manifest.is_file():
            return None
        try:
            content = json.loads(self._manifest.read_text(encoding="utf-8"))
            manifest = Manifest(**{field.name: content[field.name] for field in fields(Manifest)})
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{self._manifest} is not a checkpoint's manifest ({error}). "
                f"Run: rayzyme checkpoints fetch {self._name} --force"
            ) from error
        return manifest if (self.path / manifest.file).is_file() else None

    def put(self, received: Path, url: str) -> Path:
        """Unpack and check what was downloaded and put it in the place of what is present; returns the checkpoint.

        What is present stays until the new one was checked. Killed right after, the checkpoint counts as not fetched.

        Raises:
            CheckpointError: It is no checkpoint, or an unsafe archive.
        """
        incoming, files = self.path / "incoming", self.path / "files"
        try:
            if is_archive(received):
                extract_zip(received, incoming)
            else:
                shutil.rmtree(incoming, ignore_errors=True)
                incoming.mkdir()
                received.replace(incoming / received.name)
            checkpoint_format(find_checkpoint(incoming))
            self._manifest.unlink(missing_ok=True)
            shutil.rmtree(files, ignore_errors=True)
            incoming.replace(files)
            placed = self._record(find_checkpoint(files), url)
            shutil.rmtree(self.downloads, ignore_errors=True)
            return placed
        except CheckpointError:
            # It is complete and no checkpoint: fetching it again must not start from it.
            shutil.rmtree(self.downloads, ignore_errors=True)
            raise
        finally:
            shutil.rmtree(incoming, ignore_errors=True)

    def _record(self, checkpoint: Path, url: str) -> Path:
        manifest = Manifest(
            name=self.path.name,
            url=url,
            file=checkpoint.relative_to(self.path).as_posix(),
            sha256=sha256_of(checkpoint),
            size=checkpoint.stat().st_size,
            fetched_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        unfinished = self._manifest.with_name("manifest.json.part")
        unfinished.write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
        unfinished.replace(self._manifest)
        return checkpoint
