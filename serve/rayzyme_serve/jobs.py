"""Jobs over HTTP: submit, list, follow, explain, cancel, fetch results. Routes hold no logic.

Viewers and admins see everybody's jobs; users see their own, and are told of those of others that there are none.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Body, Depends, Header, Query, Response
from fastapi.responses import FileResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from rayzyme.access import Caller, Role
from rayzyme.errors import NotFound, NotPermitted, NotReady, TooManyRequests, UnknownJob
from rayzyme.jobs.records import JobRecord
from rayzyme.jobs.states import FINAL, JobState
from rayzyme.jobs.vocabularies import JOB, JobStatus
from rayzyme.workflows.result_files import result_file, results_folder
from rayzyme_serve import access, faults
from rayzyme_serve.job_descriptions import (
    Cancelled,
    Explanation,
    JobDescription,
    JobDetails,
    JobPage,
    described,
    details,
)
from rayzyme_serve.job_events import job_events
from rayzyme_serve.job_requests import EXAMPLES, JobRequest, workflow_of
from rayzyme_serve.service import Service, service_of

logger = logging.getLogger(__name__)

_REFUSALS: Final = (401, 403, 422, 429, 503)
router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=faults.responses(*_REFUSALS))

Asked = Annotated[Service, Depends(service_of)]
Viewer = Annotated[Caller, Depends(access.require(Role.VIEWER))]
User = Annotated[Caller, Depends(access.require(Role.USER))]

_SCHEDULER_ANSWERS_S: Final = 10.0
# Whatever stands between here and the client gives a request up after `serve.timeout`, answered or not.
_OF_TIMEOUT: Final = 0.9
_MEDIA_TYPES: Final = {"json": "application/json", "csv": "text/csv", "parquet": "application/vnd.apache.parquet"}


def visible_to(role: Role) -> Callable[..., JobRecord]:
    """A dependency of routes: the job of the path, as far as the caller may see it and has `role` at least."""

    def visible(job_id: str, service: Asked, caller: Caller = Depends(access.require(role))) -> JobRecord:
        try:
            record = service.store.record(job_id) if job_id.isprintable() else None
        except UnknownJob:
            record = None
        if record is None or (caller.role is Role.USER and record.job.owner != caller.owner):
            raise UnknownJob(f"there is no job {job_id!r}, or not for you; GET /v1/jobs lists those that there are")
        return record

    return visible


Seen = Annotated[JobRecord, Depends(visible_to(Role.VIEWER))]
Own = Annotated[JobRecord, Depends(visible_to(Role.USER))]


class _ResultFile(FileResponse):
    """A file, always as a whole; it may be large, and each part is a message between Serve's processes."""

    chunk_size = 2**20

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        self.headers["Accept-Ranges"] = "none"
        headers = [header for header in scope["headers"] if header[0] not in (b"range", b"if-range")]
        await super().__call__({**scope, "headers": headers}, receive, send)


@router.post("", status_code=201, response_model=JobDescription, responses=faults.responses(400, 404, 409, 413))
def submit(
    request: Annotated[JobRequest, Body(openapi_examples=EXAMPLES)],
    response: Response,
    service: Asked,
    caller: User,
    idempotency_key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            min_length=1,
            max_length=256,
            description="The same request with the same key is the same job.",
        ),
    ] = None,
) -> dict[str, Any]:
    """Accept a job; when this answers, it is on the disk."""
    folder = results_folder(service.settings.results, caller.owner, idempotency_key)
    job_id = service.dispatcher.submit_workflow(
        workflow_of(request, service.settings, folder),
        request.name,
        request.urgency,
        request.metadata,
        caller.owner,
        idempotency_key,
        _named(caller),
    )
    # The line of the request names both, so that one is found by the other.
    logger.info("job %s is accepted", job_id, extra={"job_id": job_id})
    response.headers["Location"] = f"{router.prefix}/{job_id}"
    return described(service.store, [service.store.record(job_id)])[0]


@router.get("", response_model=JobPage)
def list_jobs(
    service: Asked,
    caller: Viewer,
    status: Annotated[list[JobStatus] | None, Query(description="Only jobs in one of these states.")] = None,
    owner: Annotated[str | None, Query(max_length=256, description="Only this one's.")] = None,
    name: Annotated[str | None, Query(max_length=512, description="Only those whose names begin so.")] = None,
    limit: Annotated[int, Query(ge=1, le=500, description="At most so many.")] = 100,
    cursor: Annotated[
        str | None, Query(pattern=r"^[1-9][0-9]{0,17}$", description="`next_cursor` of the page before.")
    ] = None,
) -> dict[str, Any]:
    """Jobs, the newest first."""
    if caller.role is Role.USER:
        if owner not in (None, caller.owner):
            raise NotPermitted(f"{caller.name} may list the jobs of {caller.owner} only")
        owner = caller.owner
    if not all(text.isprintable() for text in (owner, name) if text is not None):
        return {"jobs": [], "next_cursor": None}  # such names are refused when a job is submitted
    records = service.store.records(
        states=None if status is None else [JOB.state(word) for word in status],
        owner=owner,
        limit=limit + 1,
        name=name,
        before=None if cursor is None else int(cursor),
    )
    shown = records[:limit]
    next_cursor = str(shown[-1].job.sequence) if len(records) > limit else None
    return {"jobs": described(service.store, shown), "next_cursor": next_cursor}


