"""Accepting jobs: checked one by one, then written together, each with the first line of its story.

A request with an idempotency key is accepted once. What is asked for in one call is accepted as a whole or not at all; what
several calls ask for at one time is written in one transaction, and one that is refused does not touch the others.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, get_args

from sqlalchemy import Connection, func, insert, select, text

from rayzyme.checks import number_from_zero, printable_text, short_text, truth_value, whole_number
from rayzyme.database.change_numbers import own_change_number
from rayzyme.database.documents import JsonText, clean_text, to_json
from rayzyme.database.events import JOB_SUBJECT, ChainEnd, Line, append
from rayzyme.errors import IdempotencyConflict, RayzymeError, ValidationError
from rayzyme.jobs.job import JobKind, JobRequest, TaskPriority
from rayzyme.jobs.role import SETTINGS, RoleHolder
from rayzyme.jobs.rows import JOB, chunks, moment
from rayzyme.jobs.scheduling_config import SchedulingConfig, check_queued_quota, quotas_from
from rayzyme.jobs.states import JobState
from rayzyme.jobs.vocabularies import job_status

_LONGEST_NAME, _LONGEST_OWNER, _LONGEST_TYPE, _LONGEST_KEY = 512, 256, 256, 256
_KINDS: Final = get_args(JobKind)

_ADD_JOBS: Final = insert(JOB)

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class CheckedRequest:
    """A request that can be written.

    Attributes:
        request: The request.
        columns: What is known of its row already.
        key: Owner and idempotency key.
        digest: Of what was asked for, where there is a key.
    """

    request: JobRequest
    columns: Mapping[str, Any]
    key: Key | None
    digest: str | None


@dataclass(slots=True)
class Call:
    """What one caller asks for at once.

    Attributes:
        requests: In order.
        quotas: The limits that hold for their owners.
        actor: Who asks; None is this process.
        outcome: Their ids, or why none was accepted; None before that is known.
    """

    requests: Sequence[CheckedRequest]
    quotas: SchedulingConfig | None = None
    actor: str | None = None
    outcome: list[str] | RayzymeError | None = None


def check_request(request: JobRequest) -> CheckedRequest:
    """See that a request can be written.

    Raises:
        ValidationError: Names the field and what is wrong with it.
    """
    if request.kind not in _KINDS:
        raise ValidationError(f"kind must be one of {', '.join(_KINDS)}, not {request.kind!r}")
    owner = clean_text(printable_text("owner", request.owner, at_most=_LONGEST_OWNER))
    spec = _document("spec", request.spec)
    metadata = _document("metadata", request.metadata)
    key, estimate = request.idempotency_key, request.estimated_seconds
    columns = {
        "name": clean_text(printable_text("name", request.name, at_most=_LONGEST_NAME)),
        "owner": owner,
        "kind": request.kind,
        "job_type": clean_text(request.job_type)[:_LONGEST_TYPE],
        "priority": int(TaskPriority(request.priority)),
        "task_count": whole_number("task_count", request.task_count, at_least=1),
        "needs": _needs(request.needs),
        "estimated_seconds": estimate if estimate is None else number_from_zero("estimated_seconds", estimate),
        "max_site_faults": whole_number("max_site_faults", request.max_site_faults, at_least=1),
        "is_durable": truth_value("is_durable", request.is_durable),
        "retry_of": request.retry_of,
        "deadline": _deadline(request.metadata.get("deadline")),
        "metadata": metadata,
        "spec": spec,
    }
    if key is None:
        return CheckedRequest(request, columns, None, None)
    key = clean_text(short_text("idempotency_key", key, at_most=_LONGEST_KEY))
    return CheckedRequest(request, columns, (owner, key), _digest(request))


def accept(connection: Connection, calls: Sequence[Call], now: float, actor: str) -> None:
    """Write what is asked for and give each call its outcome, in the transaction of `connection`.

    Raises:
        sqlalchemy.exc.IntegrityError: Another process wrote the same idempotency key meanwhile; begin again.
    """
    known = _known_keys(connection, [key for call in calls for request in call.requests if (key := request.key)])
    queued = _queued(connection, calls)
    accepted: list[tuple[str, CheckedRequest, str]] = []
    for call in calls:
        try:
            new, ids, keys = _resolve(call, known)
            _check_quotas(call, new, queued)
        except RayzymeError as error:
            call.outcome = error
            continue
        known |= keys
        queued.update(request.request.owner for _, request in new)
        accepted += [(job_id, request, call.actor or actor) for job_id, request in new]
        call.outcome = ids
    if accepted:
        _write(connection, accepted, now)


def _resolve(
    call: Call, known: Mapping[Key, tuple[str, str | None]]
) -> tuple[list[tuple[str, CheckedRequest]], list[str], dict[Key, tuple[str, str | None]]]:
    """The new jobs of a call, the ids of all that it asks for, and the keys that are taken with it."""
    new: list[tuple[str, CheckedRequest]] = []
    keys: dict[Key, tuple[str, str | None]] = {}
    ids = []
    for request in call.requests:
        found = None if request.key is None else known.get(request.key) or keys.get(request.key)
        if found is None:
            job_id = f"job_{secrets.token_hex(6)}"
            new.append((job_id, request))
            if request.key is not None:
                keys[request.key] = (job_id, request.digest)
        else:
            job_id, digest = found
            if digest != request.digest:
                assert request.key is not None
                raise IdempotencyConflict(
                    f"the idempotency key {request.key[1]!r} of {request.key[0]} belongs to {job_id}, which is another request; "
                    "use another key for it"
                )
        ids.append(job_id)
    return new, ids, keys


def _check_quotas(call: Call, new: Sequence[tuple[str, CheckedRequest]], queued: Mapping[str, int]) -> None:
    if call.quotas is None:
        return
    for owner, count in Counter(request.request.owner for _, request in new).items():
        check_queued_quota(owner, queued.get(owner, 0), call.quotas, new=count)


def _known_keys(connection: Connection, keys: Sequence[Key]) -> dict[Key, tuple[str, str | None]]:
    known: dict[Key, tuple[str, str | None]] = {}
    for part in chunks(keys):
        rows = connection.execute(
            select(JOB.c.owner, JOB.c.idempotency_key, JOB.c.public_id, JOB.c.request_digest).where(
                JOB.c.owner.in_({owner for owner, _ in part}), JOB.c.idempotency_key.in_({key for _, key in part})
            )
        )
        known |= {(owner, key): (job_id, digest) for owner, key, job_id, digest in rows}
    return known


def use_quotas_of_scheduler(calls: Sequence[Call], scheduler: RoleHolder | None) -> None:
    """Have the quotas of the scheduler's settings hold for all calls, where one lives that told them."""
    told = None if scheduler is None else scheduler.info.get(SETTINGS, {}).get("quotas")
    if told is not None:
        quotas = quotas_from(told, {request.request.owner for call in calls for request in call.requests})
        for call in calls:
            call.quotas = quotas


