// The answer of a screen: a table of hits for each reaction, to sort, to follow into databases and to keep as a file.

import { drawingOf } from "./drawing.js";
import { byId, download, element, fill } from "./elements.js";
import { cell, count, csv, duration, sentence, whole } from "./format.js";

const ROWS_AT_ONCE = 200;
const DRAWN_HEIGHT = 220;
const NEVER_SHOWN = new Set(["sequence", "structure", "cif", "embedding"]);
// As UniProt documents its accession numbers.
const ACCESSION = /^(?:[OPQ][0-9][A-Z0-9]{3}[0-9]|[A-NR-Z][0-9](?:[A-Z][A-Z0-9]{2}[0-9]){1,2})$/;

/** Show an answer in the form "rayzyme.screen/1". */
export function showAnswer(answer, title = null) {
  const results = answer.results;
  const panel = element("div", { class: "panel", id: "panel" });
  const show = (result) => fill(panel, resultOf(result, answer));
  fill(
    byId("answer-body"),
    element(
      "div",
      { class: "card results" },
      element(
        "div",
        { class: "summary" },
        element("p", { class: "timing", id: "timing" }, title && element("strong", {}, `${title} `), timing(answer)),
        element("button", { type: "button", id: "download-csv", on: { click: () => keep(answer) } }, "Download CSV"),
      ),
      answer.notes.map((note) => element("p", { class: "message note" }, sentence(note))),
      answer.rejected.length > 0 && rejections(answer.rejected),
      results.length > 1 && tabs(results, panel, show),
      panel,
    ),
  );
  if (results.length > 0) show(results[0]);
  else fill(panel, element("p", {}, "No reaction could be screened."));
}

/** In a sentence, for who listens. */
export function spoken(answer) {
  const hits = answer.results.reduce((sum, result) => sum + result.hits.length, 0);
  return `${count(hits, "hit")} for ${count(answer.results.length, "reaction")} in ${duration(answer.timing.total_s)}.`;
}

function timing(answer) {
  const { total_s: total, queue_s: queue, encode_s: encode, search_s: search } = answer.timing;
  const parts = { queue, encode, search };
  const told = Object.entries(parts)
    .filter(([, seconds]) => seconds !== undefined)
    .map(([name, seconds]) => `${name} ${duration(seconds)}`);
  return [
    `${whole(answer.screening_set_size)} proteins ranked for ${count(answer.results.length, "reaction")} in `,
    element("strong", {}, duration(total)),
    told.length > 0 && element("span", { class: "soft" }, ` · ${told.join(" · ")}`),
  ];
}

function rejections(rejected) {
  return element(
    "details",
    { class: "message note", open: true },
    element("summary", {}, `${count(rejected.length, "reaction")} left out`),
    element("ul", {}, rejected.map((row) => element("li", {}, row.reason))),
  );
}

function tabs(results, panel, show) {
  const made = results.map((result, index) =>
    element("button", { type: "button", role: "tab", id: `tab-${index}`, "aria-controls": "panel" }, `Reaction ${result.reaction_id}`),
  );
  const select = (index) => {
    made.forEach((tab, other) => {
      tab.setAttribute("aria-selected", String(other === index));
      tab.tabIndex = other === index ? 0 : -1;
    });
    panel.setAttribute("aria-labelledby", `tab-${index}`);
    show(results[index]);
  };
  const moves = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
  made.forEach((tab, index) => {
    tab.addEventListener("click", () => select(index));
    tab.addEventListener("keydown", (event) => {
      if (!(event.key in moves)) return;
      event.preventDefault();
      const next = Math.min(made.length - 1, Math.max(0, index + moves[event.key]));
      select(next);
      made[next].focus();
    });
  });
  panel.setAttribute("role", "tabpanel");
  select(0);
  return element("div", { class: "tabs", role: "tablist", "aria-label": "Reactions" }, made);
}

