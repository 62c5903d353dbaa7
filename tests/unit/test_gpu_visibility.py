"""`CUDA_VISIBLE_DEVICES`: what it hides, and how it numbers the rest."""

from __future__ import annotations

import pytest

from rayzyme.resources.devices import Device
from rayzyme.resources.visibility import order_is_certain, visible_devices

WHOLE = [Device(0, "GPU-aa10", "A"), Device(1, "GPU-aa20", "A"), Device(2, "GPU-bb30", "A")]
SPLIT = [
    Device(0, "GPU-aa10", "A"),
    Device(1, "MIG-cc40", "A", parent="GPU-aa20", instance=(1, 0)),
    Device(1, "MIG-dd50", "A", parent="GPU-aa20", instance=(2, 0)),
]


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (None, ["GPU-aa10", "GPU-aa20", "GPU-bb30"]),
        ("", []),
        ("-1", []),
        ("2,0", ["GPU-bb30", "GPU-aa10"]),
        (" 2 , 0 ", ["GPU-bb30", "GPU-aa10"]),
        ("0,2,-1,1", ["GPU-aa10", "GPU-bb30"]),
        ("0,7,1", ["GPU-aa10"]),
        ("0,none,1", ["GPU-aa10"]),
        ("1gpu,2", ["GPU-aa20", "GPU-bb30"]),
        ("0,1,0", []),
        ("GPU-bb30,GPU-aa10", ["GPU-bb30", "GPU-aa10"]),
        ("GPU-bb,GPU-aa1", ["GPU-bb30", "GPU-aa10"]),
        ("GPU-bb30,GPU-aa,GPU-aa10", ["GPU-bb30"]),
        ("GPU-aa10,2", ["GPU-aa10"]),
        ("GPU-aa10,GPU-aa1", []),
        ("GPU-ff,GPU-aa10", []),
    ],
)
def test_only_what_is_listed_is_visible_in_the_order_of_the_list(listed: str | None, expected: list[str]) -> None:
    """C7"""
    visible = visible_devices(WHOLE, listed)
    assert [device.uuid for device in visible.values()] == expected
    assert list(visible) == list(range(len(expected)))


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (None, ["GPU-aa10", "MIG-cc40", "MIG-dd50"]),
        ("MIG-dd50", ["MIG-dd50"]),
        ("MIG-GPU-aa20/2/0", ["MIG-dd50"]),
        ("MIG-GPU-aa20/3/0", []),
        ("1", ["MIG-cc40"]),
        ("0", ["GPU-aa10"]),
    ],
)
def test_instances_are_named_by_their_uuid_or_their_place(listed: str | None, expected: list[str]) -> None:
    """C7 C9"""
    assert [device.uuid for device in visible_devices(SPLIT, listed).values()] == expected


@pytest.mark.parametrize(
    ("names", "environment", "certain"),
    [
        ("AA", {}, True),
        ("AB", {}, False),
        ("AB", {"CUDA_VISIBLE_DEVICES": "1,0"}, False),
        ("AB", {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, False),
        ("AB", {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, True),
        ("AB", {"CUDA_VISIBLE_DEVICES": "GPU-1,GPU-0"}, True),
    ],
)
def test_gpus_of_several_models_are_numbered_alike_only_by_pci_order_or_uuid(
    names: str, environment: dict[str, str], certain: bool
) -> None:
    """C7"""
    devices = [Device(number, f"GPU-{number}", name) for number, name in enumerate(names)]
    assert order_is_certain(devices, environment) is certain
