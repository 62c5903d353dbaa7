"""The pure part of allocation: what is available, who is chosen, what fits together."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayzyme.errors import ResourceError, ValidationError
from rayzyme.resources.allocation import batch_size, choose, explain, gpu_fraction, gpu_resource, offers, still_promised
from rayzyme.resources.devices import Device
from rayzyme.resources.leases import Share
from rayzyme.resources.packing import Request, place_together

LATER = datetime(2030, 1, 1, tzinfo=UTC)


def lease(amount: float, pid: int = 7, device: Device | None = None, token: int = 1, host: str = "here") -> Share:
    resource = gpu_resource(host, device or Device(0, "GPU-0"))
    return Share(token, resource, amount, "ada", "prediction", host, pid, LATER)


def gpu(number: int, free: int, used_by: dict[int, int] | None = None) -> Device:
    return Device(number, f"GPU-{number}", "A100", 40000, free, (8, 0), used_by or {})


@pytest.mark.parametrize(
    ("leases", "used_by", "promised"),
    [
        ([lease(16000)], {}, 16000),
        ([lease(16000)], {7: 10000}, 6000),
        ([lease(16000)], {7: 20000}, 0),
        ([lease(16000)], {8: 10000}, 16000),
        ([lease(10000), lease(6000)], {7: 10000}, 6000),
        ([lease(10000), lease(6000, pid=8)], {7: 12000, 8: 1000}, 5000),
        ([lease(0.5)], {}, 1),
    ],
)
def test_memory_that_a_holder_uses_counts_once(leases: list[Share], used_by: dict[int, int], promised: int) -> None:
    """C14"""
    assert still_promised(leases, used_by) == promised


def test_a_lease_of_16000_of_which_10000_are_in_use_leaves_24000_of_40000() -> None:
    """C14"""
    (offer,) = offers({0: gpu(0, free=30000, used_by={7: 10000})}, [lease(16000)], "here")
    assert offer.available == 24000


def test_leases_weigh_on_their_own_device_of_their_own_host_only() -> None:
    devices = {0: gpu(0, 38000), 1: gpu(1, 38000)}
    leases = [lease(8000, device=devices[1]), lease(9000, device=devices[0], host="elsewhere")]
    assert [offer.available for offer in offers(devices, leases, "here")] == [38000, 30000]


def test_a_reserve_lowers_what_is_available_and_not_what_is_free() -> None:
    """C10"""
    (offer,) = offers({0: gpu(0, 38000)}, [], "here", reserved=1000)
    assert (offer.available, offer.device.memory_free) == (37000, 38000)


@pytest.mark.parametrize(("in_use", "promised"), [(0, 5000), (8000, 5000), (10000, 3000), (13000, 0), (20000, 0)])
def test_of_leases_that_are_left_out_the_use_is_left_out_too(in_use: int, promised: int) -> None:
    """C14 C16"""
    leases = [lease(8000, token=1), lease(5000, token=2), lease(700, pid=8, token=3)]
    (offer,) = offers({0: gpu(0, 30000, used_by={7: in_use})}, leases, "here", without={1})
    assert offer.promised == promised + 700


FREE = {0: gpu(0, 38000), 1: gpu(1, 15000), 2: gpu(2, 40000)}


@pytest.mark.parametrize(
    ("need", "count", "chosen"),
    [(16000, None, [2, 0]), (8000, None, [2, 0, 1]), (15000, None, [2, 0, 1]), (40001, None, []), (8000, 2, [2, 0])],
)
def test_the_freest_come_first(need: int, count: int | None, chosen: list[int]) -> None:
    """C11"""
    assert [offer.index for offer in choose(offers(FREE, [], "here"), need, count)] == chosen


def test_of_equally_free_devices_the_lower_index_comes_first() -> None:
    """C11"""
    offered = offers({number: gpu(number, 9000) for number in (3, 1, 2)}, [], "here")
    assert [offer.index for offer in choose(offered, 1)] == [1, 2, 3]


def test_too_few_devices_are_refused_with_both_figures() -> None:
    """C15"""
    with pytest.raises(ResourceError, match=r"3 GPU.* 16,000 MB .* 2 of 3 .* best offer is 40,000 MB on device 2"):
        choose(offers(FREE, [], "here"), 16000, 3)


def test_every_device_is_explained() -> None:
    """C20"""
    told = explain(offers(FREE, [lease(30000, device=FREE[0])], "here", reserved=500), 16000, single=False)
    assert told == {
        0: "too little: 16,000 MB needed, 7,500 MB available (38,000 MB free of 40,000 - 500 kept in reserve"
        " - 30,000 promised to holders of leases)",
        1: "too little: 16,000 MB needed, 14,500 MB available (15,000 MB free of 40,000 - 500 kept in reserve)",
        2: "chosen: 16,000 MB needed, 39,500 MB available (40,000 MB free of 40,000 - 500 kept in reserve)",
    }
    assert explain(offers(FREE, [], "here"), 16000, single=True)[0].endswith("one is enough and device 2 is freer")
    held = explain(offers(FREE, [], "here"), 16000, single=True, held=[1])
    assert held[1].startswith("held")
    assert held[2].startswith("not needed: device(s) 1 are held")


@pytest.mark.parametrize(
    ("task", "need", "free", "size"),
    [
        ("prediction", 16000, 15999, 1),
        ("prediction", 16000, 16000, 1),
        ("prediction", 16000, 38000, 2),
        ("prediction", 16000, 80000, 4),
        ("dynamics", 8000, 8000, 1),
        ("dynamics", 8000, 24000, 2),
        ("dynamics", 8000, 80000, 8),
        ("other", 8000, 80000, 8),
        ("prediction", 9, 10, 1),
        ("prediction", 9, 20, 2),
        ("prediction", 16000, -5, 1),
    ],
)
def test_a_batch_fills_nine_tenths_for_prediction_and_eight_tenths_for_others(
    task: str, need: int, free: int, size: int
) -> None:
    """C16"""
    assert batch_size(task, free, need) == size


def test_the_fraction_of_a_gpu_is_rounded_up_to_four_decimals() -> None:
    """C19"""
    assert gpu_fraction(12000, 40000) == 0.3
    assert gpu_fraction(1, 3) == 0.3334
    assert gpu_fraction(1, 40000) == 0.0001
    assert gpu_fraction(40000, 40000) == 1.0
    with pytest.raises(ResourceError, match="40,001 MB do not fit on a device of 40,000 MB"):
        gpu_fraction(40001, 40000)
    with pytest.raises(ValidationError, match="need must be at least 1"):
        gpu_fraction(0, 40000)


@given(st.integers(1, 100_000), st.integers(1, 100_000))
def test_fractions_never_promise_more_than_a_device_has(need: int, total: int) -> None:
    """C19"""
    if need <= total:
        fraction = gpu_fraction(need, total)
        assert need / total <= fraction < need / total + 0.0001001
        assert int(1 / fraction) * need <= total


def test_requests_are_placed_that_freest_first_would_strand() -> None:
    """C20"""
    assert place_together([Request(3), Request(3), Request(4), Request(2)], [6, 6]) == [(1,), (1,), (0,), (0,)]
    assert place_together([Request(3), Request(3), Request(3)], [5, 5]) is None
    assert place_together([Request(4, count=2), Request(5)], [9, 4, 3]) == [(0, 1), (0,)]
    assert place_together([Request(4, count=2)], [9]) is None
    assert place_together([], [5]) == []
    assert place_together([Request(1)], []) is None
    assert place_together([Request(1)], [1, -1]) == [(0,)]


def _by_trying_everything(requests: list[Request], free: list[int]) -> bool:
    """Whether some way to place all exists; whole levels of the search tree at once."""
    reached = {tuple(free)}
    for request in requests:
        choices = list(combinations(range(len(free)), request.count))
        reached = {
            tuple(room - request.memory_mb * (device in devices) for device, room in enumerate(left))
            for left, devices in product(reached, choices)
            if all(left[device] >= request.memory_mb for device in devices)
        }
    return bool(reached)


@st.composite
def tight_fits(draw: st.DrawFn) -> tuple[list[Request], list[int]]:
    """Requests that fill up to 4 devices to the last MB, or would but for one MB."""
    contents = draw(st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=3), min_size=1, max_size=4))
    free = [sum(content) for content in contents]
    free[0] -= draw(st.sampled_from([0, 1]))
    free[-1] += draw(st.sampled_from([0, 1, 2]))
    return [Request(need) for need in draw(st.permutations([need for content in contents for need in content]))], free


loose_fits = st.tuples(
    st.lists(st.builds(Request, st.integers(1, 9), st.sampled_from([1, 1, 1, 2])), max_size=12),
    st.lists(st.integers(0, 20), min_size=1, max_size=4),
)


@settings(max_examples=200, deadline=None)
@given(tight_fits() | loose_fits)
def test_whatever_can_be_placed_together_is_placed(waiting: tuple[list[Request], list[int]]) -> None:
    """C20"""
    requests, free = waiting
    placed = place_together(requests, free)
    assert (placed is not None) == _by_trying_everything(requests, free)
    if placed is not None:
        assert [len(set(devices)) for devices in placed] == [request.count for request in requests]
        for device, room in enumerate(free):
            taken = sum(
                request.memory_mb for request, devices in zip(requests, placed, strict=True) if device in devices
            )
            assert taken <= room
