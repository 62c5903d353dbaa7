"""Reading CLIPZyme's published checkpoint format: options and parameters, both checked before anything is computed."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rayzyme.errors import CheckpointError
from rayzyme.models.clipzyme.architecture import Architecture
from rayzyme.models.safe_loading import load_torch_checkpoint

_PREFIX = "model."
_NAMES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Parameters:
    """A checkpoint that has passed every check.

    Attributes:
        architecture: The variant of the network.
        tensors: float32 on the CPU, by name without the leading `model.`; exactly those the architecture asks for.
        digest: SHA-256 of the file's bytes, hexadecimal.
    """

    architecture: Architecture
    tensors: Mapping[str, torch.Tensor]
    digest: str


def read_checkpoint(path: str | Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read a checkpoint without running anything in it.

    Returns:
        The hyper-parameters (`{"args": argparse.Namespace}`) and the state dict (`{"model.<name>": tensor}`) as stored.

    Raises:
        NotFound: There is no such file.
        CheckpointError: The file is truncated, is no checkpoint, asks for anything but tensors, plain containers and
            `argparse.Namespace`, or is not laid out as CLIPZyme's are.
    """
    path = Path(path)
    content = load_torch_checkpoint(path)
    for key in ("hyper_parameters", "state_dict"):
        if not isinstance(content.get(key), Mapping):
            found = ", ".join(map(repr, list(content)[:_NAMES_SHOWN])) or "nothing"
            raise CheckpointError(f"checkpoint {path} is not CLIPZyme's: no {key!r} mapping in it; it holds {found}")
    hyper_parameters, state_dict = dict(content["hyper_parameters"]), dict(content["state_dict"])
    if not isinstance(hyper_parameters.get("args"), argparse.Namespace):
        raise CheckpointError(f"checkpoint {path} is not CLIPZyme's: its hyper_parameters hold no 'args' namespace")
    odd = [name for name, value in state_dict.items() if not isinstance(value, torch.Tensor)]
    if odd:
        raise CheckpointError(f"checkpoint {path}: not tensors: {_listed(odd)}")
    return hyper_parameters, state_dict


def load_parameters(path: str | Path) -> Parameters:
    """Read a checkpoint and check it strictly: every parameter there, none besides, all of the right shape and finite.

    Raises:
        NotFound: There is no such file.
        CheckpointError: As `read_checkpoint`, or the options or parameters do not fit; the message names them.
    """
    path = Path(path)
    hyper_parameters, state_dict = read_checkpoint(path)
    architecture = Architecture.from_options(hyper_parameters["args"], str(path))
    _check_names_and_shapes(architecture, state_dict, path)
    tensors = {name.removeprefix(_PREFIX): value.detach().to(torch.float32) for name, value in state_dict.items()}
    # One pass and no temporary: a sum is finite unless a term is not, at the magnitudes that weights have.
    broken = [name for name, value in tensors.items() if not torch.isfinite(value.sum(dtype=torch.float64))]
    if broken:
        raise CheckpointError(f"checkpoint {path}: parameters hold NaN or infinite values: {_listed(broken)}")
    return Parameters(architecture, tensors, _digest(path))


def _check_names_and_shapes(architecture: Architecture, state_dict: Mapping[str, torch.Tensor], path: Path) -> None:
    expected = {f"{_PREFIX}{name}": shape for name, shape in architecture.parameter_shapes().items()}
    faults = []
    if missing := [name for name in expected if name not in state_dict]:
        faults.append(f"missing parameters: {_listed(missing)}")
    if unexpected := [name for name in state_dict if name not in expected]:
        faults.append(f"unexpected parameters: {_listed(unexpected)}")
    wrong = [
        f"{name} is {tuple(state_dict[name].shape)} instead of {shape}"
        for name, shape in expected.items()
        if shape is not None and name in state_dict and tuple(state_dict[name].shape) != shape
    ]
    if wrong:
        faults.append(f"parameters of another shape than its options say: {_listed(wrong)}")
    if faults:
        raise CheckpointError(f"checkpoint {path}: {'; '.join(faults)}")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
