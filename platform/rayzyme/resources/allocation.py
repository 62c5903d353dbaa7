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
from rayzyme.resources.leases import Share, Wants
from rayzyme.resources.packing import Request, place_together

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


def resources_of(devices: Mapping[int, Device], host: str) -> list[str]:
    """Names of devices in the ledger, in their order."""
    return [gpu_resource(host, device) for device in devices.values()]


def indices_of(shares: Iterable[Share], devices: Mapping[int, Device], host: str) -> list[int]:
    """Indices of leased devices, without those that are not among `devices`."""
    index_of = dict(zip(resources_of(devices, host), devices, strict=True))
    return [index_of[share.resource] for share in shares if share.resource in index_of]


def wants(chosen: Iterable[Offer], need: int, host: str) -> Wants:
    """What to take from the ledger, to have `need` MB on each of some devices."""
    return [(gpu_resource(host, offer.device), need) for offer in chosen]


def require_as_asked(shares: Sequence[Share], usable: Sequence[int], count: int | None, need: int) -> None:
    """Check that what is held for a task, on devices of which some are usable now, is what is asked for.

    Raises:
        ResourceError: It is less, or on another number of devices than `count`, if that is given.
    """
    if any(share.amount < need for share in shares) or (count is not None and len(usable) != count):
        amounts = ", ".join(f"{share.amount:,.0f}" for share in shares)
        raise ResourceError(
            f"{count or len(shares)} GPU(s) with {need:,} MB are asked for {shares[0].purpose!r}, which this process holds on "
            f"{len(usable)} usable GPU(s) with {amounts} MB; call release_gpus first"
        )


def still_promised(leases: Iterable[Share], used_by: Mapping[int, int], without: Collection[int] = ()) -> int:
    """MB that holders of leases on one resource may still take: what a process already uses is no longer free anyhow.

    Args:
        leases: All on the same resource.
        used_by: MB that each process uses of it now. One that is not named here uses nothing.
        without: Tokens of leases that shall not count. What their process uses is taken to be theirs first.
    """
    counted: dict[int, float] = {}
    left_out: dict[int, float] = {}
    for lease in leases:
        amounts = left_out if lease.token in without else counted
        amounts[lease.pid] = amounts.get(lease.pid, 0) + lease.amount
    unexplained = {pid: max(0, used - math.floor(left_out.get(pid, 0))) for pid, used in used_by.items()}
    return sum(max(0, math.ceil(amount) - unexplained.get(pid, 0)) for pid, amount in counted.items())


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
        without: Tokens of leases that shall not count; see `still_promised`.
    """
    by_resource: dict[str, list[Share]] = {}
    for lease in leases:
        by_resource.setdefault(lease.resource, []).append(lease)
    promised = {
        index: still_promised(by_resource.get(gpu_resource(host, device), ()), device.used_by, without)
        for index, device in devices.items()
    }
    return [Offer(index, device, reserved, promised[index]) for index, device in devices.items()]


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


def choose_together(offered: Sequence[Offer], wishes: Mapping[str, Request]) -> dict[str, list[Offer]]:
    """Devices for several tasks at once, such that all fit; see `place_together`.

    Args:
        offered: One per device.
        wishes: By task.

    Raises:
        ResourceError: No placement of all of them exists.
    """
    places = place_together(list(wishes.values()), [offer.available for offer in offered])
    if places is None:
        asked = ", ".join(f"{task} ({wish.count} x {wish.memory_mb:,} MB)" for task, wish in wishes.items())
        given = ", ".join(f"device {offer.index} has {max(0, offer.available):,} MB" for offer in offered)
        raise ResourceError(
            f"{asked} cannot be placed together: {given + ' available' if given else 'this process has no GPU'}. Wait for a "
            "release, or ask for fewer devices or less memory"
        )
    return {task: [offered[number] for number in place] for task, place in zip(wishes, places, strict=True)}


def best_offer(offered: Iterable[Offer]) -> str:
    """The most that any one device has to give, in words."""
    best = max(offered, key=lambda offer: (offer.available, -offer.index), default=None)
    if best is None:
        return "this process has none"
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
