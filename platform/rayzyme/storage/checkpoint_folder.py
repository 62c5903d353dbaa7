"""A checkpoint's folder: how component states lie in it, and how every byte of it is checked.

`metadata.json` lists every other file with its size and SHA-256, and carries a digest of itself. A component has a folder with
`state.bundle`, its values and small arrays, and a file `<SHA-256>.npy` per large array, which any NumPy can open. A large
array that an earlier checkpoint holds is linked, not written again: the file system's link counts know its last owner.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayzyme import __version__
from rayzyme.errors import CheckpointError, DamagedFile, NotFound
from rayzyme.storage.bundle import Bundle, write_bundle
from rayzyme.storage.disk import flush_to_disk
from rayzyme.storage.values import ArrayBlocks, PackedValue, unpack

AnyArray = NDArray[Any]

METADATA = "metadata.json"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What components and checkpoints may be called."""

_STATE = "state.bundle"
_ARRAY_SUFFIX = ".npy"
_FILE = re.compile(rf"_?{NAME.pattern}/(?:{re.escape(_STATE)}|[0-9a-f]{{64}}{re.escape(_ARRAY_SUFFIX)})")
_LARGE_ARRAY_BYTES = 1 << 16
_FORMAT_VERSION = 1
# More than the cores of a small machine: a thread that waits for the disk leaves its core to one that computes a digest.
_THREADS = 4

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file as it should be: its bytes, and their SHA-256 in hexadecimal."""

    size: int
    digest: str


def write_states(
    folder: Path, states: Mapping[str, PackedValue], known_arrays: Mapping[str, Path], *, verify: bool
) -> dict[str, WrittenFile]:
    """Write all components' files, and have them on the disk.

    Args:
        folder: Empty.
        states: By component.
        known_arrays: Array files of other checkpoints by digest; they may be gone, or damaged.
        verify: Whether every file is read back; those that are linked always are.

    Returns:
        What was written, by path relative to `folder`.

    Raises:
        CheckpointError: What was read back is not what was given.
    """
    with _threads() as threads:
        array_files = _ArrayFiles(known_arrays, verify)
        apart: dict[str, dict[int, Future[WrittenFile]]] = {}
        for component, packed in states.items():
            place = folder / _folder_name(component)
            place.mkdir()
            apart[component] = {
                number: threads.submit(array_files.put, header, array, place)
                for number, array in enumerate(packed.arrays)
                if isinstance(array, np.ndarray)
                and array.nbytes >= _LARGE_ARRAY_BYTES
                and (header := _npy_header(array)) is not None
            }
        files: dict[str, WrittenFile] = {}
        for component, packed in states.items():
            place = folder / _folder_name(component)
            arrays = {number: future.result() for number, future in apart[component].items()}
            files[f"{place.name}/{_STATE}"] = _write_state(place / _STATE, packed, arrays, verify)
            files |= {f"{place.name}/{array.digest}{_ARRAY_SUFFIX}": array for array in arrays.values()}
            flush_to_disk(place)
    return files


def write_metadata(
    folder: Path, checkpoint_id: str, timestamp: datetime, components: Iterable[str], files: Mapping[str, WrittenFile]
) -> None:
    """Make the folder a checkpoint, and have it on the disk."""
    content = _sealed(
        {
            "checkpoint_id": checkpoint_id,
            "timestamp": timestamp.isoformat(timespec="microseconds"),
            "components": list(components),
            "sizes": {path: file.size for path, file in files.items()},
            "digests": {path: file.digest for path, file in files.items()},
            "rayzyme_version": __version__,
            "format": {"version": _FORMAT_VERSION},
        }
    )
    _write_synced(folder / METADATA, content)
    flush_to_disk(folder)


def read_metadata(folder: Path) -> dict[str, Any]:
    """What `write_metadata` wrote.

    Raises:
        CheckpointError: It is missing, was altered, or was written by a later Rayzyme; names the file.
    """
    path = folder / METADATA
    try:
        content = path.read_bytes()
        metadata: Any = json.loads(content)
        # Equal bytes, not only an equal document: JSON has many spellings of one value.
        intact = content == _sealed({**metadata, "format": {"version": metadata["format"]["version"]}})
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; give the folder of a checkpoint") from None
    except OSError as error:
        raise unreadable(path, error) from error
    except (KeyError, TypeError, ValueError, RecursionError):
        intact = False
    if not intact:
        raise _damaged(path)
    if metadata["format"]["version"] != _FORMAT_VERSION:
        raise CheckpointError(
            f"{path} is of format {metadata['format']['version']}, this Rayzyme reads {_FORMAT_VERSION}; update Rayzyme"
        )
    if not all(map(_FILE.fullmatch, metadata["digests"])):
        raise _damaged(path)
    return dict(metadata)


def array_files(folder: Path, metadata: Mapping[str, Any]) -> dict[str, Path]:
    """A checkpoint's large arrays by digest."""
    return {digest: folder / path for path, digest in metadata["digests"].items() if path.endswith(_ARRAY_SUFFIX)}