function resultOf(result, answer) {
  const picture = element("img", { alt: `Drawing of ${result.reaction}` });
  const paper = element("div", { class: "paper", hidden: true }, picture);
  drawingOf(result.reaction, Math.min(1000, byId("answer").clientWidth - 60), DRAWN_HEIGHT).then(
    (url) => {
      picture.src = url;
      paper.hidden = false;
    },
    // The table says enough without it.
    () => paper.remove(),
  );
  return [
    paper,
    result.note && element("p", { class: "message note" }, sentence(result.note)),
    element(
      "details",
      { class: "smiles" },
      element("summary", {}, result.mapped_reaction ? "Reaction SMILES and atom map" : "Reaction SMILES"),
      element("code", {}, result.reaction),
      result.mapped_reaction && element("code", {}, result.mapped_reaction),
    ),
    result.hits.length > 0 ? new HitsTable(result, answer).made : element("p", { class: "empty" }, "No protein passed the filters."),
  ];
}

/** A table of hits that is sorted by its headers; long ones are shown in pieces. */
class HitsTable {
  constructor(result, answer) {
    this.hits = result.hits;
    this.shown = ROWS_AT_ONCE;
    this.known = new Set(result.known_enzymes ?? []);
    this.columns = columnsOf(result.hits);
    this.sortedBy = this.columns[0];
    this.isRising = true;
    this.headers = this.columns.map((column) => this.header(column));
    this.body = element("tbody", { id: "hits" });
    this.more = element("button", { type: "button", on: { click: () => this.showMore() } });
    this.made = [
      element("p", { class: "soft caption", id: "hits-caption", title: `Checkpoint SHA-256 ${answer.checkpoint_digest}` }, captionOf(result.hits, answer)),
      element(
        "div",
        { class: "scroll", role: "region", tabIndex: 0, "aria-label": `Hits of reaction ${result.reaction_id}` },
        element(
          "table",
          { class: "hits", "aria-describedby": "hits-caption" },
          element("thead", {}, element("tr", {}, this.headers)),
          this.body,
        ),
      ),
      element("p", { class: "more" }, this.more),
    ];
    this.render();
  }

  header(column) {
    const button = element("button", { type: "button", on: { click: () => this.sort(column) } }, column.title);
    return element("th", { scope: "col", class: column.kind }, button);
  }

  sort(column) {
    // Scores are asked for from the highest.
    this.isRising = column === this.sortedBy ? !this.isRising : column.kind !== "score";
    this.sortedBy = column;
    this.shown = ROWS_AT_ONCE;
    this.render();
  }

  showMore() {
    const first = this.shown;
    this.shown += ROWS_AT_ONCE;
    this.render();
    this.body.rows[first]?.querySelector("a, th")?.focus();
  }

  render() {
    this.headers.forEach((header, index) => {
      const isSorted = this.columns[index] === this.sortedBy;
      header.setAttribute("aria-sort", isSorted ? (this.isRising ? "ascending" : "descending") : "none");
    });
    const sorted = this.hits.toSorted((one, other) => this.compare(one, other));
    fill(this.body, sorted.slice(0, this.shown).map((hit) => this.row(hit)));
    const left = Math.max(0, this.hits.length - this.shown);
    this.more.hidden = left === 0;
    this.more.textContent = `Show ${whole(Math.min(left, ROWS_AT_ONCE))} more of ${whole(this.hits.length)}`;
  }

  compare(one, other) {
    const [first, second] = [this.sortedBy.value(one), this.sortedBy.value(other)];
    const [isFirstBlank, isSecondBlank] = [isBlank(first), isBlank(second)];
    // What has no value stands last either way, and equal ones by their rank.
    if (isFirstBlank || isSecondBlank) return isFirstBlank - isSecondBlank || one.rank - other.rank;
    const order =
      typeof first === "number" && typeof second === "number"
        ? first - second
        : cell(first).localeCompare(cell(second), "en", { numeric: true });
    return (this.isRising ? order : -order) || one.rank - other.rank;
  }

  row(hit) {
    return element("tr", {}, this.columns.map((column) => column.show(hit, this.known)));
  }
}

