// The jobs: where each stands, live; why it waits; cancelling it, and what it found.

import { events, fetchBlob, fetchJson, postJson } from "./api.js";
import { announce, ask, byId, download, element, fill, showProblem } from "./elements.js";
import { duration, moment, sentence, withMoments } from "./format.js";

const FORMATS = { csv: "CSV", json: "JSON", parquet: "Parquet" };
const PAGE = 50;
const MOST = 500;
const LIVE = new Set(["queued", "running", "unknown"]);
const SOON_MS = 1_500;
const SELDOM_MS = 10_000;

const rows = new Map();
let limit = PAGE;
let timer = null;
let looking = null;
let isShown = false;
let mayCancel = () => true;
let showHits = () => {};
let onChange = () => {};

/** Connect the list. `hits` is called with an answer and a job's name, `changed` whenever a job has changed its state. */
export function setUpJobs({ hits, changed }) {
  showHits = hits;
  onChange = changed;
  byId("job-status").addEventListener("change", () => {
    limit = PAGE;
    refreshJobs();
  });
  byId("more-jobs").addEventListener("click", () => {
    limit = Math.min(MOST, limit + PAGE);
    refreshJobs();
  });
  byId("close-job").addEventListener("click", () => byId("job-dialog").close());
  document.addEventListener("visibilitychange", () => document.hidden || refreshJobs());
}

/** Look more often while they are in view. */
export function showJobs(shown) {
  isShown = shown;
  if (shown) refreshJobs();
}

/** Who may cancel what: a function of a job. */
export function allowCancelling(allowed) {
  mayCancel = allowed;
}

/** Look now; an earlier look that is still under way counts for nothing. */
export async function refreshJobs() {
  clearTimeout(timer);
  looking?.abort();
  const controller = new AbortController();
  looking = controller;
  let pause = SELDOM_MS;
  try {
    const status = byId("job-status").value;
    const { jobs, next_cursor: next } = await fetchJson(`v1/jobs?limit=${limit}${status && `&status=${status}`}`, {
      signal: controller.signal,
    });
    showProblem(byId("jobs-message"), null);
    show(jobs);
    byId("more-jobs").hidden = next === null || limit >= MOST;
    pause = SOON_MS;
  } catch (error) {
    if (controller.signal.aborted) return;
    showProblem(byId("jobs-message"), error.message);
  }
  if (controller === looking) plan(pause);
}

/** Look again after a while: soon where something may change in view, seldom otherwise, and after a failure. */
function plan(soon) {
  clearTimeout(timer);
  const live = [...rows.values()].filter((row) => LIVE.has(row.job.status));
  const badge = byId("live-jobs");
  badge.textContent = live.length;
  badge.hidden = live.length === 0;
  badge.title = `${live.length} queued or running`;
  if (document.hidden || (!isShown && live.length === 0)) return;
  timer = setTimeout(refreshJobs, isShown && live.length > 0 ? soon : SELDOM_MS);
}

function show(jobs) {
  const list = byId("job-list");
  const ids = new Set(jobs.map((job) => job.job_id));
  for (const [id, row] of rows) {
    if (!ids.has(id)) {
      row.made.remove();
      rows.delete(id);
    }
  }
  list.querySelector(".empty")?.remove();
  // Rows that stay are not touched: one with the keyboard's focus would lose it.
  let next = list.firstElementChild;
  for (const job of jobs) {
    const row = rows.get(job.job_id);
    if (row === undefined) {
      const made = new JobRow(job);
      rows.set(job.job_id, made);
      list.insertBefore(made.made, next);
    } else {
      row.update(job);
      if (row.made === next) next = next.nextElementSibling;
      else list.insertBefore(row.made, next);
    }
  }
  if (jobs.length === 0) {
    const isFiltered = byId("job-status").value !== "";
    const text = isFiltered ? "No job is in this state." : "No jobs yet. Enter reactions under Screen, and submit them as a job.";
    list.append(element("li", { class: "empty" }, text));
  }
}

