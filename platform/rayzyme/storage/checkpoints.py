"""Checkpoints of component states: written whole or not at all, newest first, old ones removed, never the last that is valid.

A folder of checkpoints may be shared by threads and processes. What else lies in it is left alone: a checkpoint is a folder
whose sealed metadata agrees with its name.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rayzyme.checks import folder_path, truth_value, whole_number
from rayzyme.errors import CheckpointError, ValidationError
from rayzyme.monitoring.metrics import get_metrics_collector
from rayzyme.storage.checkpoint_folder import (
    METADATA,
    NAME,
    array_files,
    check_folder,
    read_metadata,
    read_states,
    stamps_of,
    unreadable,
    write_metadata,
    write_states,
)
from rayzyme.storage.disk import TEMPORARY_PREFIX, flush_to_disk, remove_leftovers, sole_owner, writing
from rayzyme.storage.values import ArrayBlocks, PackedValue, pack

_STAMP = "%Y%m%d_%H%M%S"
_CORRUPT = "rayzyme_checkpoints_corrupt_total"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    path: Path
    unnumbered_name: str
    timestamp: datetime
    number: int
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Verdict:
    is_valid: bool
    stamps: dict[str, tuple[int, int, int]]


class CheckpointManager:
    """Keeps the states of a pipeline's components in a folder.

    Every large array is stored once, however many checkpoints hold it. Do not edit files of a checkpoint in place: others
    may share them.
    """

    def __init__(
        self,
        base_dir: str | Path,
        max_checkpoints: int = 5,
        auto_cleanup: bool = True,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Take a folder, and remove what writers that died left in it.

        Args:
            base_dir: The folder; made with the first checkpoint.
            max_checkpoints: How many of the newest remain after a create.
            auto_cleanup: Whether older ones are removed then.
            clock: The time now, with its zone.

        Raises:
            ValidationError: An argument is of a wrong type or out of range; names it.
        """
        self._base = folder_path("base_dir", base_dir)
        self._max_checkpoints = whole_number("max_checkpoints", max_checkpoints, at_least=1)
        self._auto_cleanup = truth_value("auto_cleanup", auto_cleanup)
        self._clock = clock
        self._verified: dict[Path, _Verdict] = {}
        self._reported: set[Path] = set()
        try:
            remove_leftovers(self._base)
        except OSError as error:
            logger.warning("cannot remove what a dead writer left in %s: %s", self._base, error)

    def create_checkpoint(self, checkpoint_id: str, component_states: Mapping[str, Any], *, verify: bool = True) -> str:
        """Write a checkpoint, which appears whole or not at all, and remove old ones.

        Args:
            checkpoint_id: A letter or digit, then up to 99 of those and `._-`; several checkpoints may have the same.
            component_states: By component, named like checkpoints: what `rayzyme.storage.values` can hold.
            verify: Whether every file is read back first; if not, it is read before an older checkpoint is removed. What an
                older checkpoint holds already is read in any case.

        Returns:
            Path of the folder `checkpoint_<id>_<YYYYmmdd_HHMMSS>` (UTC), with `_2`, `_3`.. within one second.

        Raises:
            ValidationError: A name is not of that form.
            TypeError: A state holds something that cannot be stored; names its place.
            InsufficientSpace: The disk is full; nothing is left behind.
            CheckpointError: What was read back is not what was given.
        """
        _require_name("checkpoint_id", checkpoint_id)
        states = _packed(component_states)
        needed = sum(
            array.nbytes for packed in states.values() for array in packed.arrays if not isinstance(array, ArrayBlocks)
        )
        with writing(f"checkpoint {checkpoint_id}", self._base, needed):
            self._base.mkdir(parents=True, exist_ok=True)
            with _temporary_folder(self._base) as folder:
                files = write_states(folder, states, self._known_arrays(), verify=verify)
                with sole_owner(self._base / ".checkpoints"):
                    timestamp, path = self._next(checkpoint_id)
                    write_metadata(folder, checkpoint_id, timestamp, states, files)
                    if verify:
                        read_metadata(folder)
                        verdict = _Verdict(True, stamps_of(folder))
                    folder.rename(path)
                    try:
                        flush_to_disk(self._base)
                    except BaseException:
                        path.rename(folder)
                        raise
        get_metrics_collector().increment("rayzyme_checkpoints_total")
        if verify:
            self._verified[path] = verdict
        if self._auto_cleanup:
            try:
                self._remove_old(path if verify else None)
            except OSError as error:
                logger.warning("cannot look for old checkpoints in %s: %s", self._base, error)
        return str(path)

    def load_checkpoint(self, checkpoint_path: str | Path, components: Sequence[str] | None = None) -> dict[str, Any]:
        """The states of all components, or of those named, as they were given.

        Raises:
            FileNotFoundError: There is no such folder.
            CheckpointError: A file in it is missing, torn, was altered or cannot be read; names it.
            NotFound: It has no such component.
            MissingExtra: It holds tensors and PyTorch is not installed.
        """
        folder = Path(checkpoint_path)
        try:
            with _locked(folder, fcntl.LOCK_SH):
                return read_states(folder, components)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not folder.is_dir():
                raise
            get_metrics_collector().increment(_CORRUPT)
            raise unreadable(Path(error.filename or folder), error) from error
        except CheckpointError:
            get_metrics_collector().increment(_CORRUPT)
            raise

    def list_checkpoints(self) -> list[dict[str, Any]]:
        """All checkpoints, newest first: their metadata, `path`, and `valid`.

        `valid` is what this manager found when it last read all files; None if it never did, or if size, time or number of
        a file is another since.
        """
        return [
            {**checkpoint.metadata, "path": str(checkpoint.path), "valid": self._verdict(checkpoint.path)}
            for checkpoint in self._checkpoints()
        ]

    def verify_checkpoint(self, checkpoint_path: str | Path) -> bool:
        """Whether every file is there with the size and SHA-256 it was written with, and no other; the log says what is not."""
        path = Path(checkpoint_path).absolute()
        fault: Exception | None = None
        try:
            with _locked(path, fcntl.LOCK_SH):
                # Before reading, so that a change meanwhile shows.
                stamps = stamps_of(path)
                try:
                    check_folder(path)
                except (CheckpointError, OSError) as error:
                    fault = error
                self._verified[path] = _Verdict(fault is None, stamps)
        except FileNotFoundError:
            logger.warning("there is no checkpoint at %s", path)
            return False
        except OSError as error:
            fault = error
        if fault is not None:
            logger.warning("%s", fault)
            get_metrics_collector().increment(_CORRUPT)
        return fault is None

    def latest(self, checkpoint_id: str | None = None) -> str | None:
        """Path of the newest valid checkpoint, of one id if given; None where there is none."""
        if checkpoint_id is not None:
            _require_name("checkpoint_id", checkpoint_id)
        for checkpoint in self._checkpoints():
            is_asked_for = checkpoint_id in (None, checkpoint.metadata["checkpoint_id"])
            if is_asked_for and self.verify_checkpoint(checkpoint.path):
                return str(checkpoint.path)
        return None

    def _verdict(self, path: Path) -> bool | None:
        verdict = self._verified.get(path)
        with suppress(OSError):
            if verdict is not None and stamps_of(path) == verdict.stamps:
                return verdict.is_valid
        return None

    def _checkpoints(self) -> list[_Checkpoint]:
        found = filter(None, map(self._recognised, self._base.glob("checkpoint_*")))
        return sorted(found, key=lambda checkpoint: (checkpoint.timestamp, checkpoint.number), reverse=True)

    def _recognised(self, path: Path) -> _Checkpoint | None:
        """The checkpoint at a path; None for what is not one, a copy under another name included."""
        try:
            if path.is_symlink() or not (path / METADATA).is_file():
                return None
            metadata = read_metadata(path)
        except (CheckpointError, OSError) as error:
            if path not in self._reported and path.exists():
                self._reported.add(path)
                logger.warning(
                    "%s. Until its %s is whole the checkpoint is neither listed nor ever removed: put that file back from a "
                    "copy, or, if nobody needs the checkpoint, remove %s by hand", error, METADATA, path,
                )  # fmt: skip
            return None
        timestamp = datetime.fromisoformat(metadata["timestamp"])
        name = _folder_name(metadata["checkpoint_id"], timestamp)
        agrees = re.fullmatch(rf"{re.escape(name)}(?:_(\d+))?", path.name)
        return _Checkpoint(path, name, timestamp, int(agrees[1] or 1), metadata) if agrees else None

    def _known_arrays(self) -> dict[str, Path]:
        known: dict[str, Path] = {}
        for checkpoint in reversed(self._checkpoints()):
            known |= array_files(checkpoint.path, checkpoint.metadata)
        return known

    def _next(self, checkpoint_id: str) -> tuple[datetime, Path]:
        """Time and path of a new checkpoint; after all others, even where the clock was set back."""
        others = self._checkpoints()
        timestamp = self._clock().astimezone(UTC)
        if others:
            timestamp = max(timestamp, others[0].timestamp + timedelta(microseconds=1))
        name = _folder_name(checkpoint_id, timestamp)
        # One more than the highest, not the first that is free: the numbers of a second grow though old ones were removed.
        number = 1 + max((other.number for other in others if other.unnumbered_name == name), default=0)
        while os.path.lexists(path := self._base / (name if number == 1 else f"{name}_{number}")):
            number += 1
        return timestamp, path

    def _remove_old(self, verified: Path | None) -> None:
        """Remove all but the newest, and but the newest valid one, whichever that is."""
        checkpoints = self._checkpoints()
        old = checkpoints[self._max_checkpoints :]
        if not old:
            return
        valid = (item for item in checkpoints if item.path == verified or self.verify_checkpoint(item.path))
        newest_valid = next(valid, None)
        for checkpoint in old:
            if checkpoint is not newest_valid:
                self._remove(checkpoint.path)

    def _remove(self, path: Path) -> None:
        doomed = self._base / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        try:
            with _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB):
                # Renamed first, so that a kill in between leaves no half a checkpoint.
                path.rename(doomed)
                shutil.rmtree(doomed)
        except FileNotFoundError:
            logger.debug("another process removed %s", path)
        except BlockingIOError:
            logger.info("%s is being read; a later create removes it", path)
        except OSError as error:
            logger.warning("cannot remove the old checkpoint %s: %s; remove it by hand", path, error)
        else:
            logger.info("removed the old checkpoint %s", path)
            self._verified.pop(path, None)


