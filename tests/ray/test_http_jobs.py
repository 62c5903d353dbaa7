"""Jobs over HTTP, on a socket, with a real scheduler behind it: what a program and the page see."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import polars
import pytest
from tests.ray.dispatching import dispatcher_of_its_own, function_task, lines, sample_tasks, until
from tests.support.http_server import served

from rayzyme.access import Role, TokenStore
from rayzyme.jobs import TaskPriority
from rayzyme.settings import Settings, use_settings
from rayzyme_actors.screening import screen
from rayzyme_serve.api import create_api

PEROXIDE = "OO.OO>>O=O.O.O"
ACETATE = "CC(=O)OCC.O>>CC(=O)O.CCO"
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
PROTEINS = [{"protein_id": f"P{number:02}", "sequence": (LETTERS * 4)[number : number + 40]} for number in range(8)]


@pytest.fixture(scope="module")
def dispatcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One for all tests of this file, in a home of its own; two jobs run at a time, and one owner may have three waiting."""
    with dispatcher_of_its_own(
        home=str(tmp_path_factory.mktemp("home")), quotas={"users": {"modest": {"queued": 1}}}
    ) as dispatcher:
        yield dispatcher


@pytest.fixture(autouse=True)
def settings(home: Path, dispatcher: Any) -> Settings:
    """Those of the dispatcher are this process's too."""
    use_settings(dispatcher.settings)
    chosen: Settings = dispatcher.settings
    return chosen


@contextmanager
def api_of(dispatcher: Any, **serve: Any) -> Iterator[Any]:
    """The API of the dispatcher's jobs, and its address."""
    settings = dispatcher.settings
    api = create_api(settings.model_copy(update={"serve": settings.serve.model_copy(update=serve)}))
    api.state.service.store, api.state.service.dispatcher = dispatcher._store, dispatcher
    with served(api) as address:
        yield api, address


@pytest.fixture(scope="module")
def server(dispatcher: Any) -> Iterator[Any]:
    with api_of(dispatcher, auth="open") as (api, address):
        yield api, address


@pytest.fixture
def client(server: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server[1], timeout=60) as opened:
        yield opened


