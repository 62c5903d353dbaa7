"""The main job on real actors with the bundled model: one answer for every mode, cluster shape and accident."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from rayzyme.chemistry import ReactionRecord
from rayzyme.errors import CheckpointMismatch, DeviceUnavailable, InvalidInput, InvalidReaction, NotFound
from rayzyme.models import load_checkpoint
from rayzyme.screening import CheckpointRef, ExactIndex, ScreeningSet
from rayzyme.screening.library import ScreeningSetLibrary
from rayzyme.settings import load_settings
from rayzyme_actors.screening import Screener, screen

ALCOHOL = "CCO.NC(=O)c1ccc[n+]([C@@H]2O[C@H](COP(=O)(O)O)[C@@H](O)[C@H]2O)c1>>CC=O.NC(=O)C1=CN([C@@H]2O[C@H](COP(=O)(O)O)[C@@H](O)[C@H]2O)C=CC1"  # noqa: E501
PEROXIDE = "OO.OO>>O=O.O.O"
ACETATE = "CC(=O)OCC.O>>CC(=O)O.CCO"
REACTIONS = [ALCOHOL, PEROXIDE, ACETATE]


@pytest.fixture(scope="module")
def screener() -> Screener:
    return Screener("baseline", "reference", device="cpu")


def rankings(answer: Any) -> list[list[tuple[str, float]]]:
    return [[(hit["protein_id"], hit["score"]) for hit in result["hits"]] for result in answer["results"]]


def brute_force(reactions: list[str], k: int) -> list[list[tuple[str, float]]]:
    opened = ScreeningSetLibrary(Path("unused")).open("reference")
    queries = load_checkpoint("baseline", "cpu").encode_reactions(reactions)
    scores, rows = ExactIndex(opened.embeddings, opened.protein_ids).search(queries, k)
    ids = opened.protein_ids
    return [
        [(ids[row], float(score)) for row, score in zip(*pair, strict=True)] for pair in zip(rows, scores, strict=True)
    ]


def test_the_answer_has_the_documented_shape() -> None:
    answer = screen(REACTIONS, 7, "reference", "baseline", {"ec": "1"})
    assert answer["schema"] == "rayzyme.screen/1"
    assert (answer["checkpoint"], answer["screening_set"]) == ("baseline", "reference")
    assert answer["checkpoint_digest"] == load_checkpoint("baseline", "cpu").digest
    assert [result["reaction"] for result in answer["results"]] == REACTIONS
    assert {len(result["hits"]) for result in answer["results"]} == {7}
    first = answer["results"][0]["hits"][0]
    assert set(first) == {"rank", "protein_id", "score", "metadata"}
    assert first["rank"] == 1
    assert all(
        hit["metadata"]["ec"].startswith("1.") or ";1." in hit["metadata"]["ec"] for hit in answer["results"][0]["hits"]
    )
    assert set(answer["timing"]) == {"start_s", "encode_s", "search_s", "total_s"}


@pytest.mark.parametrize("mode", ["interactive", "batched"])
def test_both_modes_give_the_ranking_of_brute_force(screener: Screener, mode: Any) -> None:
    found, expected = rankings(screener.screen(REACTIONS, 50, mode=mode)), brute_force(REACTIONS, 50)
    for own, theirs in zip(found, expected, strict=True):
        assert [protein for protein, _ in own] == [protein for protein, _ in theirs]
        np.testing.assert_allclose([score for _, score in own], [score for _, score in theirs], atol=1e-6)


def test_progress_counts_every_reaction(screener: Screener) -> None:
    ticks: list[tuple[int, int]] = []
    screener.screen(REACTIONS, 1, mode="interactive", progress=lambda *tick: ticks.append(tick))
    assert ticks == [(1, 3), (2, 3), (3, 3)]


def test_more_hits_than_proteins_are_clamped_and_said(screener: Screener) -> None:
    answer = screener.screen([PEROXIDE], 1_000_000)
    size = len(screener.screening_set)
    assert len(answer["results"][0]["hits"]) == size
    assert answer["notes"] == [f"top_k 1000000 is more than the {size} proteins of reference: all {size} are ranked"]


def test_wrong_input_is_refused_before_anything_is_lost(screener: Screener) -> None:
    with pytest.raises(InvalidInput, match="top_k must be at least 1, not 0"):
        screener.screen([PEROXIDE], 0)
    with pytest.raises(InvalidInput, match="there are no reactions to screen"):
        screener.screen([])
    with pytest.raises(InvalidReaction, match=r"reaction 2 \(line 2\) .*CCX"):
        screener.screen([PEROXIDE, "CCX>>CCO"])
    with pytest.raises(InvalidReaction, match=r"reaction 1 \(line 1\)"):
        screener.screen([""])
    with pytest.raises(InvalidInput, match="column 'organ'"):
        screener.screen([PEROXIDE], filters={"organ": "x"})


def test_a_bad_reaction_among_good_ones_is_listed_when_not_strict(screener: Screener) -> None:
    records = [
        ReactionRecord("a", PEROXIDE, (), 4),
        ReactionRecord("b", "CCX>>CCO", (), 5),
        ReactionRecord("c", ACETATE, (), 9),
    ]
    for mode in ("interactive", "batched"):
        answer = screener.screen(records, 3, strict=False, mode=mode)  # type: ignore[arg-type]
        assert [result["reaction_id"] for result in answer["results"]] == ["a", "c"]
        assert [(row["reaction_id"], row["line"]) for row in answer["rejected"]] == [("b", 5)]
        assert answer["rejected"][0]["reason"].startswith("reaction b (line 5) ('CCX>>CCO')")
        assert rankings(answer) == rankings(screener.screen([PEROXIDE, ACETATE], 3))


def test_unknown_names_are_refused_with_what_there_is() -> None:
    with pytest.raises(NotFound, match=r"unknown screening set 'referense'.*did you mean 'reference'"):
        screen([PEROXIDE], 1, "referense")
    with pytest.raises(NotFound, match="baselin"):
        screen([PEROXIDE], 1, "reference", "baselin")


def test_a_set_of_another_checkpoint_is_refused(tmp_path: Path) -> None:
    opened = ScreeningSetLibrary(tmp_path).open("reference")
    foreign = ScreeningSet.from_arrays(
        opened.protein_ids[:10], opened.embeddings[:10], None, CheckpointRef("clipzyme_v1", "cd" * 32)
    ).save(tmp_path / "foreign.arrow")
    with pytest.raises(CheckpointMismatch, match=r"made by checkpoint clipzyme_v1 .*the query by baseline"):
        screen([PEROXIDE], 1, foreign)


def test_a_filter_that_admits_few_is_said(screener: Screener) -> None:
    protein = screener.screening_set.protein_ids[5]
    answer = screener.screen([PEROXIDE], 10, {"protein_id": {protein}})
    assert [hit["protein_id"] for hit in answer["results"][0]["hits"]] == [protein]
    assert answer["notes"] == [f"the filter admits only 1 of the {len(screener.screening_set)} proteins"]


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="this machine has a GPU")
def test_cuda_on_a_cluster_without_gpus_is_an_error() -> None:
    with pytest.raises(DeviceUnavailable, match="the Ray cluster has 0 GPUs on 1 node"):
        screen([PEROXIDE], 1, device="cuda")


@pytest.mark.parametrize("victim", ["model-host", "shard"])
def test_an_actor_killed_during_a_screen_changes_nothing(screener: Screener, victim: str) -> None:
    expected = rankings(screener.screen(REACTIONS * 20, 20, mode="batched"))
    actor = screener.host if victim == "model-host" else screener.shards[0]
    first = actor.wait_until_ready()["pid"]
    killed = threading.Event()

    def kill_once(done: int, total: int) -> None:
        if not killed.is_set():
            os.kill(first, signal.SIGKILL)
            killed.set()

    answer = screener.screen(REACTIONS * 20, 20, mode="interactive", progress=kill_once)
    assert killed.is_set()
    assert rankings(answer) == expected
    assert actor.wait_until_ready()["pid"] != first


def test_actors_are_found_again_by_name(screener: Screener) -> None:
    again = Screener("baseline", "reference", device="cpu")
    assert again.host.wait_until_ready()["pid"] == screener.host.wait_until_ready()["pid"]
    assert [shard.name for shard in again.shards] == [shard.name for shard in screener.shards]


def test_evaluation_ranks_the_whole_set(screener: Screener) -> None:
    full = [protein for protein, _ in rankings(screener.screen([PEROXIDE], len(screener.screening_set)))[0]]
    known = (full[0], full[9], full[5_000], "not-in-the-set")
    report = screener.evaluate([ReactionRecord("catalase", PEROXIDE, known, 1)])
    row = report.reactions[0]
    assert (row.best_rank, row.num_actives, row.missing) == (1, 4, ("not-in-the-set",))
    assert row.metrics["TopK_10"] == 0.5


def test_evaluation_leaves_out_what_cannot_be_encoded_and_says_so(screener: Screener) -> None:
    records = [ReactionRecord("good", PEROXIDE, ("P1", "P2"), 1), ReactionRecord("bad", "CCX>>CCO", ("P1",), 2)]
    protein = screener.screening_set.protein_ids[0]
    records[0] = ReactionRecord("good", PEROXIDE, (protein,), 1)
    report = screener.evaluate(records)
    assert [row.reaction_id for row in report.reactions] == ["good"]
    assert [(item.reaction_id, item.reason) for item in report.excluded] == [("bad", "not encodable")]


def test_several_nodes_give_the_ranking_of_one(tmp_path: Path) -> None:
    """A cluster of three nodes: three shards, and one node killed under way. In a process of its own."""
    program = textwrap.dedent(f"""
        import os
        os.environ["RAY_AUTH_MODE"] = "disabled"
        import ray
        from ray.cluster_utils import Cluster
        cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 1, "include_dashboard": False, "_system_config": {{
            "health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_timeout_ms": 1000,
            "health_check_failure_threshold": 2}}}})
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        ray.init(cluster.address, namespace="rayzyme", log_to_driver=False)
        from rayzyme_actors.screening import Screener
        screener = Screener("baseline", "reference", device="cpu")
        print("RESULT", len(screener.shards))
        for attempt in range(2):
            answer = screener.screen({REACTIONS!r}, 30, mode="batched")
            print("RESULT", *[hit["protein_id"] for result in answer["results"] for hit in result["hits"]])
            if attempt == 0:
                cluster.remove_node(nodes[0], allow_graceful=False)
        ray.shutdown()
        cluster.shutdown()
    """)
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    lines = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    expected = " ".join(protein for ranking in brute_force(REACTIONS, 30) for protein, _ in ranking)
    assert lines == ["3", expected, expected]


class TestCommand:
    """`rayzyme`, as a process of its own that joins the session's Ray."""

    @pytest.fixture
    def rayzyme(self, tmp_path: Path, home: Path) -> Any:
        address = ray.get_runtime_context().gcs_address

        def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
            done = subprocess.run(
                [str(Path(sys.executable).with_name("rayzyme")), *arguments],
                capture_output=True, text=True, check=False, cwd=tmp_path, timeout=300,
                env={**os.environ, "RAY_ADDRESS": address, "RAYZYME_HOME": str(home)},
            )  # fmt: skip
            assert done.returncode == code, done.stderr[-3_000:]
            return done

        return run

    def test_screen_prints_json_and_writes_every_file(self, rayzyme: Any, tmp_path: Path) -> None:
        import json

        import pyarrow.parquet as pq

        (tmp_path / "reactions.csv").write_text(
            f'reaction_id,reaction_smiles,known_enzymes\ncatalase,{PEROXIDE},"P1,P2"\nbroken,CCX>>C,\nesterase,{ACETATE},\n'
        )
        done = rayzyme("screen", "baseline", "reactions.csv", "--top-k", "5", "--output", "json", "--filter", "ec=1,3")
        answer = json.loads(done.stdout)
        assert [result["reaction_id"] for result in answer["results"]] == ["catalase", "esterase"]
        assert [row["line"] for row in answer["rejected"]] == [3]
        assert "warning: reactions.csv: line 3" in done.stderr
        folder = tmp_path / "results"
        assert json.loads((folder / "screening_results.json").read_text()) == answer
        table = pq.read_table(folder / "screening_results.parquet")
        assert table.column_names == ["reaction_id", "reaction", "rank", "protein_id", "score", "ec"]
        assert table.num_rows == 10 == len((folder / "screening_results.csv").read_text().splitlines()) - 1
        assert answer["results"][0]["hits"][0]["protein_id"] in (folder / "report.html").read_text()

    def test_screen_quietly_prints_bare_hits(self, rayzyme: Any) -> None:
        done = rayzyme("--output", "quiet", "screen", "baseline", "-r", PEROXIDE, "-k", "3")
        rows = [line.split("\t") for line in done.stdout.splitlines()]
        assert [row[:2] for row in rows] == [["reaction", "1"], ["reaction", "2"], ["reaction", "3"]]
        assert done.stderr == ""

    def test_proteins_of_ones_own_are_built_and_screened(self, rayzyme: Any, tmp_path: Path) -> None:
        (tmp_path / "own.csv").write_text(
            "protein_id,sequence,ec\nX1,MKTAYIAKQRQISFVKSHFSRQ,1.1.1.1\nX2,ACD1,\nX3,MSTNPKPQRKTKRNT,3.1\n"
        )
        done = rayzyme("screen", "baseline", "-r", ACETATE, "--proteins-csv", "own.csv", "-o", "quiet")
        assert sorted(line.split("\t")[2] for line in done.stdout.splitlines()) == ["X1", "X3"]
        assert "1 protein(s) left out; the reasons are in results/screening_set.rejected.csv" in done.stderr
        assert len(ScreeningSet.open(tmp_path / "results" / "screening_set.arrow")) == 2

    def test_sets_are_built_listed_and_removed(self, rayzyme: Any, tmp_path: Path) -> None:
        (tmp_path / "own.fasta").write_text(">X1 first\nMKTAYIAKQRQISFVKSHFSRQ\n>X2\nMSTNPKPQRKTKRNT\n")
        rayzyme("sets", "build", "mine", "own.fasta", "--type", "bfloat16")
        assert rayzyme("sets", "list", "-o", "quiet").stdout.split() == ["reference", "mine"]
        assert "bfloat16" in rayzyme("sets", "info", "mine").stdout
        done = rayzyme("screen", "baseline", "-r", ACETATE, "-s", "mine", "-k", "9", "-o", "quiet")
        assert len(done.stdout.splitlines()) == 2
        assert "warning: top_k 9 is more than the 2 proteins of mine" in done.stderr
        rayzyme("sets", "remove", "mine")
        assert rayzyme("sets", "list", "-o", "quiet").stdout.split() == ["reference"]

    def test_embeddings_made_elsewhere_are_imported(self, rayzyme: Any, tmp_path: Path) -> None:
        opened = ScreeningSetLibrary(tmp_path).open("reference")
        np.savez(
            tmp_path / "e.npz",
            protein_ids=opened.protein_ids[:50],
            embeddings=opened.embeddings[:50].astype(np.float32),
        )
        rayzyme("sets", "import", "fifty", "e.npz", "--checkpoint", "baseline")
        done = rayzyme("screen", "baseline", "-r", ACETATE, "-s", "fifty", "-k", "50", "-o", "quiet")
        assert {line.split("\t")[2] for line in done.stdout.splitlines()} == set(opened.protein_ids[:50])

    def test_evaluate_prints_metrics_and_writes_them(self, rayzyme: Any, tmp_path: Path) -> None:
        ids = ScreeningSetLibrary(tmp_path).open("reference").protein_ids
        (tmp_path / "known.csv").write_text(
            f'reaction_id,reaction_smiles,known_enzymes\na,{PEROXIDE},"{ids[0]},{ids[1]}"\nb,{ACETATE},{ids[2]}\n'
        )
        done = rayzyme("evaluate", "baseline", "known.csv", "-o", "quiet")
        metrics = dict(line.split("\t") for line in done.stdout.splitlines())
        assert {"BEDROC_85", "AUROC", "EF_1%", "TopK_10"} <= set(metrics)
        assert (tmp_path / "results" / "evaluation_results.json").is_file()
        assert "BEDROC" in (tmp_path / "results" / "report.html").read_text()

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["screen", "baseline"], 2, "no reaction given"),
            (["screen", "baseline", "-r", "CCO"], 2, "'CCO'"),
            (["screen", "baseline", "absent.txt"], 3, "absent.txt"),
            (["screen", "nothing", "-r", PEROXIDE], 3, "nothing"),
            (["screen", "baseline", "-r", PEROXIDE, "-s", "nowhere"], 3, "unknown screening set 'nowhere'"),
            (["screen", "baseline", "-r", PEROXIDE, "--top-k", "0"], 2, "top_k must be at least 1, not 0"),
            (["screen", "baseline", "-r", PEROXIDE, "--filter", "kinase"], 2, "filter 'kinase' is not COLUMN=VALUE"),
            (["screen", "baseline", "-r", PEROXIDE, "--proteins-csv", "x.csv", "-s", "reference"], 2, "not both"),
            (["--config", "absent.yaml", "sets", "list"], 3, "settings file absent.yaml does not exist"),
            (["sets", "remove", "reference"], 2, "'reference' is the bundled set"),
            (["checkpoints", "validate", "clipzyme_v1"], 3, "rayzyme checkpoints fetch clipzyme_v1"),
        ],
    )
    def test_mistakes_end_with_one_message_and_their_code(
        self, rayzyme: Any, arguments: list[str], code: int, message: str
    ) -> None:
        done = rayzyme(*arguments, code=code)
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_a_screen_without_any_ray_starts_its_own_with_a_token(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "RAYZYME_"))}
    environment |= {"HOME": str(tmp_path), "RAY_raylet_start_wait_time_s": "120"}
    done = subprocess.run(
        [str(Path(sys.executable).with_name("rayzyme")), "screen", "baseline", "-r", PEROXIDE, "-k", "2", "-o", "quiet"],
        capture_output=True, text=True, check=False, cwd=tmp_path, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3_000:]
    assert len(done.stdout.splitlines()) == 2
    token = tmp_path / ".rayzyme" / "ray" / "auth_token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / ".ray" / "auth_token").exists(), "a token there would change how `ray start` behaves"


@pytest.mark.shared
def test_a_clipzyme_checkpoint_screens_its_own_set(shared: Path, tmp_path: Path, home: Path) -> None:
    import json

    fixtures = shared / "fixtures" / "clipzyme"
    reactions = json.loads((fixtures / "reactions.json").read_text())
    checkpoint = tmp_path / "clipzyme.ckpt"
    shutil.copy(fixtures / "checkpoint.ckpt", checkpoint)
    encoder = load_checkpoint(checkpoint, "cpu")
    rows = np.random.default_rng(0).standard_normal((200, encoder.dimension)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    ids = [f"P{number:03d}" for number in range(200)]
    chosen = ScreeningSet.from_arrays(ids, rows, None, encoder).save(tmp_path / "clip.arrow")
    answer = screen(reactions, 10, chosen, checkpoint, settings=load_settings())
    expected = ExactIndex(rows, ids).search(np.load(fixtures / "expected.npz")["reaction_embeddings"], 10)[1]
    assert [[hit["protein_id"] for hit in result["hits"]] for result in answer["results"]] == [
        [ids[row] for row in best] for best in expected
    ]
    assert answer["results"][0]["mapped_reaction"] == reactions[0]
