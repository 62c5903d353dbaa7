"""Which jobs a command is about: by id, by its beginning, by number, by a range of numbers, or as `last`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from rayzyme.errors import InvalidInput, UnknownJob
from rayzyme.settings import get_settings

if TYPE_CHECKING:
    from rayzyme.jobs.records import JobRecord
    from rayzyme.jobs.store import JobStore

_COMPLETED_FROM = 50
_LARGEST_NUMBER = 2**63 - 1
# Fewer characters are more likely a slip, such as a variable of the shell that was not set.
_BEGINNING = re.compile(r"job_[0-9a-f]{4,}$")


@contextmanager
def job_store() -> Iterator[JobStore]:
    """The store of the settings' database."""
    # SQLAlchemy takes its time to load.
    from rayzyme.database import open_database
    from rayzyme.jobs.store import JobStore

    with closing(open_database()) as database:
        yield JobStore(database, lease_ttl=get_settings().leases.ttl)


def selected(store: JobStore, arguments: Sequence[str]) -> list[JobRecord]:
    """The jobs that the arguments name, in their order.

    Raises:
        UnknownJob: One of them names none.
        InvalidInput: The beginning of an id fits several jobs.
    """
    return [record for argument in arguments for record in _named(store, argument)]


def complete_jobs(incomplete: str) -> list[tuple[str, str]]:
    """Ids of the newest jobs that begin so, with their names, for the shell."""
    with job_store() as store:
        return [
            (record.job.job_id, record.job.name)
            for record in store.records(limit=_COMPLETED_FROM)
            if record.job.job_id.startswith(incomplete)
        ]


def _named(store: JobStore, argument: str) -> list[JobRecord]:
    first, dash, last = argument.partition("-")
    numbers = [int(text) for text in (first, last) if text.isdecimal()]
    if argument == "last":
        found = store.records(limit=1)
    elif numbers and len(numbers) == 1 + bool(dash) and max(numbers) <= _LARGEST_NUMBER:
        found = store.numbered(numbers[0], numbers[-1])
    elif not _BEGINNING.match(argument):
        found = []
    else:
        found = store.beginning_with(argument)
        if len(found) > 1:
            raise InvalidInput(
                f"{argument} is the beginning of several job ids, such as {found[0].job.job_id} and {found[1].job.job_id}; "
                "give more of it"
            )
    if not found:
        raise UnknownJob(f"there is no job {argument!r}; `rayzyme list-jobs` shows those that there are")
    return found


_HELP = "Id, the beginning of one, number, range of numbers (3-7), or last."
JobsArgument = Annotated[list[str], typer.Argument(metavar="JOB...", help=_HELP, autocompletion=complete_jobs)]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help=_HELP, autocompletion=complete_jobs)]