class Follower:
    """Reads a stream of server-sent events, one after the other."""

    def __init__(self, answer: httpx.Response) -> None:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        self._lines = answer.iter_lines()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Events, `{"event", "data", "id"}`."""
        event: dict[str, Any] = {}
        for line in self._lines:
            name, _, value = line.partition(": ")
            if name in ("event", "data", "id"):
                event[name] = json.loads(value) if name == "data" else value
            elif not line and event:
                yield event
                event = {}

    def until(self, **data: Any) -> dict[str, Any]:
        """The first event from here on with that data."""
        return next(event for event in self if data.items() <= event["data"].items())


@contextmanager
def following(client: httpx.Client, job_id: str, **headers: str) -> Iterator[Follower]:
    with client.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as answer:
        yield Follower(answer)


def post(
    client: httpx.Client, key: str | None = None, workflow: str = "screening", **parameters: Any
) -> httpx.Response:
    """Submit a job of one reaction, or of others."""
    body = {"workflow": workflow, "parameters": {"reactions": [PEROXIDE], **parameters}}
    return client.post("/v1/jobs", json=body, headers={} if key is None else {"Idempotency-Key": key})


def states(follower: Follower) -> list[str]:
    return [event["data"]["state"] for event in follower if event["event"] == "state"]


@pytest.fixture
def gate(dispatcher: Any, tmp_path: Path) -> Iterator[Any]:
    """Gives jobs that run until the test ends, or until they are told to."""
    file, log = tmp_path / "gate", tmp_path / "log"

    def job(name: str = "held", **more: Any) -> str:
        params = {"log": str(log), "until": str(file)}
        return str(dispatcher.submit_task(function_task(name, sample_tasks.wait_for_file, params=params), **more))

    job.opens = file.touch  # type: ignore[attr-defined]
    job.begun = lambda: len(lines(log))  # type: ignore[attr-defined]
    yield job
    file.touch()
    for record in dispatcher.list_jobs():
        if record["status"] in ("queued", "running"):
            dispatcher.wait_for_job(record["job_id"], timeout=60)


def test_a_batch_of_reactions_is_screened_followed_and_fetched(client: httpx.Client) -> None:
    """D13"""
    rows = [PEROXIDE, {"reaction": ACETATE, "reaction_id": "ester"}, "nonsense"]
    body = {
        "workflow": "screening",
        "parameters": {"reactions": rows, "top_k": 4, "filters": {"ec": "1"}},
        "name": "two and a half",
        "priority": "high",
        "metadata": {"why": "test"},
    }
    answer = client.post("/v1/jobs", json=body)
    assert answer.status_code == 201, answer.text
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['job_id']}"
    told = (job["name"], job["workflow"], job["priority"], job["metadata"], job["progress"])
    assert told == ("two and a half", "screening", 2, {"why": "test"}, None)
    with following(client, job["job_id"]) as follower:
        assert states(follower)[-1] == "completed"

    expected = screen([PEROXIDE, ACETATE], 4, filters={"ec": "1"})
    found = client.get(f"/v1/jobs/{job['job_id']}/result").json()
    assert [result["hits"] for result in found["results"]] == [result["hits"] for result in expected["results"]]
    assert [result["reaction_id"] for result in found["results"]] == ["1", "ester"]
    assert [row["line"] for row in found["rejected"]] == [3]
    ids = [hit["protein_id"] for result in found["results"] for hit in result["hits"]]
    table = client.get(f"/v1/jobs/{job['job_id']}/result", params={"format": "csv"})
    assert table.headers["content-disposition"].startswith(f'attachment; filename="{job["job_id"]}')
    assert polars.read_csv(table.content)["protein_id"].to_list() == ids
    whole = client.get(f"/v1/jobs/{job['job_id']}/result", headers={"Range": "bytes=900000-"})
    assert (whole.status_code, whole.json()) == (200, found)
    parquet = client.get(f"/v1/jobs/{job['job_id']}/result", params={"format": "parquet"})
    assert polars.read_parquet(io.BytesIO(parquet.content))["protein_id"].to_list() == ids
    assert client.get(f"/v1/jobs/{job['job_id']}/result", params={"part": "evaluation"}).status_code == 404


def test_a_set_is_built_of_proteins_in_the_request_and_the_ranking_measured(client: httpx.Client) -> None:
    """D62"""
    rows = [{"reaction": PEROXIDE, "known_enzymes": ["P00", "P01"]}, ACETATE]
    job_id = post(client, workflow="full_pipeline", reactions=rows, proteins=PROTEINS, top_k=3).json()["job_id"]
    with following(client, job_id) as follower:
        assert states(follower)[-1] == "completed", client.get(f"/v1/jobs/{job_id}").json()
    found = client.get(f"/v1/jobs/{job_id}/result").json()
    assert (found["screening_set_size"], [len(result["hits"]) for result in found["results"]]) == (8, [3, 3])
    measured = client.get(f"/v1/jobs/{job_id}/result", params={"part": "evaluation"}).json()
    assert (measured["ranking"], measured["num_total"], measured["num_reactions"]) == ("full", 8, 1)


def test_a_set_that_is_there_is_evaluated(client: httpx.Client) -> None:
    """D62"""
    best = screen([PEROXIDE], 1)["results"][0]["hits"][0]["protein_id"]
    rows = [{"reaction": PEROXIDE, "known_enzymes": [best]}]
    job_id = post(client, workflow="evaluation", reactions=rows, metrics=["TopK"]).json()["job_id"]
    with following(client, job_id) as follower:
        assert states(follower)[-1] == "completed", client.get(f"/v1/jobs/{job_id}").json()
    measured = client.get(f"/v1/jobs/{job_id}/result").json()
    assert measured["ranking"] == "full"
    assert {name.split("_")[0] for name in measured["intervals"]} == {"TopK"}
    assert client.get(f"/v1/jobs/{job_id}/result", params={"format": "csv"}).status_code == 404


def test_the_same_key_is_the_same_job_and_another_request_a_conflict(client: httpx.Client, gate: Any) -> None:
    """D13"""
    for number in range(2):
        gate(f"held {number}")
    first = post(client, "k", top_k=1)
    again = post(client, "k", top_k=1)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json()["job_id"] == again.json()["job_id"]
    for other in ({"top_k": 2}, {"top_k": 1, "proteins": PROTEINS}):
        refused = post(client, "k", **other)
        assert (refused.status_code, refused.json()["code"]) == (409, "IdempotencyConflict")
    assert post(client, "another", top_k=1).json()["job_id"] != first.json()["job_id"]
    gate.opens()


def test_two_processes_with_the_same_keys_at_once_make_one_job_of_each(
    dispatcher: Any, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D13"""
    monkeypatch.setenv("RAYZYME_HOME", str(dispatcher.settings.home))
    script = repository / "tests" / "support" / "http_submitter.py"
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, str(script), "both", "5"], **pipes) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    first, second = (json.loads(process.communicate(timeout=120)[0]) for process in processes)
    assert first == second
    assert {status for status, _ in first} == {201}
    assert len({job_id for _, job_id in first}) == 5
    results = dispatcher.wait_for_jobs([job_id for _, job_id in first], timeout=120)
    assert all(result.success for result in results.values())


