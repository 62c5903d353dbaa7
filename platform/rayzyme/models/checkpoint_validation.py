"""What makes a checkpoint usable: the bytes that were recorded, a format and shapes that fit, and numbers that come out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rayzyme.errors import CheckpointError, RayzymeError
from rayzyme.models.checkpoint_files import CheckpointFormat, checkpoint_format, open_encoder, sha256_of

if TYPE_CHECKING:
    from rayzyme.models.encoder import Embeddings, Encoder

_ETHANOL_OXIDATION: Final = "[CH3:1][CH2:2][OH:3]>>[CH3:1][CH:2]=[O:3]"
_SHORT_PROTEIN: Final = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ"


@dataclass(frozen=True, slots=True)
class Check:
    """One question that validation asks; `reason` says what was found, also where it is well."""

    name: str
    ok: bool
    reason: str


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """Every check of one checkpoint. Checks after a failed one are not tried and count as failed."""

    name: str
    path: Path
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    def raise_for_failure(self) -> None:
        """Raise CheckpointError with the first failed check, if any failed."""
        for check in self.checks:
            if not check.ok:
                raise CheckpointError(
                    f"Checkpoint {self.name} ({self.path}) failed check {check.name!r}: {check.reason}"
                )


@dataclass(frozen=True, slots=True)
class ExpectedDigest:
    """SHA-256 that a file must have, where one is known, and what to do when it has another."""

    sha256: str | None
    remedy: str = ""

    def require(self, path: Path) -> str:
        """Say what was found.

        Raises:
            CheckpointError: The file has another digest.
        """
        found = sha256_of(path)
        if self.sha256 is None:
            return f"SHA-256 {found}; none was recorded to compare it with"
        if self.sha256 != found:
            raise CheckpointError(
                f"{path} has SHA-256 {found}, recorded is {self.sha256}: it was altered or damaged, and nothing of it is "
                f"loaded; {self.remedy}"
            )
        return f"SHA-256 {found}, as recorded"


def validate_checkpoint(path: Path, name: str, digest: ExpectedDigest) -> ValidationReport:
    """Check digest, format, every parameter's shape and value, and a forward pass on a small input.

    Nothing is loaded from a file whose digest or format is wrong.
    """
    examination = _Examination(path, name)
    steps: list[tuple[str, Callable[[], str]]] = [
        ("digest", lambda: digest.require(path)),
        ("format", examination.format),
        ("parameters", examination.parameters),
        ("finite values", examination.finite_values),
        ("forward pass", examination.forward_pass),
    ]
    checks: list[Check] = []
    failed = ""
    for step, ask in steps:
        if failed:
            checks.append(Check(step, False, f"not tried, because {failed} failed"))
            continue
        try:
            checks.append(Check(step, True, ask()))
        except RayzymeError as error:
            checks.append(Check(step, False, str(error)))
            failed = step
    return ValidationReport(name, path, tuple(checks))


class _Examination:
    """The steps that look into the file; each says what it found, or raises CheckpointError."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._name = name
        self._encoder: Encoder

    def format(self) -> str:
        return f"{checkpoint_format(self._path)}, {self._path.stat().st_size:,} bytes"

    def parameters(self) -> str:
        self._encoder = open_encoder(self._path, self._name, "cpu")
        return f"every parameter has the shape the model needs; embeddings have {self._encoder.dimension} dimensions"

    def finite_values(self) -> str:
        tensors = _tensors_in(self._path)
        bad = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
        if bad:
            raise CheckpointError(f"{len(bad)} of {len(tensors)} parameters hold NaN or infinity, first {bad[0]}")
        return f"all {len(tensors)} parameters are finite"

    def forward_pass(self) -> str:
        import numpy as np

        reaction = self._encoder.encode_reactions([_ETHANOL_OXIDATION])
        for kind, rows in (("reaction", reaction), ("protein", _embed_small_protein(self._encoder))):
            if rows.shape != (1, self._encoder.dimension) or not np.isfinite(rows).all():
                raise CheckpointError(f"the embedding of a small {kind} is not finite or of shape {rows.shape}")
            length = float(np.linalg.norm(rows[0]))
            if abs(length - 1) > 1e-4:
                raise CheckpointError(f"the embedding of a small {kind} has length {length:.6f}, not 1")
        return "a small reaction and a small protein have finite embeddings of length 1"


def _tensors_in(path: Path) -> dict[str, Any]:
    if checkpoint_format(path) is CheckpointFormat.SAFETENSORS:
        from safetensors.torch import load_file

        return dict(load_file(path))
    from rayzyme.models.safe_loading import load_torch_checkpoint

    return dict(load_torch_checkpoint(path)["state_dict"])


def _embed_small_protein(encoder: Encoder) -> Embeddings:
    from rayzyme.models.clipzyme import ClipzymeEncoder, ProteinGraph
    from rayzyme.proteins import Protein

    if not isinstance(encoder, ClipzymeEncoder):
        return encoder.encode_proteins([Protein("check", _SHORT_PROTEIN)])
    import numpy as np

    # From coordinates and features, because computing features takes ESM-2, which may not be there.
    generator = np.random.default_rng(0)
    positions = generator.normal(scale=10, size=(24, 3)).astype(np.float32)
    features = generator.normal(size=(24, encoder.dimension)).astype(np.float32)
    return encoder.encode_protein_graphs([ProteinGraph(positions - positions.mean(0), features)])
