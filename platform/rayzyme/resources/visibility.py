"""What `CUDA_VISIBLE_DEVICES` leaves of a machine's GPUs, and under which number a framework in this process finds each.

The rules are those of CUDA's programming guide: numbers, or (beginnings of) UUIDs; the first entry that names nothing ends
the list; an entry given twice hides everything.

Only `list_visible` asks anybody; the rest is pure.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Mapping, Sequence

from rayzyme.resources.devices import Device, GpuProvider

logger = logging.getLogger(__name__)

_NUMBER = re.compile(r"\s*([+-]?\d+)")
_UUID_KINDS = ("GPU-", "MIG-")


def list_visible(provider: GpuProvider) -> dict[int, Device]:
    """The devices of a provider that this process may use now, faulty ones included, by the index that a framework would use.

    None where the provider fails; a warning says so. That there is no device, or that frameworks may number them
    otherwise, is warned about once per process.
    """
    try:
        devices = provider.devices()
    # A provider may be anybody's code, and without GPUs there is always something that can go on.
    except Exception as error:
        logger.warning("GPUs cannot be listed, so none is used: %s", error)
        return {}
    visible = visible_devices(devices, os.environ.get("CUDA_VISIBLE_DEVICES"))
    if not visible:
        _warn_once("there is no GPU that this process may use; what needs one runs on the CPU, or not at all")
    elif not order_is_certain(devices, os.environ):
        _warn_once(
            "the GPUs differ in model, and frameworks may number them otherwise than here; set "
            "CUDA_DEVICE_ORDER=PCI_BUS_ID, or list UUIDs in CUDA_VISIBLE_DEVICES"
        )
    return visible


def visible_devices(devices: Sequence[Device], listed: str | None) -> dict[int, Device]:
    """The devices that this process may use, by the index that a framework would use.

    Args:
        devices: Those of the machine, in the driver's order.
        listed: The value of `CUDA_VISIBLE_DEVICES`; None where it is not set, and then all are visible.
    """
    if listed is None:
        return dict(enumerate(devices))
    kind = next((prefix for prefix in _UUID_KINDS if listed.startswith(prefix)), None)
    seen: list[Device] = []
    for entry in listed.split(","):
        device = _numbered(devices, entry) if kind is None else _named(devices, entry.strip(), kind)
        if device is None:
            break
        if device in seen:
            return {}
        seen.append(device)
    return dict(enumerate(seen))


def order_is_certain(devices: Sequence[Device], environment: Mapping[str, str]) -> bool:
    """Whether CUDA counts the devices as the driver lists them: it puts the fastest first unless it is told otherwise."""
    by_uuid = environment.get("CUDA_VISIBLE_DEVICES", "").startswith(_UUID_KINDS)
    alike = len({device.name for device in devices if not device.fault}) <= 1
    return alike or by_uuid or environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"


def _numbered(devices: Sequence[Device], entry: str) -> Device | None:
    """The GPU of a number; of a GPU in MIG mode the first instance, which is the one that CUDA takes."""
    number = _NUMBER.match(entry)
    return number and next((device for device in devices if device.gpu == int(number[1])), None)


def _named(devices: Sequence[Device], entry: str, kind: str) -> Device | None:
    if not entry.startswith(kind):
        return None
    found = [device for device in devices if device.uuid.startswith(entry) or entry == _long_name(device)]
    return found[0] if len(found) == 1 else None


def _long_name(device: Device) -> str | None:
    """`MIG-<UUID of the GPU>/<GPU instance>/<compute instance>`, the older way to name an instance."""
    return device.instance and f"MIG-{device.parent}/{device.instance[0]}/{device.instance[1]}"


_warned: set[str] = set()
_warning = threading.Lock()


def _warn_once(message: str) -> None:
    with _warning:
        if message in _warned:
            return
        _warned.add(message)
    logger.warning(message)
