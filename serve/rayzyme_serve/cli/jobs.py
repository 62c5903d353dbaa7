"""Jobs on the command line: list, show, explain, follow, cancel, hold, repeat. All of it from the database, in any process.

A job is named by its id, by the beginning of one, by its number, by a range of numbers (`3-7`), or as `last`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayzyme_serve.cli.context import Context, JsonOption, OutputOption
from rayzyme_serve.cli.job_selection import JobArgument, JobsArgument, job_store, selected
from rayzyme_serve.cli.output import Output, time_left

if TYPE_CHECKING:
    from rayzyme.jobs.records import JobRecord
    from rayzyme.jobs.store import JobStore

SCHEMA_VERSION = "rayzyme.jobs/1"
_POLL_S = 0.5

app = typer.Typer(no_args_is_help=True, help="Look at jobs and steer them.")


def list_jobs_command(
    context: typer.Context,
    status: Annotated[
        str | None, typer.Option("--status", "-s", help="Only jobs in this state.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(help="At most so many, the newest.", min=1)] = 100,
    as_json: JsonOption = False,
    output: OutputOption = None,
) -> None:
    """List jobs, the newest first."""
    from rayzyme.jobs.vocabularies import JOB

    own: Context = context.obj
    printer = own.output(output, as_json)
    with job_store() as store:
        records = store.records(states=None if status is None else [JOB.state(status)], limit=limit)
    jobs = [record.to_dict() for record in records]
    printer.document({"schema_version": SCHEMA_VERSION, "jobs": jobs})
    if not jobs:
        printer.note("No jobs found")
        return
    rows = [[job["job_id"], job["name"], job["status"], job["created_at"]] for job in jobs]
    printer.rows("Jobs", ["Job ID", "Name", "Status", "Created"], rows)
    for job in jobs:
        printer.value(job["job_id"])


def cancel_command(context: typer.Context, jobs: JobsArgument, output: OutputOption = None) -> None:
    """Cancel jobs, queued or running; the exit code is 1 where one had ended already."""
    _steer(context, output, jobs, "cancelled", lambda store, job_id: store.request_cancel(job_id))


@app.command("hold")
def hold_command(context: typer.Context, jobs: JobsArgument, output: OutputOption = None) -> None:
    """Let queued jobs wait until they are released."""
    _steer(context, output, jobs, "held", lambda store, job_id: store.hold(job_id))


@app.command("release")
def release_command(context: typer.Context, jobs: JobsArgument, output: OutputOption = None) -> None:
    """Let held jobs go on."""
    _steer(context, output, jobs, "released", lambda store, job_id: store.unhold(job_id))


@app.command("retry")
def retry_command(context: typer.Context, jobs: JobsArgument, output: OutputOption = None) -> None:
    """Submit jobs that have ended once more, as new ones."""
    own: Context = context.obj
    printer = own.output(output)
    again: list[dict[str, str]] = []
    with job_store() as store:
        try:
            for record in selected(store, jobs):
                job_id = store.submit_again(record.job.job_id)
                again.append({"job_id": job_id, "retry_of": record.job.job_id})
                printer.note(f"{record.job.job_id} is tried again as {job_id}")
                printer.value(job_id)
        finally:
            # Those that were submitted before one was refused run all the same.
            if again:
                printer.document({"schema_version": SCHEMA_VERSION, "jobs": again})


@app.command("show")
def show_command(
    context: typer.Context,
    jobs: JobsArgument,
    events: Annotated[bool, typer.Option("--events", help="The whole story, from the audit log.")] = False,
    as_json: JsonOption = False,
    output: OutputOption = None,
) -> None:
    """Show jobs with their tasks."""
    own: Context = context.obj
    printer = own.output(output, as_json)
    with job_store() as store:
        shown = [show_job(store, printer, record, events) for record in selected(store, jobs)]
    printer.document({"schema_version": SCHEMA_VERSION, "jobs": shown})


@app.command("explain")
def explain_command(
    context: typer.Context, jobs: JobsArgument, as_json: JsonOption = False, output: OutputOption = None
) -> None:
    """Say why jobs wait: their place, what they lack and who holds that, when they may start."""
    own: Context = context.obj
    printer = own.output(output, as_json)
    from rayzyme_actors.explaining import explain

    with job_store() as store:
        records = selected(store, jobs)
        explained = [explain(store, record.job.job_id, own.settings) for record in records]
    for record, told in zip(records, explained, strict=True):
        if len(records) > 1:
            printer.note(f"{record.job.job_id}, {record.job.name}:")
        for sentence in told["sentences"]:
            printer.note(sentence)
        printer.value(told["state"])
    printer.document({"schema_version": SCHEMA_VERSION, "jobs": explained})


@app.command("wait")
def wait_command(
    context: typer.Context,
    jobs: JobsArgument,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait at most.", show_default=False)] = None,
    output: OutputOption = None,
) -> None:
    """Wait until jobs have ended; the exit code is 1 unless all of them are completed."""
    own: Context = context.obj
    printer = own.output(output)
    with job_store() as store:
        ids = [record.job.job_id for record in selected(store, jobs)]
        states = _follow(store, ids, timeout, lambda _: None)
    for job_id, state in states.items():
        printer.note(f"{job_id} {state}")
        printer.value(state)
    printer.document({"schema_version": SCHEMA_VERSION, "jobs": states})
    if set(states.values()) != {"completed"}:
        raise typer.Exit(1)


@app.command("watch")
def watch_command(context: typer.Context, job: JobArgument, output: OutputOption = None) -> None:
    """Follow a job: its events as they happen, its progress and the time left."""
    own: Context = context.obj
    printer = own.output(output)
    with job_store() as store:
        (record,) = selected(store, [job])[:1]
        told = _News(store, printer, record.job.job_id)
        states = _follow(store, [record.job.job_id], None, lambda _: told.tell())
        told.tell()
    if set(states.values()) != {"completed"}:
        raise typer.Exit(1)


@app.command("logs")
def logs_command(
    context: typer.Context,
    job: JobArgument,
    task: Annotated[str | None, typer.Option(help="Only this task's.", show_default=False)] = None,
) -> None:
    """Print what a job's tasks printed and logged."""
    own: Context = context.obj
    from rayzyme_actors.task_log import logs_of

    with job_store() as store:
        for record in selected(store, [job]):
            for name, attempt, text in logs_of(own.settings.runs, record.job.job_id):
                if task is None or task == name:
                    sys.stdout.write(f"--- {name}, attempt {attempt}\n{text}")


