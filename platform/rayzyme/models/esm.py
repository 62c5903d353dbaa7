"""Residue features from ESM-2 (Lin et al. 2023, doi 10.1126/science.ade2574), through `transformers`.

One loaded model, kept as long as its owner lives. It is read from a directory in `transformers`' format, from the hub,
or from the `.pt` file of the original release, with the same numbers; features are remembered by content, in memory and on
disk, so that a protein that comes again costs nothing, also after a restart.
"""

from __future__ import annotations

import hashlib
import logging
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from rayzyme.errors import CheckpointError, InvalidProtein, MissingExtra, NotFound
from rayzyme.models.safe_loading import load_torch_checkpoint
from rayzyme.resources import TwoLevelCache
from rayzyme.settings import get_settings

logger = logging.getLogger(__name__)

ESM2_650M = "facebook/esm2_t33_650M_UR50D"
"""The model that CLIPZyme's published weights were trained with: 33 layers, 1,280 features."""

LONGEST_SEQUENCE = 1022
"""Residues that ESM-2 was trained on at most; its 1,024 tokens less one at either end."""

TooLong = Literal["error", "window"]

# ESM-2's alphabet in the order of its embedding table.
_SPECIAL_TOKENS = ("<cls>", "<pad>", "<eos>", "<unk>")
_RESIDUES = "LAGVSERTIDPKQNFYMHWCXBUZO.-"
_BEGIN, _PADDING, _END, _UNKNOWN = range(len(_SPECIAL_TOKENS))
_TOKENS = {letter: number for number, letter in enumerate(_RESIDUES, start=len(_SPECIAL_TOKENS))}
_ALPHABET_SIZE = len(_SPECIAL_TOKENS) + len(_RESIDUES) + 2  # and <null_1>, <mask>

_TOKENS_AT_A_TIME = {"cpu": LONGEST_SEQUENCE + 2, "cuda": 16 * (LONGEST_SEQUENCE + 2)}
_WINDOW_STRIDE = LONGEST_SEQUENCE // 2

_ORIGINAL_PREFIXES = ("encoder.sentence_encoder.", "encoder.")
# Names within a layer and at the top: original release -> transformers.
_LAYER_NAMES = {
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.out_proj": "attention.output.dense",
    "self_attn_layer_norm": "attention.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "final_layer_norm": "LayerNorm",
}
_TOP_NAMES = {
    "embed_tokens.weight": "embeddings.word_embeddings.weight",
    "emb_layer_norm_after.weight": "encoder.emb_layer_norm_after.weight",
    "emb_layer_norm_after.bias": "encoder.emb_layer_norm_after.bias",
}
# Heads for other purposes, and tables that are computed.
_IGNORED = ("lm_head.", "contact_head.", "pooler.")
_COMPUTED = ("inv_freq", "position_ids")


