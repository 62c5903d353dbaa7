"""What the machine has to give: memory, and what of it may be used."""

from rayzyme.resources.memory import available_memory

__all__ = ["available_memory"]
