// @ts-check
// When a line counts as dead, when to try again after a conversation ended, and when not.
// No timers, no socket: only the rules.

export const CHECK_EVERY = 250; // ms between two looks at the line
const STUTTER = 1000; // ms without audio: something is wrong
const DEAD = 5000; // ms without audio, or with a ping that did not come back
const LONGEST_STEP = 1500; // ms: what a page that was held up may count at once

/** Whether the line lives, by what comes over it. A sleeping page does not count as a dead line. */
export class Pulse {
  silent = 0; // ms without audio
  unanswered = 0; // ms without an answer to a ping
  at = /** @type {number | null} */ (null); // ms, the last look

  /** @param {number} now ms */
  audio(now) { this.silent = (this.at ?? now) - now; }
  pong() { this.unanswered = 0; }

  /**
   * @param {number} now ms
   * @param {boolean} flowing audio is sent, so audio should come
   * @param {boolean} asked a ping is on its way
   * @returns {"steady" | "stutter" | "dead"}
   */
  look(now, flowing, asked) {
    const step = Math.min(LONGEST_STEP, now - (this.at ?? now));
    this.at = now;
    this.silent = flowing ? this.silent + step : 0;
    this.unanswered = asked ? this.unanswered + step : 0;
    if (this.silent >= DEAD || (!flowing && this.unanswered >= DEAD)) return "dead";
    return this.silent >= STUTTER ? "stutter" : "steady";
  }
}

const GIVE_UP = 180_000; // ms after the first failure of a row
const BUSY_WAIT = [2000, 3000]; // ms; a random moment between, so that waiting pages spread out
const DROP_WAIT = 500; // ms before the first new attempt, doubled each time
const DROP_LONGEST = 10_000; // ms
const STEADY = 10_000; // ms of conversation after which earlier failures are forgotten

export class Retry {
  /**
   * @param {() => number} now ms
   * @param {() => number} random 0 to 1
   */
  constructor(now = () => performance.now(), random = Math.random) {
    this.now = now;
    this.random = random;
    this.liveAt = /** @type {number | null} */ (null); // when the last conversation began; none yet: a failure is no drop
    this.since = /** @type {number | null} */ (null); // the first failure of the row
    this.attempts = 0;
  }

  live() {
    this.liveAt = this.now();
  }

  /**
   * Why and when (ms from now) to try again; null to stay closed.
   * @param {{kind: string | null} | null} end the server's reason
   * @returns {{why: "busy" | "dropped", wait: number} | null}
   */
  after(end) {
    const why = this.#cause(end);
    if (why === null) return null;
    this.#forgetIfSteady();
    this.since ??= this.now();
    const wait = why === "busy" ? this.#busyWait() : this.#dropWait();
    if (this.now() + wait - this.since > GIVE_UP) return null;
    this.attempts += 1;
    return { why, wait };
  }

  /**
   * A conversation whose end the server explained (idle, time limit, closing, …) was not dropped.
   * @param {{kind: string | null} | null} end
   */
  #cause(end) {
    if (end?.kind === "busy") return "busy";
    return end === null && this.liveAt !== null ? "dropped" : null;
  }

  // A server that takes us in and drops us at once must not keep us trying for ever.
  #forgetIfSteady() {
    if (this.since === null || this.liveAt === null) return;
    if (this.liveAt <= this.since || this.now() - this.liveAt <= STEADY) return;
    this.since = null;
    this.attempts = 0;
  }

  #busyWait() {
    return BUSY_WAIT[0] + this.random() * (BUSY_WAIT[1] - BUSY_WAIT[0]);
  }

  #dropWait() {
    const longest = Math.min(DROP_LONGEST, DROP_WAIT * 2 ** this.attempts);
    return longest * (0.8 + 0.4 * this.random());
  }
}