/** A line of the list. */
class JobRow {
  constructor(job) {
    this.badge = element("span", {});
    this.facts = element("span", { class: "soft facts" });
    this.progress = new Progress(`Progress of ${job.name}`);
    this.problem = element("p", { class: "problem" });
    const named = (text) => ({ type: "button", "aria-label": `${text}: ${job.name}` });
    this.explain = element("button", { ...named("Explain"), on: { click: () => openJob(this.job) } });
    this.hits = element("button", { ...named("Hits"), on: { click: () => this.act(() => openHits(this.job)) } }, "Hits");
    this.csv = element("button", { ...named("CSV"), on: { click: () => this.act(() => keepResult(this.job, "csv")) } }, "CSV");
    this.cancel = element("button", { ...named("Cancel"), on: { click: () => this.act(() => cancel(this.job)) } }, "Cancel");
    this.made = element(
      "li",
      { class: "job", "data-job": job.job_id },
      element("div", { class: "job-state" }, this.badge),
      element("div", { class: "job-what" }, element("strong", {}, job.name), this.facts, this.problem),
      element("div", { class: "job-progress" }, this.progress.made),
      element("div", { class: "job-buttons" }, this.hits, this.csv, this.explain, this.cancel),
    );
    this.update(job);
  }

  update(job) {
    const before = this.job?.status;
    this.job = job;
    const isLive = LIVE.has(job.status);
    const isDone = job.status === "completed";
    this.badge.className = `badge ${job.status}`;
    this.badge.textContent = job.status;
    const facts = [job.workflow, job.owner, moment(job.created_at), tookOf(job)].filter(Boolean).join(" · ");
    if (this.facts.textContent !== facts) this.facts.textContent = facts;
    this.progress.update(job);
    this.problem.textContent = job.status === "failed" ? (job.error ?? "") : "";
    const label = isLive ? "Explain" : "Details";
    this.explain.textContent = label;
    this.explain.setAttribute("aria-label", `${label}: ${job.name}`);
    this.hits.hidden = !isDone;
    this.csv.hidden = !isDone;
    this.cancel.hidden = !isLive || !mayCancel(job);
    if (before !== undefined && before !== job.status) {
      announce(`${job.name} is ${job.status}.`);
      onChange();
    }
  }

  async act(what) {
    try {
      this.problem.textContent = "";
      await what();
    } catch (error) {
      this.problem.textContent = error.message;
    }
  }
}

/** A bar with what it says in words. */
class Progress {
  constructor(label) {
    this.bar = element("progress", { max: 100, "aria-label": label });
    this.text = element("span", { class: "soft" });
    this.made = element("div", { class: "progress" }, this.bar, this.text);
  }

  update({ status, progress, eta_s: left }) {
    this.made.hidden = status !== "running";
    if (typeof progress === "number") this.bar.value = progress;
    else this.bar.removeAttribute("value");
    const percent = typeof progress === "number" ? `${Math.floor(progress)} %` : "";
    const eta = typeof left === "number" && left > 0 ? `about ${duration(left)} left` : "";
    this.text.textContent = [percent, eta].filter(Boolean).join(" · ");
  }
}

function tookOf(job) {
  return job.completed_at && job.execution_time !== null ? `took ${duration(job.execution_time)}` : "";
}

// What can be done with one.

async function cancel(job) {
  byId("cancel-text").textContent = `“${job.name}” is stopped, and what it has done so far is lost.`;
  if ((await ask(byId("cancel-dialog"))) === null) return;
  const { cancelled } = await postJson(`v1/jobs/${encodeURIComponent(job.job_id)}/cancel`, null);
  announce(cancelled ? `${job.name} is being cancelled.` : `${job.name} had ended already.`);
  await refreshJobs();
}

async function openHits(job) {
  const answer = await fetchJson(resultPath(job, "json"));
  if (answer.schema !== "rayzyme.screen/1") throw new Error("This job ranked nothing; its result can be downloaded under Details.");
  byId("job-dialog").close();
  showHits(answer, job.name);
}