class ResidueEncoder:
    """Sequences in, one feature vector per residue out.

    Args:
        model: A `transformers.EsmModel`.
        name: What errors and logs call it.
        device: "cpu", "cuda" or "cuda:<n>".
        too_long: What to do with more than 1,022 residues. "error" refuses them. "window" runs overlapping windows of
            1,022 residues, 511 apart (the last one flush with the end), and takes each residue from the window in
            which it lies deepest; the model sees no context beyond a window, so such features are an approximation.
        cache_bytes: Features kept in memory, the longest unused forgotten first; 0 keeps none, not on disk either. None takes
            `resources.cache.l1_size_mb`.
        cache_dir: Where features are kept on disk, up to `resources.cache.l2_size_mb`; None is `$RAYZYME_HOME/cache/esm`.

    Attributes:
        name: As given.
        digest: SHA-256 over the parameters; the same for the same weights in either format.
        dimension: Features per residue.
    """

    def __init__(
        self,
        model: Any,
        name: str,
        device: str = "cpu",
        too_long: TooLong = "error",
        cache_bytes: int | None = None,
        cache_dir: Path | None = None,
    ) -> None:
        if model.config.vocab_size != _ALPHABET_SIZE:
            raise CheckpointError(
                f"{name} knows {model.config.vocab_size} tokens where ESM-2 has {_ALPHABET_SIZE}; is it an ESM-2 model?"
            )
        self.name = name
        self.digest = _digest_of_parameters(model)
        self.dimension: int = model.config.hidden_size
        self._device = torch.device(device)
        self._model = model.float().eval().requires_grad_(False).to(self._device)
        self._too_long = too_long
        self._cache = None if cache_bytes == 0 else _open_cache(cache_bytes, cache_dir)
        # Options that change the features and not the parameters.
        self._cache_prefix = f"{self.digest}/{model.config.num_attention_heads}/{model.config.token_dropout}/"

    @classmethod
    def load(
        cls, source: str | Path = ESM2_650M, *, device: str = "cpu", too_long: TooLong = "error",
        cache_bytes: int | None = None, cache_dir: Path | None = None,
    ) -> ResidueEncoder:  # fmt: skip
        """Load ESM-2.

        Args:
            source: A directory in `transformers`' format, the original release's `.pt` file, or a name on the hub.
            device: "cpu", "cuda" or "cuda:<n>".
            too_long: See the class.
            cache_bytes: See the class.
            cache_dir: See the class.

        Raises:
            MissingExtra: `transformers` is not installed.
            NotFound: There is nothing at the path, and the hub does not have it or cannot be reached.
            CheckpointError: It is damaged, unsafe to read, incomplete, or no ESM-2 model.
        """
        model = _load_original(Path(source)) if str(source).endswith(".pt") else _load_pretrained(str(source))
        return cls(model, str(source), device, too_long, cache_bytes, cache_dir)

    def encode(self, sequences: Sequence[str], protein_ids: Sequence[str] | None = None) -> list[NDArray[np.float32]]:
        """The last layer's representations, without those of the begin and end tokens.

        Args:
            sequences: Residues in one-letter code, upper case. A letter that ESM-2 does not know is its `<unk>`.
            protein_ids: What errors call the sequences; None numbers them from 1.

        Returns:
            One read-only float32 array (residues, dimension) per sequence, in the order given.

        Raises:
            InvalidProtein: A sequence is empty, or longer than 1,022 residues where `too_long` is "error".
        """
        names = [repr(name) for name in protein_ids] if protein_ids else [str(i + 1) for i in range(len(sequences))]
        for name, sequence in zip(names, sequences, strict=True):
            self._require_encodable(name, sequence)
        wanted = list(dict.fromkeys(sequences))
        features = {sequence: rows for sequence in wanted if (rows := self._remembered(sequence)) is not None}
        missing = [sequence for sequence in wanted if sequence not in features]
        for sequence, rows in self._compute(missing):
            rows.flags.writeable = False
            if self._cache is not None:
                self._cache.set(self._cache_prefix + sequence, rows)
            features[sequence] = rows
        return [features[sequence] for sequence in sequences]

    def _remembered(self, sequence: str) -> NDArray[np.float32] | None:
        return None if self._cache is None else self._cache.get(self._cache_prefix + sequence)

    def _require_encodable(self, name: str, sequence: str) -> None:
        if not sequence:
            raise InvalidProtein(f"protein {name}: the sequence is empty")
        if len(sequence) > LONGEST_SEQUENCE and self._too_long == "error":
            raise InvalidProtein(
                f"protein {name} has {len(sequence):,} residues, and ESM-2 takes {LONGEST_SEQUENCE:,} at most; cut it "
                "into domains, or load the residue encoder with too_long='window' to encode it in overlapping windows"
            )

    def _compute(self, sequences: Sequence[str]) -> Iterator[tuple[str, NDArray[np.float32]]]:
        windows = [(sequence, start) for sequence in sequences for start in _window_starts(len(sequence))]
        parts: dict[str, dict[int, NDArray[np.float32]]] = {}
        # By length, so that little of a batch is padding.
        windows.sort(key=lambda window: min(len(window[0]) - window[1], LONGEST_SEQUENCE))
        for batch in _batches(windows, _TOKENS_AT_A_TIME[self._device.type]):
            texts = [sequence[start : start + LONGEST_SEQUENCE] for sequence, start in batch]
            for (sequence, start), rows in zip(batch, self._run(texts), strict=True):
                done = parts.setdefault(sequence, {})
                done[start] = rows
                if len(done) == len(_window_starts(len(sequence))):
                    yield sequence, _join_windows(parts.pop(sequence), len(sequence))

    def _run(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        longest = max(map(len, texts))
        tokens = torch.full((len(texts), longest + 2), _PADDING)
        for row, text in zip(tokens, texts, strict=True):
            codes = [_BEGIN, *(_TOKENS.get(letter, _UNKNOWN) for letter in text), _END]
            row[: len(codes)] = torch.tensor(codes)
        tokens = tokens.to(self._device)
        with torch.inference_mode():
            states = self._model(input_ids=tokens, attention_mask=(tokens != _PADDING).long()).last_hidden_state
            states = states.cpu()
        # Copies, so that the cache does not keep a whole padded batch alive for one sequence.
        return [states[row, 1 : len(text) + 1].numpy().copy() for row, text in enumerate(texts)]


def _open_cache(memory_bytes: int | None, folder: Path | None) -> TwoLevelCache:
    sizes, cache = get_settings().resources.cache, get_settings().cache
    memory_mb = sizes.l1_size_mb if memory_bytes is None else memory_bytes / 2**20
    return TwoLevelCache(memory_mb, sizes.l2_size_mb, folder or cache / "esm")


def _window_starts(length: int) -> list[int]:
    last = max(0, length - LONGEST_SEQUENCE)
    return [*range(0, last, _WINDOW_STRIDE), last]


def _join_windows(windows: Mapping[int, NDArray[np.float32]], length: int) -> NDArray[np.float32]:
    """Each residue from the window in which it is farthest from both ends; an end of the protein is no window's end."""
    if len(windows) == 1:
        return next(iter(windows.values()))
    residues = np.arange(length)
    depths = []
    for start in sorted(windows):
        end = start + len(windows[start])
        from_start = residues - start if start > 0 else np.where(residues < end, length, -1)
        from_end = end - 1 - residues if end < length else np.where(residues >= start, length, -1)
        depths.append(np.minimum(from_start, from_end))
    chosen = np.argmax(depths, axis=0)
    joined = np.empty((length, next(iter(windows.values())).shape[1]), dtype=np.float32)
    for number, start in enumerate(sorted(windows)):
        mine = residues[chosen == number]
        joined[mine] = windows[start][mine - start]
    return joined


def _batches(windows: Sequence[tuple[str, int]], tokens: int) -> Iterator[list[tuple[str, int]]]:
    """Consecutive windows, sorted by length, whose padded batch has so many tokens at most (or is a single one)."""
    batch: list[tuple[str, int]] = []
    for sequence, start in windows:
        padded = min(len(sequence) - start, LONGEST_SEQUENCE) + 2
        if batch and padded * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append((sequence, start))
    if batch:
        yield batch


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("ESM-2 needs transformers; install it with: pip install 'rayzyme[esm]'") from error
    return transformers


def _load_pretrained(source: str) -> Any:
    transformers = _transformers()
    where = Path(source)
    if (where.is_absolute() or source.startswith(".")) and not where.is_dir():
        raise NotFound(f"{source}: no such directory with an ESM-2 model")
    try:
        model, report = transformers.EsmModel.from_pretrained(
            source, add_pooling_layer=False, output_loading_info=True, weights_only=True
        )
    except OSError as error:
        raise NotFound(f"no ESM-2 model could be had from {source!r}: {error}") from error
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"{source} cannot be read as an ESM-2 model: {error}") from error
    missing = sorted(name for name in report["missing_keys"] if not _is_ignored(name))
    if missing or report["mismatched_keys"]:
        odd = ", ".join([*missing, *(str(entry[0]) for entry in report["mismatched_keys"])][:5])
        raise CheckpointError(f"{source} is not a complete ESM-2 model: missing or of another shape: {odd}")
    return model


