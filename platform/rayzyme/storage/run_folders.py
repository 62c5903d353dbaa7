"""The folders of jobs: what their tasks wrote and printed, in `$RAYZYME_HOME/runs/JOB`. Here is how they go with their jobs.

A folder takes time to remove, and must stay where the job stays. So it is put aside by a rename, inside of the transaction that
removes the job's rows, and removed once that is committed. What a process that died had put aside goes the next time.
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rayzyme.storage.disk import flush_to_disk

_ASIDE = ".removed"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Space:
    """What folders take.

    Attributes:
        folders: How many there are.
        bytes: Of all their files.
    """

    folders: int = 0
    bytes: int = 0


class RunFolders:
    """The folders of jobs in one folder; those of jobs that wrote nothing are absent."""

    def __init__(self, runs: Path) -> None:
        self._runs, self._aside = runs, runs / _ASIDE

    def space(self, job_ids: Iterable[str]) -> Space:
        """What the folders of jobs take."""
        return _space(folder for job_id in job_ids if (folder := self._runs / job_id).is_dir())

    @contextmanager
    def putting_aside(self) -> Iterator[Callable[[Iterable[str]], None]]:
        """Gives a function that puts folders of jobs aside; where the block fails, they are put back.

        Raises:
            OSError: One cannot be moved.
        """
        moved: dict[Path, Path] = {}

        def put_aside(job_ids: Iterable[str]) -> None:
            for job_id in job_ids:
                folder = self._runs / job_id
                if folder.is_dir():
                    self._aside.mkdir(exist_ok=True)
                    # A name that nothing has which was left by a process that died.
                    moved[folder] = folder.rename(self._aside / f"{job_id}.{uuid.uuid4().hex}")
            if moved:
                # What is not seen to have moved after a power cut would never go.
                flush_to_disk(self._aside)

        try:
            yield put_aside
        except BaseException:
            for folder, aside in moved.items():
                aside.rename(folder)
            raise

    def remove(self) -> Space:
        """Remove what was put aside; a warning names what cannot be removed, which is tried again the next time.

        Returns:
            What is gone.
        """
        found = sorted(self._aside.iterdir()) if self._aside.is_dir() else []
        before = {folder: _space([folder]) for folder in found}
        for folder in found:
            shutil.rmtree(folder, onerror=_tell)
        gone = [space for folder, space in before.items() if not folder.exists()]
        return Space(len(gone), sum(space.bytes for space in gone))


def _space(folders: Iterable[Path]) -> Space:
    folders = list(folders)
    sizes = [
        (Path(place) / name).lstat().st_size
        for folder in folders
        for place, _, names in os.walk(folder)
        for name in names
    ]
    return Space(len(folders), sum(sizes))


def _tell(_: object, path: str, fault: tuple[type[BaseException], BaseException, object]) -> None:
    logger.warning("%s of a job that is gone could not be removed: %s", path, fault[1])
