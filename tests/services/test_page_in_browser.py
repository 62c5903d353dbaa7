"""The web page in a real browser, on the real endpoint: what a biologist does with it, and who uses no mouse."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the extra `test` has it)")
expect = playwright.expect

PEROXIDE = "OO.OO>>O=O.O.O"
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 360, "height": 740}
LONG_MS = 120_000
# A browser notes every answer that is an error; the page has to deal with it.
_REFUSAL = "Failed to load resource"

# For every text that is seen: how its colour differs from what is behind it, as WCAG 2 computes it.
_FAINT = """() => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const over = (top, below) => {
    const alpha = top.length > 3 ? top[3] : 1;
    return [0, 1, 2].map((i) => top[i] * alpha + below[i] * (1 - alpha));
  };
  const behind = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.push(channels(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const luminance = (colour) => {
    const [r, g, b] = colour.map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const faint = [];
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data.trim()).join("");
    if (!text || !element.checkVisibility() || element.closest(".visually-hidden, option, noscript")) continue;
    const below = behind(element);
    const [one, other] = [luminance(over(channels(getComputedStyle(element).color), below)), luminance(below)];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < 4.5) faint.push(`${ratio.toFixed(2)} ${element.tagName}.${element.className}: ${text.slice(0, 40)}`);
  }
  return faint;
}"""
_NAMELESS = """() => [...document.querySelectorAll("button, input, select, textarea, a[href]")]
  .filter((element) => element.checkVisibility())
  .filter((element) => !(element.getAttribute("aria-label") || element.textContent.trim() || element.labels?.length))
  .map((element) => element.outerHTML)"""
_WIDTHS = "() => [document.documentElement.scrollWidth, innerWidth]"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("chromium is not installed (apt-get install chromium; `make test` does it as root on Debian)")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Visit:
    """A page that is open, and everything that it asked for and complained of.

    Attributes:
        page: The page.
        complaints: What it wrote into the console as an error, or did not catch.
        posted: The addresses that it posted to.
        elsewhere: What it asked of another server.
    """

    def __init__(self, browser: Any, endpoint: str, **context: Any) -> None:
        self.complaints: list[str] = []
        self.posted: list[str] = []
        self.elsewhere: list[str] = []
        self._context = browser.new_context(**{"viewport": DESKTOP, **context})
        self.page = self._context.new_page()
        self.page.set_default_timeout(LONG_MS)
        self.page.on("console", lambda said: said.type == "error" and self.complaints.append(said.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self._note(request, endpoint))
        self._endpoint = endpoint

    def _note(self, request: Any, endpoint: str) -> None:
        if request.method == "POST":
            self.posted.append(request.url)
        if not request.url.startswith((f"{endpoint}/", f"blob:{endpoint}/")):
            self.elsewhere.append(request.url)

    def open(self, view: str = "") -> Any:
        """Open the page and wait until it is ready."""
        self.page.goto(f"{self._endpoint}/{view}")
        expect(self.page.locator("#health")).to_have_text("Ready", timeout=LONG_MS)
        return self.page

    def close(self) -> None:
        self._context.close()


@pytest.fixture
def visit(browser: Any, endpoint: str) -> Iterator[Visit]:
    """A page on a desk; none may complain, or ask another server."""
    made = Visit(browser, endpoint)
    yield made
    made.close()
    assert made.complaints == []
    assert made.elsewhere == []


def screened(page: Any, example: str = "Catalase") -> Any:
    """Screen an example; the rows of its hits."""
    page.get_by_role("button", name=example).click()
    page.get_by_role("button", name="Screen", exact=True).click()
    rows = page.locator("#hits tr")
    expect(rows.first).to_be_visible(timeout=LONG_MS)
    return rows


def pasted(page: Any, field: Any, text: str) -> None:
    """Paste into a field: what is typed takes a browser long where it is much."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate("text => navigator.clipboard.writeText(text)", text)
    field.focus()
    page.keyboard.press("Control+V")
    expect(field).to_have_value(text)


def submitted(page: Any, name: str) -> Any:
    """Submit what the form holds as a job; its line in the list."""
    page.get_by_role("button", name="Submit as a job").click()
    page.get_by_label("Name").fill(name)
    page.get_by_role("button", name="Submit", exact=True).click()
    line = page.locator(".job").filter(has_text=name)
    expect(line).to_have_count(1, timeout=LONG_MS)
    return line


