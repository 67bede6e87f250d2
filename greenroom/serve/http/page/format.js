// Values as people read them.

const KNOWN_UNITS = [
  [31_536_000, "y"],
  [2_592_000, "mo"],
  [86_400, "d"],
  [3_600, "h"],
  [60, "min"],
];

/** How long ago, roughly: "now", "42 s", "3 min". */
export function age(iso, now = Date.now()) {
  const seconds = Math.max(0, (now - Date.parse(iso)) / 1000);
  if (seconds < 5) return "now";
  for (const [size, unit] of KNOWN_UNITS) if (seconds >= size) return `${Math.floor(seconds / size)} ${unit}`;
  return `${Math.floor(seconds)} s`;
}

/** A span of milliseconds: "8 ms", "1.24 s", "3:07 min". */
export function duration(ms) {
  if (ms == null || Number.isNaN(ms)) return "";
  const span = Math.max(0, ms);
  if (span < 1_000) return `${Math.round(span)} ms`;
  if (span < 60_000) return `${(span / 1000).toFixed(span < 10_000 ? 2 : 1)} s`;
  const seconds = Math.round(span / 1000);
  if (seconds < 3_600) return `${Math.floor(seconds / 60)}:${two(seconds % 60)} min`;
  return `${Math.floor(seconds / 3_600)}:${two(Math.floor((seconds % 3_600) / 60))} h`;
}

/** An offset from the beginning of a run: "+0.42 s". */
export function offset(ms) {
  if (ms < 0) return "";
  if (ms < 60_000) return `+${(ms / 1000).toFixed(2)} s`;
  const seconds = Math.floor(ms / 1000);
  const hours = Math.floor(seconds / 3_600);
  const rest = `${two(Math.floor((seconds % 3_600) / 60))}:${two(seconds % 60)}`;
  return hours ? `+${hours}:${rest}` : `+${rest}`;
}

export function clock(iso) {
  const moment = new Date(iso);
  return `${two(moment.getHours())}:${two(moment.getMinutes())}:${two(moment.getSeconds())}`;
}

export function fullTime(iso) {
  return iso ? new Date(iso).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" }) : "";
}

/** Date and time in little room: "Nov 26, 6:26 PM". */
export function shortTime(iso) {
  const parts = { month: "short", day: "numeric", hour: "numeric", minute: "2-digit" };
  return new Date(iso).toLocaleString(undefined, parts);
}

export function count(number) {
  return number == null ? "" : Number(number).toLocaleString("en-US");
}

/** A count in little room: "1.2k". */
export function shortCount(number) {
  if (number < 1_000) return String(number);
  if (number < 1_000_000) return `${(number / 1_000).toFixed(number < 10_000 ? 1 : 0)}k`;
  return `${(number / 1_000_000).toFixed(1)}M`;
}

/** Money; what costs next to nothing is not shown as nothing. */
export function money(usd) {
  if (usd == null) return "";
  if (usd === 0) return "$0";
  if (usd < 0.0001) return "<$0.0001";
  return `$${usd.toFixed(usd < 1 ? 4 : 2)}`;
}

export function bytes(number) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let power = 0;
  let size = number;
  while (size >= 1024 && power < units.length - 1) {
    size /= 1024;
    power += 1;
  }
  return `${size.toFixed(power && size < 10 ? 1 : 0)} ${units[power]}`;
}

/** "1 file", "2 files". */
export function plural(number, noun) {
  return `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
}

/** An id that still can be told from others: "ses_3f9a…c01b". */
export function shortId(id) {
  const text = String(id ?? "");
  return text.length > 16 ? `${text.slice(0, 8)}…${text.slice(-4)}` : text;
}

/** Any value as one line of text. */
export function oneLine(value, limit = 160) {
  const text = typeof value === "string" ? value : (JSON.stringify(value) ?? "");
  const line = text
    .slice(0, limit * 2)
    .replace(/\s+/g, " ")
    .trim();
  return line.length > limit ? `${line.slice(0, limit - 1)}…` : line;
}

export function asText(value) {
  return typeof value === "string" ? value : (JSON.stringify(value, null, 2) ?? "");
}

/** "half_open" as words. */
export function words(name) {
  return String(name ?? "").replaceAll("_", " ");
}

/** "messages" as the beginning of a sentence. */
export function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

function two(number) {
  return String(number).padStart(2, "0");
}