def test_jobs_are_listed_page_by_page_the_newest_first(client: httpx.Client, dispatcher: Any) -> None:
    expected = [
        dispatcher.submit_task(function_task("n", sample_tasks.nothing), name=f"100%_{number}", owner="lister")
        for number in range(5)
    ][::-1]
    dispatcher.wait_for_jobs(expected, timeout=60)
    found, cursor = [], None
    while True:
        asked = {"owner": "lister", "limit": 2, "status": ["completed", "failed"]} | (
            {"cursor": cursor} if cursor else {}
        )
        page = client.get("/v1/jobs", params=asked).json()
        found.append([job["job_id"] for job in page["jobs"]])
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert found == [expected[:2], expected[2:4], expected[4:]]

    def listed(**asked: Any) -> list[str]:
        return [job["job_id"] for job in client.get("/v1/jobs", params=asked).json()["jobs"]]

    assert listed(name="100%_3") == [expected[1]]
    assert listed(name="100_") == []
    assert listed(owner="lister", status="running") == []
    assert listed(owner="nob\0dy") == []
    for asked in ({"limit": 501}, {"cursor": "0"}, {"cursor": "1; DROP"}, {"status": "done"}):
        assert client.get("/v1/jobs", params=asked).status_code == 422


def test_a_job_is_shown_with_its_tasks_and_every_try(client: httpx.Client, dispatcher: Any, tmp_path: Path) -> None:
    """D14"""
    params = {"succeeds_at": 2, "log": str(tmp_path / "log")}
    job_id = dispatcher.submit_task(function_task("flaky", sample_tasks.fail, params=params))
    dispatcher.wait_for_job(job_id, timeout=60)
    job = client.get(f"/v1/jobs/{job_id}").json()
    assert (job["status"], job["progress"], job["eta_s"], job["error"]) == ("completed", 100.0, None, None)
    assert [(task["name"], task["status"], task["attempt"]) for task in job["tasks"]] == [("flaky", "completed", 2)]
    tries = [(attempt["task"], attempt["number"], attempt["status"]) for attempt in job["attempts"]]
    assert sorted(tries, key=str) == [("flaky", 1, "failed"), ("flaky", 2, "completed"), (None, 1, "completed")]
    assert all(attempt["started_at"].endswith("Z") for attempt in job["attempts"])


def test_progress_is_told_as_it_is_made_and_the_stream_ends_with_the_job(
    client: httpx.Client, dispatcher: Any, tmp_path: Path
) -> None:
    file = tmp_path / "until"
    job_id = dispatcher.submit_task(function_task("p", sample_tasks.tell_progress, params={"until": str(file)}))
    with following(client, job_id) as follower:
        half = follower.until(percent=50.0)
        assert half["event"] == "progress"
        assert {"job_id", "state", "percent", "eta", "eta_low", "eta_high", "stalled", "message"} == set(half["data"])
        listed = client.get("/v1/jobs", params={"status": "running"}).json()["jobs"]
        assert [(job["job_id"], job["progress"]) for job in listed] == [(job_id, 50.0)]
        file.touch()
        *_, end = follower
    assert (end["event"], end["data"]["state"], end["data"]["percent"]) == ("state", "completed", 100.0)


