"""Every error that Rayzyme raises on purpose, one small tree.

A message says what happened, to what, and what to do about it. The edges (command line, HTTP) translate a class to an
exit code or a status in one table each, so the classes here carry meaning and no numbers.
"""

from __future__ import annotations


class RayzymeError(Exception):
    """Base of every error below."""


class InvalidInput(RayzymeError, ValueError):
    """What the caller gave cannot be used: a reaction, a protein, a file, a number out of range."""


class InvalidReaction(InvalidInput):
    """A reaction that cannot be parsed, mapped or drawn."""


class InvalidProtein(InvalidInput):
    """A sequence or structure that cannot be used."""


class ValidationError(InvalidInput):
    """Settings that do not hold; the message lists every fault at once."""


class NotFound(RayzymeError, LookupError):
    """A checkpoint, screening set or file that does not exist under the given name."""


class CheckpointError(RayzymeError):
    """A checkpoint, of a model or of saved states, that is truncated, altered, unsafe to read or of an unsupported variant."""


class CheckpointMismatch(RayzymeError):
    """Embeddings of one checkpoint were to be compared with those of another."""


class DownloadFailed(RayzymeError):
    """A file could not be fetched completely and correctly."""


class DeviceUnavailable(RayzymeError):
    """A device was asked for that this machine or cluster does not have."""


class InsufficientSpace(RayzymeError):
    """Memory or disk does not suffice; the message gives both figures."""


class ResourceError(RayzymeError):
    """More of something shared was asked for than can be given; the message gives both figures."""


class DamagedFile(RayzymeError):
    """A stored file that is torn or was altered; the message names it."""


class CacheTooSmall(RayzymeError):
    """An entry is larger than the whole store that it was meant for."""


class CacheEntryLost(RayzymeError, KeyError):
    """An entry that was stored is gone or damaged; it can only be made again."""

    # KeyError shows its message as a key, in quotes.
    __str__ = Exception.__str__


class DatabaseError(RayzymeError):
    """The database cannot be reached, is locked, or is of another version."""


class MissingExtra(RayzymeError, ImportError):
    """An optional dependency is needed; the message gives the install command."""


class WorkerLost(RayzymeError):
    """An actor died during a request and could not be brought back in time."""


class IllegalTransition(RayzymeError):
    """A job was to change into a state that its present one does not lead to; the message is the job's story."""


class UnknownWord(RayzymeError, LookupError):
    """A word of another system, such as a state of SLURM, that no table here has."""


class IdempotencyConflict(RayzymeError):
    """An idempotency key was used again for another request."""


class QuotaExceeded(RayzymeError):
    """An owner has as many jobs as the settings let them have; the message gives the figures."""


class NotPermitted(RayzymeError):
    """Somebody known asked for what their role does not let them do."""


class NotIdentified(RayzymeError):
    """Nobody knows who asks: no token, or one that is unknown, revoked or has expired."""


class TooManyRequests(RayzymeError):
    """Somebody asks more often than they may.

    Attributes:
        retry_after_s: Seconds after which they may ask again.
    """

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotReady(RayzymeError):
    """The result of a job that has not ended; it may be there later."""


class UnknownJob(NotFound, KeyError):
    """No job has that id."""

    # KeyError shows its message as a key, in quotes.
    __str__ = Exception.__str__


class TaskNotSendable(InvalidInput):
    """A task that no other process can be given; the message names the attribute at fault."""


class TaskTimeout(RayzymeError, TimeoutError):
    """A task or a workflow ran for longer than it was given."""


class PublishingFailed(RayzymeError):
    """Files of a committed result could not be put where they belong."""


class MemoryLimitExceeded(RayzymeError):
    """A task took more memory than its `memory_mb`."""
