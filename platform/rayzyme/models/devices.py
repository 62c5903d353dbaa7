"""Where a model computes: turns what the user asked for into a device that this machine has, or says why not."""

from __future__ import annotations

import re

from rayzyme.errors import DeviceUnavailable, InvalidInput

_KNOWN = re.compile(r"auto|cpu|mps|cuda(?::(?P<index>\d+))?")


def resolve_device(device: str = "auto") -> str:
    """Pick the device that torch is to use.

    Args:
        device: "cpu", "cuda", "cuda:N", "mps", or "auto" for a GPU where there is one.

    Returns:
        A name that `torch.device` accepts, never "auto".

    Raises:
        DeviceUnavailable: This machine has no such device; the message says what torch sees.
        InvalidInput: It is none of the names above.
    """
    asked = _KNOWN.fullmatch(device)
    if asked is None:
        raise InvalidInput(f"Device {device!r} is not known; use auto, cpu, cuda, cuda:N or mps.")

    import torch  # loading torch takes seconds, and a misspelt device needs none of it

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    has_mps = torch.backends.mps.is_available()
    if device == "auto":
        # Never mps by itself: the exact search computes in float64, which Metal does not have.
        return "cuda" if gpus else "cpu"
    missing = (device.startswith("cuda") and int(asked["index"] or 0) >= gpus) or (device == "mps" and not has_mps)
    if missing:
        found = f"{gpus} CUDA device(s){', MPS' if has_mps else ''}"
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        raise DeviceUnavailable(
            f"Device {device!r} is not available: torch {torch.__version__} (built with {build}) sees {found} on this "
            "machine. Use --device auto or --device cpu."
        )
    return device
