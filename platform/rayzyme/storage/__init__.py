"""Keeping files: what every room that writes to disk asks of it."""
