"""Who gets which GPU: devices, leases and a need in, a choice out. Pure; all memory in MB of 2^20 bytes."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from rayzyme.checks import whole_number
from rayzyme.errors import ResourceError
from rayzyme.resources.devices import Device
from rayzyme.resources.ledger import Share

# What a batch may fill of the free memory: a simulation's use swells more between steps than a prediction's.
_BATCH_SHARE: Final[Mapping[str, Fraction]] = {"prediction": Fraction(9, 10)}
_USUAL_BATCH_SHARE: Final = Fraction(8, 10)


@dataclass(frozen=True, slots=True)
class Offer:
    """What one device has to give.

    Attributes:
        index: The device's index in this process.
        device: As the driver tells of it.
        reserved: MB that are never given out.
        promised: MB that lease holders may still take.
    """

    index: int
    device: Device
    reserved: int = 0
    promised: int = 0

    @property
    def available(self) -> int:
        """MB that can be promised; negative where others took what was promised or reserved."""
        return self.device.memory_free - self.reserved - self.promised


def gpu_resource(host: str, device: Device) -> str:
    """Name of a device in the ledger."""
    return f"gpu:{host}:{device.uuid}"


def still_promised(leases: Iterable[Share], used_by: Mapping[int, int]) -> int:
    """MB that holders of leases on one resource may still take: what a process already uses is no longer free anyhow.

    Args:
        leases: All on the same resource.
        used_by: MB that each process uses of it now. One that is not named here uses nothing.
    """
    leased: dict[int, float] = {}
    for lease in leases:
        leased[lease.pid] = leased.get(lease.pid, 0) + lease.amount
    return sum(max(0, math.ceil(amount) - used_by.get(pid, 0)) for pid, amount in leased.items())


def offers(
    devices: Mapping[int, Device],
    leases: Sequence[Share],
    host: str,
    *,
    reserved: int = 0,
    without: Collection[int] = (),
) -> list[Offer]:
    """What each device has to give.

    Args:
        devices: By index.
        leases: Live ones, of any resource.
        host: This machine's name in the ledger.
        reserved: MB to leave free on each device.
        without: Tokens of leases that shall not count.
    """
    by_resource: dict[str, list[Share]] = {}
    for lease in leases:
        if lease.token not in without:
            by_resource.setdefault(lease.resource, []).append(lease)
    return [
        Offer(index, device, reserved, still_promised(by_resource.get(gpu_resource(host, device), ()), device.used_by))
        for index, device in devices.items()
    ]


def choose(offered: Iterable[Offer], need: int, count: int | None = None) -> list[Offer]:
    """The devices with at least `need` MB available, freest first, ties by index.

    Args:
        offered: One per device.
        need: MB on each.
        count: How many; None takes all.

    Raises:
        ResourceError: Fewer than `count` have that much.
    """
    freest_first = sorted(offered, key=lambda offer: (-offer.available, offer.index))
    fitting = [offer for offer in freest_first if offer.available >= need]
    if count is not None and len(fitting) < count:
        raise ResourceError(
            f"{count} GPU(s) with {need:,} MB available are needed, and {len(fitting)} of {len(freest_first)} have that "
            f"much; {best_offer(freest_first)}. Wait for a release, or ask for fewer devices or less memory"
        )
    return fitting[:count]


def best_offer(offered: Iterable[Offer]) -> str:
    """The most that any one device has to give, in words."""
    best = max(offered, key=lambda offer: (offer.available, -offer.index), default=None)
    if best is None:
        return "there is no GPU"
    return f"the best offer is {max(0, best.available):,} MB on device {best.index}"


def explain(offered: Sequence[Offer], need: int, *, single: bool, held: Collection[int] = ()) -> dict[int, str]:
    """Why each device would be chosen for a need, or why not.

    Args:
        offered: One per device.
        need: MB.
        single: Whether only the first is taken.
        held: Indices that are held for this need already.

    Returns:
        A sentence by index.
    """
    chosen = choose(offered, need)
    told: dict[int, str] = {}
    for offer in offered:
        if offer.index in held:
            told[offer.index] = f"held: {need:,} MB are leased by this process"
        elif held:
            told[offer.index] = f"not needed: device(s) {', '.join(map(str, held))} are held; release them first"
        elif offer not in chosen:
            told[offer.index] = f"too little: {need:,} MB needed, {_available(offer)}"
        elif single and offer is not chosen[0]:
            told[offer.index] = f"fits ({_available(offer)}), but one is enough and device {chosen[0].index} is freer"
        else:
            told[offer.index] = f"chosen: {need:,} MB needed, {_available(offer)}"
    return told


def _available(offer: Offer) -> str:
    takers = {"kept in reserve": offer.reserved, "promised to holders of leases": offer.promised}
    less = "".join(f" - {amount:,} {why}" for why, amount in takers.items() if amount)
    free = f"{offer.device.memory_free:,} MB free of {offer.device.memory_total:,}"
    return f"{max(0, offer.available):,} MB available ({free}{less})"


def batch_size(task: str, free: int, need: int) -> int:
    """Items that `free` MB hold at `need` MB each, with room for what grows; at least 1."""
    return max(1, int(free * _BATCH_SHARE.get(task, _USUAL_BATCH_SHARE) / need))


def gpu_fraction(need: int, total: int) -> float:
    """The share of a device that a need is, rounded up to 4 decimals: what to ask Ray for.

    Args:
        need: MB.
        total: MB of the device.

    Raises:
        ResourceError: The device is smaller than the need.
        ValidationError: A figure is not a whole number above 0.
    """
    need, total = whole_number("need", need, at_least=1), whole_number("total", total, at_least=1)
    if need > total:
        raise ResourceError(f"{need:,} MB do not fit on a device of {total:,} MB; use a larger device")
    return -(-need * 10_000 // total) / 10_000