def test_a_reaction_is_drawn_while_it_is_entered_and_its_enzymes_are_ranked(visit: Visit, endpoint: str) -> None:
    page = visit.open()
    page.get_by_label("Reactions", exact=True).fill(PEROXIDE)
    picture = page.get_by_role("img", name=f"Drawing of {PEROXIDE}")
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 100
    page.get_by_role("button", name="Screen", exact=True).click()
    rows = page.locator("#hits tr")
    expect(rows).to_have_count(50, timeout=LONG_MS)
    first = rows.first
    accession = first.get_by_role("rowheader").locator("a").first
    assert accession.get_attribute("href") == f"https://www.uniprot.org/uniprotkb/{accession.inner_text()}/entry"
    structure = first.get_by_role("link", name="AlphaFold DB")
    assert structure.get_attribute("href") == f"https://alphafold.ebi.ac.uk/entry/{accession.inner_text()}"
    answer = httpx.post(f"{endpoint}/v1/screen", json={"reactions": [PEROXIDE], "top_k": 50}).json()
    hits = [(hit["protein_id"], hit["metadata"]["ec"]) for hit in answer["results"][0]["hits"]]
    ids, numbers = rows.locator("th a:first-child").all_inner_texts(), rows.locator(".ec").all_inner_texts()
    shown = [";".join(text.split()) for text in numbers]
    assert list(zip(ids, shown, strict=True)) == hits
    expect(page.locator("#timing")).to_contain_text(
        re.compile(r"7,757 proteins ranked for 1 reaction in .+ queue .+ encode .+ search")
    )
    expect(page.locator("#announcer")).to_contain_text("50 hits for 1 reaction")


def test_who_is_faster_than_the_list_of_sets_is_answered_all_the_same(visit: Visit, endpoint: str) -> None:
    page = visit.page
    held: list[Any] = []
    page.route("**/v1/screening-sets", lambda route: held.append(route))
    with page.expect_request("**/v1/screening-sets"):
        page.goto(f"{endpoint}/")
    page.get_by_role("button", name="Catalase").click()
    page.get_by_role("button", name="Screen", exact=True).click()
    assert not [address for address in visit.posted if address.endswith("/screen")]
    held[0].continue_()
    expect(page.locator("#hits tr")).to_have_count(50, timeout=LONG_MS)
    assert len(held) == 1


def test_hits_are_sorted_by_their_headers(visit: Visit) -> None:
    page = visit.open()
    rows = screened(page)
    header = page.get_by_role("columnheader", name="Score")
    header.get_by_role("button").click()
    expect(header).to_have_attribute("aria-sort", "descending")
    header.get_by_role("button").click()
    expect(header).to_have_attribute("aria-sort", "ascending")
    scores = [float(text) for text in rows.locator(".score").all_inner_texts()]
    assert scores == sorted(scores)
    page.get_by_role("columnheader", name="Rank").get_by_role("button").click()
    expect(rows.first.locator("td").first).to_have_text("1")


def test_the_hits_are_kept_as_csv(visit: Visit, tmp_path: Path) -> None:
    page = visit.open()
    rows = screened(page)
    shown = rows.locator("th a:first-child").all_inner_texts()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    kept = tmp_path / download.value.suggested_filename
    download.value.save_as(kept)
    with kept.open(newline="") as opened:
        found = list(csv.DictReader(opened))
    assert kept.name == "screening_results.csv"
    assert list(found[0]) == ["reaction_id", "reaction", "rank", "protein_id", "score", "ec"]
    assert [row["protein_id"] for row in found] == shown


def test_several_reactions_stand_behind_tabs(visit: Visit) -> None:
    page = visit.open()
    screened(page, "Three hydrolases")
    tabs = page.get_by_role("tab")
    expect(tabs).to_have_count(3)
    before = page.locator("#hits").inner_text()
    tabs.first.focus()
    page.keyboard.press("End")
    expect(tabs.nth(2)).to_be_focused()
    expect(tabs.nth(2)).to_have_attribute("aria-selected", "true")
    assert page.locator("#hits").inner_text() != before


