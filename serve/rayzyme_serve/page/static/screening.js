// The form: reactions with their drawing, what to rank, and what becomes of it: an answer at once, or a job.

import { fetchJson, freshKey, postJson } from "./api.js";
import { drawingOf } from "./drawing.js";
import { announce, ask, byId, element, fill, showProblem } from "./elements.js";
import { EXAMPLES } from "./examples.js";
import { chosenFilters, offerColumns, setUpFilters } from "./filters.js";
import { count } from "./format.js";
import { showAnswer, spoken } from "./results.js";

const DRAWN_AFTER_MS = 250;
const DRAWN_HEIGHT = 240;
// Half a reaction is no mistake yet.
const BLAMED_AFTER_MS = 700;
const IS_NARROW = matchMedia("(max-width: 1023px)");

let sets = [];
let checkpoints = [];
let loading = null;
let screening = null;
let drawing = null;
let timer = null;

/** Connect the form; `onJob` is called with a job that was submitted. */
export function setUpScreening(onJob) {
  setUpFilters();
  fill(
    byId("examples"),
    EXAMPLES.map((example) => element("button", { type: "button", class: "chip", on: { click: () => take(example) } }, example.name)),
  );
  const field = byId("reactions");
  field.addEventListener("input", preview);
  // Another line may be the one to draw.
  for (const event of ["click", "keyup"]) field.addEventListener(event, () => drawnLine() === drawing?.line || preview());
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("query").requestSubmit();
  });
  byId("screening-set").addEventListener("change", () => describeSet(true));
  byId("checkpoint").addEventListener("change", () => describeSet(false));
  byId("query").addEventListener("submit", (event) => {
    event.preventDefault();
    screen();
  });
  byId("submit-job").addEventListener("click", () => submit(onJob));
  invite();
}

/** Offer the screening sets and checkpoints of the server; asked for once at a time. */
export function loadChoices() {
  loading ??= fetchChoices().finally(() => {
    loading = null;
  });
  return loading;
}

async function fetchChoices() {
  [sets, checkpoints] = await Promise.all([
    fetchJson("v1/screening-sets").then((answer) => answer.screening_sets.filter((set) => !set.damaged)),
    fetchJson("v1/checkpoints").then((answer) => answer.checkpoints),
  ]);
  offer("screening-set", sets.map((set) => [set.name, set.name, false]));
  offer("checkpoint", checkpoints.map((one) => [one.name, one.present ? one.name : `${one.name} (not here)`, !one.present]));
  describeSet(true);
}

/** Whether jobs may be submitted. */
export function allowJobs(isAllowed) {
  byId("submit-job").hidden = !isAllowed;
}

function offer(id, choices) {
  const field = byId(id);
  const before = field.value;
  fill(field, choices.map(([value, text, disabled]) => element("option", { value, disabled, selected: value === before }, text)));
}

function describeSet(isNewSet) {
  const set = sets.find((one) => one.name === byId("screening-set").value);
  if (set === undefined) return;
  const field = byId("checkpoint");
  if (isNewSet && checkpoints.some((one) => one.name === set.checkpoint && one.present)) field.value = set.checkpoint;
  const isOther = field.value !== set.checkpoint;
  byId("set-hint").textContent =
    `${count(set.proteins, "protein")}, embedded by ${set.checkpoint}${aboutCheckpoint(set.checkpoint)}.` +
    (isOther ? " Another checkpoint's scores mean nothing in it, so the server will refuse." : "");
  byId("set-hint").classList.toggle("warning", isOther);
  offerColumns(set.metadata_columns);
}

function aboutCheckpoint(name) {
  const known = checkpoints.find((one) => one.name === name);
  if (known === undefined) return "";
  const told = known.description;
  return `: ${/^[A-Z][a-z ]/.test(told) ? told[0].toLowerCase() + told.slice(1) : told}`;
}

// What is drawn while somebody types.

function take(example) {
  byId("reactions").value = example.reactions.join("\n");
  preview();
}

function lines() {
  return byId("reactions").value.split("\n");
}

function entered() {
  return lines().map((line) => line.trim()).filter(Boolean);
}

/** Of the line with the cursor: its index among the lines, or that of the nearest one before it with something in it. */
function drawnLine() {
  const all = lines();
  const before = byId("reactions").value.slice(0, byId("reactions").selectionStart).split("\n").length - 1;
  for (let line = before; line >= 0; line -= 1) if (all[line].trim()) return line;
  return all.findIndex((line) => line.trim());
}

function preview() {
  clearTimeout(timer);
  drawing?.controller.abort();
  blame("");
  const line = drawnLine();
  if (line < 0) {
    drawing = null;
    byId("preview").hidden = true;
    return;
  }
  const controller = new AbortController();
  drawing = { line, controller };
  timer = setTimeout(() => draw(line, controller.signal), DRAWN_AFTER_MS);
}

