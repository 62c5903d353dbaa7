"""Who may use Rayzyme over the network: roles, access tokens, how often somebody may ask. Knows nothing of HTTP.

What needs the database is loaded when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rayzyme.access.callers import Caller, Role, local_caller
from rayzyme.access.loopback import is_loopback
from rayzyme.access.rates import RateLimiter

if TYPE_CHECKING:
    from rayzyme.access.tokens import AccessToken, TokenStore

__all__ = ["AccessToken", "Caller", "RateLimiter", "Role", "TokenStore", "is_loopback", "local_caller"]


def __getattr__(name: str) -> Any:
    """The tokens, whose database library takes its time to load."""
    if name in ("AccessToken", "TokenStore"):
        from rayzyme.access import tokens

        return getattr(tokens, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
