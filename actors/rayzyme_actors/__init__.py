"""Everything that lives on Ray: long-lived actors that hold models and embeddings, and what sends work to them.

Importing this package settles Ray's authentication mode, because Ray reads it when it is imported itself: see
`rayzyme_actors.connection`.
"""

from typing import TYPE_CHECKING, Any

from rayzyme_actors.connection import settle_authentication

if TYPE_CHECKING:
    from rayzyme_actors.dispatcher import Dispatcher, DispatcherAPI
    from rayzyme_actors.submitting import Submission

__all__ = ["Dispatcher", "DispatcherAPI", "Submission"]

settle_authentication()


def __getattr__(name: str) -> Any:
    """The Python API, loaded when it is first asked for: Ray takes its time."""
    if name in ("Dispatcher", "DispatcherAPI"):
        from rayzyme_actors import dispatcher

        return getattr(dispatcher, name)
    if name == "Submission":
        from rayzyme_actors.submitting import Submission

        return Submission
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
