"""Devices: what this machine has, and what is said of what it has not."""

from __future__ import annotations

import pytest
import torch

from rayzyme.errors import DeviceUnavailable, InvalidInput
from rayzyme.models.devices import resolve_device


def test_auto_takes_what_is_there_and_cpu_is_always_there() -> None:
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") == (
        "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:3"])
def test_cuda_without_a_gpu_says_what_torch_sees_and_what_to_do(device: str) -> None:
    with pytest.raises(DeviceUnavailable) as failure:
        resolve_device(device)
    assert f"Device '{device}' is not available: torch {torch.__version__}" in str(failure.value)
    assert "sees 0 CUDA device(s) on this machine. Use --device auto or --device cpu." in str(failure.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_beyond_those_there_is_refused() -> None:
    assert resolve_device("cuda:0") == "cuda:0"
    with pytest.raises(DeviceUnavailable, match=f"sees {torch.cuda.device_count()} CUDA device"):
        resolve_device(f"cuda:{torch.cuda.device_count()}")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "CPU", ""])
def test_an_unknown_device_is_refused_with_the_known_ones(device: str) -> None:
    with pytest.raises(InvalidInput, match="is not known; use auto, cpu, cuda, cuda:N or mps"):
        resolve_device(device)
