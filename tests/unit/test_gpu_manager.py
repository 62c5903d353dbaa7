"""`GPUManager` over fake GPUs: what it lists, allocates, explains and gives back."""

from __future__ import annotations

import gc
import logging
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select
from tests.support.fake_nvml import FakeGpu, FakeNvml

from rayzyme.database import Database, open_database
from rayzyme.database.tables import Lease
from rayzyme.errors import ResourceError, ValidationError
from rayzyme.monitoring.metrics import get_metrics_collector
from rayzyme.resources.devices import FakeGPUs
from rayzyme.resources.drivers import Nvml
from rayzyme.resources.frameworks import LoadedFramework
from rayzyme.resources.gpu import GPUManager
from rayzyme.resources.ledger import LeaseLedger
from rayzyme.settings import load_settings, use_settings

FREE = [38000, 15000, 40000]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    opened = open_database(f"sqlite:///{tmp_path_factory.mktemp('gpus') / 'rayzyme.db'}")
    yield opened
    opened.close()


def leases(database: Database) -> int:
    with database.read() as connection:
        return connection.execute(select(func.count()).select_from(Lease)).scalar_one()


Make = Callable[..., GPUManager]


@pytest.fixture
def make(database: Database) -> Iterator[Make]:
    """Makes managers over FREE; when the test ends they are closed, and nothing may stay behind."""
    made: list[GPUManager] = []

    def make(*arguments: Any, **options: Any) -> GPUManager:
        made.append(GPUManager(*arguments, **{"provider": FakeGPUs(FREE), "store": database} | options))
        return made[-1]

    yield make
    for manager in made:
        manager.close()
    assert leases(database) == 0
    assert not [thread for thread in threading.enumerate() if thread.name == "rayzyme-leases"]


@pytest.fixture
def another_process(database: Database) -> Iterator[LeaseLedger]:
    """A ledger as another process has it."""
    ledger = LeaseLedger(database)
    yield ledger
    ledger.close()


def test_gpus_are_listed_with_exactly_the_documented_keys(make: Make) -> None:
    """C8"""
    first, *_rest = make(reserve_mb=5000).get_available_gpus()
    assert first == {
        "index": 0, "name": "Fake GPU", "memory_total": 40000, "memory_free": 38000, "compute_capability": (8, 0)
    }  # fmt: skip


