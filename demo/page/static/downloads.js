// @ts-check
// The conversation as files: plain text, subtitles (SRT, WebVTT) and JSON. Each says what made it: model,
// voice, persona, seed and date. Times are seconds of the recording.

import { wordsOf } from "./transcript.js";

/** @typedef {import("./transcript.js").Turn} Turn */
/** @typedef {{start: number, end: number, text: string, who: string}} Cue */

/** @type {Record<string, string>} */
const NAME = { agent: "Agent", user: "You" };
const LINE = 42; // characters in a line of a subtitle, of which there are two at most
const SHORTEST = 1; // s a subtitle stays at least, unless the next one comes
const PAUSE = 1.5; // s between two words: the next one begins a new subtitle

/** @type {Record<string, {type: string, write: (turns: Turn[], about: Record<string, string>) => string}>} */
export const FORMATS = {
  txt: { type: "text/plain", write: toText },
  srt: { type: "application/x-subrip", write: toSrt },
  vtt: { type: "text/vtt", write: toVtt },
  json: { type: "application/json", write: toJson },
};

/**
 * What made a conversation, as every file says it.
 * @param {import("./call.js").Call} call
 * @param {string} persona its name
 * @returns {Record<string, string>}
 */
export function describeCall({ info, settings, startedAt }, persona) {
  return {
    title: "Conversation with PersonaPlex",
    model: info?.model ?? "unknown",
    voice: info?.voice ?? settings.voice,
    persona,
    role: settings.persona,
    seed: settings.seed === null || settings.seed < 0 ? "random" : String(settings.seed),
    date: startedAt.toISOString(),
  };
}

/** @param {Turn[]} turns */
function spoken(turns) {
  return turns.filter((turn) => turn.who !== "page" && turn.text);
}

/** @param {Turn[]} turns @param {Record<string, string>} about */
function toText(turns, about) {
  const head = Object.entries(about).map(([name, value]) => `${name}: ${value}\n`).join("");
  return `${head}\n${turns.map((turn) => `[${stamp(turn.start, ".").slice(0, 8)}] ${lineOf(turn)}\n`).join("")}`;
}

/** @param {Turn} turn */
function lineOf(turn) {
  if (turn.who === "page") return `(${turn.text})`;
  const cut = turn.cut ? ` [cut off:${turn.cut.startsWith(" ") ? "" : " "}${turn.cut}]` : "";
  return `${NAME[turn.who]}: ${turn.text.trim()}${cut}`;
}

/**
 * SRT has no comments: what made it stands in a last subtitle.
 * @param {Turn[]} turns
 * @param {Record<string, string>} about
 */
function toSrt(turns, about) {
  const all = cues(turns);
  const end = (all.at(-1)?.end ?? 0) + 1;
  const credits = [about.model, about.voice, about.persona, `seed ${about.seed}`, about.date].join(" · ");
  all.push({ start: end, end: end + 3, who: "", text: fold(credits.split(" "))[0] });
  return all.map((cue, i) => `${i + 1}\n${span(cue, ",")}\n${cue.text}\n\n`).join("");
}

/** @param {Turn[]} turns @param {Record<string, string>} about */
function toVtt(turns, about) {
  const note = Object.entries(about).map(([name, value]) => `${name}: ${escaped(value).replaceAll("-->", "→")}\n`).join("");
  const written = cues(turns).map((cue) => `${span(cue, ".")}\n<v ${cue.who}>${escaped(cue.text.slice(cue.who.length + 2))}\n\n`);
  return `WEBVTT\n\nNOTE\n${note}\n${written.join("")}`;
}

/** @param {Turn[]} turns @param {Record<string, string>} about */
function toJson(turns, about) {
  const kept = spoken(turns).map((turn) => ({
    who: turn.who, kind: turn.kind, text: turn.text.trim(), cut: turn.cut.trim(),
    start: rounded(turn.start), end: rounded(turn.end),
    words: wordsOf(turn).map(({ text, t }) => ({ text, t: rounded(t) })),
  }));
  return JSON.stringify({ ...about, turns: kept }, null, 2);
}

/**
 * Subtitles of two lines at most. Where both speak at once, the one that begins ends the other.
 * @param {Turn[]} turns
 * @returns {Cue[]}
 */
export function cues(turns) {
  const all = spoken(turns).flatMap(cuesOf).sort((one, other) => one.start - other.start);
  let last = -Infinity;
  for (const cue of all) {
    cue.start = Math.max(cue.start, last + 0.001);
    last = cue.start;
  }
  all.forEach((cue, i) => {
    cue.end = Math.max(cue.end, cue.start + SHORTEST);
    if (i + 1 < all.length) cue.end = Math.min(cue.end, all[i + 1].start);
  });
  return all;
}

/** @param {Turn} turn @returns {Cue[]} */
function cuesOf(turn) {
  const who = NAME[turn.who];
  const made = /** @type {Cue[]} */ ([]);
  let words = /** @type {import("./transcript.js").Piece[]} */ ([]);
  const close = (/** @type {number} */ end) => {
    if (words.length === 0) return;
    const shown = [`${who}:`, ...words.map((one) => one.text)];
    for (const text of fold(shown)) made.push({ who, start: words[0].t, end, text });
    words = [];
  };
  for (const word of wordsOf(turn)) {
    const text = [`${who}:`, ...words.map((one) => one.text), word.text];
    const last = words.at(-1);
    if (fold(text).length > 1 || (last && word.t - last.t > PAUSE)) close(Math.min(word.t, (last?.t ?? word.t) + SHORTEST));
    words.push(word);
  }
  close(Math.max(turn.end, words[0]?.t ?? 0));
  return made;
}

/**
 * Words as texts of two lines each; a word that is longer than a line is cut.
 * @param {string[]} words
 */
function fold(words) {
  const lines = [""];
  for (const word of words.flatMap((one) => one.match(new RegExp(`.{1,${LINE}}`, "gu")) ?? [])) {
    const line = lines[lines.length - 1];
    if (line && line.length + 1 + word.length > LINE) lines.push(word);
    else lines[lines.length - 1] = line ? `${line} ${word}` : word;
  }
  const texts = /** @type {string[]} */ ([]);
  for (let i = 0; i < lines.length; i += 2) texts.push(lines.slice(i, i + 2).join("\n"));
  return texts;
}

/**
 * @param {Cue} cue
 * @param {string} point between seconds and milliseconds
 */
function span({ start, end }, point) {
  return `${stamp(start, point)} --> ${stamp(end, point)}`;
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
function rounded(time) {
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
