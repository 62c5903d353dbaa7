"""The web page as it is sent: files with their types and headers, and drawings of reactions."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tests.support.api_client import ApiClient

import rayzyme_serve.page
from rayzyme.settings import load_settings
from rayzyme_serve.api import create_api

STATIC = Path(rayzyme_serve.page.__file__).parent / "static"
ACETATE = "CC(=O)OCC.O>>CC(=O)O.CCO"
MANY = "CC(=O)OCC.OCC(O)CO.CC(N)C(=O)O.O=C(O)CCC(=O)O>>CCO"


@pytest.fixture
def client() -> ApiClient:
    return ApiClient(create_api(load_settings(overrides={"serve": {"max_reaction_length": 200}})))


class Elements(HTMLParser):
    """Every element with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))

    @property
    def ids(self) -> list[str]:
        return [str(attributes["id"]) for _, attributes in self.found if "id" in attributes]


@pytest.fixture
def elements() -> Elements:
    return Elements((STATIC / "index.html").read_text())


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/static/style.css", "text/css; charset=utf-8"),
        ("/static/main.js", "text/javascript; charset=utf-8"),
        ("/static/icon.svg", "image/svg+xml"),
    ],
)
def test_files_have_the_types_that_browsers_insist_on(client: ApiClient, path: str, media_type: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == media_type
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_a_file_is_sent_again_only_when_it_has_changed(client: ApiClient) -> None:
    first = client.get("/static/main.js")
    assert first.headers["Cache-Control"] == "no-cache"
    again = client.get("/static/main.js", headers={"If-None-Match": f'"other", W/{first.headers["ETag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["ETag"] == first.headers["ETag"]
    other = client.get("/static/main.js", headers={"If-None-Match": '"other"'})
    assert other.content == first.content


@pytest.mark.parametrize("name", ["absent.js", "../__init__.py", "..%2f__init__.py", "%2e%2e%2f__init__.py", "."])
def test_nothing_but_the_files_of_the_page_is_given(client: ApiClient, name: str) -> None:
    answer = client.get(f"/static/{name}")
    assert answer.status_code == 404
    assert "import" not in answer.text


def test_the_page_may_run_and_ask_only_what_comes_from_its_own_server(client: ApiClient) -> None:
    policy = dict(part.split(" ", 1) for part in client.get("/").headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"


def test_the_page_has_no_script_and_no_style_in_itself_and_asks_no_other_server(elements: Elements) -> None:
    for tag, attributes in elements.found:
        assert tag != "style"
        assert not [name for name in attributes if name == "style" or name.startswith("on")], (tag, attributes)
        assert tag != "script" or attributes.get("src"), "a script inside of the page"
        address = attributes.get("src") or attributes.get("href") or ""
        assert re.fullmatch(r"static/[a-z.]+|docs|#[a-z]+|", address), address


def test_what_scripts_look_for_is_in_the_page(elements: Elements) -> None:
    assert len(elements.ids) == len(set(elements.ids))
    made = set()
    for script in sorted(STATIC.glob("*.js")):
        made |= set(re.findall(r"\bid: \"([a-z-]+)\"", script.read_text()))
    for script in sorted(STATIC.glob("*.js")):
        wanted = set(re.findall(r"byId\(\"([a-z-]+)\"\)", script.read_text()))
        assert wanted <= set(elements.ids) | made, script.name


def test_scripts_never_read_markup_out_of_text() -> None:
    """What a user or the server said is always text."""
    for script in sorted(STATIC.glob("*.js")):
        found = re.findall(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", script.read_text()
        )
        assert not found, script.name


def test_a_reaction_is_drawn(client: ApiClient) -> None:
    answer = client.get("/v1/reactions/drawing", params={"reaction": ACETATE, "width": 320})
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/svg+xml")
    drawn = ElementTree.fromstring(answer.text)
    assert drawn.get("width") == "320"
    # Nobody else's browser is shown it out of a shared cache.
    assert answer.headers["Cache-Control"].startswith("private")


def test_a_drawing_is_no_higher_than_there_is_room_for(client: ApiClient) -> None:
    def height(**limit: int) -> int:
        answer = client.get("/v1/reactions/drawing", params={"reaction": MANY, "width": 200, **limit})
        return int(ElementTree.fromstring(answer.text).get("height", "0"))

    natural = height()
    assert natural > 120
    assert height(max_height=120) <= 120
    assert height(max_height=natural + 50) == natural


@pytest.mark.parametrize(
    ("parameters", "status", "message"),
    [
        ({"reaction": "CCX>>CCO"}, 400, "'CCX' is not valid SMILES"),
        ({"reaction": "CCO"}, 400, ">>"),
        ({"reaction": "C" * 201}, 400, "201 characters, more than 200"),
        ({"reaction": ACETATE, "width": 10}, 422, "width"),
        ({}, 422, "reaction"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_words(
    client: ApiClient, parameters: dict[str, str], status: int, message: str
) -> None:
    answer = client.get("/v1/reactions/drawing", params=parameters)
    assert answer.status_code == status
    assert message in answer.json()["detail"]


def test_the_status_of_a_server_without_a_cluster_says_so(client: ApiClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    told = client.get("/v1/status").json()
    assert told["cluster"] is None
    assert told["scheduler"]["running"] is False
    assert told["queue"]["total_jobs"] == 0
    assert told["caller"]["role"] == "admin"
