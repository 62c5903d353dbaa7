"""What `CUDA_VISIBLE_DEVICES` leaves of a machine's GPUs, and under which number a framework in this process finds each.

The rules are those of CUDA's programming guide: numbers, or (beginnings of) UUIDs; the first entry that names nothing ends
the list; an entry given twice hides everything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rayzyme.resources.devices import Device

_NUMBER = re.compile(r"\s*([+-]?\d+)")
_UUID_KINDS = ("GPU-", "MIG-")


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