def _require_name(argument: str, name: object) -> None:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValidationError(f"{argument} must be a letter or digit, then up to 99 of those and '._-', not {name!r}")


def _packed(component_states: Mapping[str, Any]) -> dict[str, PackedValue]:
    if not isinstance(component_states, Mapping):
        raise ValidationError(f"component_states must be a dict of states by component, not {component_states!r}")
    for component in component_states:
        _require_name("the name of a component", component)
    states = {component: pack(state, f"states[{component!r}]") for component, state in component_states.items()}
    for packed in states.values():
        for array, place in zip(packed.arrays, packed.places, strict=True):
            if isinstance(array, ArrayBlocks):
                raise TypeError(f"{place} comes in blocks, which a checkpoint cannot hold; give an array")
    return states


def _folder_name(checkpoint_id: str, timestamp: datetime) -> str:
    return f"checkpoint_{checkpoint_id}_{timestamp.strftime(_STAMP)}"


@contextmanager
def _temporary_folder(parent: Path) -> Iterator[Path]:
    """A folder that its user renames at the end, locked so that `remove_leftovers` sees it is in use; else it is removed."""
    with ExitStack() as held:
        while True:
            folder = parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
            folder.mkdir()
            held.callback(shutil.rmtree, folder, ignore_errors=True)
            # Before the lock is held another process may take the folder for a dead writer's.
            with suppress(FileNotFoundError):
                held.enter_context(_locked(folder, fcntl.LOCK_EX))
                break
        yield folder


@contextmanager
def _locked(folder: Path, operation: int) -> Iterator[None]:
    """Hold a folder against its removal, or against its readers.

    Raises:
        FileNotFoundError: There is none, or it was removed while this waited.
        BlockingIOError: It is in use, and `operation` does not wait.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, operation)
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}")
        yield
    finally:
        os.close(descriptor)
