"""What memory Linux' control groups leave to this process: a container's limit, a SLURM job's, a systemd unit's.

A group is bound by its own limit and by those of all groups above it. The rules are those of the kernel's documents
`cgroup-v2.rst` and `cgroup-v1/memory.rst`; both versions may be mounted at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """A limit in bytes, and what is left below it: pages of files that the kernel can drop count as left."""

    total: int
    available: int


# By version: the files of limit and usage, and the entry of memory.stat with what can be dropped.
_FILES: Final = {
    "cgroup2": ("memory.max", "memory.current", "inactive_file"),
    "cgroup": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def memory_limits(root: Path = Path("/")) -> list[MemoryLimit]:
    """The limits that bind this process; none where there are no groups, or none has a limit.

    Args:
        root: The file system with `proc` and `sys`.
    """
    limits = [_limit(group, *_FILES[version]) for version, group in _groups(root)]
    return [limit for limit in limits if limit is not None]


def _groups(root: Path) -> Iterator[tuple[str, Path]]:
    """(Version, folder) of each group that this process is in, as far up as they are mounted."""
    try:
        own = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return
    paths = {}
    for line in own:
        _number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if path and (not controllers or "memory" in controllers.split(",")):
            paths["cgroup" if controllers else "cgroup2"] = PurePosixPath(path)
    for line in mounts:
        place, _, kind = line.partition(" - ")
        version = kind.partition(" ")[0]
        # Other controllers of version 1 are mounted too; their folders have none of the files.
        if version not in paths:
            continue
        mounted, folder = place.split()[3:5]
        below = paths[version]
        # A container may see only its own part of the tree; what lies outside is known to it by name at most.
        inside = below.relative_to(mounted).parts if below.is_relative_to(mounted) and ".." not in below.parts else ()
        top = root / folder.lstrip("/")
        for depth in range(len(inside), -1, -1):
            yield version, top.joinpath(*inside[:depth])


def _limit(group: Path, limit_file: str, usage_file: str, reclaimable: str) -> MemoryLimit | None:
    try:
        limit = (group / limit_file).read_text().strip()
        usage = int((group / usage_file).read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if not limit.isdigit():
        return None
    return MemoryLimit(int(limit), max(0, int(limit) - usage + int(statistics.get(reclaimable, 0))))
