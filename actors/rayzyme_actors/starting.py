"""Finding or starting the long-lived actors: the host of a checkpoint, the shards of a screening set.

An actor's name says what it holds, so every program on the cluster finds the same one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayzyme.errors import InsufficientSpace
from rayzyme.models.checkpoints import CheckpointRegistry
from rayzyme.models.encoder import Embeddings
from rayzyme.proteins import Protein
from rayzyme.screening import CheckpointRef, ScreeningSet
from rayzyme.settings import Settings, get_settings
from rayzyme_actors.connection import connect
from rayzyme_actors.embedding_shard import EmbeddingShard
from rayzyme_actors.gpu_memory import with_gpu_memory
from rayzyme_actors.long_lived import LongLivedActor
from rayzyme_actors.model_host import ModelHost
from rayzyme_actors.placement import ACTOR_CPUS, Node, ShardPlan, host_share, live_nodes, plan_shards, wants_gpu

HOST_PREFIX = "model-host:"
SHARD_PREFIX = "shard:"

# Per number: as stored, and two bytes more for the bfloat16 copy that is scanned.
_BYTES_HELD = {"float32": 6, "float16": 4, "bfloat16": 4}


class ProteinEncoder:
    """A model's host alone, for building screening sets."""

    def __init__(self, checkpoint: str | Path, *, device: str | None = None, settings: Settings | None = None) -> None:
        """Find or start the host and wait until it has loaded."""
        settings = settings or get_settings()
        wanted_device = device_to_use(device, settings)
        name = name_of_host(checkpoint, wanted_device, settings)
        connect(settings)
        self._host = start_host(checkpoint, name, wanted_device, settings)
        described = self._host.wait_until_ready()
        self.checkpoint = CheckpointRef(described["checkpoint"], described["checkpoint_digest"])
        self.dimension = int(described["dimension"])

    def __call__(self, proteins: Sequence[Protein]) -> Embeddings:
        """Embed proteins: float32 (n, d), unit rows."""
        embeddings: Embeddings = self._host.submit("encode_proteins", list(proteins)).result()
        return embeddings


def device_to_use(device: str | None, settings: Settings) -> str:
    """The device that is asked for, else the settings'; "auto" is "cpu" where these do not let GPUs be taken unasked."""
    wanted = device or settings.device
    return "cpu" if wanted == "auto" and not settings.resources.gpu.auto_allocate else wanted


def checkpoint_ref(checkpoint: str | Path, settings: Settings) -> CheckpointRef:
    """Which checkpoint a name or path stands for, without loading it."""
    return CheckpointRef(*CheckpointRegistry(settings.home, settings.checkpoints.sources).identify(checkpoint))


def name_of_host(checkpoint: str | Path, device: str, settings: Settings) -> str:
    """The actor name of a checkpoint's host: another file, or the same one changed, is another host.

    Raises:
        NotFound: No such checkpoint; nothing was started.
    """
    path = CheckpointRegistry(settings.home, settings.checkpoints.sources).resolve(checkpoint)
    state = path.stat()
    told = f"{path.resolve()}\0{state.st_size}\0{state.st_mtime_ns}\0{settings.esm}\0{settings.tasks}"
    identity = hashlib.sha256(told.encode()).hexdigest()[:12]
    return f"{HOST_PREFIX}{Path(checkpoint).stem}:{identity}:{device}"


def start_host(checkpoint: str | Path, name: str, device: str, settings: Settings) -> LongLivedActor:
    """Find or start the host; does not wait until it has loaded."""
    nodes = _nodes(device, settings)
    on_gpu = wants_gpu(device, nodes)
    gpu = settings.resources.gpu
    needed_mb = gpu.model_memory_mb if on_gpu else 0
    share = host_share(needed_mb, nodes, reserve_mb=gpu.min_free_memory_mb) if on_gpu else 0
    threads = max((int(node.cpus) for node in nodes), default=1)
    actor = LongLivedActor(
        name=name,
        actor_class=ModelHost,
        arguments=(_as_seen_by_all(checkpoint), settings, device, threads, needed_mb),
        options={"num_cpus": ACTOR_CPUS, "num_gpus": share},
        namespace=settings.ray.namespace,
    )  # fmt: skip
    actor.start()
    return actor


def start_shards(opened: ScreeningSet, device: str, settings: Settings) -> list[LongLivedActor]:
    """Find or start the shards of a set, one per device; does not wait until they have loaded.

    Raises:
        DeviceUnavailable: "cuda" on a cluster without GPUs.
        InsufficientSpace: A node's memory, as Ray counts it, is smaller than its shard; nothing was started.
        ResourceError: A GPU has less memory to lease than its shard needs; nothing was started.
    """
    row_bytes = opened.dimension * _BYTES_HELD[opened.embedding_type]
    reserve_mb = settings.resources.gpu.min_free_memory_mb
    plans = plan_shards(len(opened), _nodes(device, settings), device, row_bytes, reserve_mb=reserve_mb)
    shards = [_shard(opened, plan, number, len(plans), device, settings) for number, plan in enumerate(plans)]
    memory = {node["NodeID"]: node["Resources"].get("memory", 0) for node in ray.nodes()}
    for plan, shard in zip(plans, shards, strict=True):
        needed, given = shard.options["memory"], memory[plan.node_id]
        if needed > given:
            raise InsufficientSpace(
                f"a shard of {opened.path} needs {needed / 1e6:.0f} MB; its node gives Ray {given / 1e6:.0f} MB: add nodes, "
                f"or store the set as bfloat16 (`rayzyme sets import --type bfloat16`)"
            )
    for shard in shards:
        shard.start()
    return shards


def _nodes(device: str, settings: Settings) -> list[Node]:
    """The live nodes; where GPUs are wanted, with the memory that these have."""
    nodes = live_nodes(ray.nodes())
    return with_gpu_memory(nodes, settings) if wants_gpu(device, nodes) else nodes


def _as_seen_by_all(checkpoint: str | Path) -> str:
    """A name as it is; a path in full, since an actor works in another folder."""
    path = Path(checkpoint).expanduser()
    return str(path.resolve()) if path.exists() else str(checkpoint)


def _shard(
    opened: ScreeningSet, plan: ShardPlan, number: int, count: int, device: str, settings: Settings
) -> LongLivedActor:
    # On a GPU the rows pass through host memory and do not stay there.
    row_bytes = 0 if plan.num_gpus else opened.dimension * _BYTES_HELD[opened.embedding_type]
    reserve = f"reserve-{settings.resources.memory.reserve_ratio:g}"
    return LongLivedActor(
        name=f"{SHARD_PREFIX}{opened.digest[:16]}:{number + 1}-of-{count}:{device}:{reserve}",
        actor_class=EmbeddingShard,
        arguments=(
            str(opened.path), opened.digest, plan.start, plan.stop, device, plan.threads, settings.resources.memory.reserve_ratio,
            settings, plan.gpu_memory_mb,
        ),
        options={
            "num_cpus": ACTOR_CPUS,
            "num_gpus": plan.num_gpus,
            "memory": (plan.stop - plan.start) * row_bytes,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(plan.node_id, soft=True),
        },
        namespace=settings.ray.namespace,
    )  # fmt: skip
