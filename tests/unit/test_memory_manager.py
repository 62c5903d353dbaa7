"""Memory: what may be taken, how large a batch may be, and what is promised to whom."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rayzyme.database import Database, open_database
from rayzyme.errors import ResourceError, ValidationError
from rayzyme.resources.ledger import LeaseLedger
from rayzyme.resources.memory import (
    MemoryManager,
    SystemMemory,
    get_memory_manager,
    resident_mb,
)
from rayzyme.settings import load_settings, use_settings

MB = 1 << 20
MACHINE = SystemMemory(total=16000 * MB, available=10000 * MB)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = open_database(database_url)
    yield opened
    opened.close()


@pytest.fixture
def open_manager(database: Database) -> Iterator[Callable[[], MemoryManager]]:
    """Makes managers as if each were in a process of its own, none of which uses any memory yet."""
    managers: list[MemoryManager] = []

    def make() -> MemoryManager:
        managers.append(MemoryManager(store=LeaseLedger(database), measure=lambda: MACHINE, resident=lambda _pids: {}))
        return managers[-1]

    yield make
    for manager in managers:
        manager.close()


@pytest.mark.parametrize(("item", "size"), [(100, 64), (3000, 2), (1e6, 1), (0, 64), (1e-9, 64)])
def test_a_batch_fills_the_memory_but_for_its_reserve(item: float, size: int) -> None:
    """D69"""
    manager = MemoryManager(reserve_ratio=0.0, measure=lambda: MACHINE)
    assert manager.suggest_batch_size(item_memory_mb=item, max_batch_size=64) == size


def test_both_reserves_count() -> None:
    """D69"""
    manager = MemoryManager(reserve_ratio=0.5, measure=lambda: MACHINE)
    assert manager.available_mb() == 5000
    assert manager.suggest_batch_size(100) == 40
    assert manager.suggest_batch_size(100, memory_reserve_ratio=0) == 50
    assert manager.suggest_batch_size(100, memory_reserve_ratio=1.0) == 1


@pytest.mark.parametrize(
    ("available", "item", "reserve", "size"), [(10, 2.5, 0.25, 3), (10, 2.4, 0.25, 3), (3, 0.7, 0.1, 3), (1, 1.5, 0, 1)]
)
def test_only_the_number_of_items_is_rounded(available: int, item: float, reserve: float, size: int) -> None:
    """D69"""
    manager = MemoryManager(0.0, measure=lambda: SystemMemory(16000 * MB, available * MB))
    assert manager.suggest_batch_size(item, 64, reserve) == size


@pytest.fixture
def ending() -> Iterator[None]:
    """Gives back at the end what the manager of this process holds."""
    yield
    get_memory_manager().close()


def test_the_settings_give_the_reserve(home: Path, ending: None) -> None:
    """D69"""
    manager = get_memory_manager()
    assert manager.available_mb() > 0
    assert manager.suggest_batch_size(item_memory_mb=100, max_batch_size=64) in range(1, 65)
    use_settings(load_settings(overrides={"resources": {"memory": {"reserve_ratio": 1.0}}}))
    assert get_memory_manager() is manager
    assert manager.available_mb() == 0
    assert not home.exists()


def test_settings_that_change_drop_no_promise(ending: None) -> None:
    """D15"""
    assert get_memory_manager().allocate("embed", 10)
    use_settings(load_settings(overrides={"resources": {"memory": {"reserve_ratio": 0.5}}}))
    get_memory_manager()
    gc.collect()
    assert get_memory_manager().get_stats()["allocations"]["tasks"] == {"embed": 10}
    assert get_memory_manager().release("embed") is True


def test_threads_get_the_same_manager(ending: None) -> None:
    """C3"""
    with ThreadPoolExecutor(8) as pool:
        assert len({id(manager) for manager in pool.map(lambda _number: get_memory_manager(), range(64))}) == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"item_memory_mb": -1}, "item_memory_mb"),
        ({"item_memory_mb": True}, "item_memory_mb"),
        ({"item_memory_mb": float("nan")}, "item_memory_mb"),
        ({"item_memory_mb": 10**400}, "item_memory_mb"),
        ({"item_memory_mb": 1, "memory_reserve_ratio": 10**400}, "memory_reserve_ratio"),
        ({"item_memory_mb": 1, "max_batch_size": 0}, "max_batch_size"),
        ({"item_memory_mb": 1, "memory_reserve_ratio": 1.1}, "memory_reserve_ratio"),
    ],
)
def test_wrong_figures_are_named(arguments: dict[str, Any], named: str) -> None:
    """C2"""
    with pytest.raises(ValidationError, match=named):
        MemoryManager(measure=lambda: MACHINE).suggest_batch_size(**arguments)
    with pytest.raises(ValidationError, match="reserve_ratio"):
        MemoryManager(reserve_ratio=-0.1)
    with pytest.raises(ValidationError, match="memory_mb"):
        MemoryManager().allocate("embed", 0)
    with pytest.raises(ValidationError, match="task"):
        MemoryManager().allocate("", 1)


def test_memory_is_promised_once(open_manager: Callable[[], MemoryManager], caplog: pytest.LogCaptureFixture) -> None:
    """D15"""
    ours, theirs = open_manager(), open_manager()
    assert ours.allocate("embed", 5000) is True
    assert ours.allocate("embed", 5000) is True
    assert theirs.allocate("embed", 3001) is False
    assert "no memory for 'embed': it needs 3,001 MB, and 3,000 MB can be promised" in caplog.text
    assert theirs.allocate("embed", 3000) is True
    with pytest.raises(ResourceError, match="5,001 MB are asked for 'embed', which holds 5,000 MB; release it first"):
        ours.allocate("embed", 5001)
    assert (ours.release("embed"), ours.release("embed")) == (True, False)
    assert ours.allocate("fold", 5000) is True


def test_who_is_refused_takes_no_part_in_what_is_held(database: Database) -> None:
    """C15"""
    one, two = (MemoryManager(store=database, measure=lambda: MACHINE, resident=lambda _pids: {}) for _ in range(2))
    assert one.allocate("embed", 1000)
    with pytest.raises(ResourceError, match="2,000 MB are asked for 'embed', which holds 1,000 MB"):
        two.allocate("embed", 2000)
    one.close()
    assert two.get_stats()["allocations"]["tasks"] == {}
    two.close()


def test_the_figures_are_those_of_the_documents(open_manager: Callable[[], MemoryManager]) -> None:
    """D56"""
    ours, theirs = open_manager(), open_manager()
    ours.allocate("embed", 1000)
    ours.allocate("fold", 500)
    theirs.allocate("embed", 2000)
    assert ours.get_stats() == {
        "system_memory": {"total_mb": 16000, "available_mb": 10000, "used_mb": 6000, "percent": 37.5},
        "allocations": {"total_allocated_mb": 3500, "task_count": 2, "tasks": {"embed": 3000, "fold": 500}},
        "available_for_allocation_mb": 4500,
    }
    theirs.close()
    assert ours.get_stats()["allocations"]["total_allocated_mb"] == 1500


def test_memory_that_a_holder_uses_counts_once(database: Database) -> None:
    """C14"""
    own = resident_mb({os.getpid()})[os.getpid()]
    assert own > 10
    with MemoryManager(store=database, measure=lambda: MACHINE) as manager:
        assert manager.allocate("embed", own + 100)
        left = manager.get_stats()["available_for_allocation_mb"]
        assert 8000 - 100 - 50 < left < 8000 - 100 + 50


def test_a_process_that_is_gone_uses_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    assert resident_mb({int(done.stdout)}) == {}
