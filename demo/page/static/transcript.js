// @ts-check
// The conversation in turns, as the server's pieces and events tell it. No DOM: see transcript-view.js.

import { whyUnanswered } from "./status.js";

/**
 * @typedef {import("./protocol.js").SpeechEvent} SpeechEvent
 * @typedef {import("./protocol.js").SayEvent} SayEvent
 * @typedef {import("./protocol.js").RouteEvent} RouteEvent
 * @typedef {import("./protocol.js").UserTextEvent} UserTextEvent
 * @typedef {{id: number, text: string}} Waiting
 *
 * One turn; its times are seconds of the recording: when it was heard in this browser.
 * @typedef {object} Turn
 * @property {"agent" | "user" | "page"} who
 * @property {"own" | "given" | "answer" | "heard" | "question" | "note"} kind
 * @property {string} text
 * @property {number} start
 * @property {number} end
 * @property {string} cut what was to be said and was not
 * @property {string} state of a question
 * @property {string} mark of an answer
 * @property {number | null} say id of the text that was given to say
 * @property {boolean} final whether the words of the user will not change any more
 * @property {Piece[]} pieces of what the agent said, each with the second in which it was heard
 *
 * @typedef {{text: string, t: number}} Piece
 */

/** @type {Partial<Record<RouteEvent["state"], string>>} */
const OUTCOME = { asking: "checking…", failed: "no answer found", stale: "no longer needed" };
const NEW_TURN = 2.5; // s of silence after which the agent's next word opens a new turn

export class Transcript {
  turns = /** @type {Turn[]} */ ([]);
  waiting = /** @type {Waiting[]} */ ([]); // to be said
  /** @type {(Waiting & {kind: "answer" | "given", mark: string}) | null} */
  speaking = null; // being said
  questions = /** @type {Map<number, Turn>} */ (new Map()); // by the route's id
  answer = /** @type {RouteEvent | null} */ (null); // the route that is being answered
  heard = /** @type {number | null} */ (null); // the route of whose answer words were heard last
  partial = /** @type {Turn | null} */ (null); // the user's turn that is still growing

  /**
   * @param {(turn: Turn, before: Turn | null) => void} changed after every change; `before` is the
   *   turn that follows
   * @param {(list: Waiting[]) => void} queued when what waits to be said has changed
   * @param {(kind: "say" | "ask", text: string) => void} taken when the server has a text
   */
  constructor(changed, queued, taken = () => {}) {
    this.changed = changed;
    this.queued = queued;
    this.taken = taken;
    this.clear();
  }

  clear() {
    this.turns = [];
    this.#forget();
  }

  /**
   * A new conversation in the same transcript (after a lost connection). Where nothing was said
   * since the last note, that one is enough.
   * @param {string} note
   */
  restart(note) {
    this.#forget();
    const last = this.turns.at(-1);
    if (last?.who !== "page" || last.text !== note) this.note(note, last?.end ?? 0);
  }

