// @ts-check
// The transcript as files: plain text, subtitles (SRT, WebVTT) and JSON with the times of both sides.

/** @typedef {import("./transcript.js").Turn} Turn */

/** @type {Record<string, string>} */
const NAME = { agent: "Agent", user: "You" };
const SHORTEST = 1; // s a subtitle stays at least

/** @type {Record<string, {type: string, write: (turns: Turn[]) => string}>} */
export const FORMATS = {
  txt: { type: "text/plain", write: toText },
  srt: { type: "application/x-subrip", write: toSrt },
  vtt: { type: "text/vtt", write: toVtt },
  json: { type: "application/json", write: toJson },
};

/** @param {Turn[]} turns */
function spoken(turns) {
  return turns.filter((turn) => turn.who !== "page" && turn.text);
}

/** @param {Turn[]} turns */
function toText(turns) {
  return turns.map((turn) => `[${stamp(turn.start, ".").slice(0, 8)}] ${lineOf(turn)}\n`).join("");
}

/** @param {Turn} turn */
function lineOf(turn) {
  if (turn.who === "page") return `(${turn.text})`;
  const cut = turn.cut ? ` [cut off:${turn.cut.startsWith(" ") ? "" : " "}${turn.cut}]` : "";
  return `${NAME[turn.who]}: ${turn.text.trim()}${cut}`;
}

/** @param {Turn[]} turns */
function toSrt(turns) {
  return spoken(turns).map((turn, i) => `${i + 1}\n${cue(turn, ",")}\n${lineOf(turn)}\n\n`).join("");
}

/** @param {Turn[]} turns */
function toVtt(turns) {
  const cues = spoken(turns).map(
    (turn) => `${cue(turn, ".")}\n<v ${NAME[turn.who]}>${escaped(turn.text.trim())}\n\n`);
  return `WEBVTT\n\n${cues.join("")}`;
}

/** @param {Turn[]} turns */
function toJson(turns) {
  const kept = spoken(turns).map(({ who, kind, text, cut, start, end }) => ({
    who, kind, text: text.trim(), cut: cut.trim(), start: seconds(start), end: seconds(end),
  }));
  return JSON.stringify({ turns: kept }, null, 2);
}

/**
 * @param {Turn} turn
 * @param {string} point between seconds and milliseconds
 */
function cue({ start, end }, point) {
  return `${stamp(start, point)} --> ${stamp(Math.max(end, start + SHORTEST), point)}`;
}

/**
 * @param {number} time s
 * @param {string} point
 */
function stamp(time, point) {
  const total = Math.max(0, Math.round(time * 1000));
  /** @param {number} value */
  const two = (value) => String(Math.floor(value)).padStart(2, "0");
  const whole = `${two(total / 3_600_000)}:${two((total / 60_000) % 60)}:${two((total / 1000) % 60)}`;
  return `${whole}${point}${String(total % 1000).padStart(3, "0")}`;
}

/** @param {number} time s */
function seconds(time) {
  return Math.round(time * 1000) / 1000;
}

/** @param {string} text */
function escaped(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

/**
 * @param {string} name
 * @param {Blob} blob
 */
export function saveFile(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** @param {string} ending */
export function fileName(ending, now = new Date()) {
  const part = now.toISOString().slice(0, 19).replaceAll(":", "-").replace("T", "-");
  return `conversation-${part}.${ending}`;
}