def test_who_comes_back_is_told_what_happened_meanwhile(client: httpx.Client, gate: Any) -> None:
    job_id = gate()
    with following(client, job_id) as follower:
        running = follower.until(state="running")
    gate.opens()
    with following(client, job_id, **{"Last-Event-ID": running["id"]}) as follower:
        assert states(follower) == ["completed"]
    with following(client, job_id, **{"Last-Event-ID": "1"}) as follower:
        assert states(follower) == ["running", "completed"]
    for nothing_of_this_job in ("7777", "1e3", "-1", "null"):
        with following(client, job_id, **{"Last-Event-ID": nothing_of_this_job}) as follower:
            assert states(follower) == ["completed"]


def test_a_stream_ends_in_time_to_be_asked_for_again(dispatcher: Any, gate: Any) -> None:
    job_id = gate()
    with api_of(dispatcher, auth="open", timeout=2.0) as (_, address), httpx.Client(base_url=address) as client:
        with following(client, job_id) as follower:
            told = [event["data"]["state"] for event in follower]
        assert "completed" not in told
        gate.opens()
        with following(client, job_id) as follower:
            assert states(follower)[-1] == "completed"


def test_followers_who_leave_are_forgotten_and_too_many_are_refused(dispatcher: Any, gate: Any) -> None:
    job_id = gate()
    with (
        api_of(dispatcher, auth="open", max_followers=2) as (api, address),
        httpx.Client(base_url=address, timeout=30) as client,
    ):
        watcher = api.state.service.watcher
        with following(client, job_id) as first, following(client, job_id) as second:
            assert first.until(state="running")
            assert second.until(state="running")
            refused = client.get(f"/v1/jobs/{job_id}/events")
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
            assert client.get(f"/v1/jobs/{job_id}").status_code == 200
        until(lambda: watcher.watchers == 0)
        with following(client, job_id) as again:
            assert again.until(state="running")
    gate.opens()


def test_a_result_that_is_not_there_yet_and_one_that_never_will_be_are_told_apart(
    client: httpx.Client, dispatcher: Any, gate: Any
) -> None:
    for number in range(2):
        gate(f"held {number}")
    job_id = post(client, top_k=1).json()["job_id"]
    early = client.get(f"/v1/jobs/{job_id}/result")
    assert (early.status_code, early.json()["code"]) == (409, "NotReady")
    assert client.post(f"/v1/jobs/{job_id}/cancel").json() == {"cancelled": True}
    never = client.get(f"/v1/jobs/{job_id}/result")
    assert (never.status_code, never.json()["code"]) == (404, "NotFound")
    assert "cancelled" in never.json()["detail"]
    gate.opens()


def test_only_files_in_the_folder_of_results_are_given_out(
    client: httpx.Client, dispatcher: Any, tmp_path: Path
) -> None:
    place = tmp_path / "screening_results.json"
    job_id = dispatcher.submit_task(function_task("w", sample_tasks.write_file, params={"path": str(place)}))
    dispatcher.wait_for_job(job_id, timeout=60)
    assert place.is_file()
    assert client.get(f"/v1/jobs/{job_id}/result").status_code == 404


def test_a_running_job_is_cancelled_once_and_by_name(client: httpx.Client, dispatcher: Any, tmp_path: Path) -> None:
    """D18, D46"""
    pid = tmp_path / "pid"
    job_id = dispatcher.submit_task(function_task("deaf", sample_tasks.sleep_long, params={"pid": str(pid)}))
    until(pid.exists)
    with following(client, job_id) as follower:
        assert client.post(f"/v1/jobs/{job_id}/cancel").json() == {"cancelled": True}
        assert states(follower)[-1] == "cancelled"
    assert client.post(f"/v1/jobs/{job_id}/cancel").json() == {"cancelled": False}
    wish = next(event for event in dispatcher._store.events(job_id) if "asked for" in event.reason)
    assert wish.actor == "local over HTTP"