async function keepResult(job, format) {
  download(await fetchBlob(resultPath(job, format)), `${job.name.replaceAll(/[^A-Za-z0-9._-]+/g, "_")}.${format}`);
}

function resultPath(job, format) {
  return `v1/jobs/${encodeURIComponent(job.job_id)}/result?format=${format}`;
}

/** Everything about a job, followed for as long as it is open. */
async function openJob(job) {
  const dialog = byId("job-dialog");
  const controller = new AbortController();
  const badge = element("span", {});
  const progress = new Progress(`Progress of ${job.name}`);
  const why = element("ul", { class: "why" });
  const facts = element("dl", { class: "facts-list" });
  const tasks = element("div", {});
  const problem = element("p", { class: "problem", role: "alert" });
  const downloads = element("div", { class: "buttons" });
  const act = (what) => what().catch((error) => (problem.textContent = error.message));
  const showState = (state) => {
    badge.className = `badge ${state.status}`;
    badge.textContent = state.status;
    progress.update(state);
    const keep = (format) =>
      element(
        "button",
        { type: "button", "aria-label": `Download ${FORMATS[format]}`, on: { click: () => act(() => keepResult(job, format)) } },
        FORMATS[format],
      );
    const hits = element("button", { type: "button", class: "primary", on: { click: () => act(() => openHits(job)) } }, "Show the hits");
    fill(downloads, state.status === "completed" && [hits, element("span", { class: "soft" }, "Download"), Object.keys(FORMATS).map(keep)]);
  };
  const look = async () => {
    const path = `v1/jobs/${encodeURIComponent(job.job_id)}`;
    const signal = controller.signal;
    const [told, sentences] = await Promise.all([fetchJson(path, { signal }), explanation(path, signal)]);
    // That it is completed stands there already.
    fill(why, told.status !== "completed" && sentences.map((text) => element("li", {}, withMoments(sentence(text)))));
    fill(facts, factsOf(told));
    fill(tasks, tasksOf(told.tasks));
    showState(told);
  };
  byId("job-title").textContent = job.name;
  fill(
    byId("job-body"),
    element("p", { class: "job-line" }, badge, progress.made),
    why,
    facts,
    tasks,
    problem,
    downloads,
  );
  showState(job);
  fill(facts, factsOf(job));
  dialog.showModal();
  dialog.addEventListener("close", () => controller.abort(), { once: true });
  try {
    await look();
    for await (const { event, data } of events(`v1/jobs/${encodeURIComponent(job.job_id)}/events`, controller.signal)) {
      showState({ status: data.state, progress: data.percent, eta_s: data.eta });
      if (event === "state") await look();
      if (!LIVE.has(data.state)) break;
    }
    await refreshJobs();
  } catch (error) {
    if (!controller.signal.aborted) problem.textContent = error.message;
  }
}

function factsOf(job) {
  return [
    ["Id", element("code", {}, job.job_id)],
    ["Owner", job.owner],
    ["Workflow", job.workflow],
    ["Submitted", moment(job.created_at)],
    job.started_at && ["Started", moment(job.started_at)],
    job.completed_at && ["Ended", [moment(job.completed_at), tookOf(job) && `, ${tookOf(job)}`]],
  ]
    .filter(Boolean)
    .map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)));
}

/** Sentences; none for who may read the job and not steer it. */
async function explanation(path, signal) {
  try {
    return (await fetchJson(`${path}/explain`, { signal })).sentences;
  } catch (error) {
    if (error.status === 403) return [];
    throw error;
  }
}

function tasksOf(tasks) {
  if (tasks.length === 0) return null;
  return [
    element("h3", {}, "Tasks"),
    element(
      "ul",
      { class: "tasks" },
      tasks.map((task) =>
        element(
          "li",
          {},
          element("span", { class: `badge ${task.status}` }, task.status),
          ` ${task.name.replaceAll("_", " ")} `,
          task.error && element("span", { class: "problem" }, task.error),
        ),
      ),
    ),
  ];
}
