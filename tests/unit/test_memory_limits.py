"""Memory within the limits of control groups: of a process's own group and of all above it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from rayzyme.resources.control_groups import memory_limits
from rayzyme.resources.memory import SystemMemory, available_memory, system_memory

MB = 1 << 20
MOUNTS = {
    "v2": "23 1 0:28 {root} /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
    "v1": "23 1 0:27 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "24 23 0:28 {root} /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
    "25 23 0:29 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "26 23 0:30 {root} /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
}
GROUPS = {"v2": "0::{path}\n", "v1": "5:cpu,cpuacct:/elsewhere\n4:memory:{path}\n0::/elsewhere\n"}
FILES = {
    "v2": ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "v1": ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


@pytest.fixture(params=["v2", "v1"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def join(version: str, tmp_path: Path) -> Callable[..., Path]:
    """Makes a file system in which a process is in a group; its root is given back."""

    def join(path: str, mounted: str = "/") -> Path:
        for name, text in (
            ("cgroup", GROUPS[version].format(path=path)),
            ("mountinfo", MOUNTS[version].format(root=mounted)),
        ):
            file = tmp_path / "proc/self" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return tmp_path

    return join


@pytest.fixture
def limit(version: str, tmp_path: Path) -> Callable[..., None]:
    """Limits a group, which is given as it lies under the mounted folder."""

    def limit(group: str, limit_mb: int | str, usage_mb: int = 0, reclaimable_mb: int = 0) -> None:
        mounted, limit_file, usage_file, reclaimable = FILES[version]
        folder = tmp_path / f".{mounted}/{group}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / limit_file).write_text(f"{limit_mb * MB if isinstance(limit_mb, int) else limit_mb}\n")
        (folder / usage_file).write_text(f"{usage_mb * MB}\n")
        (folder / "memory.stat").write_text(f"anon 5\n{reclaimable} {reclaimable_mb * MB}\n")

    return limit


def test_the_limit_of_a_group_counts_and_pages_that_can_be_dropped_are_available(
    join: Callable[..., Path], limit: Callable[..., None]
) -> None:
    """D69"""
    limit("slurm/job_7/step_0", 300, usage_mb=250, reclaimable_mb=20)
    root = join("/slurm/job_7/step_0")
    assert system_memory(root) == SystemMemory(total=300 * MB, available=70 * MB)
    limit("slurm/job_7/step_0", 300, usage_mb=400)
    assert system_memory(root).available == 0


def test_the_smallest_limit_of_all_groups_above_counts(join: Callable[..., Path], limit: Callable[..., None]) -> None:
    """D69"""
    limit("slurm/job_7/step_0", 300, usage_mb=10)
    limit("slurm/job_7", 200, usage_mb=20)
    limit("slurm", 250, usage_mb=240)
    limit("other/job_8", 1)
    assert system_memory(join("/slurm/job_7/step_0")) == SystemMemory(total=200 * MB, available=10 * MB)


def test_the_limit_of_the_mounted_group_itself_counts(join: Callable[..., Path], limit: Callable[..., None]) -> None:
    """D69"""
    limit("", 100)
    assert system_memory(join("/")).total == 100 * MB


@pytest.mark.parametrize("path", ["/docker/a1/job", "/../b2", "/elsewhere"])
def test_a_container_that_sees_only_its_own_part_of_the_tree_is_limited_by_it(
    path: str, join: Callable[..., Path], limit: Callable[..., None]
) -> None:
    """D69"""
    limit("", 100)
    limit("job", 70)
    assert system_memory(join(path, mounted="/docker/a1")).total == (70 if path.endswith("job") else 100) * MB


def test_a_group_outside_of_what_is_mounted_is_not_looked_for_beside_it(
    join: Callable[..., Path], limit: Callable[..., None]
) -> None:
    """D69"""
    limit("", 100)
    limit("../b2", 1)
    assert system_memory(join("/../b2")).total == 100 * MB


@pytest.mark.parametrize("unlimited", ["max", "9223372036854771712"])
def test_without_a_limit_the_machine_s_memory_counts(
    unlimited: str, join: Callable[..., Path], limit: Callable[..., None]
) -> None:
    """D69"""
    machine = system_memory(join("/nowhere"))
    limit("job", unlimited, usage_mb=5)
    assert system_memory(join("/job")).total == machine.total > 0


def test_a_system_without_control_groups_has_no_limits(tmp_path: Path) -> None:
    assert memory_limits(tmp_path) == []
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/job\nnonsense\n")
    (tmp_path / "proc/self/mountinfo").write_text("nonsense\n")
    assert memory_limits(tmp_path) == []


@pytest.fixture
def limited_group() -> Iterator[Path]:
    """A real group below ours that may take 600 MB."""
    own = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    places = {"memory.max": ("", own.get("")), "memory.limit_in_bytes": ("memory", own.get("memory"))}
    for file, (mounted, path) in places.items():
        group = Path("/sys/fs/cgroup", mounted, (path or "").lstrip("/"), f"rayzyme-{uuid4().hex[:8]}")
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            # Without the memory controller, and in a folder that is no group, there is no such file.
            if (group / file).exists():
                (group / file).write_text(f"{600 * MB}")
                yield group
                return
        finally:
            group.rmdir()
    pytest.skip("cannot make a control group that limits memory (needs root and the memory controller)")


def test_a_process_in_a_real_group_sees_its_limit(limited_group: Path) -> None:
    """D69"""
    code = "from rayzyme.resources.memory import system_memory as seen; print(seen().total, seen().available)"

    def join() -> None:
        (limited_group / "cgroup.procs").write_text(str(os.getpid()))

    done = subprocess.run([sys.executable, "-c", code], preexec_fn=join, capture_output=True, text=True, check=True)
    total, available = map(int, done.stdout.split())
    assert total == 600 * MB < system_memory().total
    assert 300 * MB < available < 600 * MB < available_memory()
