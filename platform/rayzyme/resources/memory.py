"""Memory that a process may still take, containers' limits respected."""

from __future__ import annotations

from pathlib import Path

import psutil

_CGROUP_V2 = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current"), "inactive_file")
_CGROUP_V1 = (
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
    Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    "total_inactive_file",
)


def available_memory() -> int:
    """Bytes that can be taken before the machine swaps or the container's limit kills: the smaller of the two."""
    free = int(psutil.virtual_memory().available)
    for limit_file, usage_file, reclaimable in (_CGROUP_V2, _CGROUP_V1):
        left = _left_in_cgroup(limit_file, usage_file, reclaimable)
        if left is not None:
            free = min(free, left)
    return free


def _left_in_cgroup(limit_file: Path, usage_file: Path, reclaimable: str) -> int | None:
    """Bytes left below a cgroup's limit; pages of files that the kernel can drop count as free. None without a limit."""
    try:
        limit = limit_file.read_text().strip()
        usage = int(usage_file.read_text())
        statistics = dict(line.split() for line in (limit_file.parent / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if not limit.isdigit():
        return None
    return max(0, int(limit) - usage + int(statistics.get(reclaimable, 0)))
