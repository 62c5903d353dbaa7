"""ESM-2 residue features, on tiny models with random weights."""

from __future__ import annotations

import argparse
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayzyme.errors import CheckpointError, InvalidProtein, MissingExtra, NotFound
from rayzyme.models.esm import LONGEST_SEQUENCE, ResidueEncoder

transformers = pytest.importorskip("transformers")

HBA = "MVLSPADKTNVKAAWGKVGAHAGEYGAEALERMFLSFPTTKTYFPHFDLSHGSAQVKGHGKKVADALTNAVAHV"
WIDTH, LAYERS, HEADS = 16, 2, 4

ORIGINAL_NAMES = {
    "attention.self.query": "self_attn.q_proj",
    "attention.self.key": "self_attn.k_proj",
    "attention.self.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.out_proj",
    "attention.LayerNorm": "self_attn_layer_norm",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
    "LayerNorm": "final_layer_norm",
}


def tiny_model() -> Any:
    torch.manual_seed(0)
    config = transformers.EsmConfig(
        vocab_size=33,
        pad_token_id=1,
        mask_token_id=32,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        position_embedding_type="rotary",
        max_position_embeddings=1026,
        layer_norm_eps=1e-5,
        token_dropout=True,
    )
    model = transformers.EsmModel(config, add_pooling_layer=False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def original_state(model: Any) -> dict[str, torch.Tensor]:
    """The model's parameters by the names of the original release, with the extras that its file carries."""
    state = {}
    for name, value in model.named_parameters():
        if name == "embeddings.word_embeddings.weight":
            state["encoder.sentence_encoder.embed_tokens.weight"] = value.detach()
        elif name.startswith("encoder.layer."):
            layer, rest = name.removeprefix("encoder.layer.").split(".", 1)
            part, kind = rest.rsplit(".", 1)
            state[f"encoder.sentence_encoder.layers.{layer}.{ORIGINAL_NAMES[part]}.{kind}"] = value.detach()
        elif name.startswith("encoder.emb_layer_norm_after"):
            state[f"encoder.sentence_encoder.{name.removeprefix('encoder.')}"] = value.detach()
    state["encoder.lm_head.bias"] = torch.zeros(33)
    state["encoder.sentence_encoder.layers.0.self_attn.rot_emb.inv_freq"] = torch.zeros(2)
    return state


def save_original(path: Path, state: dict[str, torch.Tensor]) -> Path:
    options = argparse.Namespace(
        encoder_embed_dim=WIDTH, encoder_layers=LAYERS, encoder_attention_heads=HEADS, token_dropout=True
    )
    torch.save({"cfg": {"model": options}, "model": state}, path)
    return path


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture(scope="module")
def directory(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("esm")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def release_file(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_original(tmp_path_factory.mktemp("esm-original") / "tiny.pt", original_state(model))


def test_features_are_the_last_layer_without_begin_and_end(model: Any, directory: Path) -> None:
    tokens = torch.tensor([[0, 20, 7, 4, 8, 2]])  # <cls> M V L S <eos>
    with torch.no_grad():
        expected = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state[0, 1:-1].numpy()

    (features,) = ResidueEncoder.load(directory).encode(["MVLS"])

    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, atol=1e-5)


def test_alphabet_is_that_of_the_transformers_tokenizer(tmp_path: Path, directory: Path) -> None:
    letters = "LAGVSERTIDPKQNFYMHWCXBUZO"
    tokens = ["<cls>", "<pad>", "<eos>", "<unk>", *letters, ".", "-", "<null_1>", "<mask>"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens))
    tokenizer = transformers.EsmTokenizer(str(tmp_path / "vocab.txt"))
    with torch.no_grad():
        expected = tiny_model()(**tokenizer(letters + "J", return_tensors="pt")).last_hidden_state[0, 1:-1].numpy()

    (features,) = ResidueEncoder.load(directory).encode([letters + "J"])

    np.testing.assert_allclose(features, expected, atol=1e-5)


def test_original_release_file_gives_the_same_features_and_digest(directory: Path, release_file: Path) -> None:
    ours, original = ResidueEncoder.load(directory), ResidueEncoder.load(release_file)

    np.testing.assert_allclose(original.encode([HBA])[0], ours.encode([HBA])[0], atol=1e-5)
    assert original.digest == ours.digest
    assert original.dimension == ours.dimension == WIDTH


def test_other_weights_have_another_digest(model: Any, release_file: Path, tmp_path: Path) -> None:
    state = original_state(model)
    name = "encoder.sentence_encoder.layers.0.fc1.bias"
    state[name] = state[name] + 1e-3
    changed = save_original(tmp_path / "changed.pt", state)

    assert ResidueEncoder.load(changed).digest != ResidueEncoder.load(release_file).digest


def test_a_batch_gives_the_features_of_each_alone_in_the_order_given(directory: Path) -> None:
    sequences = [HBA, "MV", HBA[5:40], "W" * 300, HBA[::-1]]
    together = ResidueEncoder.load(directory).encode(sequences)
    alone = ResidueEncoder.load(directory, cache_bytes=0)

    for sequence, features in zip(sequences, together, strict=True):
        assert features.shape == (len(sequence), WIDTH)
        np.testing.assert_allclose(features, alone.encode([sequence])[0], atol=1e-5)


def test_a_sequence_that_comes_again_is_not_computed_again(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = ResidueEncoder.load(directory)
    first, again = encoder.encode([HBA, HBA])
    monkeypatch.setattr(ResidueEncoder, "_run", lambda *_: pytest.fail("computed again"))
    (later,) = encoder.encode([HBA])

    assert first is again
    np.testing.assert_array_equal(later, first)
    assert not first.flags.writeable
    assert not later.flags.writeable


def test_what_memory_has_no_room_for_comes_from_disk(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = ["MVLS", "AVLS", "CVLS"]
    encoder = ResidueEncoder.load(directory, cache_bytes=4 * WIDTH * 4 + 128)
    computed = [encoder.encode([sequence])[0] for sequence in sequences]
    monkeypatch.setattr(ResidueEncoder, "_run", lambda *_: pytest.fail("computed again"))

    for sequence, features in zip(sequences, computed, strict=True):
        np.testing.assert_array_equal(encoder.encode([sequence])[0], features)
    assert encoder._cache is not None
    assert encoder._cache.get_stats()["l1_memory"]["entries"] == 1


def test_features_survive_a_restart(directory: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D70"""
    (computed,) = ResidueEncoder.load(directory).encode([HBA])
    monkeypatch.setattr(ResidueEncoder, "_run", lambda *_: pytest.fail("computed again"))
    (remembered,) = ResidueEncoder.load(directory).encode([HBA])

    np.testing.assert_array_equal(remembered, computed)
    assert remembered.dtype == np.float32
    assert not remembered.flags.writeable
    assert (home / "cache" / "esm" / "cache.db").is_file()


def test_features_are_remembered_in_the_folder_that_is_given(
    directory: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ResidueEncoder.load(directory, cache_dir=tmp_path / "features").encode([HBA])
    monkeypatch.setattr(ResidueEncoder, "_run", lambda *_: pytest.fail("computed again"))
    ResidueEncoder.load(directory, cache_dir=tmp_path / "features").encode([HBA])

    assert not (home / "cache" / "esm").exists()


def test_no_cache_keeps_nothing_on_disk(directory: Path, home: Path) -> None:
    ResidueEncoder.load(directory, cache_bytes=0).encode([HBA])

    assert not (home / "cache").exists()


@pytest.mark.parametrize("difference", ["a weight", "the heads"])
def test_another_model_never_gets_the_features_of_the_first(directory: Path, difference: str) -> None:
    other = tiny_model()
    if difference == "a weight":
        with torch.no_grad():
            other.encoder.layer[0].intermediate.dense.bias += 1
    else:
        parameters = {name: value for name, value in other.state_dict().items() if not name.startswith("contact_head")}
        fewer = transformers.EsmConfig.from_dict(other.config.to_dict() | {"num_attention_heads": HEADS // 2})
        other = transformers.EsmModel(fewer, add_pooling_layer=False)
        other.load_state_dict(
            {name: value for name, value in parameters.items() if "inv_freq" not in name}, strict=False
        )
    (first,) = ResidueEncoder.load(directory).encode([HBA])
    (second,) = ResidueEncoder(other, "other").encode([HBA])
    (expected,) = ResidueEncoder(other, "other", cache_bytes=0).encode([HBA])

    assert not np.allclose(first, second, atol=1e-3)
    np.testing.assert_allclose(second, expected, atol=1e-5)


def test_more_residues_than_the_model_takes_are_refused(directory: Path) -> None:
    encoder = ResidueEncoder.load(directory)

    assert encoder.encode(["A" * LONGEST_SEQUENCE])[0].shape == (LONGEST_SEQUENCE, WIDTH)
    with pytest.raises(InvalidProtein, match=r"protein 'TITIN' has 1,023 residues.*1,022.*too_long='window'"):
        encoder.encode(["A" * (LONGEST_SEQUENCE + 1)], ["TITIN"])


def test_windows_take_each_residue_from_where_it_lies_deepest(directory: Path) -> None:
    random = np.random.default_rng(0)
    sequence = "".join(random.choice(list("ACDEFGHIKLMNPQRSTVWY"), size=1600))
    encoder = ResidueEncoder.load(directory, too_long="window")
    (features,) = encoder.encode([sequence])
    first, middle, last = encoder.encode([sequence[:1022], sequence[511:1533], sequence[578:]])

    assert features.shape == (1600, WIDTH)
    np.testing.assert_allclose(features[:700], first[:700], atol=1e-5)
    np.testing.assert_allclose(features[-540:], last[-540:], atol=1e-5)
    np.testing.assert_allclose(features[770:1050], middle[770 - 511 : 1050 - 511], atol=1e-5)


def test_an_empty_sequence_is_refused(directory: Path) -> None:
    with pytest.raises(InvalidProtein, match="protein 2: the sequence is empty"):
        ResidueEncoder.load(directory).encode(["MV", ""])


def test_a_release_file_that_lacks_a_parameter_is_refused_by_its_name(model: Any, tmp_path: Path) -> None:
    state = original_state(model)
    del state["encoder.sentence_encoder.layers.1.fc2.weight"]
    path = save_original(tmp_path / "incomplete.pt", state)

    with pytest.raises(CheckpointError, match=r"missing encoder\.layer\.1\.output\.dense\.weight"):
        ResidueEncoder.load(path)


def test_a_directory_that_lacks_a_parameter_is_refused_by_its_name(model: Any, tmp_path: Path) -> None:
    state = {name: value for name, value in model.state_dict().items() if name != "encoder.layer.1.output.dense.weight"}
    model.save_pretrained(tmp_path / "esm", state_dict=state)

    with pytest.raises(CheckpointError, match=r"encoder\.layer\.1\.output\.dense\.weight"):
        ResidueEncoder.load(tmp_path / "esm")


def test_a_release_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    path = tmp_path / "hostile.pt"
    torch.save({"cfg": {"model": argparse.Namespace()}, "model": Hostile()}, path, pickle_module=pickle)

    with pytest.raises(CheckpointError, match="mkdir"):
        ResidueEncoder.load(path)
    assert not (tmp_path / "ran").exists()


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")

    with pytest.raises(CheckpointError, match=r"not an ESM-2 release file: it holds 'weights'"):
        ResidueEncoder.load(tmp_path / "other.pt")


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        ResidueEncoder.load(tmp_path / "nowhere")


def test_without_the_extra_the_error_says_how_to_install_it(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)

    with pytest.raises(MissingExtra, match=r"pip install 'rayzyme\[esm\]'"):
        ResidueEncoder.load(directory)