async function draw(line, signal) {
  const reaction = lines()[line].trim();
  const all = entered();
  const position = lines().slice(0, line + 1).filter((one) => one.trim()).length;
  const figure = byId("preview");
  try {
    const url = await drawingOf(reaction, byId("reactions").clientWidth, DRAWN_HEIGHT, signal);
    if (signal.aborted) return;
    byId("preview-image").src = url;
    byId("preview-image").alt = `Drawing of ${reaction}`;
    byId("preview-caption").textContent = all.length > 1 ? `Reaction ${position} of ${all.length}` : "";
    figure.hidden = false;
  } catch (error) {
    if (signal.aborted) return;
    figure.hidden = true;
    timer = setTimeout(() => blame(all.length > 1 ? `Line ${line + 1}: ${error.message}` : error.message), BLAMED_AFTER_MS - DRAWN_AFTER_MS);
  }
}

function blame(problem) {
  byId("reactions-error").textContent = problem;
  byId("reactions").toggleAttribute("aria-invalid", Boolean(problem));
}

// An answer at once, or a job.

/** What the form asks for; null where it says what is missing. */
async function request() {
  const reactions = entered();
  clearTimeout(timer);
  byId("top-k-error").textContent = "";
  if (reactions.length === 0) {
    blame("Enter a reaction, or take one of the examples.");
    byId("reactions").focus();
    return null;
  }
  const topK = byId("top-k").valueAsNumber;
  if (!Number.isInteger(topK) || topK < 1) {
    byId("top-k-error").textContent = "Hits per reaction must be a whole number from 1.";
    byId("top-k").focus();
    return null;
  }
  try {
    // Somebody may be faster than the lists, or they could not be had before.
    if (sets.length === 0) await loadChoices();
    return {
      reactions,
      top_k: topK,
      screening_set: byId("screening-set").value,
      checkpoint: byId("checkpoint").value,
      filters: chosenFilters(),
    };
  } catch (error) {
    showProblem(byId("answer-message"), error.message);
    return null;
  }
}

async function screen() {
  const asked = await request();
  if (asked === null) return;
  // Whoever asks again does not wait for the earlier answer, and the server drops it.
  screening?.abort();
  const controller = new AbortController();
  screening = controller;
  showProblem(byId("answer-message"), null);
  wait(controller);
  try {
    const answer = await postJson("v1/screen", asked, { signal: controller.signal });
    showAnswer(answer);
    announce(spoken(answer));
    lookAtAnswer();
  } catch (error) {
    if (controller !== screening) return;
    invite();
    if (controller.signal.aborted) return;
    if (error.code === "InvalidReaction") {
      blame(error.message);
      byId("reactions").focus();
    } else {
      showProblem(byId("answer-message"), error.message);
    }
  } finally {
    if (controller === screening) {
      screening = null;
      byId("answer").removeAttribute("aria-busy");
    }
  }
}

/** Bring the beginning of the answer into view where it is not. */
function lookAtAnswer() {
  const answer = byId("answer");
  if (IS_NARROW.matches || answer.getBoundingClientRect().top < 0) answer.scrollIntoView({ block: "start" });
}

async function submit(onJob) {
  const asked = await request();
  if (asked === null) return;
  const what = `${count(asked.reactions.length, "reaction")} against ${asked.screening_set}`;
  byId("submit-summary").textContent = `Screens ${what} in the background; the hits stay with the job.`;
  byId("job-name").value = `Screen ${what}`;
  byId("submit-error").textContent = "";
  // The same for every try: pressing twice, or again after a lost connection, makes one job.
  const key = freshKey();
  const job = await ask(
    byId("submit-dialog"),
    () =>
      postJson(
        "v1/jobs",
        {
          workflow: "screening",
          parameters: asked,
          name: byId("job-name").value.trim() || `Screen ${what}`,
          priority: Number(byId("job-priority").value),
        },
        { headers: { "Idempotency-Key": key } },
      ),
    byId("submit-error"),
  );
  if (job !== null) {
    announce("The job was submitted.");
    onJob(job);
  }
}

function wait(controller) {
  byId("answer").setAttribute("aria-busy", "true");
  fill(
    byId("answer-body"),
    element(
      "div",
      { class: "card waiting" },
      element(
        "div",
        { class: "summary" },
        element("p", {}, "Ranking proteins…"),
        element("button", { type: "button", on: { click: () => controller.abort() } }, "Stop"),
      ),
      Array.from({ length: 8 }, () => element("div", { class: "ghost" })),
    ),
  );
}

function invite() {
  fill(
    byId("answer-body"),
    element(
      "div",
      { class: "card invitation" },
      element("h2", {}, "Which enzymes may catalyse it?"),
      element(
        "ol",
        {},
        element("li", {}, "Paste a reaction as SMILES, or take an example; the drawing shows how it is read."),
        element("li", {}, "Choose the proteins to rank, and narrow them down by EC class or any other column."),
        element("li", {}, "Screen: the best hits appear here, with links to UniProt and AlphaFold DB."),
      ),
      element("p", { class: "soft" }, "Thousands of reactions? Submit them as a job, and come back for the hits."),
    ),
  );
}