def test_a_job_that_waits_is_explained(client: httpx.Client, gate: Any) -> None:
    """D51"""
    busy = [gate(f"busy {number}") for number in range(2)]
    until(lambda: gate.begun() == 2)
    job_id = post(client, top_k=1).json()["job_id"]
    told = until(lambda: (told := client.get(f"/v1/jobs/{job_id}/explain").json()).get("lacking") and told)
    assert (told["state"], told["position"]) == ("queued", 1)
    assert "slot:workflow" in str(told["lacking"])
    assert all(held in str(told) for held in busy)
    assert client.get(f"/v1/jobs/{busy[0]}/explain").json()["state"] == "running"
    gate.opens()


@pytest.mark.parametrize("job_id", ["job_000000000000", "nothing", "%00", "j" * 3000, "job_%ff"])
def test_ids_that_no_job_has_are_not_found(client: httpx.Client, job_id: str) -> None:
    for path in ("", "/events", "/result", "/explain"):
        answer = client.get(f"/v1/jobs/{job_id}{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "UnknownJob")
    assert client.post(f"/v1/jobs/{job_id}/cancel").status_code == 404


@pytest.mark.parametrize(
    ("parameters", "status", "message"),
    [
        ({"reactions": []}, 422, "reactions"),
        ({"reactions": [PEROXIDE] * 6}, 422, "6 reactions are more than the 5 that a job may have"),
        ({"reactions": ["C" * 101 + ">>C"]}, 422, "reaction 1 has 104 characters, more than 100"),
        ({"reactions": [{"reaction": PEROXIDE, "cif": "/etc/passwd"}]}, 422, "cif"),
        ({"top_k": 0}, 422, "top_k"),
        ({"reactions": [PEROXIDE] * 5, "top_k": 3}, 422, "a top_k of at most 2"),
        ({"topk": 5}, 422, "topk"),
        ({"output_dir": "/tmp"}, 422, "output_dir"),
        ({"screening_set": "nowhere"}, 404, "unknown screening set 'nowhere'"),
        ({"screening_set": "/etc/passwd"}, 404, "unknown screening set '/etc/passwd'"),
        ({"checkpoint": "../baseline"}, 404, "unknown checkpoint '../baseline'"),
        ({"proteins": PROTEINS[:1], "screening_set": "reference"}, 422, "not both"),
        ({"proteins": PROTEINS[:4]}, 422, "4 proteins are more than the 3"),
        ({"proteins": [{"protein_id": "a", "sequence": "M" * 51}]}, 422, "the sequence of protein 1 has 51 characters"),
        ({"proteins": [{"protein_id": "a", "sequence": "M", "cif": "/etc/passwd"}]}, 422, "cif"),
    ],
)
def test_mistakes_are_told_at_once_and_nothing_is_submitted(
    server: Any, client: httpx.Client, parameters: dict[str, Any], status: int, message: str, settings: Settings
) -> None:
    limits = {
        "max_job_reactions": 5, "max_reaction_length": 100, "max_job_hits": 10, "max_job_proteins": 3, "max_sequence_length": 50,
    }  # fmt: skip
    use_settings(settings.model_copy(update={"serve": settings.serve.model_copy(update=limits)}))
    before = len(client.get("/v1/jobs").json()["jobs"])
    answer = post(client, **{"top_k": 1, **parameters})
    assert answer.status_code == status, answer.text
    assert message in answer.json()["detail"]
    assert len(client.get("/v1/jobs").json()["jobs"]) == before


def test_requests_that_are_none_are_malformed(client: httpx.Client) -> None:
    for body in (b"", b"[]", b'{"workflow": "rm"}', b"[" * 100_000, b'{"workflow": "screening"}'):
        answer = client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 422), answer.text
    unknown = post(
        client, workflow="evaluation", reactions=[{"reaction": PEROXIDE, "known_enzymes": ["P1"]}], metrics=["x"]
    )
    assert (unknown.status_code, unknown.json()["code"]) == (400, "InvalidInput")
    assert post(client, workflow="evaluation").status_code == 422
    assert post(client, key="k" * 257).status_code == 422


