"""Reading files that others pickled, without running anything they contain.

Two readers: `load_torch_checkpoint` for what `torch.save` wrote, `load_tensor_pickle` for a plain `pickle.dump` of
tensors, arrays and lists (how CLIPZyme publishes its screening set). Both hold to one promise: a file can ask for the
few names listed here, each of which only builds data; a file that asks for anything else is refused with a
`CheckpointError` that says what it asked for, and nothing of it has run.
"""

from __future__ import annotations

import argparse
import io
import pickle
import pickletools
import re
import threading
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Final, NoReturn

import torch

from rayzyme.errors import CheckpointError, NotFound
from rayzyme.models.tensor_pickles import TensorUnpickler, settle

NAMESPACE: Final = "argparse.Namespace"

# What torch.save itself writes. torch's weights-only reader is the second lock behind this one: it would also accept
# whatever other code in this process has passed to `torch.serialization.add_safe_globals`, which a checkpoint
# from the internet must not profit from.
_TENSOR_GLOBALS: Final = re.compile(
    r"""(?:collections\.(?:OrderedDict|Counter)
        |(?:__builtin__|builtins)\.(?:set|bytearray|complex)
        |_codecs\.encode
        |torch\.(?:\w+Storage|Tensor|Size|device|layout|strided|u?int\d+|b?float\d+\w*|complex\d+|bool|half|double|long)
        |torch\.storage\.(?:Untyped|Typed)Storage
        |torch\.serialization\._get_layout
        |torch\.nn\.parameter\.Parameter
        |torch\._utils\._rebuild_(?:tensor|tensor_v2|tensor_v3|parameter|parameter_with_state)
        )""",
    re.VERBOSE,
)

_PICKLES_IN_OLD_FORMAT: Final = 5
_ZIP_MAGIC: Final = b"PK\x03\x04"
_PICKLE_PROTOCOL: Final = b"\x80"
_READ_ERRORS: Final = (
    *(pickle.UnpicklingError, EOFError, RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError),
    *(AssertionError, OverflowError, MemoryError, NotImplementedError, zipfile.BadZipFile, OSError),
)
_safe_globals_lock = threading.Lock()


def load_torch_checkpoint(path: Path | str) -> dict[str, Any]:
    """Read a file that `torch.save` wrote, admitting tensors, plain containers and `argparse.Namespace` only.

    Tensors are memory-mapped from the zip format (private pages: writing to one does not change the file), so a large
    checkpoint costs the memory of the tensors that are used. Mapped tensors are not checked against the zip's CRCs;
    compare the file's SHA-256 for that.

    Args:
        path: The checkpoint; tensors are placed on the CPU whatever device they were saved from.

    Returns:
        The dictionary the file holds.

    Raises:
        NotFound: There is no such file.
        CheckpointError: The file is truncated, corrupt, no checkpoint, or asks for a name outside the list above;
            the message says which and gives the file's size.
    """
    path = Path(path)
    head = _first_bytes(path)
    if not head.startswith((_ZIP_MAGIC, _PICKLE_PROTOCOL)):
        raise CheckpointError(
            f"{path} is not a checkpoint: it starts with {head!r}, neither a zip archive nor a pickle "
            f"({_size(path)}). Expected what torch.save writes; fetch or copy the file again."
        )
    with path.open("rb") as stream:
        _refuse(path, _globals_asked_for(stream, path) - {NAMESPACE})
    content = _read_weights_only(str(path), of=path, allow_namespace=True, mmap=head == _ZIP_MAGIC)
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__} where a checkpoint holds a dictionary ({_size(path)})."
        )
    return content


def load_tensor_pickle(path: Path | str) -> Any:
    """Read a plain pickle made of tensors, numpy arrays and scalars, lists, tuples, dicts, strings and numbers.

    Tensors come back on the CPU, parameters and ordered dicts as plain tensors and dicts. Arrays of Python objects are
    admitted where every element is a string (ids are often kept so); the strings are read under the same rules.

    Args:
        path: A file written by `pickle.dump`, any protocol, by numpy 1 or 2.

    Returns:
        What the file holds, rebuilt from the kinds named above and nothing else.

    Raises:
        NotFound: There is no such file.
        CheckpointError: The file is truncated or corrupt, or asks for any other name, directly or inside the stream of
            a tensor's storage; the message names it, and nothing of the file has run.
    """
    path = Path(path)
    _first_bytes(path)

    def load_storage(data: bytes) -> Any:
        _refuse(path, _globals_asked_for(io.BytesIO(data), path))
        return _read_weights_only(io.BytesIO(data), of=path, allow_namespace=False, mmap=False)

    try:
        with path.open("rb") as stream:
            return settle(TensorUnpickler(stream, path, load_storage).load(), {})
    except _READ_ERRORS as error:
        raise CheckpointError(
            f"{path} cannot be read as a pickle of tensors and lists, it is truncated, corrupt or of another kind "
            f"({_size(path)}): {_reason(error)}. Fetch or copy the file again."
        ) from error


