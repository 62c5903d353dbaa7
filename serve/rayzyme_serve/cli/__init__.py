"""The `rayzyme` command."""

from rayzyme_serve.cli.main import main

__all__ = ["main"]
