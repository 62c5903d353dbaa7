"""Rayzyme's ground floor: what it knows of reactions, proteins, models and rankings. Plain Python, no Ray, no HTTP server."""

__version__ = "0.1.0"