@router.get("/{job_id}", response_model=JobDetails, responses=faults.responses(404))
def show(job: Seen, service: Asked) -> dict[str, Any]:
    """A job with its tasks and every try at it."""
    return details(service.store, job)


@router.get(
    "/{job_id}/events",
    response_class=StreamingResponse,
    responses={200: {"description": "Events", "content": {"text/event-stream": {}}}, **faults.responses(404)},
)
async def events(
    job: Seen,
    service: Asked,
    last_event_id: Annotated[
        str | None,
        Header(
            alias="Last-Event-ID", description="Id of the last event that was seen: what came after it is told first."
        ),
    ] = None,
) -> StreamingResponse:
    """What happens to a job, as server-sent events, until it has ended.

    `state` has state, percent, eta (seconds left), error and, for what has happened, at and reason; `progress` has state,
    percent, eta, eta_low, eta_high, stalled and message. The stream may end before the job does: ask again with the last id.
    """
    limits = service.settings.serve
    if service.followers >= limits.max_followers:
        raise TooManyRequests(
            f"{limits.max_followers} clients follow jobs here already; ask for the job itself instead", 5
        )
    last_seen = int(last_event_id) if last_event_id and last_event_id.isdecimal() and len(last_event_id) < 10 else None
    told = job_events(service.store, service.watcher, job.job.job_id, last_seen, lasts_s=limits.timeout * _OF_TIMEOUT)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return _Following(service, told, media_type="text/event-stream", headers=headers)


class _Following(StreamingResponse):
    """Counts from the moment it is made, so that no more can be let in at once than may be."""

    def __init__(self, service: Service, told: AsyncIterator[str], **more: Any) -> None:
        super().__init__(told, **more)
        self._service = service
        service.followers += 1

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._service.followers -= 1


@router.get(
    "/{job_id}/result",
    response_class=FileResponse,
    responses={
        200: {"description": "The file", "content": {media_type: {} for media_type in _MEDIA_TYPES.values()}},
        **faults.responses(404, 409),
    },
)
def result(
    job: Seen,
    service: Asked,
    format: Annotated[Literal["json", "csv", "parquet"], Query(description="csv and parquet have the hits.")] = "json",
    part: Annotated[
        Literal["screening", "evaluation"] | None,
        Query(description="By default the screening, where the workflow has one."),
    ] = None,
) -> FileResponse:
    """What a job gave: the answer of its screen as `rayzyme screen --output json` has it, its hits, or its evaluation."""
    job_id, state = job.job.job_id, job.job.state
    if state not in FINAL:
        raise NotReady(
            f"{job_id} is {state}: there is a result when it is completed; GET /v1/jobs/{job_id}/events tells when"
        )
    if state is not JobState.COMPLETED:
        raise NotFound(
            f"{job_id} has no result: it is {state}" + (f": {job.error_message}" if job.error_message else "")
        )
    parts = ("screening", "evaluation") if part is None else (part,)
    names = [f"{each}_results.{format}" for each in parts]
    path = result_file(service.settings.results, service.store.tasks(job_id), names)
    shown_as = "inline" if format == "json" else "attachment"
    return _ResultFile(
        path,
        media_type=_MEDIA_TYPES[format],
        filename=f"{job_id}-{path.name}",
        content_disposition_type=shown_as,
    )


@router.get("/{job_id}/explain", response_model=Explanation, responses=faults.responses(404))
def explain(job: Own, service: Asked) -> dict[str, Any]:
    """Why a job waits: its place, what it lacks and who holds that, when it may start."""
    from rayzyme_actors.explaining import explain

    return explain(service.store, job.job.job_id, service.settings, _SCHEDULER_ANSWERS_S)


@router.post("/{job_id}/cancel", response_model=Cancelled, responses=faults.responses(404))
def cancel(job: Own, service: Asked, caller: User) -> dict[str, bool]:
    """Cancel a job, queued or running."""
    return {"cancelled": service.dispatcher.cancel_job(job.job.job_id, _named(caller))}


def _named(caller: Caller) -> str:
    """As the audit log names who did something."""
    return f"{caller.name} over HTTP"