def status_of(printer: Output, argument: str) -> None:
    """`rayzyme status JOB`."""
    with job_store() as store:
        shown = [show_job(store, printer, record, False) for record in selected(store, [argument])]
    printer.document({"schema_version": SCHEMA_VERSION, "jobs": shown})


def show_job(store: JobStore, printer: Output, record: JobRecord, events: bool) -> dict[str, Any]:
    """Print a job and its tasks, with `events` its story; the same as JSON."""
    job = record.to_dict()
    tasks = [task.to_dict() for task in store.tasks(record.job.job_id)]
    told: dict[str, Any] = {**job, "number": record.job.sequence, "attempt": record.job.attempt, "tasks": tasks}
    told |= {
        "error": record.error_message,
        "retry_of": record.retry_of,
        "progress": _progress(store, record.job.job_id),
    }
    shown = {**job, "attempt": record.job.attempt, "error": record.error_message, "retry of": record.retry_of}
    printer.rows(record.job.job_id, ["what", "value"], [[key, _text(value)] for key, value in shown.items()])
    if tasks:
        rows = [[task["name"], task["status"], task["attempt"], task["error"] or ""] for task in tasks]
        printer.rows("Tasks", ["Task", "Status", "Attempt", "Error"], rows)
    if events:
        story = [event.to_dict() for event in store.events(record.job.job_id)]
        told["events"] = story
        rows = [[line["at"], line["to_state"] or "", line["reason"], line["actor"]] for line in story]
        printer.rows("Events", ["At", "State", "What", "Who"], rows)
    printer.value(job["status"])
    return told


class _News:
    """What there is to tell of a job since the last time."""

    def __init__(self, store: JobStore, printer: Output, job_id: str) -> None:
        self._store, self._printer, self._job_id = store, printer, job_id
        self._last_event = 0
        self._last_progress = ""

    def tell(self) -> None:
        """Print it."""
        for event in self._store.events(self._job_id, after=self._last_event):
            self._last_event = event.id
            tasks = ", ".join(f"{task['name']} {task['state']}" for task in event.data.get("tasks", ()))
            self._printer.note(f"{event.to_dict()['at']}  {event.reason}{f': {tasks}' if tasks else ''}")
        progress = _progress(self._store, self._job_id)
        if progress is not None:
            text = f"{progress['percent']:.0f} % {time_left(progress)}".rstrip()
            if text != self._last_progress:
                self._last_progress = text
                self._printer.note(text)


def _follow(
    store: JobStore, job_ids: list[str], timeout: float | None, on_look: Callable[[str], None]
) -> dict[str, str]:
    """Look again and again until all have ended; their states."""
    from rayzyme.jobs.states import FINAL

    end = None if timeout is None else time.monotonic() + timeout
    states: dict[str, str] = {}
    for job_id in job_ids:
        while (state := store.job(job_id).state) not in FINAL:
            if end is not None and time.monotonic() >= end:
                raise TimeoutError(f"job {job_id} has not ended within {timeout:g} s: it is {state}, and goes on")
            on_look(job_id)
            time.sleep(_POLL_S)
        states[job_id] = state.value
    return states


def _steer(
    context: typer.Context, output: Any, jobs: list[str], done: str, act: Callable[[JobStore, str], bool]
) -> None:
    from rayzyme.jobs.states import JobState

    own: Context = context.obj
    printer = own.output(output)
    outcome: dict[str, bool] = {}
    with job_store() as store:
        for record in selected(store, jobs):
            job_id = record.job.job_id
            outcome[job_id] = act(store, job_id)
            if outcome[job_id]:
                is_running = done == "cancelled" and store.job(job_id).state is JobState.RUNNING
                printer.note(f"{job_id} is asked to end" if is_running else f"{job_id} is {done}")
                printer.value(job_id)
            else:
                printer.warning(f"{job_id} cannot be {done}: it is {store.job(job_id).state}")
    printer.document({"schema_version": SCHEMA_VERSION, done: outcome})
    if not all(outcome.values()):
        raise typer.Exit(1)


def _progress(store: JobStore, job_id: str) -> dict[str, Any] | None:
    from rayzyme.errors import NotFound
    from rayzyme.monitoring import ProgressTracker

    try:
        with ProgressTracker.attach(job_id, store.database) as progress:
            return progress.get_progress()
    except NotFound:
        return None


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, (dict, list)) else value
