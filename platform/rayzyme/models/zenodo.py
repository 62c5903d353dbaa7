"""Zenodo records: where a published file is today, and what it must be."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final

from rayzyme.errors import DownloadFailed
from rayzyme.models.checkpoint_sources import CheckpointSource
from rayzyme.models.download import Retries, download

ZENODO_API: Final = "https://zenodo.org/api"


def locate(source: CheckpointSource, api: str, retries: Retries) -> CheckpointSource:
    """The source with address, size and MD5 from its Zenodo record; one without a record as it is.

    Raises:
        DownloadFailed: The record cannot be read or does not describe the file.
    """
    if source.record is None:
        return source
    url = f"{api}/records/{source.record}"
    with tempfile.TemporaryDirectory() as folder:
        record = download(url, Path(folder) / "record.json", retries=retries).path.read_text(encoding="utf-8")
    try:
        entry = {entry["key"]: entry for entry in json.loads(record)["files"]}[source.file]
        method, _, md5 = entry["checksum"].partition(":")
        located = replace(source, url=entry["links"]["self"], size=int(entry["size"]), md5=md5)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DownloadFailed(
            f"The record at {url} does not describe {source.file} ({type(error).__name__}: {error}). Look at "
            f"{source.url}; if the file moved, name its address under checkpoints.sources.{source.name}."
        ) from error
    if method != "md5":
        raise DownloadFailed(f"The record at {url} gives {method!r} instead of an MD5 for {source.file}.")
    return located
