// @ts-check
// What a call is, in one object: its phase, and the facts beside it. One table says which event
// leads from which phase to which; an event that a phase does not know is no event. No DOM, no
// clock, no sound: views draw what `face` says.

/**
 * @typedef {"ready" | "permission" | "calling" | "waking" | "waiting" | "live" | "unstable"
 *   | "reconnecting" | "ended"} Phase
 * @typedef {"start" | "allowed" | "waking" | "busy" | "live" | "stutter" | "steady" | "lost"
 *   | "end"} StateEvent
 * @typedef {"ready" | "permission" | "calling" | "waking" | "waiting" | "listening" | "speaking"
 *   | "both" | "looking" | "deaf" | "muted" | "paused" | "silenced"
 *   | "unstable" | "reconnecting" | "ended"} Face
 */

/** @type {Record<Phase, Partial<Record<StateEvent, Phase>>>} */
export const TABLE = {
  ready: { start: "permission" },
  permission: { allowed: "calling", end: "ended" },
  calling: { waking: "waking", busy: "waiting", live: "live", lost: "reconnecting", end: "ended" },
  waking: { waking: "waking", busy: "waiting", live: "live", lost: "reconnecting", end: "ended" },
  waiting: { waking: "waiting", busy: "waiting", live: "live", end: "ended" },
  live: { stutter: "unstable", lost: "reconnecting", end: "ended" },
  unstable: { steady: "live", lost: "reconnecting", end: "ended" },
  reconnecting: { waking: "reconnecting", busy: "waiting", lost: "reconnecting", live: "live", end: "ended" },
  ended: { start: "permission" },
};

/**
 * @typedef {object} Facts
 * @property {boolean} sound the system lets this page hear and speak
 * @property {boolean} microphone there is one, and it delivers
 * @property {boolean} muted
 * @property {boolean} paused
 * @property {boolean} user speaks now
 * @property {boolean} agent speaks now
 * @property {string | null} question being looked up
 * @property {number | null} percent of waking up
 * @property {string} waking what the server does meanwhile
 * @property {number | null} places taken, while waiting
 * @property {boolean} kept the server keeps the lost conversation
 * @property {string} reason of the end: a kind (status.js), or a word of the server's
 * @property {string} text of the end: the server's own sentence
 */

/** @type {Readonly<Facts>} */
const NOTHING = Object.freeze({
  sound: true, microphone: false, muted: false, paused: false, user: false, agent: false,
  question: null, percent: null, waking: "", places: null, kept: false, reason: "", text: "",
});

export class CallState {
  phase = /** @type {Phase} */ ("ready");
  /** @type {Facts} */
  facts = { ...NOTHING };

  /** @param {(state: CallState) => void} changed after every change */
  constructor(changed = () => {}) {
    this.changed = changed;
  }

  /** A conversation is being made, kept or waited for. */
  get calling() {
    return this.phase !== "ready" && this.phase !== "ended";
  }

  /** The two can hear each other, as far as one knows. */
  get live() {
    return this.phase === "live" || this.phase === "unstable";
  }

  /**
   * One transition. False, and nothing has changed, where the phase does not know the event.
   * @param {StateEvent} event
   * @param {Partial<Facts>} facts that come with it
   */
  on(event, facts = {}) {
    const next = TABLE[this.phase][event];
    if (!next) return false;
    if (event === "start") this.facts = { ...NOTHING };
    if (event === "lost" || event === "end") {
      Object.assign(this.facts, { user: false, agent: false, question: null });
    }
    if (event === "live" && this.phase !== "reconnecting") this.facts.paused = false;
    this.phase = next;
    Object.assign(this.facts, facts);
    this.changed(this);
    return true;
  }

  /**
   * Facts that leave the phase as it is.
   * @param {Partial<Facts>} facts
   */
  tell(facts) {
    const names = /** @type {(keyof Facts)[]} */ (Object.keys(facts));
    if (names.every((name) => this.facts[name] === facts[name])) return;
    Object.assign(this.facts, facts);
    this.changed(this);
  }

  /** @returns {Face} the one thing to show of all that is true */
  get face() {
    const { facts, phase } = this;
    if (phase !== "live") return phase;
    if (!facts.sound) return "silenced";
    if (facts.paused) return "paused";
    if (facts.user && facts.agent) return "both";
    if (facts.agent) return "speaking";
    if (facts.question !== null) return "looking";
    if (!facts.microphone) return "deaf";
    if (facts.muted) return "muted";
    return "listening";
  }
}

const DWELL = 350; // ms that a face stays before it may change back

/** Lets a face change back only after a while. Changes that somebody made are never held up. */
export class Steady {
  shown = /** @type {Face} */ ("ready");
  before = /** @type {Face} */ ("ready");
  since = -Infinity; // ms

  /**
   * The ms to wait before `face` may be shown; 0: it is shown from now on.
   * @param {Face} face
   * @param {number} now ms
   */
  show(face, now) {
    if (face === this.shown) return 0;
    const left = FLEETING.has(face) && face === this.before ? this.since + DWELL - now : 0;
    if (left > 0) return left;
    [this.before, this.shown, this.since] = [this.shown, face, now];
    return 0;
  }
}

const FLEETING = new Set(/** @type {Face[]} */ (["listening", "speaking", "both", "deaf", "muted", "unstable"]));
