"""Every metric that Rayzyme itself publishes, each described once; docs/metrics.md shows the same table.

The collector takes other names too: those without the prefix `rayzyme_` are the caller's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class MetricDefinition:
    """What a name stands for.

    Attributes:
        name: Letters, digits and underscores; counters of ours end in `_total`.
        kind: "counter" only grows, "gauge" holds the last value, "histogram" sums up many measured values.
        unit: Of its values, as a word in the plural; None for a bare number.
        tags: Keys that every value carries.
        description: One sentence for people.
    """

    name: str
    kind: Kind
    unit: str | None = None
    tags: tuple[str, ...] = ()
    description: str = ""


_PUBLISHED = (
    MetricDefinition(
        "rayzyme_gpu_memory_free_mb", "gauge", "megabytes", ("device",),
        "Memory of a GPU that nobody uses, as its driver counts, in MB of 2^20 bytes; leases are not taken off.",
    ),
    MetricDefinition("rayzyme_gpu_allocations_total", "counter", None, (), "Allocations of GPU memory that were granted."),
    MetricDefinition("rayzyme_gpu_refusals_total", "counter", None, (), "Allocations of GPU memory that found too little free."),
    MetricDefinition("rayzyme_data_bytes", "gauge", "bytes", (), "Size of the data store on disk."),
    MetricDefinition("rayzyme_data_entries", "gauge", None, (), "Entries of the data store."),
    MetricDefinition("rayzyme_data_hits_total", "counter", None, (), "Loads from the data store that found their entry."),
    MetricDefinition("rayzyme_data_misses_total", "counter", None, (), "Loads from the data store that found nothing."),
    MetricDefinition(
        "rayzyme_data_evictions_total", "counter", None, (), "Entries that left the data store to make room for others."
    ),
    MetricDefinition(
        "rayzyme_data_corrupt_total", "counter", None, (), "Entries of the data store that were found torn or altered."
    ),
    MetricDefinition("rayzyme_checkpoints_total", "counter", None, (), "Checkpoints of component states that were written."),
    MetricDefinition(
        "rayzyme_checkpoints_corrupt_total", "counter", None, (), "Checkpoints that were found torn or altered."
    ),
    MetricDefinition("rayzyme_progress_percent", "gauge", "percent", (), "Progress that was last reported, 0 to 100."),
    MetricDefinition("rayzyme_cache_hits_total", "counter", None, ("level",), "Cache look-ups answered, by level."),
    MetricDefinition("rayzyme_cache_misses_total", "counter", None, (), "Cache look-ups that neither level could answer."),
    MetricDefinition(
        "rayzyme_cache_corrupt_total", "counter", None, (),
        "Cache entries on disk that were torn, altered or not ours; each was removed and counted as a miss.",
    ),
    MetricDefinition(
        "rayzyme_encode_seconds", "histogram", "seconds", ("kind",),
        "Time a model host computed on one step of encoding, by what it encoded (reactions, proteins).",
    ),
    MetricDefinition(
        "rayzyme_search_seconds", "histogram", "seconds", ("lane",),
        "Time from a shard's receiving a search to its answer, by lane (online, batch).",
    ),
    MetricDefinition("rayzyme_online_batch_size", "histogram", None, (), "Online requests that a shard searched for together."),
    MetricDefinition(
        "rayzyme_online_dropped_total", "counter", None, (),
        "Online requests that a shard left out because their callers had hung up.",
    ),
    MetricDefinition(
        "rayzyme_online_retries_total", "counter", None, (),
        "Calls of the HTTP endpoint that were made again because an actor was lost.",
    ),
    MetricDefinition(
        "rayzyme_embeddings_remembered_total", "counter", None, (),
        "Reactions of HTTP requests whose embeddings were remembered.",
    ),
    MetricDefinition("rayzyme_embeddings_made_total", "counter", None, (), "Reactions of HTTP requests that had to be encoded."),
    MetricDefinition(
        "rayzyme_http_request_seconds", "histogram", "seconds", ("route", "method", "status"),
        "Time from a request's arrival at a replica to the end of its answer, streamed events included; 499: the caller hung up.",
    ),
    MetricDefinition(
        "rayzyme_http_errors_total", "counter", None, ("code",),
        "Errors that the HTTP endpoint answered, by their code.",
    ),
    MetricDefinition(
        "rayzyme_lane_wait_seconds", "histogram", "seconds", ("actor", "lane"),
        "Time that a work waited in a lane (online, batch) of a model host or shard before its first step.",
    ),
    MetricDefinition(
        "rayzyme_jobs_submitted_total", "counter", None, (), "Jobs that were accepted; the same one again does not count."
    ),
    MetricDefinition("rayzyme_jobs_total", "counter", None, ("state",), "Jobs that came to an end, by their final state."),
    MetricDefinition("rayzyme_jobs_queued", "gauge", None, (), "Jobs that wait for their start, as the scheduler sees them."),
    MetricDefinition("rayzyme_jobs_running", "gauge", None, (), "Jobs that run, as the scheduler sees them."),
    MetricDefinition(
        "rayzyme_job_wait_seconds", "histogram", "seconds", (), "Time from a job's submission to the start of an attempt."
    ),
    MetricDefinition("rayzyme_job_run_seconds", "histogram", "seconds", (), "Time that an attempt of a job ran."),
    MetricDefinition(
        "rayzyme_task_seconds", "histogram", "seconds", ("state",), "Time that an attempt of a task computed, by how it ended."
    ),
    MetricDefinition(
        "rayzyme_commit_seconds", "histogram", "seconds", (), "Time in which a group of state changes became durable."
    ),
    MetricDefinition(
        "rayzyme_retries_total", "counter", None, ("fault",),
        "Attempts of tasks and jobs that another follows, by whose fault that is (site, job).",
    ),
    MetricDefinition("rayzyme_cancellations_total", "counter", None, (), "Jobs that were cancelled, queued or running."),
    MetricDefinition(
        "rayzyme_late_results_total", "counter", None, (), "Results of attempts that were no longer their job's newest; refused."
    ),
    MetricDefinition("rayzyme_task_cache_hits_total", "counter", None, (), "Tasks whose output came from the task cache."),
)  # fmt: skip

METRICS = {metric.name: metric for metric in _PUBLISHED}
"""By name."""