def test_filters_narrow_the_proteins_down(visit: Visit) -> None:
    page = visit.open()
    page.get_by_label("EC class").fill("1.11")
    rows = screened(page)
    best = rows.locator("th a:first-child")
    first, second = best.nth(0).inner_text(), best.nth(1).inner_text()
    assert all("1.11." in number for number in rows.locator(".ec").all_inner_texts())
    page.get_by_role("button", name="Add a filter").click()
    page.get_by_label("Filter 1: comparison").select_option("is not")
    page.get_by_label("Filter 1: value").fill(first)
    page.get_by_role("button", name="Screen", exact=True).click()
    expect(best.first).to_have_text(second)
    page.get_by_role("button", name="Remove filter 1").click()
    expect(page.get_by_role("button", name="Add a filter")).to_be_focused()


def test_a_job_is_submitted_watched_and_opened(visit: Visit, tmp_path: Path) -> None:
    page = visit.open()
    page.get_by_role("button", name="Three hydrolases").click()
    line = submitted(page, "from the page")
    expect(page).to_have_title("Jobs · Rayzyme")
    expect(page.locator("#jobs-title")).to_be_focused()
    line.get_by_role("button", name=re.compile("Explain|Details")).click()
    dialog = page.get_by_role("dialog")
    # Without being asked: it follows the job.
    expect(dialog.locator(".badge").first).to_have_text("completed", timeout=LONG_MS)
    expect(dialog.locator(".tasks")).to_contain_text("run screening")
    with page.expect_download() as download:
        dialog.get_by_role("button", name="Download Parquet").click()
    kept = tmp_path / "hits.parquet"
    download.value.save_as(kept)
    assert kept.read_bytes()[:4] == b"PAR1"
    page.keyboard.press("Escape")
    expect(line.locator(".badge")).to_have_text("completed", timeout=LONG_MS)
    line.get_by_role("button", name="Hits: from the page").click()
    expect(page.get_by_role("tab")).to_have_count(3)
    expect(page.locator("#timing")).to_contain_text("from the page")


def test_a_job_is_cancelled_once_that_was_meant(visit: Visit) -> None:
    page = visit.open()
    # Of so many that it cannot be over before it is cancelled.
    sides = [("C" * acid, "C" * alcohol) for acid in range(1, 51) for alcohol in range(1, 61)]
    esters = [f"{acid}C(=O)O{alcohol}.O>>{acid}C(=O)O.O{alcohol}" for acid, alcohol in sides]
    pasted(page, page.get_by_label("Reactions", exact=True), "\n".join(esters))
    line = submitted(page, "by mistake")
    cancel = line.get_by_role("button", name="Cancel: by mistake")
    cancel.click()
    with page.expect_response("**/v1/jobs?*"):
        page.get_by_role("button", name="Let it go on").click()
    assert not [address for address in visit.posted if address.endswith("/cancel")]
    cancel.click()
    page.get_by_role("button", name="Cancel the job").click()
    expect(line.locator(".badge")).to_have_text("cancelled", timeout=LONG_MS)
    expect(cancel).to_be_hidden()
    line.get_by_role("button", name="Details: by mistake").click()
    expect(page.get_by_role("dialog").locator(".why")).to_contain_text("cancelled")


def test_the_cluster_is_shown_in_figures(visit: Visit) -> None:
    page = visit.open("#jobs")
    figures = page.locator("#figures")
    expect(figures).to_contain_text("Nodes")
    expect(figures.locator("div").filter(has_text="CPUs").locator("dd")).to_have_text(re.compile(r"^4[\d.]+ reserved$"))
    expect(figures.locator("div").filter(has_text="Actors")).to_contain_text(re.compile("[1-9] shard"))


@pytest.mark.parametrize(
    ("reactions", "ec", "place", "message"),
    [
        ("CCX>>CCO", "", "#reactions-error", "'CCX' is not valid SMILES"),
        ("", "", "#reactions-error", "Enter a reaction"),
        (PEROXIDE, "all of them", "#answer-message", "'all of them' is not an EC number"),
    ],
)
def test_a_mistake_is_said_in_words_where_it_was_made(
    browser: Any, endpoint: str, reactions: str, ec: str, place: str, message: str
) -> None:
    visit = Visit(browser, endpoint)
    page = visit.open()
    page.get_by_label("Reactions", exact=True).fill(reactions)
    page.get_by_label("EC class").fill(ec)
    page.get_by_role("button", name="Screen", exact=True).click()
    expect(page.locator(place)).to_contain_text(message)
    if place == "#reactions-error":
        expect(page.get_by_label("Reactions", exact=True)).to_be_focused()
    visit.close()
    assert [complaint for complaint in visit.complaints if not complaint.startswith(_REFUSAL)] == []