  #forget() {
    this.waiting = [];
    this.speaking = null;
    this.questions = new Map();
    this.answer = this.heard = null;
    this.partial = null;
    this.queued([]);
  }

  /**
   * @param {string} text
   * @param {number} t
   */
  note(text, t) {
    this.#add({ who: "page", kind: "note", text, start: t, end: t });
  }

  /**
   * One piece of what the agent says.
   * @param {string} piece
   * @param {number} t
   */
  text(piece, t) {
    const kind = this.speaking?.kind ?? "own";
    if (kind === "answer") this.heard = this.answer?.id ?? this.heard;
    const last = this.turns.at(-1);
    const goesOn =
      last !== undefined && last.who === "agent" && last.kind === kind &&
      last.say === (this.speaking?.id ?? null) && t - last.end < NEW_TURN;
    const turn = goesOn ? last : this.#agentTurn(kind, t);
    turn.text = turn.text === "" ? piece.trimStart() : turn.text + piece;
    turn.end = Math.max(turn.end, t);
    turn.pieces.push({ text: piece, t });
    this.#changed(turn);
  }

  /** @param {SpeechEvent} event */
  event(event) {
    if (event.type === "say") this.#say(event);
    else if (event.type === "route") this.#route(event);
    else if (event.type === "user_text") this.#user(event);
  }

  /**
   * @param {"own" | "given" | "answer"} kind
   * @param {number} t
   */
  #agentTurn(kind, t) {
    const say = this.speaking?.id ?? null;
    return this.#add({
      who: "agent", kind, text: "", start: t, end: t, say, mark: this.speaking?.mark ?? "",
    });
  }

  /** @param {SayEvent} event */
  #say({ id, state, text, spoken }) {
    if (state === "queued" || state === "speaking") this.taken("say", text);
    if (state === "queued") this.waiting.push({ id, text });
    else this.waiting = this.waiting.filter((one) => one.id !== id);
    if (state === "speaking") this.#startSaying(id, text);
    if (state === "cancelled") this.#cutOff(id, text, spoken ?? "");
    if (state === "done" || state === "cancelled") {
      if (this.speaking?.id === id) this.speaking = null;
    }
    this.queued(this.waiting);
  }

  /**
   * @param {number} id
   * @param {string} text
   */
  #startSaying(id, text) {
    const kind = this.answer ? "answer" : "given";
    this.speaking = { id, text, kind, mark: this.answer ? markOf(this.answer) : "" };
  }

  /**
   * @param {number} id
   * @param {string} text
   * @param {string} spoken
   */
  #cutOff(id, text, spoken) {
    const turn = this.turns.findLast((one) => one.say === id);
    if (!turn) return;
    turn.cut = text.startsWith(spoken) ? text.slice(spoken.length) : "";
    this.#changed(turn);
  }

  /** @param {RouteEvent} event */
  #route(event) {
    if (event.source === "client") this.taken("ask", event.question);
    const turn = this.questions.get(event.id) ?? this.#question(event);
    turn.state = OUTCOME[event.state] ?? "";
    const why = turn.state && whyUnanswered(event.reason ?? "");
    if (why) turn.state += `: ${why}`;
    // Words of the answer were heard: it was wanted, and what was cut off is struck out below.
    if (event.state === "stale" && this.heard === event.id) turn.state = "interrupted";
    if (event.state === "answering") this.answer = event;
    else if (event.state !== "asking" && this.answer?.id === event.id) this.answer = null;
    this.#changed(turn);
  }

  /**
   * The turn of a question. The user's own words, when they are transcribed, are already there.
   * @param {RouteEvent} event
   * @returns {Turn}
   */
  #question({ id, question: asked, t }) {
    const question = asked || "(words that were not transcribed)";
    const heard = this.turns.findLast((one) => one.who === "user");
    const same = heard?.kind === "heard" && heard.text.trim() === question.trim();
    const turn = same ? heard
      : this.#add({ who: "user", kind: "question", text: question, start: t, end: t });
    this.questions.set(id, turn);
    return turn;
  }

  /** @param {UserTextEvent} event */
  #user({ text, start, end, final }) {
    this.partial ??= this.#add({ who: "user", kind: "heard", text, start, end });
    Object.assign(this.partial, { text, final, end });
    this.#changed(this.partial);
    if (final) this.partial = null;
  }

  /**
   * @param {Pick<Turn, "who" | "kind" | "text" | "start" | "end"> & Partial<Turn>} turn
   * @returns {Turn}
   */
  #add(turn) {
    const whole = { cut: "", state: "", mark: "", say: null, final: true, pieces: [], ...turn };
    const later = this.turns.findIndex((one) => one.start > whole.start);
    this.turns.splice(later < 0 ? this.turns.length : later, 0, whole);
    this.#changed(whole);
    return whole;
  }

  /** @param {Turn} turn */
  #changed(turn) {
    this.changed(turn, this.turns[this.turns.indexOf(turn) + 1] ?? null);
  }
}

/**
 * The words of a turn, each with the second in which it begins. What the user said came as a whole:
 * there its words share the time by their lengths.
 * @param {Turn} turn
 * @returns {Piece[]}
 */
export function wordsOf({ text, pieces, start, end }) {
  if (pieces.length > 0) return wholeWords(pieces);
  const words = text.split(/\s+/).filter(Boolean);
  const all = words.reduce((sum, word) => sum + word.length + 1, 0);
  let before = 0;
  return words.map((word) => {
    const t = start + ((end - start) * before) / all;
    before += word.length + 1;
    return { text: word, t };
  });
}

/** @param {Piece[]} pieces parts of words; a new word begins with a blank */
function wholeWords(pieces) {
  const words = /** @type {Piece[]} */ ([]);
  for (const { text, t } of pieces) {
    text.split(/(?=\s)/).forEach((part) => {
      const last = words.at(-1);
      if (last && !/^\s/.test(part)) last.text += part;
      else if (part.trim()) words.push({ text: part.trim(), t });
    });
  }
  return words;
}

/** @param {RouteEvent} event */
function markOf({ knowledge }) {
  return knowledge ? "from the product facts" : "not from the product facts";
}
