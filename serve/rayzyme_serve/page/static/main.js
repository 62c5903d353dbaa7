// The page: its two views, who is signed in, and whether the server is ready.

import { allowAsking, fetchJson, forgetToken, hasToken } from "./api.js";
import { showCluster } from "./cluster.js";
import { byId, showProblem } from "./elements.js";
import { allowCancelling, refreshJobs, setUpJobs, showJobs } from "./jobs.js";
import { showAnswer } from "./results.js";
import { allowJobs, loadChoices, setUpScreening } from "./screening.js";

const VIEWS = { screen: "Screen", jobs: "Jobs" };
const CLUSTER_MS = 5_000;
const HEALTH_MS = 60_000;

let isRefused = false;

function view() {
  const name = location.hash.slice(1);
  return name in VIEWS ? name : "screen";
}

function showView() {
  const current = view();
  for (const name of Object.keys(VIEWS)) {
    byId(`view-${name}`).hidden = name !== current;
    const link = document.querySelector(`nav a[href="#${name}"]`);
    if (name === current) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${VIEWS[current]} · Rayzyme`;
  showJobs(current === "jobs");
  if (current === "jobs") lookAtCluster();
}

function go(name) {
  if (view() !== name) location.hash = name;
  showView();
}

async function lookAtCluster() {
  const status = await showCluster();
  if (status === null) return;
  const { name, owner, role } = status.caller;
  allowJobs(role !== "viewer");
  allowCancelling((job) => role === "admin" || (role === "user" && job.owner === owner));
  byId("token-button").title = hasToken() ? `Signed in as ${name} (${role})` : "";
}

async function lookAtHealth() {
  try {
    await fetchJson("health");
    sayHealth(null);
  } catch (error) {
    sayHealth(error);
  }
}

function sayHealth(error) {
  const place = byId("health");
  const words = { 0: "Unreachable", 401: "Signed out" };
  place.dataset.state = error === null ? "good" : "bad";
  place.textContent = error === null ? "Ready" : (words[error.status] ?? "Not ready");
  place.title = error === null ? "" : error.message;
}

function showToken() {
  const button = byId("token-button");
  button.hidden = !hasToken() && !isRefused;
  button.textContent = hasToken() ? "Sign out" : "Sign in";
}

async function load() {
  showProblem(byId("answer-message"), null);
  try {
    await loadChoices();
    isRefused = false;
    await Promise.all([lookAtCluster(), lookAtHealth(), refreshJobs()]);
  } catch (error) {
    isRefused = error.status === 401;
    showProblem(byId("answer-message"), error.message);
    sayHealth(error);
  }
  showToken();
}

setUpScreening(() => {
  go("jobs");
  byId("jobs-title").focus();
});
setUpJobs({
  hits: (answer, name) => {
    go("screen");
    showProblem(byId("answer-message"), null);
    showAnswer(answer, name);
    byId("answer-title").focus();
  },
  changed: () => view() === "jobs" && lookAtCluster(),
});
addEventListener("hashchange", showView);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId("content").focus();
});
byId("token-button").addEventListener("click", () => {
  if (hasToken()) {
    forgetToken();
    // What was shown to who is gone is not left for the next.
    location.reload();
  } else {
    allowAsking();
    load();
  }
});
document.addEventListener("token-changed", () => {
  isRefused = false;
  showToken();
});
setInterval(() => view() === "jobs" && !document.hidden && !isRefused && lookAtCluster(), CLUSTER_MS);
setInterval(() => !document.hidden && !isRefused && lookAtHealth(), HEALTH_MS);

showView();
showToken();
load();