def _load_original(path: Path) -> Any:
    """The original release's file: `{"cfg": {"model": Namespace}, "model": {name: tensor}}`."""
    transformers = _transformers()
    content = load_torch_checkpoint(path)
    settings = content.get("cfg")
    options = settings.get("model") if isinstance(settings, Mapping) else content.get("args")
    stored = content.get("model")
    if not isinstance(options, Namespace) or not isinstance(stored, Mapping):
        raise CheckpointError(f"{path} is not an ESM-2 release file: it holds {', '.join(map(repr, content))}")
    try:
        config = transformers.EsmConfig(
            vocab_size=_ALPHABET_SIZE,
            pad_token_id=_PADDING,
            mask_token_id=_ALPHABET_SIZE - 1,
            hidden_size=options.encoder_embed_dim,
            num_hidden_layers=options.encoder_layers,
            num_attention_heads=options.encoder_attention_heads,
            intermediate_size=4 * options.encoder_embed_dim,
            position_embedding_type="rotary",
            max_position_embeddings=LONGEST_SEQUENCE + 4,
            layer_norm_eps=1e-5,
            emb_layer_norm_before=False,
            token_dropout=bool(options.token_dropout),
        )
    except AttributeError as error:
        raise CheckpointError(f"{path}: its options do not describe an ESM-2 model: {error}") from error
    model = transformers.EsmModel(config, add_pooling_layer=False)
    return _fill(model, {_converted_name(name): value for name, value in stored.items()}, path)


def _fill(model: Any, state: dict[str | None, torch.Tensor], path: Path) -> Any:
    state.pop(None, None)
    try:
        report = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: parameters do not fit its options: {error}") from error
    missing = [name for name in report.missing_keys if not _is_ignored(name)]
    if missing or report.unexpected_keys:
        raise CheckpointError(
            f"{path} does not hold exactly an ESM-2 model: missing {', '.join(missing[:5]) or 'nothing'}; "
            f"unexpected {', '.join(report.unexpected_keys[:5]) or 'nothing'}"
        )
    return model


def _converted_name(name: str) -> str | None:
    """`transformers`' name for a parameter of the original release; None for what is not part of the encoder."""
    for prefix in _ORIGINAL_PREFIXES:
        if name.startswith(prefix):
            name = name.removeprefix(prefix)
            break
    if _is_ignored(name):
        return None
    if not name.startswith("layers."):
        return _TOP_NAMES.get(name, name)
    _, layer, rest = name.split(".", 2)
    part, _, kind = rest.rpartition(".")
    return f"encoder.layer.{layer}.{_LAYER_NAMES.get(part, part)}.{kind}"


def _is_ignored(name: str) -> bool:
    return name.startswith(_IGNORED) or name.endswith(_COMPUTED)


def _digest_of_parameters(model: Any) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.named_parameters()):
        if not _is_ignored(name):
            digest.update(f"{name} {tuple(value.shape)} ".encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