def _globals_asked_for(stream: IO[bytes], path: Path) -> set[str]:
    is_archive = stream.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
    stream.seek(0)
    return _globals_in_archive(stream, path) if is_archive else set(_globals_in_stream(stream))


def _globals_in_archive(stream: IO[bytes], path: Path) -> set[str]:
    try:
        with zipfile.ZipFile(stream) as archive:
            entries = archive.infolist()
            records = [entry for entry in entries if entry.filename.count("/") == 1 and _is_data_record(entry)]
            if any(entry.filename.endswith("/constants.pkl") for entry in entries):
                raise CheckpointError(
                    f"{path} is a TorchScript archive, which holds code, not a checkpoint ({_size(path)}). "
                    "Save the state dict with torch.save."
                )
            if not records:
                names = ", ".join(entry.filename for entry in entries[:5]) or "nothing"
                raise CheckpointError(
                    f"{path} is a zip archive but not a checkpoint: it holds {names} and no data.pkl ({_size(path)}). "
                    "If the checkpoint is inside, unpack the archive first."
                )
            # torch maps the bytes as they lie in the file, so a compressed entry would be read as noise.
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise CheckpointError(f"{path} has compressed entries, which torch.save never writes ({_size(path)}).")
            return {name for record in records for name in _globals_in_stream(io.BytesIO(archive.read(record)))}
    except _READ_ERRORS as error:
        _corrupt(path, error)


def _is_data_record(entry: zipfile.ZipInfo) -> bool:
    return entry.filename.endswith("/data.pkl")


def _globals_in_stream(stream: IO[bytes]) -> Iterator[str]:
    """Every `module.name` that the pickles at the start of a stream would import, in order.

    Older torch files are five pickles and then raw numbers, which must not be taken for opcodes. A stream that ends or
    breaks earlier is left to the reader that follows, which reports what is wrong with it.
    """
    try:
        for _ in range(_PICKLES_IN_OLD_FORMAT):
            yield from _globals_in_pickle(stream)
    except (ValueError, KeyError, IndexError, EOFError, OverflowError, MemoryError):
        return


def _globals_in_pickle(stream: IO[bytes]) -> Iterator[str]:
    # STACK_GLOBAL takes its two names from the stack, so the strings pushed last and the memo are followed.
    pushed: list[str] = []
    memo: dict[int, str] = {}
    for opcode, argument, _ in pickletools.genops(stream):
        match opcode.name:
            case "GLOBAL" | "INST":
                yield str(argument).replace(" ", ".", 1)
            case "STACK_GLOBAL":
                yield ".".join(pushed[-2:])
            case "MEMOIZE":
                memo[len(memo)] = pushed[-1] if pushed else "?"
            case "PUT" | "BINPUT" | "LONG_BINPUT" if isinstance(argument, int):
                memo[argument] = pushed[-1] if pushed else "?"
            case "GET" | "BINGET" | "LONG_BINGET" if isinstance(argument, int):
                pushed = [*pushed[-1:], memo.get(argument, "?")]
            case _ if opcode.stack_after:
                pushed = [*pushed[-1:], argument if isinstance(argument, str) else "?"]
            case _:
                pass


def _refuse(path: Path, asked: Iterable[str]) -> None:
    refused = sorted(name for name in asked if not _TENSOR_GLOBALS.fullmatch(name))
    if refused:
        raise CheckpointError(
            f"{path} asks for {', '.join(refused)}, which no checkpoint needs; it was refused and nothing in it has "
            "run. Reading it could run code that came with the file. If you trust its origin, re-save only the "
            "tensors (torch.save of a state dict) where it was made."
        )


def _read_weights_only(source: str | IO[bytes], *, of: Path, allow_namespace: bool, mmap: bool) -> Any:
    allowed: list[Any] = [argparse.Namespace] if allow_namespace else []
    try:
        # The allowed names are one set for the whole process: two loads in two threads would take the name away from
        # each other, and leaving the context would take it from an owner who had added it before.
        with _safe_globals_lock:
            missing = [kind for kind in allowed if kind not in torch.serialization.get_safe_globals()]
            with torch.serialization.safe_globals(missing):
                return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
    except _READ_ERRORS as error:
        _corrupt(of, error)


def _corrupt(path: Path, error: BaseException) -> NoReturn:
    raise CheckpointError(
        f"{path} is truncated or corrupt ({_size(path)}): {_reason(error)}. Fetch or copy the file again."
    ) from error


def _first_bytes(path: Path) -> bytes:
    if not path.is_file():
        raise NotFound(f"There is no file at {path}{', it is a directory' if path.is_dir() else ''}.")
    with path.open("rb") as stream:
        head = stream.read(4)
    if not head:
        raise CheckpointError(f"{path} is empty (0 bytes). Fetch or copy the file again.")
    return head


def _size(path: Path) -> str:
    return f"{path.stat().st_size:,} bytes"


def _reason(error: BaseException) -> str:
    # torch puts the cause after a paragraph of advice on switching its protection off.
    message = str(error).rpartition("WeightsUnpickler error: ")[2]
    first_line = message.strip().split("\n", 1)[0].rstrip(".")
    return first_line or type(error).__name__