def test_who_has_no_token_is_asked_for_it(browser: Any, endpoint: str) -> None:
    visit = Visit(browser, endpoint)
    sent: list[str | None] = []

    def guard(route: Any) -> None:
        """The doors as they are where there are tokens."""
        token = route.request.headers.get("authorization")
        sent.append(token)
        if token == "Bearer rzt_right":
            route.continue_()
        else:
            route.fulfill(status=401, json={"detail": "send a token", "code": "NotIdentified"})

    visit.page.route("**/v1/**", guard)
    page = visit.page
    page.goto(f"{endpoint}/")
    field = page.get_by_label("Token", exact=True)
    field.fill("rzt_wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("#token-reason")).to_contain_text("not accepted")
    field.fill("rzt_right")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    screened(page)
    assert sent[-1] == "Bearer rzt_right"
    assert page.evaluate("localStorage.length") == 0
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("button", name="Not now").click()
    expect(page.locator("#health")).to_have_text("Signed out")
    expect(page.get_by_role("button", name="Sign in")).to_be_visible()
    visit.close()
    assert [complaint for complaint in visit.complaints if not complaint.startswith(_REFUSAL)] == []


def test_everything_is_reached_by_keyboard(visit: Visit) -> None:
    page = visit.open()

    def tab_to(locator: Any) -> None:
        for _ in range(80):
            page.keyboard.press("Tab")
            if locator.evaluate("element => element === document.activeElement"):
                return
        raise AssertionError(f"{locator} is not reached by Tab")

    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#content")).to_be_focused()
    tab_to(page.get_by_label("Reactions", exact=True))
    page.keyboard.type(PEROXIDE)
    page.keyboard.press("Control+Enter")
    rows = page.locator("#hits tr")
    expect(rows).to_have_count(50, timeout=LONG_MS)
    header = page.get_by_role("columnheader", name="Protein")
    tab_to(header.get_by_role("button"))
    assert header.get_by_role("button").evaluate("button => getComputedStyle(button).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    expect(header).to_have_attribute("aria-sort", "ascending")
    tab_to(rows.first.locator("a").first)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_and_every_control_has_a_name(browser: Any, endpoint: str, scheme: str) -> None:
    visit = Visit(browser, endpoint, color_scheme=scheme)
    page = visit.open()
    page.get_by_role("button", name="Add a filter").click()
    screened(page, "Three hydrolases")
    backgrounds = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", backgrounds))) < 200) == (scheme == "dark")
    for view in ("#screen", "#jobs"):
        page.goto(f"{endpoint}/{view}")
        assert page.evaluate(_FAINT) == []
        assert page.evaluate(_NAMELESS) == []
    visit.close()
    assert visit.complaints == []


def test_a_phone_shows_all_of_it_without_scrolling_sideways(browser: Any, endpoint: str) -> None:
    visit = Visit(browser, endpoint, viewport=PHONE, has_touch=True, is_mobile=True)
    page = visit.open()
    page.get_by_role("button", name="Add a filter").click()
    screened(page, "Lactate dehydrogenase")
    assert page.evaluate(_WIDTHS) == [PHONE["width"], PHONE["width"]]
    expect(page.locator("#hits tr").first.locator(".score")).to_be_in_viewport(ratio=1)
    page.get_by_role("link", name="Jobs").click()
    expect(page.locator("#figures")).to_contain_text("Nodes")
    # Also with all that the bar may hold.
    for name, text in (("live-jobs", "12"), ("token-button", "Sign out")):
        page.locator(f"#{name}").evaluate("(e, text) => Object.assign(e, {textContent: text, hidden: false})", text)
    assert page.evaluate(_WIDTHS) == [PHONE["width"], PHONE["width"]]
    visit.close()
    assert visit.complaints == []
