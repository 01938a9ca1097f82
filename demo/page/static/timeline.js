// @ts-check
// Who spoke when, in steps of 20 ms on the recording's clock: the bars of the strip, the gaps
// before an answer, and who speaks now. No DOM.

export const STEP = 20; // ms
export const BAR = 5; // steps in one bar of the strip
const KEPT = 20_000 / STEP / BAR; // bars: the last 20 s
const QUIET = 0.01; // root mean square that is surely no speech
const ABOVE = 2.5; // times the noise of the room that is speech
const HOLD = 350; // ms of silence within speech
const LONGEST_GAP = 8000; // ms: what comes later is no answer

/** @typedef {{user: number, agent: number, both: boolean}} Bar loudest levels, 0 to 1 */
/** @typedef {{from: number, to: number, ms: number}} Gap its ends in s of the recording */

/** One speaker: at once when it begins, and on for a while after each pause. */
class Speech {
  floor = 0.003; // the noise of the room
  lastLoud = -Infinity; // step
  talking = false;

  /**
   * @param {number} level root mean square
   * @param {number} step
   */
  hear(level, step) {
    const loud = level > Math.max(QUIET, ABOVE * this.floor);
    this.floor += (level - this.floor) * (level < this.floor ? 0.2 : 0.001);
    if (loud) this.lastLoud = step;
    this.talking = (step - this.lastLoud) * STEP < HOLD;
    return loud;
  }
}

export class Timeline {
  bars = /** @type {Bar[]} */ ([]);
  gaps = /** @type {Gap[]} */ ([]);
  gap = /** @type {Gap | null} */ (null); // that may become one
  overlaps = 0; // times that you began while it spoke
  steps = 0;
  user = new Speech();
  agent = new Speech();
  // Levels of one side that wait for the other's.
  waiting = /** @type {[number[], number[]]} */ ([[], []]);
  bar = /** @type {Bar} */ ({ user: 0, agent: 0, both: false });

  /** @param {number} level of the next 20 ms of the user */
  hearUser(level) { this.#take(0, level); }
  /** @param {number} level of the next 20 ms of the agent */
  hearAgent(level) { this.#take(1, level); }

  /**
   * @param {0 | 1} side
   * @param {number} level
   */
  #take(side, level) {
    this.waiting[side].push(level);
    const [users, agents] = this.waiting;
    if (users.length > 0 && agents.length > 0) {
      this.#step(/** @type {number} */ (users.shift()), /** @type {number} */ (agents.shift()));
    }
  }

  /**
   * @param {number} user level
   * @param {number} agent level
   */
  #step(user, agent) {
    const { steps, bar } = this;
    const [agentEnded, userTalked, agentTalked] = [this.agent.lastLoud, this.user.talking, this.agent.talking];
    const userLoud = this.user.hear(user, steps);
    const agentLoud = this.agent.hear(agent, steps);
    if (userLoud && !userTalked && this.agent.talking) this.overlaps += 1;
    if (agentLoud && !agentTalked) this.#begin(agentEnded);
    this.#settle(userLoud);
    bar.user = Math.max(bar.user, user);
    bar.agent = Math.max(bar.agent, agent);
    bar.both ||= this.user.talking && this.agent.talking;
    this.steps += 1;
    if (this.steps % BAR === 0) this.#closeBar();
  }

  /**
   * The agent begins: after a gap, if you spoke after it had ended. Whether you have stopped, and
   * not only drawn breath, shows a moment later.
   * @param {number} agentEnded step
   */
  #begin(agentEnded) {
    const stopped = this.user.lastLoud;
    const ms = (this.steps - stopped - 1) * STEP;
    if (stopped <= agentEnded || stopped === this.steps || ms > LONGEST_GAP) return;
    this.gap = { from: (stopped + 1) * STEP / 1000, to: this.steps * STEP / 1000, ms };
  }

  /**
   * A gap is one once HOLD has passed; until then you counted as still talking.
   * @param {boolean} userLoud
   */
  #settle(userLoud) {
    if (userLoud) this.gap = null; // you went on: both talk
    if (!this.gap || this.steps * STEP - this.gap.to * 1000 < HOLD) return;
    this.gaps.push(this.gap);
    const since = Math.floor(Math.round(this.gap.from * 1000) / STEP / BAR); // the bar in which you stopped
    for (const bar of [...this.bars.slice(since - Math.floor(this.steps / BAR)), this.bar]) bar.both = false;
    this.gap = null;
  }

  #closeBar() {
    this.bars.push(this.bar);
    if (this.bars.length > KEPT) this.bars.shift();
    this.bar = { user: 0, agent: 0, both: false };
  }
}

/** @param {Samples} samples */
export function rms(samples) {
  let sum = 0;
  for (const sample of samples) sum += sample * sample;
  return Math.sqrt(sum / samples.length);
}

const FLOOR = -60; // dB shown as nothing

/** @param {number} level root mean square @returns {number} how loud it seems, 0 to 1 */
export function loudness(level) {
  if (level <= 0) return 0;
  return Math.max(0, Math.min(1, 1 - (20 * Math.log10(level)) / FLOOR));
}
