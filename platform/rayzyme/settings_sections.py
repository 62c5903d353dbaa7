"""The sections of the settings, each with its defaults and limits; `rayzyme.settings` puts them together."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator

Device = Literal["auto", "cpu", "cuda", "mps"]
ScreeningMode = Literal["interactive", "batched"]
StrategyName = Literal["fifo", "lifo", "priority", "sjf", "weighted", "fair_share", "edf", "adaptive"]
OnMissingGpu = Literal["fail", "cpu"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]


def _refuse_bool(value: object) -> object:
    # To Python True is the integer 1; in a settings file it is a slip.
    if isinstance(value, bool):
        raise ValueError("must be a number, not a boolean")
    return value


PositiveInt = Annotated[int, BeforeValidator(_refuse_bool), Field(ge=1)]
Seconds = Annotated[float, BeforeValidator(_refuse_bool), Field(gt=0, allow_inf_nan=False)]
Ratio = Annotated[float, BeforeValidator(_refuse_bool), Field(ge=0, le=1)]
NotNegative = Annotated[float, BeforeValidator(_refuse_bool), Field(ge=0, allow_inf_nan=False)]
Weight = Annotated[float, BeforeValidator(_refuse_bool), Field(gt=0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RaySettings(_Section):
    """Which Ray to use.

    Attributes:
        address: `host:port` of a running cluster, "auto" for the one on this machine, None to start a local one.
            `RAY_ADDRESS` counts when this is None.
        num_cpus: Logical CPUs of a local Ray that Rayzyme starts; None takes what the machine has.
        namespace: Ray namespace that the long-lived actors are named in.
    """

    address: str | None = None
    num_cpus: PositiveInt | None = None
    namespace: str = "rayzyme"


class CheckpointSettings(_Section):
    """Checkpoints beyond the built-in ones.

    Attributes:
        sources: Name -> URL or path, or a mapping with `url` and optionally `size`, `md5`, `sha256`.
    """

    sources: dict[str, str | dict[str, Any]] = Field(default_factory=dict)


class EsmSettings(_Section):
    """Attributes:
    source: Where ESM-2 is read from: a directory in `transformers`' format, the original `.pt` file, or a hub name.
    too_long: What to do with proteins of more than 1,022 residues, which ESM-2 was not trained on: "error" refuses them,
        "window" joins overlapping windows.
    """

    source: str = "facebook/esm2_t33_650M_UR50D"
    too_long: Literal["error", "window"] = "error"


class ScreeningSettings(_Section):
    """Defaults of a screen.

    Attributes:
        mode: "interactive" answers each reaction as soon as it can; "batched" groups reactions for throughput. The
            rankings are the same.
        batch_size: Reactions per group in batched mode.
        top_k: Hits per reaction.
    """

    mode: ScreeningMode = "interactive"
    batch_size: PositiveInt = 8
    top_k: PositiveInt = 100


class TaskSettings(_Section):
    """Defaults by kind of task."""

    screening: ScreeningSettings = ScreeningSettings()


class FairShareSettings(_Section):
    """Attributes:
    half_life: Seconds after which what an owner used counts half.
    weights: Share of each owner relative to the others; those not named have 1.
    """

    half_life: Seconds = 86400.0
    weights: dict[str, Weight] = Field(default_factory=dict)


class SchedulerSettings(_Section):
    """Attributes:
    max_concurrent_jobs: Jobs that run at once.
    max_workers_per_job: Tasks of one job that run at once.
    priority_strategy: Which queued job is next, as `rayzyme.jobs.strategies` defines them.
    poll_interval: Seconds between looks for what other programs submitted; one's own submits are seen at once.
    max_wait: A job that waited for so many seconds goes first; 0 switches that off.
    max_bypass: How often a job that does not fit is passed over before what it needs is reserved.
    reserve_after: Seconds after which that is done at the latest.
    fair_share: How the strategy of that name counts.
    """

    max_concurrent_jobs: PositiveInt = 2
    max_workers_per_job: PositiveInt = 4
    priority_strategy: StrategyName = "priority"
    poll_interval: Seconds = 1.0
    max_wait: NotNegative = 21600.0
    max_bypass: PositiveInt = 20
    reserve_after: Seconds = 300.0
    fair_share: FairShareSettings = FairShareSettings()


class Quota(_Section):
    """What one owner may have at a time; None is without limit.

    Attributes:
        running: Jobs that run.
        queued: Jobs that wait.
        gpu_memory_mb: MB (2^20 bytes) of GPU memory that running jobs ask for.
    """

    running: PositiveInt | None = None
    queued: PositiveInt | None = None
    gpu_memory_mb: PositiveInt | None = None


class QuotaSettings(_Section):
    """Attributes:
    default: For owners who are not named.
    users: By owner; replaces the default as a whole.
    """

    default: Quota = Quota()
    users: dict[str, Quota] = Field(default_factory=dict)


class CancelSettings(_Section):
    """Attributes:
    grace: Seconds that a task has to end by itself before its processes are killed.
    """

    grace: NotNegative = 5.0


class DatabaseSettings(_Section):
    """Where jobs, leases, progress and the audit log are kept: a URL, or the parts of a PostgreSQL one. Neither: an SQLite file.

    Attributes:
        url: SQLAlchemy URL, `sqlite:///FILE` or `postgresql://USER:PASSWORD@HOST/DATABASE`.
        host: PostgreSQL server; with it `port`, `database`, `user` and `password` count, and `url` must be absent.
        schema_: PostgreSQL schema, written `schema`; made where it is absent.
    """

    # Defaults are merged with what is given under the names that are written.
    model_config = ConfigDict(serialize_by_alias=True)

    url: SecretStr | None = None
    host: str | None = None
    port: PositiveInt = 5432
    database: str = "rayzyme"
    user: str | None = None
    password: SecretStr | None = None
    schema_: str = Field(default="rayzyme", alias="schema", pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")

    @model_validator(mode="after")
    def _one_place(self) -> DatabaseSettings:
        if self.url is not None and self.host is not None:
            raise ValueError("give url, or host and its parts, not both")
        return self


class LeaseSettings(_Section):
    """Attributes:
    ttl: Seconds after which a lease lapses whose holder was not heard of.
    renew: Seconds between renewals; well below `ttl`.
    """

    ttl: Seconds = 30.0
    renew: Seconds = 10.0

    @model_validator(mode="after")
    def _renewed_in_time(self) -> LeaseSettings:
        if self.renew >= self.ttl:
            raise ValueError(
                f"renew ({self.renew:g} s) must be below ttl ({self.ttl:g} s), or leases lapse in good hands"
            )
        return self


class GpuSettings(_Section):
    """Attributes:
    auto_allocate: Take GPUs where there are any.
    min_free_memory_mb: MB (2^20 bytes) left free on every GPU when memory is given out.
    model_memory_mb: MB that a model's host asks for on a GPU.
    on_missing: What becomes of a task that asks for a GPU where the cluster has none: "fail" refuses it when it is submitted,
        "cpu" runs those tasks on the CPU that can, with a warning.
    simulated_mb: Pretend to have GPUs of so many MB each, to try placements on machines without any.
    """

    auto_allocate: bool = True
    min_free_memory_mb: Annotated[int, BeforeValidator(_refuse_bool), Field(ge=0)] = 1000
    model_memory_mb: PositiveInt = 4000
    on_missing: OnMissingGpu = "fail"
    simulated_mb: tuple[PositiveInt, ...] = ()


class CacheSettings(_Section):
    """Attributes:
    l1_size_mb: Memory that a cache may take, in MB (2^20 bytes).
    l2_size_mb: Disk that it may take, in MB.
    """

    l1_size_mb: PositiveInt = 512
    l2_size_mb: PositiveInt = 10240


class MemorySettings(_Section):
    """Attributes:
    reserve_ratio: Share of the available memory (0 to 1) that is left alone when a shard is placed.
    """

    reserve_ratio: Ratio = 0.2


class ResourceSettings(_Section):
    """What the machine may be used for."""

    gpu: GpuSettings = GpuSettings()
    memory: MemorySettings = MemorySettings()
    cache: CacheSettings = CacheSettings()


class ServeSettings(_Section):
    """The HTTP endpoint.

    Attributes:
        host: Address to listen on; beyond loopback only with tokens.
        port: Port.
        auth: Who may ask: "tokens" whoever has one, "open" everybody who reaches it. "auto" is "open" on loopback for as long as
            no token was made, and otherwise "tokens".
        max_running: Requests that one replica works on at a time.
        max_queued: Requests that may wait for that; more are answered 429.
        timeout: Seconds after which a request is given up with 408.
        max_body_mb: MB (2^20 bytes) of a request body.
        max_reactions: Reactions in a request that is answered at once; jobs may have more.
        max_job_reactions: Reactions in a job that is submitted over HTTP.
        max_job_proteins: Proteins of its own that such a job may bring.
        max_job_hits: Hits that it may ask for, over all of its reactions.
        max_reaction_length: Characters of a reaction SMILES.
        max_sequence_length: Residues of a protein.
        max_top_k: Hits per reaction.
        max_hits: Hits of all reactions of a request that is answered at once.
        max_atoms: Heavy atoms on a side of a reaction that is drawn or answered at once.
        requests_per_minute: Of each token, or of each address where nobody has a token; None does not limit them.
        embeddings_kept: Reaction embeddings that a replica remembers.
        max_followers: Streams of jobs' events that one replica keeps open, beside `max_running`; more are answered 429.
    """

    host: str = "127.0.0.1"
    port: PositiveInt = 8000
    auth: Literal["auto", "tokens", "open"] = "auto"
    max_running: PositiveInt = 64
    max_queued: PositiveInt = 256
    timeout: Seconds = 60.0
    max_body_mb: PositiveInt = 1
    max_reactions: PositiveInt = 256
    max_job_reactions: PositiveInt = 10_000
    max_job_proteins: PositiveInt = 2_000
    max_job_hits: PositiveInt = 2_000_000
    max_reaction_length: PositiveInt = 5_000
    max_sequence_length: PositiveInt = 10_000
    max_top_k: PositiveInt = 10_000
    max_hits: PositiveInt = 100_000
    max_atoms: PositiveInt = 400
    requests_per_minute: PositiveInt | None = None
    embeddings_kept: PositiveInt = 10_000
    max_followers: PositiveInt = 32


class LoggingSettings(_Section):
    """Attributes:
    level: Least severe level that is written.
    console: Write to standard error.
    file: Write to `$RAYZYME_HOME/logs/rayzyme.log`, rotated.
    structured: Write JSON lines instead of text.
    """

    level: LogLevel = "INFO"
    console: bool = True
    file: bool = False
    structured: bool = False