def test_everybody_sees_and_does_what_their_role_lets_them(dispatcher: Any, gate: Any) -> None:
    """D50, D74, P7"""
    tokens = TokenStore(dispatcher._store.database)
    secrets = {
        name: tokens.create(name, owner, role)[1]
        for name, owner, role in (
            ("annas-laptop", "anna", Role.USER),
            ("bens", "ben", Role.USER),
            ("modests", "modest", Role.USER),
            ("screen", "wall", Role.VIEWER),
            ("boss", "boss", Role.ADMIN),
        )
    }
    for number in range(2):
        gate(f"held {number}", owner="boss")
    until(lambda: gate.begun() == 2)
    with api_of(dispatcher, auth="tokens") as (_, address), httpx.Client(base_url=address, timeout=60) as nobody:

        def of(name: str) -> httpx.Client:
            return httpx.Client(base_url=address, timeout=60, headers={"Authorization": f"Bearer {secrets[name]}"})

        assert nobody.get("/v1/jobs").status_code == 401
        with closing(of("annas-laptop")) as anna, closing(of("bens")) as ben, closing(of("screen")) as screen_:
            job = post(anna, "key", top_k=1).json()
            assert job["owner"] == "anna"
            # Another owner's key is another key.
            others = post(ben, "key", top_k=1).json()
            assert others["job_id"] != job["job_id"]

            path = f"/v1/jobs/{job['job_id']}"
            assert [seen["job_id"] for seen in anna.get("/v1/jobs").json()["jobs"]] == [job["job_id"]]
            assert anna.get("/v1/jobs", params={"owner": "ben"}).status_code == 403
            for hidden in (path, f"{path}/events", f"{path}/result", f"{path}/explain"):
                assert ben.get(hidden).status_code == 404
            assert ben.post(f"{path}/cancel").status_code == 404
            other_words = ben.get("/v1/jobs/job_000000000000").text
            assert ben.get(path).text == other_words.replace("job_000000000000", job["job_id"])

            assert {"anna", "ben", "boss"} <= {seen["owner"] for seen in screen_.get("/v1/jobs").json()["jobs"]}
            assert screen_.get(path).status_code == 200
            assert screen_.get(f"{path}/explain").status_code == 403
            assert screen_.post(f"{path}/cancel").status_code == 403
            assert post(screen_).status_code == 403

            assert anna.get(f"{path}/explain").status_code == 200
            assert anna.post(f"{path}/cancel").json() == {"cancelled": True}
        with closing(of("boss")) as boss:
            assert boss.post(f"/v1/jobs/{others['job_id']}/cancel").json() == {"cancelled": True}
        with closing(of("modests")) as modest:
            assert post(modest).status_code == 201
            refused = post(modest)
            assert (refused.status_code, refused.json()["code"]) == (429, "QuotaExceeded")
            assert int(refused.headers["retry-after"]) >= 1
    submitted = dispatcher._store.events(job["job_id"])[0]
    assert (submitted.reason, submitted.actor) == ("submitted", "annas-laptop over HTTP")
    gate.opens()


def test_priorities_are_taken_by_word_and_by_number(client: httpx.Client, gate: Any) -> None:
    """D4"""
    for number in range(2):
        gate(f"held {number}")
    body = {"workflow": "simple_screening", "parameters": {"reactions": [PEROXIDE], "top_k": 1}}
    for said, meant in (("critical", TaskPriority.CRITICAL), (0, TaskPriority.LOW)):
        job = client.post("/v1/jobs", json=body | {"priority": said}).json()
        assert job["priority"] == meant
        client.post(f"/v1/jobs/{job['job_id']}/cancel")
    refused = client.post("/v1/jobs", json=body | {"priority": 4})
    assert refused.status_code == 422
    assert refused.json()["detail"].startswith(
        "simple_screening.priority: Input should be 'low', 'normal', 'high' or 'critical'"
    )
    gate.opens()
