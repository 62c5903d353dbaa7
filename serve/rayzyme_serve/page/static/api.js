// Asking the server: the token, errors in words, and streams of events.

import { ask, byId } from "./elements.js";
import { sentence } from "./format.js";

const KEPT_AS = "rayzyme-token";
const PASSING = new Set([0, 408, 429, 502, 503, 504]);

/** What the server, or the way to it, answered instead of what was asked for. `status` is 0 where it did not answer. */
export class Refusal extends Error {
  constructor(message, status, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Whether a token is kept in this tab. */
export function hasToken() {
  return sessionStorage.getItem(KEPT_AS) !== null;
}

export function forgetToken() {
  sessionStorage.removeItem(KEPT_AS);
}

/** The answer of a route as a value. */
export async function fetchJson(path, options) {
  return (await request(path, options)).json();
}

/** The answer of a route as bytes. */
export async function fetchBlob(path, options) {
  return (await request(path, options)).blob();
}

/** Send a value, and give the answer as one. */
export function postJson(path, value, { headers = {}, signal } = {}) {
  return fetchJson(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers },
    body: value === null ? undefined : JSON.stringify(value),
    signal,
  });
}

/** A key by which the server knows a submit that is sent twice. `crypto.randomUUID` is not there without HTTPS. */
export function freshKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * The server-sent events of a route, each {event, data}, without an end: asked for again behind the last one when the stream
 * ends or breaks. Browsers' own EventSource cannot send the token.
 */
export async function* events(path, signal) {
  let last = null;
  for (let pause = 500; ; pause = Math.min(pause * 2, 15_000)) {
    try {
      const headers = last === null ? {} : { "Last-Event-ID": last };
      const answer = await request(path, { signal, headers });
      let text = "";
      for (const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader(); ; ) {
        const { done, value } = await reader.read();
        if (done) break;
        pause = 500;
        text += value.replaceAll("\r", "");
        const blocks = text.split("\n\n");
        text = blocks.pop();
        for (const block of blocks) {
          const event = parsed(block);
          if (event.id !== null) last = event.id;
          if (event.data !== null) yield event;
        }
      }
    } catch (error) {
      // A broken connection does not stay broken, nor a server busy; what is refused for another reason stays so.
      if (signal.aborted || (error instanceof Refusal && !PASSING.has(error.status))) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}

function parsed(block) {
  const event = { event: "message", id: null, data: null };
  const lines = [];
  for (const line of block.split("\n")) {
    const [, name, value] = /^([a-z]*):? ?(.*)$/.exec(line) ?? [];
    if (name === "event") event.event = value;
    if (name === "id") event.id = value;
    if (name === "data") lines.push(value);
  }
  if (lines.length) event.data = JSON.parse(lines.join("\n"));
  return event;
}

async function request(path, options = {}) {
  for (;;) {
    const token = sessionStorage.getItem(KEPT_AS);
    const answer = await send(path, options, token);
    if (answer.ok) return answer;
    const refusal = await refusalOf(answer);
    // Another request may have asked for the token meanwhile.
    if (answer.status !== 401) throw refusal;
    if (sessionStorage.getItem(KEPT_AS) === token && !(await askForToken(token, refusal))) {
      throw new Refusal("This server answers only those who have a token: sign in.", 401, refusal.code);
    }
  }
}

async function send(path, options, token) {
  const headers = { Accept: "application/json, */*;q=0.5", ...options.headers };
  if (token !== null) headers.Authorization = `Bearer ${token}`;
  try {
    return await fetch(path, { ...options, headers, credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server does not answer. Check that it runs and that you are connected.", 0, "Unreachable");
  }
}

async function refusalOf(answer) {
  let told = {};
  try {
    told = await answer.json();
  } catch {
    // A proxy's own page, or nothing.
  }
  const wait = Number(answer.headers.get("Retry-After"));
  let message = told.detail ?? `The server answered ${answer.status} ${answer.statusText}`.trim();
  if (answer.status === 408) message = "The server gave up: this took too long.";
  if (wait > 0) message = `${message}. Try again in ${wait} s`;
  return new Refusal(sentence(message), answer.status, told.code ?? "");
}

let asking = null;
let isDeclined = false;

/** Ask for a token again, after somebody did not want to give one. */
export function allowAsking() {
  isDeclined = false;
}

function askForToken(refused, refusal) {
  // What looks again and again must not ask again and again.
  if (isDeclined) return false;
  asking ??= enterToken(refused, refusal).finally(() => {
    asking = null;
  });
  return asking;
}

async function enterToken(refused, refusal) {
  const field = byId("token");
  const reason = "This server answers only those who have a token.";
  byId("token-reason").textContent = refused === null ? reason : `The token was not accepted. ${refusal.message}`;
  byId("token-error").textContent = "";
  field.value = "";
  const entered = await ask(
    byId("token-dialog"),
    () => {
      const token = field.value.trim();
      // What no header may hold is no token either.
      if (!/^[\x21-\x7e]+$/.test(token)) throw new Error("Enter the token: letters, digits and signs, without blanks.");
      return token;
    },
    byId("token-error"),
  );
  field.value = "";
  isDeclined = entered === null;
  if (isDeclined) return false;
  sessionStorage.setItem(KEPT_AS, entered);
  document.dispatchEvent(new CustomEvent("token-changed"));
  return true;
}