def read_states(folder: Path, components: Iterable[str] | None = None) -> dict[str, Any]:
    """The states of all components, or of some; each byte that is read is checked. Arrays are in memory and may be changed.

    Raises:
        CheckpointError: A file is missing, torn or was altered; names it.
        NotFound: The checkpoint has no such component.
    """
    metadata = read_metadata(folder)
    known: list[str] = metadata["components"]
    wanted = known if components is None else list(components)
    if unknown := [name for name in wanted if name not in known]:
        raise NotFound(f"{folder} has no component {unknown[0]!r}; it has {', '.join(known) or 'none'}")
    with _threads() as threads, ExitStack() as opened:
        readers = {component: _StateReader(folder / _folder_name(component), metadata, threads) for component in wanted}
        for reader in readers.values():
            opened.callback(reader.close)
        return {component: reader.read() for component, reader in readers.items()}


def check_folder(folder: Path) -> None:
    """Check every byte.

    Raises:
        CheckpointError: A file is missing, torn, was altered, or does not belong there; names it.
    """
    metadata = read_metadata(folder)
    digests: dict[str, str] = metadata["digests"]
    found = {path.relative_to(folder).as_posix(): path.lstat() for path in folder.rglob("*")}
    expected = {METADATA, *digests, *map(_folder_name, metadata["components"])}
    for path in sorted(found.keys() - expected):
        raise CheckpointError(f"{folder / path} does not belong to the checkpoint; move it elsewhere")
    for path in sorted(expected - found.keys()):
        raise CheckpointError(f"{folder / path} is missing; use another checkpoint")
    for path, size in metadata["sizes"].items():
        if not stat.S_ISREG(found[path].st_mode) or found[path].st_size != size:
            raise _damaged(folder / path)
    with _threads() as threads:
        for _ in threads.map(lambda path: _check_file(folder / path, digests[path]), digests):
            pass