def test_without_a_gpu_there_is_one_warning_per_process_and_no_database(home: Path) -> None:
    """C8"""
    code = (
        "from rayzyme.resources.devices import FakeGPUs; from rayzyme.resources.gpu import GPUManager\n"
        "for manager in (GPUManager(provider=FakeGPUs([])), GPUManager(provider=FakeGPUs([]))):\n"
        "    assert manager.get_available_gpus() == manager.allocate_gpus('prediction') == []\n"
        "    assert manager.get_device_mapping('prediction')['pytorch'] == 'cpu'\n"
        "    assert manager.explain('prediction') == {} and manager.cleanup() == {}\n"
        "    assert manager.release_gpus('prediction') is False\n"
        "    manager.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.count("there is no GPU") == 1
    assert not home.exists()


def test_a_driver_that_fails_gives_no_stale_list(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """C8"""
    gpus = FakeGPUs(FREE)
    manager = make(provider=gpus)
    assert len(manager.get_available_gpus()) == 3
    gpus.fail("the driver hangs")
    assert manager.get_available_gpus() == manager.allocate_gpus("prediction") == []
    assert "GPUs cannot be listed, so none is used: the driver hangs" in caplog.text
    with pytest.raises(ResourceError, match=r"1 GPU.* are needed for 'prediction', and this process has none"):
        manager.allocate_gpus("prediction", count=1)
    gpus.fail("")
    assert len(manager.get_available_gpus()) == 3


def test_an_unhealthy_gpu_is_left_out_and_the_others_keep_their_numbers(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """C9"""
    gpus = FakeGPUs(FREE)
    gpus.spoil(0, "GPU is lost")
    manager = make(provider=gpus)
    assert [gpu["index"] for gpu in manager.get_available_gpus()] == [1, 2]
    assert "GPU 0 (GPU-00000000-0000-0000-0000-000000000000) is left out: GPU is lost" in caplog.text
    assert manager.allocate_gpus("dynamics") == [2, 1]
    assert manager.explain("dynamics")[0] == "unhealthy: GPU is lost"
    with pytest.raises(IndexError):
        manager.get_optimal_batch_size("dynamics", [0])


def test_instances_of_a_gpu_are_allocated_one_by_one(make: Make) -> None:
    """C9"""
    parts = [FakeGpu("MIG-x", 9856, 9000, place=(1, 0)), FakeGpu("MIG-y", 19968, 19000, place=(2, 0))]
    nvml = FakeNvml(FakeGpu("GPU-a", free=8500), FakeGpu("GPU-b", mig=True, instances=parts))
    manager = make(provider=Nvml(nvml))
    assert [(gpu["index"], gpu["memory_total"]) for gpu in manager.get_available_gpus()] == [
        (0, 40000), (1, 9856), (2, 19968)
    ]  # fmt: skip
    assert manager.allocate_gpus("dynamics") == [2, 1, 0]


def test_hidden_gpus_are_not_listed_and_the_rest_is_numbered_anew(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """C7"""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,1")
    manager = make()
    assert [(gpu["index"], gpu["memory_free"]) for gpu in manager.get_available_gpus()] == [(0, 40000), (1, 15000)]
    assert manager.allocate_gpus("prediction") == [0]
    assert manager.get_device_mapping("prediction")["pytorch"] == "cuda:0"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    # The lease is on the device, whatever its number.
    assert manager.allocate_gpus("prediction") == [2]


def test_models_that_cuda_may_number_otherwise_are_warned_about_once(
    make: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C7"""
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    monkeypatch.setattr("rayzyme.resources.visibility._warned", set())
    mixed = SimpleNamespace(devices=lambda: [*FakeGPUs([1]).devices(), *FakeGPUs([1, 1], name="Other").devices()[1:]])
    for _ in range(2):
        make(provider=mixed).get_available_gpus()
    assert caplog.text.count("CUDA_DEVICE_ORDER=PCI_BUS_ID") == 1


@pytest.mark.parametrize(
    ("task", "single", "gpus"),
    [("prediction", False, [2, 0]), ("prediction", True, [2]), ("dynamics", False, [2, 0, 1]), ("dynamics", True, [2])],
)
def test_the_freest_gpus_that_fit_are_allocated(make: Make, task: str, single: bool, gpus: list[int]) -> None:
    """C11"""
    assert make(prefer_single_gpu=single).allocate_gpus(task) == gpus


def test_when_nothing_fits_the_need_and_the_best_offer_are_told(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """C11"""
    manager = make({"huge": 41000})
    assert manager.allocate_gpus("huge") == []
    assert "no GPU for 'huge', which needs 41,000 MB: the best offer is 40,000 MB on device 2" in caplog.text
    assert manager.get_device_mapping("huge") == {"pytorch": "cpu", "jax": "cpu", "tensorflow": "cpu"}
    with manager.lease("huge") as gpus:
        assert gpus == []


def test_without_any_gpu_the_need_and_the_offer_are_told_each_time(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """C11"""
    manager = make(provider=FakeGPUs([]))
    assert manager.allocate_gpus("prediction") == manager.allocate_gpus("prediction") == []
    assert caplog.text.count("no GPU for 'prediction', which needs 16,000 MB: this process has none") == 2


def test_an_unknown_task_is_refused_with_the_known_ones(make: Make) -> None:
    """C12"""
    manager = make()
    for ask in (
        manager.allocate_gpus,
        manager.explain,
        manager.get_device_mapping,
        lambda task: manager.get_optimal_batch_size(task, [0]),
        lambda task: manager.optimize_memory_usage(task, [0]),
    ):
        with pytest.raises(KeyError, match="'folding' has no known need of memory; known: dynamics, prediction"):
            ask("folding")


def test_an_allocation_is_the_same_until_it_is_released(make: Make, database: Database) -> None:
    """C13"""
    manager, second = make(), make()
    assert manager.allocate_gpus("prediction") == [2, 0]
    assert manager.allocate_gpus("prediction") == second.allocate_gpus("prediction") == [2, 0]
    assert leases(database) == 2
    # What is left: {0: 22000, 1: 15000, 2: 24000}.
    assert manager.allocate_gpus("dynamics") == [2, 0, 1]
    assert manager.release_gpus("prediction") is True
    assert second.release_gpus("prediction") is False
    assert leases(database) == 3


def test_closing_one_manager_leaves_what_another_needs(make: Make, database: Database) -> None:
    """C13"""
    one, two = make(), make()
    one.allocate_gpus("prediction")
    two.allocate_gpus("prediction")
    one.allocate_gpus("dynamics")
    one.close()
    assert leases(database) == 2
    two.close()
    assert leases(database) == 0
    assert one.allocate_gpus("prediction") == [2, 0]


def test_who_is_refused_takes_no_part_in_what_is_held(make: Make, database: Database) -> None:
    """C15"""
    one, two = make(), make()
    assert one.allocate_gpus("prediction", count=1) == [2]
    with pytest.raises(ResourceError, match="2 GPU"):
        two.allocate_gpus("prediction", count=2)
    one.close()
    assert leases(database) == 0


def test_a_gpu_that_fell_ill_is_not_counted(make: Make) -> None:
    """C15"""
    gpus = FakeGPUs(FREE)
    manager = make(provider=gpus)
    assert manager.allocate_gpus("prediction", count=2) == [2, 0]
    gpus.spoil(0, "xid 79")
    with pytest.raises(ResourceError, match=r"2 GPU.* asked for 'prediction', which this process holds on 1 usable"):
        manager.allocate_gpus("prediction", count=2)
    assert manager.allocate_gpus("prediction") == manager.allocate_gpus("prediction", count=1) == [2]
    gpus.spoil(0, "")
    assert manager.allocate_gpus("prediction", count=2) == [2, 0]


def test_memory_that_was_taken_after_the_last_look_is_not_promised(
    make: Make, another_process: LeaseLedger, database: Database
) -> None:
    """C13"""
    gpus = FakeGPUs([40000])
    holder = make({"all": 40000}, provider=gpus, store=another_process)
    holder.allocate_gpus("all")
    listed, go_on = threading.Event(), threading.Event()

    class SlowToTell:
        """Whoever looks first is overtaken by what happens then."""

        def devices(self) -> Any:
            devices = gpus.devices()
            if not listed.is_set():
                listed.set()
                assert go_on.wait(10)
            return devices

    late, got = make({"all": 40000}, provider=SlowToTell()), []
    thread = threading.Thread(target=lambda: got.append(late.allocate_gpus("all")))
    thread.start()
    assert listed.wait(10)
    gpus.use(0, 99999, 16000)
    holder.close()
    go_on.set()
    thread.join()
    assert got == [[]]


def test_tasks_that_freest_first_would_strand_are_placed_together(make: Make, database: Database) -> None:
    """C20"""
    needs = {"two": 2000, "three": 3000, "other three": 3000, "four": 4000, "five": 5000}
    manager = make(needs, provider=FakeGPUs([6000, 6000]))
    one_each = dict.fromkeys(["two", "three", "other three", "four"], 1)
    assert manager.allocate_gpus("two", count=1) == [0]
    assert manager.allocate_gpus("three", count=1) == [1]
    assert manager.allocate_gpus("other three", count=1) == [0]
    with pytest.raises(ResourceError, match="1 GPU"):
        manager.allocate_gpus("four", count=1)
    for task in one_each:
        manager.release_gpus(task)
    placed = manager.allocate_together(one_each)
    assert (placed["two"], placed["three"]) == (placed["four"], placed["other three"])
    assert placed["two"] != placed["three"]
    assert manager.allocate_together(one_each) == placed
    assert manager.allocate_gpus("four", count=1) == placed["four"]
    assert leases(database) == 4


def test_tasks_are_placed_together_around_what_is_held_or_none_is(make: Make, database: Database) -> None:
    """C15 C20"""
    manager = make({"prediction": 16000, "dynamics": 8000}, provider=FakeGPUs([16000, 24000]), reserve_mb=0)
    assert manager.allocate_gpus("dynamics", count=1) == [1]
    assert manager.allocate_together({"dynamics": 1, "prediction": 2}) == {"dynamics": [1], "prediction": [0, 1]}
    manager.release_gpus("prediction")
    collector = get_metrics_collector()
    collector.reset()
    with pytest.raises(
        ResourceError, match=r"prediction \(3 x 16,000 MB\).*device 0 has 16,000 MB, device 1 has 16,000 MB available"
    ):
        manager.allocate_together({"dynamics": 1, "prediction": 3})
    with pytest.raises(ResourceError, match="2 GPU"):
        manager.allocate_together({"prediction": 1, "dynamics": 2})
    with pytest.raises(KeyError, match="folding"):
        manager.allocate_together({"prediction": 1, "folding": 1})
    with pytest.raises(ResourceError, match="cannot be placed"):
        make(provider=FakeGPUs([])).allocate_together({"prediction": 1})
    assert collector.get_counter("rayzyme_gpu_refusals_total") == 3
    assert leases(database) == 1


@pytest.mark.parametrize("tasks", [{"prediction": 0}, {"prediction": True}, ["prediction"], {}])
def test_what_is_asked_for_together_is_checked(make: Make, tasks: Any) -> None:
    """C2"""
    with pytest.raises(ValidationError, match="tasks"):
        make().allocate_together(tasks)
    with pytest.raises(ValidationError, match="tasks"):
        make({f"task {n}": 1 for n in range(13)}).allocate_together({f"task {n}": 1 for n in range(13)})


def test_leases_of_a_block_are_independent(make: Make, database: Database) -> None:
    """C13"""
    manager = make(prefer_single_gpu=True)
    assert manager.allocate_gpus("prediction") == [2]
    with manager.lease("prediction") as first, manager.lease("prediction") as second:
        assert (first, second) == ([0], [2])
        assert leases(database) == 3
    assert leases(database) == 1
    with pytest.raises(RuntimeError, match="stop"), manager.lease("prediction"):
        raise RuntimeError("stop")
    assert leases(database) == 1


def test_what_is_not_held_cannot_be_released(make: Make) -> None:
    """C14"""
    manager = make()
    assert manager.release_gpus("prediction") is False
    assert manager.release_gpus("folding") is False


def test_memory_in_use_under_a_lease_counts_once(make: Make, another_process: LeaseLedger) -> None:
    """C14"""
    gpus = FakeGPUs([40000])
    manager = make({"prediction": 16000, "rest": 24000, "more": 24001}, provider=gpus)
    assert manager.allocate_gpus("prediction") == [0]
    gpus.use(0, os.getpid(), 10000)
    assert manager.get_available_gpus()[0]["memory_free"] == 30000
    assert manager.allocate_gpus("more") == []
    assert manager.allocate_gpus("rest") == [0]


def test_a_count_is_met_exactly_or_refused(make: Make, database: Database) -> None:
    """C15"""
    manager = make()
    assert manager.allocate_gpus("prediction", count=1) == [2]
    manager.release_gpus("prediction")
    assert manager.allocate_gpus("prediction", count=3, min_memory_mb=15000) == [2, 0, 1]
    manager.release_gpus("prediction")
    assert make(prefer_single_gpu=True).allocate_gpus("prediction", count=2) == [2, 0]
    manager.release_gpus("prediction")
    with pytest.raises(ResourceError, match="3 GPU"):
        manager.allocate_gpus("prediction", count=3)
    with pytest.raises(ResourceError, match="5 GPU"):
        manager.allocate_gpus("dynamics", count=5)
    assert leases(database) == 0


def test_what_is_held_is_not_taken_for_more(make: Make) -> None:
    """C15"""
    manager = make()
    manager.allocate_gpus("dynamics", count=2)
    assert manager.allocate_gpus("dynamics", count=2, min_memory_mb=8000) == [2, 0]
    with pytest.raises(
        ResourceError,
        match=r"3 GPU.*which this process holds on 2 usable GPU\(s\) with 8,000, 8,000 MB; call release_gpus first",
    ):
        manager.allocate_gpus("dynamics", count=3)
    with pytest.raises(ResourceError, match=r"2 GPU.* with 9,000 MB"):
        manager.allocate_gpus("dynamics", min_memory_mb=9000)


@pytest.mark.parametrize(
    ("task", "free", "size"),
    [
        ("prediction", 15999, 1), ("prediction", 16000, 1), ("prediction", 38000, 2), ("prediction", 80000, 4),
        ("dynamics", 8000, 1), ("dynamics", 24000, 2), ("dynamics", 80000, 8),
    ],
)  # fmt: skip
def test_the_batch_size_follows_the_free_memory(make: Make, task: str, free: int, size: int) -> None:
    """C16"""
    manager = make(provider=FakeGPUs([free, 90000], total=90000))
    manager.allocate_gpus(task)
    assert manager.get_optimal_batch_size(task, [0, 1]) == size


def test_the_leases_of_others_are_taken_off_the_batch_size(make: Make, another_process: LeaseLedger) -> None:
    """C16"""
    manager = make(reserve_mb=2000)
    assert manager.get_optimal_batch_size("dynamics", [2]) == 3
    other = make(store=another_process)
    assert other.allocate_gpus("prediction") == [2, 0]
    assert manager.get_optimal_batch_size("dynamics", [2]) == 2
    assert (manager.get_optimal_batch_size("prediction", [2]), other.get_optimal_batch_size("prediction", [2])) == (
        1,
        2,
    )


def test_tasks_of_one_process_do_not_both_fill_a_device(make: Make) -> None:
    """C16"""
    gpus = FakeGPUs([80000], total=80000)
    manager = make(provider=gpus)
    manager.allocate_gpus("prediction", min_memory_mb=48000)
    manager.allocate_gpus("dynamics", min_memory_mb=32000)
    sizes = [manager.get_optimal_batch_size(task, [0]) for task in ("prediction", "dynamics")]
    assert sizes == [2, 3]
    # What the process uses may be the one task's or the other's; it frees nothing of the other's promise.
    gpus.use(0, os.getpid(), 10000)
    assert manager.get_optimal_batch_size("dynamics", [0]) == 2


@pytest.mark.parametrize("indices", [(2, 0), range(3), np.array([2, 0]), np.array([1], np.uint8), [np.int64(2)]])
def test_indices_come_in_any_sequence_of_whole_numbers(make: Make, indices: Any) -> None:
    """C2"""
    assert sorted(make().monitor_memory_usage(indices)) == sorted(int(index) for index in indices)
    assert make().get_optimal_batch_size("prediction", np.array([], int)) == 1


def test_gpus_that_do_not_exist_are_refused(make: Make) -> None:
    """C16 C17"""
    manager = make()
    assert manager.get_optimal_batch_size("prediction", []) == 1
    assert (
        manager.optimize_memory_usage("prediction", []) == manager.monitor_memory_usage([]) == manager.cleanup([]) == {}
    )
    for indices in ([3], [0, 7], [-1], [True], [0.0], [None], np.array([0.0]), np.array([True])):
        for ask in (
            lambda indices: manager.get_optimal_batch_size("prediction", indices),
            lambda indices: manager.optimize_memory_usage("prediction", indices),
            manager.monitor_memory_usage,
            manager.cleanup,
        ):
            with pytest.raises(IndexError, match=f"there is no GPU {indices[-1]}"):
                ask(indices)
            with pytest.raises(ValidationError, match="gpu_indices must be a sequence"):
                ask({0})


MB = 1 << 20


class FakeCuda:
    """`torch.cuda` with one allocator per device: what it reserved, and how much of that tensors fill."""

    def __init__(self) -> None:
        self.reserved_mb, self.allocated_mb, self.fractions = [3000, 500, 0], [1000, 500, 0], {}

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return any(self.reserved_mb)

    def memory_reserved(self, index: int) -> int:
        return self.reserved_mb[index] * MB

    def memory_allocated(self, index: int) -> int:
        return self.allocated_mb[index] * MB

    def empty_cache(self) -> None:
        self.reserved_mb = list(self.allocated_mb)

    def set_per_process_memory_fraction(self, fraction: float, index: int) -> None:
        self.fractions[index] = fraction


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """A loaded framework that holds memory of GPUs."""
    cuda = FakeCuda()
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    return cuda


def test_a_loaded_framework_gives_back_what_it_does_not_use_and_is_limited(make: Make, cuda: FakeCuda) -> None:
    """C17"""
    manager = make({"prediction": 16000, "huge": 10**400})
    assert manager.optimize_memory_usage("prediction", [0, 1]) == {0: 2000, 1: 0}
    assert cuda.fractions == {0: 0.4, 1: 0.4}
    manager.optimize_memory_usage("huge", [2])
    assert cuda.fractions[2] == 1.0


def test_cleaning_up_lifts_the_limits(make: Make, cuda: FakeCuda) -> None:
    """C18"""
    manager = make()
    manager.allocate_gpus("prediction")
    manager.optimize_memory_usage("prediction", [1])
    cuda.reserved_mb = [3000, 700, 0]
    assert manager.cleanup() == {0: 2000, 1: 200, 2: 0}
    assert set(cuda.fractions.values()) == {1.0}
    assert manager.allocate_gpus("prediction") == [2, 0]


def test_usage_is_what_the_framework_holds(make: Make, cuda: FakeCuda) -> None:
    """C18"""
    assert make().monitor_memory_usage([1, 0]) == {
        1: {"total": 40000, "reserved": 500, "allocated": 500, "free": 15000},
        0: {"total": 40000, "reserved": 3000, "allocated": 1000, "free": 38000},
    }


def test_without_a_framework_usage_is_what_the_driver_tells(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """C17 C18"""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    gpus = FakeGPUs(FREE)
    gpus.use(0, os.getpid(), 1200)
    gpus.use(0, 1, 900)
    manager = make(provider=gpus)
    assert manager.monitor_memory_usage([0]) == {
        0: {"total": 40000, "reserved": 1200, "allocated": 1200, "free": 35900}
    }
    assert manager.optimize_memory_usage("prediction", [0]) == manager.cleanup([0]) == {0: 0}
    assert "torch" not in sys.modules


def test_a_framework_that_has_not_touched_a_gpu_is_left_alone_by_cleaning_up() -> None:
    """C17"""
    cuda = FakeCuda()
    cuda.reserved_mb = [0]
    LoadedFramework({"torch": SimpleNamespace(cuda=cuda)}).lift_limit(0)
    assert cuda.fractions == {}


@pytest.mark.parametrize(
    "torch", [SimpleNamespace(), SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: False))]
)
def test_a_framework_without_gpus_or_half_loaded_counts_as_none(torch: Any) -> None:
    """C17"""
    framework = LoadedFramework({"torch": torch})
    framework.limit(0, 0.5)
    assert (framework.reserved(0), framework.allocated(0), framework.empty_caches([0])) == (None, None, {0: 0})


def test_frameworks_are_sent_to_the_gpu_that_is_held_or_else_to_the_freest(
    make: Make, another_process: LeaseLedger
) -> None:
    """C18"""
    manager, other = make(), make({"prediction": 30000}, store=another_process, prefer_single_gpu=True)
    on_2 = {"pytorch": "cuda:2", "jax": "cuda:2", "tensorflow": "GPU:2"}
    assert manager.get_device_mapping("prediction") == on_2
    assert other.allocate_gpus("prediction") == [2]
    assert manager.get_device_mapping("prediction")["pytorch"] == "cuda:0"
    other.close()
    assert manager.allocate_gpus("prediction", count=1) == [2]
    with manager.lease("prediction", count=1, min_memory_mb=20000):
        assert manager.get_device_mapping("prediction") == on_2
    manager.release_gpus("prediction")
    with manager.lease("prediction", min_memory_mb=25000) as gpus:
        assert gpus == [2, 0]
        # What is left fits nowhere, and what is held counts.
        assert manager.get_device_mapping("prediction") == on_2
        assert make().get_device_mapping("prediction") == on_2
    assert manager.get_device_mapping("prediction") == on_2


def test_each_gpu_is_explained(make: Make) -> None:
    """C20"""
    manager = make(prefer_single_gpu=True, reserve_mb=1000)
    told = manager.explain("prediction")
    assert told[0].startswith("fits (37,000 MB available")
    assert told[1].startswith("too little: 16,000 MB needed, 14,000 MB available")
    assert told[2].startswith("chosen")
    manager.allocate_gpus("prediction")
    assert manager.explain("prediction")[2] == "held: 16,000 MB are leased by this process"
    assert manager.explain("dynamics")[2].startswith("fits (23,000 MB available")


def test_a_reserve_is_kept_out_of_allocation(make: Make) -> None:
    """C10"""
    manager = make({"prediction": 14001}, reserve_mb=1000)
    assert manager.allocate_gpus("prediction") == [2, 0]


def test_the_settings_give_the_reserve(database: Database) -> None:
    """C10"""
    gpus = FakeGPUs([17000])
    with GPUManager.from_settings(provider=gpus, store=database) as manager:
        assert manager.allocate_gpus("prediction") == [0]
    use_settings(load_settings(overrides={"resources": {"gpu": {"min_free_memory_mb": 1001}}}))
    with GPUManager.from_settings({"prediction": 16000}, provider=gpus, store=database) as manager:
        assert manager.allocate_gpus("prediction") == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"required_memory": {"prediction": 0}}, r"required_memory\['prediction'\]"),
        ({"required_memory": {"prediction": True}}, r"required_memory\['prediction'\]"),
        ({"required_memory": {"prediction": 1.5}}, r"required_memory\['prediction'\]"),
        ({"required_memory": {"": 1}}, "required_memory"),
        ({"required_memory": [1]}, "required_memory"),
        ({"prefer_single_gpu": 1}, "prefer_single_gpu"),
        ({"reserve_mb": -1}, "reserve_mb"),
        ({"reserve_mb": False}, "reserve_mb"),
        ({"reserve_mb": np.array([1, 2])}, "reserve_mb"),
        ({"reserve_mb": np.array(3)}, "reserve_mb"),
        ({"provider": []}, "provider"),
        ({"store": "rayzyme.db"}, "store"),
    ],
)
def test_arguments_are_checked_at_construction(arguments: dict[str, Any], named: str) -> None:
    """C2"""
    with pytest.raises(ValidationError, match=named):
        GPUManager(**arguments)


@pytest.mark.parametrize(("count", "memory"), [(0, None), (True, None), (1, 0), (None, -5)])
def test_what_is_asked_for_is_checked(make: Make, count: int | None, memory: int | None) -> None:
    """C2"""
    with pytest.raises(ValidationError, match=r"count|min_memory_mb"):
        make().allocate_gpus("prediction", count=count, min_memory_mb=memory)


def test_who_loses_its_leases_is_told_and_may_allocate_anew(make: Make, database: Database) -> None:
    """D15"""
    now, told = [datetime.now(UTC)], queue.SimpleQueue()
    slow = LeaseLedger(database, ttl=3000, renew=1000, clock=lambda: now[0])
    manager = make(prefer_single_gpu=True, store=slow)
    assert manager.allocate_gpus("prediction", on_lost=told.put) == [2]
    now[0] += timedelta(seconds=4000)
    quick = LeaseLedger(database, clock=lambda: now[0])
    other = make(prefer_single_gpu=True, store=quick)
    assert other.allocate_gpus("prediction") == [2]
    slow.renew()
    assert told.get(timeout=10) == "prediction"
    assert manager.release_gpus("prediction") is False
    assert manager.allocate_gpus("prediction") == [0]


def test_metrics_tell_what_is_free_and_what_was_granted(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """C62"""
    caplog.set_level(logging.ERROR)
    collector = get_metrics_collector()
    collector.reset()
    manager = make({"small": 1000, "huge": 50000})
    manager.allocate_gpus("small")
    manager.allocate_gpus("huge")
    with pytest.raises(ResourceError):
        manager.allocate_gpus("huge", count=1)
    assert make({"small": 1}, provider=FakeGPUs([])).allocate_gpus("small") == []
    uuid = FakeGPUs(FREE).devices()[1].uuid
    assert collector.get_latest("rayzyme_gpu_memory_free_mb", {"device": uuid}) == 15000
    assert collector.get_counter("rayzyme_gpu_allocations_total") == 1
    assert collector.get_counter("rayzyme_gpu_refusals_total") == 3


def test_a_manager_that_is_collected_gives_everything_back(database: Database, home: Path) -> None:
    """C3"""
    before = threading.active_count()
    manager = GPUManager(provider=FakeGPUs(FREE))
    manager.allocate_gpus("prediction")
    assert (home / "rayzyme.db").exists()
    descriptors = [entry for entry in Path("/proc/self/fd").iterdir() if _points_into(entry, home)]
    assert descriptors
    del manager
    gc.collect()
    pause = threading.Event()
    for _ in range(1000):
        if threading.active_count() == before and not any(
            _points_into(fd, home) for fd in Path("/proc/self/fd").iterdir()
        ):
            break
        pause.wait(0.01)
    else:
        raise AssertionError("a thread or a file descriptor stayed")
    again = open_database()
    assert leases(again) == 0
    again.close()


def test_a_closed_manager_keeps_nothing_open(home: Path) -> None:
    """C3"""
    before = threading.active_count()
    with GPUManager(provider=FakeGPUs(FREE)) as one, GPUManager(provider=FakeGPUs(FREE)) as two:
        one.allocate_gpus("prediction")
        two.allocate_gpus("dynamics")
    assert threading.active_count() == before
    assert not [entry for entry in Path("/proc/self/fd").iterdir() if _points_into(entry, home)]


def _points_into(descriptor: Path, folder: Path) -> bool:
    try:
        return str(descriptor.readlink()).startswith(str(folder))
    except OSError:
        return False


Step = tuple[str, int, str]
tasks = st.sampled_from(["prediction", "dynamics", "analysis"])
steps = st.lists(
    st.tuples(st.sampled_from(["allocate", "lease", "release", "end"]), st.integers(0, 2), tasks), max_size=20
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_allocations_never_promise_more_than_is_free(database: Database, story: list[Step]) -> None:
    """C13 C66"""
    gpus, needs = FakeGPUs(FREE), {"prediction": 16000, "dynamics": 8000, "analysis": 3000}
    managers = [GPUManager(needs, provider=gpus, store=LeaseLedger(database)) for _ in range(3)]
    allocated: dict[tuple[int, str], list[int]] = {}
    leased: list[tuple[Any, str, list[int]]] = []
    for what, who, task in story:
        if what == "allocate":
            given_before = allocated.get((who, task), [])
            allocated[who, task] = managers[who].allocate_gpus(task)
            assert not given_before or allocated[who, task] == given_before
        elif what == "lease":
            block = managers[who].lease(task)
            leased.append((block, task, block.__enter__()))
        elif what == "release":
            assert managers[who].release_gpus(task) is bool(allocated.pop((who, task), []))
        elif leased:
            leased.pop(0)[0].__exit__(None, None, None)
        promised = [0, 0, 0]
        for task_held, indices in [(task, got) for (_who, task), got in allocated.items()] + [
            (task, got) for _block, task, got in leased
        ]:
            for index in indices:
                promised[index] += needs[task_held]
        assert all(promised[index] <= FREE[index] for index in range(3))
    for block, *_rest in leased:
        block.__exit__(None, None, None)
    for manager in managers:
        manager.close()
    assert leases(database) == 0
