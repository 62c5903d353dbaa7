"""The bundled model: two small towers that need neither a download nor a GPU, for a first run, teaching and tests.

`BaselineEncoder.load()` opens it; `python -m rayzyme.models.baseline.train` makes it. `data/` holds its weights, the
reference set of 7,757 enzymes embedded by it, and the figures measured when both were made.
"""

from rayzyme.models.baseline.encoder import BaselineEncoder

__all__ = ["BaselineEncoder"]