def stamps_of(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Size, time of change and number of all that is in the folder, by path: they tell whether it was touched since."""
    found = ((path.relative_to(folder).as_posix(), path.lstat()) for path in folder.rglob("*"))
    # Not the time of the last change of the file's status: linking it for another checkpoint changes that one.
    return {path: (status.st_size, status.st_mtime_ns, status.st_ino) for path, status in found}


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """What to say of a file or folder that the system refuses to read."""
    return CheckpointError(f"{path} cannot be read ({error.strerror or error}); use another checkpoint")


class _ArrayFiles:
    """Writes large arrays, each content once."""

    def __init__(self, known: Mapping[str, Path], verify: bool) -> None:
        self._known = dict(known)
        self._verify = verify
        self._locks: dict[str, threading.Lock] = {}

    def put(self, header: bytes, array: AnyArray, place: Path) -> WrittenFile:
        content = _content(array)
        hasher = hashlib.sha256(header)
        hasher.update(content)
        file = WrittenFile(len(header) + len(content), hasher.hexdigest())
        path = place / f"{file.digest}{_ARRAY_SUFFIX}"
        with self._locks.setdefault(file.digest, threading.Lock()):
            if not path.exists() and not self._link(path, file):
                _write_synced(path, header, content)
                if self._verify:
                    _check_written(path, file.digest)
                self._known[file.digest] = path
        return file

    def _link(self, path: Path, file: WrittenFile) -> bool:
        source = self._known.get(file.digest)
        if source is None:
            return False
        try:
            path.hardlink_to(source)
            # The good bytes are at hand, so a damaged file is never taken over.
            if _digest(path) == file.digest:
                return True
            logger.warning("%s was altered since it was written; the array is written afresh", source)
        except OSError as error:
            # Its checkpoint was removed meanwhile, or the file system has no links, or no more of them.
            logger.debug("cannot link %s, writing it: %s", source, error)
        path.unlink(missing_ok=True)
        return False


class _StateReader:
    """Reads one component; large arrays are on their way as soon as it is made."""

    def __init__(self, place: Path, metadata: Mapping[str, Any], threads: ThreadPoolExecutor) -> None:
        path = place / _STATE
        _check_file(path, metadata["digests"].get(f"{place.name}/{_STATE}", ""))
        try:
            self._bundle = Bundle.open(path)
        except DamagedFile as error:
            raise CheckpointError(str(error)) from error
        self._apart = {
            int(number): threads.submit(_read_array, place / f"{digest}{_ARRAY_SUFFIX}", digest)
            for number, digest in self._bundle.attributes["apart"].items()
        }

    def read(self) -> Any:
        return unpack(self._bundle.document, self._array)

    def close(self) -> None:
        self._bundle.close()

    def _array(self, number: int) -> AnyArray:
        if number in self._apart:
            return self._apart[number].result()
        # A map of the file could not be written to, and would keep the checkpoint open.
        return np.array(self._bundle.array(number))


@contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    threads = ThreadPoolExecutor(_THREADS, "checkpoint")
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)


def _folder_name(component: str) -> str:
    """The component's own name, but for the one that is taken; no component's name begins with an underscore."""
    return f"_{component}" if component == METADATA else component


def _sealed(metadata: Mapping[str, Any]) -> bytes:
    """The bytes of `metadata.json`, with their own digest added under `format`."""
    digest = hashlib.sha256(_rendered(metadata)).hexdigest()
    return _rendered({**metadata, "format": {**metadata["format"], "metadata_sha256": digest}})


def _rendered(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=1) + "\n").encode()


def _write_state(path: Path, packed: PackedValue, apart: Mapping[int, WrittenFile], verify: bool) -> WrittenFile:
    nothing = np.empty(0, np.uint8)
    inside: list[AnyArray | ArrayBlocks] = [
        nothing if number in apart else array for number, array in enumerate(packed.arrays)
    ]
    sink = io.BytesIO()
    write_bundle(
        sink,
        PackedValue(packed.document, inside, packed.places),
        attributes={"apart": {str(number): file.digest for number, file in apart.items()}},
    )
    content = sink.getbuffer()
    digest = hashlib.sha256(content).hexdigest()
    _write_synced(path, content)
    if verify:
        _check_written(path, digest)
    return WrittenFile(len(content), digest)


def _npy_header(array: AnyArray) -> bytes | None:
    """The head of its file in NumPy's format 1.0, or None where that format cannot say what the array is."""
    header = io.BytesIO()
    try:
        np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    except ValueError:
        return None
    return header.getvalue()


def _content(array: AnyArray) -> memoryview:
    """The array's bytes in the order that its header says; copied only where they do not lie together."""
    in_c_order = array if array.flags.c_contiguous or not array.flags.f_contiguous else array.T
    return np.ascontiguousarray(in_c_order).reshape(-1).view(np.uint8).data


def _write_synced(path: Path, *contents: bytes | memoryview) -> None:
    with path.open("xb") as sink:
        for content in contents:
            sink.write(content)
        sink.flush()
        os.fsync(sink.fileno())


def _read_array(path: Path, digest: str) -> AnyArray:
    _check_file(path, digest)
    # Its digest holds, so its head may be as long as it likes.
    array: AnyArray = np.load(path, allow_pickle=False, max_header_size=path.stat().st_size)
    return array


def _check_file(path: Path, digest: str) -> None:
    try:
        if _digest(path) == digest:
            return
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; use another checkpoint") from None
    except OSError as error:
        raise unreadable(path, error) from error
    raise _damaged(path)


def _check_written(path: Path, digest: str) -> None:
    if _digest(path) != digest:
        raise CheckpointError(
            f"what was read back from {path.name} is not what was to be written; either another thread changed the state "
            "meanwhile (give a copy), or the disk is failing"
        )


def _digest(path: Path) -> str:
    with path.open("rb", buffering=0) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} is torn or was altered; use another checkpoint")