function columnsOf(hits) {
  const names = [...new Set(hits.flatMap((hit) => Object.keys(hit.metadata)))].filter((name) => !NEVER_SHOWN.has(name));
  const metadata = (name) => ({
    title: name === "ec" ? "EC" : name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " "),
    kind: typeof hits[0].metadata[name] === "number" ? "number" : "text",
    value: (hit) => hit.metadata[name],
    show: (hit) => shownValue(name, hit.metadata[name]),
  });
  return [
    { title: "Rank", kind: "number", value: (hit) => hit.rank, show: (hit) => element("td", { class: "number" }, hit.rank) },
    { title: "Protein", kind: "text", value: (hit) => hit.protein_id, show: protein },
    ...names.filter((name) => name === "ec").map(metadata),
    { title: "Score", kind: "score", value: (hit) => hit.score, show: score },
    ...names.filter((name) => name !== "ec").map(metadata),
  ];
}

function shownValue(name, value) {
  if (name === "ec") {
    const numbers = cell(value).split(";").map((number) => number.trim()).filter(Boolean);
    return element("td", { class: "ec" }, numbers.map((number) => [element("span", { class: "tag" }, number), " "]));
  }
  return element("td", { class: typeof value === "number" ? "number" : "text" }, cell(value));
}

function protein(hit, known) {
  const id = hit.protein_id;
  const outside = { target: "_blank", rel: "noopener noreferrer" };
  const isAccession = ACCESSION.test(id);
  return element(
    "th",
    { scope: "row" },
    isAccession
      ? element("a", { href: `https://www.uniprot.org/uniprotkb/${id}/entry`, "aria-label": `${id} at UniProt`, ...outside }, id)
      : id,
    isAccession &&
      element(
        "a",
        {
          class: "structure",
          href: `https://alphafold.ebi.ac.uk/entry/${id}`,
          title: `Structure of ${id} in AlphaFold DB`,
          "aria-label": `Structure of ${id} in AlphaFold DB`,
          ...outside,
        },
        "3D",
      ),
    known.has(id) && element("span", { class: "tag known" }, "known"),
  );
}

function score(hit) {
  const bar = element("span", {});
  bar.style.width = `${Math.min(100, Math.max(0, hit.score * 100))}%`;
  return element(
    "td",
    { class: "score" },
    element("div", {}, element("span", { class: "score-bar", "aria-hidden": "true" }, bar), hit.score.toFixed(4)),
  );
}

function captionOf(hits, answer) {
  const size = whole(answer.screening_set_size);
  const classes = new Map();
  for (const hit of hits) {
    const own = cell(hit.metadata.ec).split(";").map((number) => number.trim().split(".").slice(0, 3).join("."));
    for (const name of new Set(own.filter(Boolean))) classes.set(name, (classes.get(name) ?? 0) + 1);
  }
  const most = [...classes].sort((one, other) => other[1] - one[1]).slice(0, 4);
  const listed = most.map(([name, number]) => `${name} (${number})`).join(", ");
  const from = `${count(hits.length, "hit")} of the ${size} proteins of ${answer.screening_set}, ranked by ${answer.checkpoint}.`;
  return `${from}${listed && ` Most frequent EC classes: ${listed}.`}`;
}

function keep(answer) {
  const names = [...new Set(answer.results.flatMap((result) => result.hits.flatMap((hit) => Object.keys(hit.metadata))))];
  const own = ["reaction_id", "reaction", "rank", "protein_id", "score"];
  const rows = answer.results.flatMap((result) =>
    result.hits.map((hit) => [
      result.reaction_id,
      result.reaction,
      hit.rank,
      hit.protein_id,
      hit.score,
      ...names.map((name) => hit.metadata[name]),
    ]),
  );
  // Columns of the set that are called like ours are told apart as in the files of the command line.
  const header = [...own, ...names.map((name) => (own.includes(name) ? `${name}_of_protein` : name))];
  download(new Blob([csv([header, ...rows])], { type: "text/csv;charset=utf-8" }), "screening_results.csv");
}

function isBlank(value) {
  return value === null || value === undefined || value === "";
}
