"""Building a screening set from proteins, so that a build that was killed goes on where it stopped.

Embeddings go into a SQLite draft beside the destination, keyed by what was embedded (sequence, structure, checkpoint), one
transaction a group. A second run finds them there and embeds only the rest; the draft goes when the set is complete.
"""

from __future__ import annotations

import csv
import hashlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from rayzyme.errors import InvalidInput, InvalidProtein
from rayzyme.models.encoder import Embeddings
from rayzyme.proteins import Protein, RejectedProtein
from rayzyme.screening.screening_set import EmbeddingType, NamedCheckpoint, ScreeningSet
from rayzyme.storage.disk import full_database_as_os_error, writing

Encode = Callable[[Sequence[Protein]], Embeddings]
Progress = Callable[[int, int], None]
GROUP = 32


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did.

    Attributes:
        path: The set.
        proteins: Proteins in it.
        embedded: Proteins embedded in this run.
        reused: Proteins whose embedding an earlier, interrupted run had left.
        rejected: Proteins left out, with the reason.
        rejected_path: The file that lists them; None where there are none.
    """

    path: Path
    proteins: int
    embedded: int
    reused: int
    rejected: tuple[RejectedProtein, ...]
    rejected_path: Path | None


def build_screening_set(
    proteins: Iterable[Protein | RejectedProtein],
    destination: Path,
    encode: Encode,
    checkpoint: NamedCheckpoint,
    *,
    dimension: int = 1280,
    embedding_type: EmbeddingType = "float32",
    progress: Progress | None = None,
    group: int = GROUP,
) -> BuildReport:
    """Embed proteins and write them as a screening set.

    Args:
        proteins: Good and bad rows as the readers in `rayzyme.proteins` give them.
        destination: File of the set; `<name>.building` (draft) and `<name>.rejected.csv` stand beside it.
        encode: Gives unit embeddings, float32 (n, d), of some proteins, in order. Proteins that it refuses
            (InvalidProtein) are tried one by one, so that the good ones of a group go on.
        checkpoint: What `encode` embeds with; part of every draft key.
        dimension: Length of an embedding, for the space that a full disk is said to lack.
        embedding_type: How the set stores embeddings.
        progress: Called with (proteins done, proteins in all) after each group.
        group: Proteins per call of `encode` and per transaction: what a kill can cost at most.

    Raises:
        InvalidInput: No protein could be used.
        InsufficientSpace: The disk is full; what was embedded stays, and the same call goes on from there.
    """
    kept: list[Protein] = []
    rejected: list[RejectedProtein] = []
    for item in proteins:
        (kept if isinstance(item, Protein) else rejected).append(item)  # type: ignore[arg-type]
    destination.parent.mkdir(parents=True, exist_ok=True)
    draft = destination.with_name(f"{destination.name}.building")
    # Twice what the embeddings take: the draft, and the set made from it.
    needed = 2 * len(kept) * 4 * dimension
    with writing(f"building {destination.name}", destination.parent, needed), closing(_Draft(draft)) as embeddings:
        keys = {protein.protein_id: _content_key(protein, checkpoint) for protein in kept}
        missing = [protein for protein in kept if not embeddings.holds(keys[protein.protein_id])]
        reused = len(kept) - len(missing)
        if progress is not None:
            progress(reused, len(kept))
        done, embedded = reused, 0
        refused_ids: set[str] = set()
        for some in _groups(missing, group):
            good, refused = _encode_group(some, encode)
            embeddings.add([(keys[protein.protein_id], row) for protein, row in good])
            rejected += refused
            refused_ids |= {item.protein_id for item in refused}
            embedded += len(good)
            done += len(some)
            if progress is not None:
                progress(done, len(kept))
        usable = [protein for protein in kept if protein.protein_id not in refused_ids]
        if not usable:
            reasons = "; ".join(f"{item.protein_id or f'line {item.line}'}: {item.reason}" for item in rejected[:3])
            raise InvalidInput(
                f"no protein could be used for {destination.name} ({len(rejected)} rejected: {reasons or 'none given'})"
            )
        matrix = np.stack([embeddings.get(keys[protein.protein_id]) for protein in usable])
        ScreeningSet.from_arrays(
            [protein.protein_id for protein in usable],
            matrix,
            _columns(usable),
            checkpoint,
            embedding_type=embedding_type,
        ).save(destination)
        rejected_path = _write_rejected(destination.with_suffix(".rejected.csv"), rejected)
    draft.unlink()
    return BuildReport(
        destination, len(usable), len(missing) - len(kept) + len(usable), reused, tuple(rejected), rejected_path
    )


class _Draft:
    """Embeddings on disk, each there wholly or not at all."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path)
        with full_database_as_os_error():
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS embedding (key BLOB PRIMARY KEY, row BLOB NOT NULL) WITHOUT ROWID"
            )

    def close(self) -> None:
        self._database.close()

    def holds(self, key: bytes) -> bool:
        return self._database.execute("SELECT 1 FROM embedding WHERE key = ?", (key,)).fetchone() is not None

    def get(self, key: bytes) -> Embeddings:
        (row,) = self._database.execute("SELECT row FROM embedding WHERE key = ?", (key,)).fetchone()
        return np.frombuffer(row, dtype=np.float32)

    def add(self, rows: Sequence[tuple[bytes, Embeddings]]) -> None:
        with full_database_as_os_error(), self._database:
            self._database.executemany(
                "INSERT OR REPLACE INTO embedding VALUES (?, ?)",
                [(key, np.ascontiguousarray(row, np.float32).tobytes()) for key, row in rows],
            )


def _content_key(protein: Protein, checkpoint: NamedCheckpoint) -> bytes:
    digest = hashlib.sha256(f"{checkpoint.digest or checkpoint.name}\0{protein.sequence}\0".encode())
    if protein.structure is not None and protein.structure.is_file():
        digest.update(protein.structure.read_bytes())
    return digest.digest()


def _encode_group(
    proteins: Sequence[Protein], encode: Encode
) -> tuple[list[tuple[Protein, Embeddings]], list[RejectedProtein]]:
    try:
        return list(zip(proteins, encode(proteins), strict=True)), []
    except InvalidProtein as error:
        if len(proteins) == 1:
            return [], [RejectedProtein(None, proteins[0].protein_id, str(error))]
    good: list[tuple[Protein, Embeddings]] = []
    refused: list[RejectedProtein] = []
    for protein in proteins:
        some_good, some_refused = _encode_group([protein], encode)
        good += some_good
        refused += some_refused
    return good, refused


def _groups(proteins: Sequence[Protein], size: int) -> Iterator[list[Protein]]:
    rest = iter(proteins)
    while some := list(islice(rest, size)):
        yield some


def _columns(proteins: Sequence[Protein]) -> dict[str, list[str]]:
    names = list(dict.fromkeys(name for protein in proteins for name in protein.metadata))
    columns = {name: [protein.metadata.get(name, "") for protein in proteins] for name in names}
    return columns if "sequence" in columns else {"sequence": [protein.sequence for protein in proteins], **columns}


def _write_rejected(path: Path, rejected: Sequence[RejectedProtein]) -> Path | None:
    if not rejected:
        path.unlink(missing_ok=True)
        return None
    with path.open("w", newline="", encoding="utf-8") as sink:
        table = csv.writer(sink)
        table.writerow(["line", "protein_id", "reason"])
        table.writerows([("" if item.line is None else item.line, item.protein_id, item.reason) for item in rejected])
    return path
