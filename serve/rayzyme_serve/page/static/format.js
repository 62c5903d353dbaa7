// Numbers, times and files as people read them.

const WHOLE = new Intl.NumberFormat("en");

export function count(number, one, many = `${one}s`) {
  return `${whole(number)} ${number === 1 ? one : many}`;
}

export function whole(number) {
  return WHOLE.format(number);
}

/** 0.0123 s as "12 ms", 75 s as "1 min 15 s". */
export function duration(seconds) {
  if (seconds < 0.00005) return "0\u00a0ms";
  if (seconds < 0.0095) return `${(seconds * 1000).toFixed(1)}\u00a0ms`;
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)}\u00a0ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)}\u00a0s`;
  const rounded = Math.round(seconds);
  if (rounded < 60) return `${rounded}\u00a0s`;
  if (rounded < 3600) return joined(Math.floor(rounded / 60), "min", rounded % 60, "s");
  const minutes = Math.round(seconds / 60);
  if (minutes < 1440) return joined(Math.floor(minutes / 60), "h", minutes % 60, "min");
  const hours = Math.round(seconds / 3600);
  return joined(Math.floor(hours / 24), "d", hours % 24, "h");
}

function joined(large, largeUnit, small, smallUnit) {
  return small ? `${large}\u00a0${largeUnit} ${small}\u00a0${smallUnit}` : `${large}\u00a0${largeUnit}`;
}

/** MB of 2^20 bytes as "512 MB" or "3.2 GB". */
export function megabytes(number) {
  return number < 1024 ? `${Math.round(number)} MB` : `${(number / 1024).toFixed(1)} GB`;
}

/** A time of the server as "14:02", with the day where that is another one. */
export function moment(text) {
  const time = new Date(text);
  const clock = time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  if (time.toDateString() === new Date().toDateString()) return clock;
  return `${time.toLocaleDateString([], { year: "numeric", month: "short", day: "numeric" })} ${clock}`;
}

/** The same, wherever a sentence of the server's has a time. */
export function withMoments(text) {
  return text.replaceAll(/\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z/g, moment);
}

/** What the server says, as a sentence. */
export function sentence(text) {
  // A name or an id stays as it is.
  const begun = /^[a-z]+(?=\W)/.test(text) ? text.charAt(0).toUpperCase() + text.slice(1) : text;
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}

export function cell(value) {
  if (value === null || value === undefined) return "";
  return Array.isArray(value) ? value.join(", ") : String(value);
}

/** Rows of values as CSV (RFC 4180). */
export function csv(rows) {
  return rows.map((row) => row.map(quoted).join(",")).join("\r\n") + "\r\n";
}

function quoted(value) {
  const text = cell(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