def has_queue_limit(call: Call) -> bool:
    """Whether any owner in the call may have only so many waiting jobs."""
    return call.quotas is not None and any(
        call.quotas.quota(request.request.owner).queued is not None for request in call.requests
    )


def _queued(connection: Connection, calls: Sequence[Call]) -> Counter[str]:
    """How many jobs wait, of the owners for whom that is limited."""
    owners = {request.request.owner for call in calls if has_queue_limit(call) for request in call.requests}
    if not owners:
        return Counter()
    rows = connection.execute(
        select(JOB.c.owner, func.count())
        .where(JOB.c.owner.in_(owners), JOB.c.state == JobState.QUEUED.value)
        .group_by(JOB.c.owner)
    )
    return Counter(dict(rows.all()))


def _write(connection: Connection, accepted: Sequence[tuple[str, CheckedRequest, str]], now: float) -> None:
    at, change_number = moment(now), own_change_number(connection)
    numbers = _row_numbers(connection, len(accepted))
    lines, ends, rows = [], dict[str, ChainEnd](), []
    for (job_id, request, actor), number in zip(accepted, numbers, strict=True):
        data = {"retry_of": request.request.retry_of} if request.request.retry_of else {}
        lines.append(
            Line(JOB_SUBJECT + job_id, "submitted", actor, at, number, to_state=JobState.QUEUED.value, data=data)
        )
    append(connection, lines, ends)
    for (job_id, request, _), number in zip(accepted, numbers, strict=True):
        end = ends[JOB_SUBJECT + job_id]
        rows.append(
            {
                **request.columns,
                "id": number,
                "public_id": job_id,
                "state": JobState.QUEUED.value,
                "status": job_status(JobState.QUEUED),
                "idempotency_key": request.key and request.key[1],
                "request_digest": request.digest,
                "submission_time": at,
                "queued_at": at,
                "version": end.seq,
                "event_digest": end.digest,
                "change_number": change_number,
            }
        )
    connection.execute(_ADD_JOBS, rows)


def _row_numbers(connection: Connection, count: int) -> list[int]:
    """Numbers for new rows: their stories tell them, and the rows tell the ends of their stories."""
    if connection.dialect.name == "postgresql":
        schema = connection.get_execution_options()["schema_translate_map"][None]
        drawn = text("SELECT nextval(pg_get_serial_sequence(:name, 'id')) FROM generate_series(1, :count)")
        return sorted(connection.execute(drawn, {"name": f'"{schema}".job', "count": count}).scalars())
    last = connection.execute(text("SELECT seq FROM sqlite_sequence WHERE name = 'job'")).scalar() or 0
    return list(range(last + 1, last + 1 + count))


def _document(name: str, value: Any) -> JsonText:
    if not isinstance(value, Mapping):
        raise ValidationError(f"{name} must be a mapping, not {value!r}")
    try:
        return JsonText(to_json(value))
    except (TypeError, RecursionError) as error:
        raise ValidationError(f"{name} must be JSON: {error}") from None


def _needs(needs: Any) -> dict[str, float]:
    if not isinstance(needs, Mapping):
        raise ValidationError(f"needs must be a mapping of amounts, not {needs!r}")
    for resource, amount in needs.items():
        if isinstance(amount, bool) or not isinstance(amount, (int, float)) or not 0 <= amount < math.inf:
            raise ValidationError(f"needs: {resource} must be a finite amount of at least 0, not {amount!r}")
    return {str(resource): amount for resource, amount in needs.items() if amount}


def _deadline(given: Any) -> datetime | None:
    if given is None:
        return None
    try:
        if isinstance(given, str):
            parsed = datetime.fromisoformat(given)
            return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)
        if isinstance(given, (int, float)) and not isinstance(given, bool):
            return moment(given)
    except (ValueError, OverflowError, OSError):
        pass
    raise ValidationError(f"metadata: deadline must be a time in ISO 8601 or seconds since 1970, not {given!r}")


def _digest(request: JobRequest) -> str:
    """Of what its user asked for; what follows from that, such as `needs`, is not part of it."""
    asked: dict[str, Any] = {
        "name": request.name,
        "kind": request.kind,
        "job_type": request.job_type,
        "priority": int(request.priority),
        "metadata": dict(request.metadata),
        # What begins with an underscore says how it travels, and differs between programs that ask for the same.
        "spec": {key: value for key, value in request.spec.items() if not key.startswith("_")},
        "retry_of": request.retry_of,
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
