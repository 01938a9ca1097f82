// @ts-check
// The playback queue: when to start, what to do when audio comes late or in heaps. Pure: its only
// clock is the number of samples pulled, so thirty minutes can be simulated in a second.

const RATE = 24000; // Hz
/** @param {number} time ms */
const ms = (time) => Math.round((time * RATE) / 1000);

const CAPACITY = ms(8000);
const START = ms(20); // queued at least, and held for `hold` since then
const HOLD = [ms(40), ms(200)]; // least (and first) and most
const HOLD_STEP = ms(20); // more after a gap, less when it turns out not to be needed
const CAP = ms(600); // more than this in the queue: jump to the newest
const LONG_GAP = ms(250); // a stall that no allowed hold could have covered teaches nothing
const SPARE = ms(15); // queue that never runs lower than the hold + this is delay for nothing
const BUCKET = ms(100); // the lowest queue of each bucket is kept
const WINDOW = 10; // buckets: 1 s
const REVIEW = ms(10_000); // calm that long: the hold may shrink
const CUT_EVERY = ms(60);
const CUT = [ms(5), ms(20)]; // shortest and longest piece taken out of the queue at once
const BLEND = ms(5); // cross-fade over a cut
const FADE = ms(2); // after a jump or a gap

export class Playout {
  lows = /** @type {number[]} */ ([]); // the lowest queue in each of the newest buckets
  low = Infinity; // in this bucket
  calmLow = Infinity; // since the last review
  watched = 0; // samples in this bucket
  reviewed = 0; // samples since the last review
  cutAt = 0; // samples since the last cut
  marks = /** @type {{mark: number, left: number}[]} */ ([]); // and the samples before each

  /** @param {(mark: number, at: number) => void} passed a mark was reached, and the clock then */
  constructor(passed = () => {}) {
    this.passed = passed;
    this.ring = new Float32Array(CAPACITY);
    this.read = 0;
    this.length = 0; // samples queued
    this.clock = 0; // samples pulled
    this.hold = HOLD[0];
    this.playing = false;
    this.readyAt = -1; // clock when enough was queued to start
    this.starvedAt = -1; // clock when the queue last ran dry
    this.counts = { underruns: 0, jumps: 0, trims: 0 };
    this.fade = 0; // samples of fade-in still to do
    this.#watchAgain();
  }

  get queuedMs() {
    return (this.length * 1000) / RATE;
  }

  /** @param {Samples} samples */
  push(samples) {
    const room = CAPACITY - this.length;
    if (samples.length > room) this.#skip(Math.min(this.length, samples.length - room));
    const count = Math.min(samples.length, CAPACITY - this.length);
    let at = (this.read + this.length) % CAPACITY;
    for (let i = 0; i < count; i++) {
      this.ring[at] = samples[i];
      if (++at === CAPACITY) at = 0; // a remainder for each sample would cost most of it all
    }
    this.length += count;
    if (this.length > CAP) this.#jump();
  }

  /**
   * Tell when the sample that is pushed next is played.
   * @param {number} mark
   */
  mark(mark) {
    this.marks.push({ mark, left: this.length });
  }

  clear() {
    for (const { mark } of this.marks.splice(0)) this.passed(mark, this.clock); // never to be played
    this.length = 0;
    this.playing = false;
    this.readyAt = -1;
    this.starvedAt = -1; // an end that was asked for is no underrun
  }

  /**
   * The next `count` samples into `out`: audio, or silence while there is none to play.
   * @param {Samples} out
   * @param {number} count
   */
  pull(out, count) {
    if (!this.playing) this.#start();
    const heard = this.playing ? Math.min(count, this.length) : 0;
    this.#take(out, heard);
    if (this.marks.length > 0) this.#pass(heard);
    out.fill(0, heard, count);
    this.clock += count;
    if (!this.playing) return;
    if (heard < count) this.#starve();
    else this.#watch(count);
  }

  /** @param {number} heard samples from here on */
  #pass(heard) {
    while (this.marks.length > 0 && this.marks[0].left < heard) {
      const { mark, left } = /** @type {{mark: number, left: number}} */ (this.marks.shift());
      this.passed(mark, this.clock + left);
    }
    for (const one of this.marks) one.left -= heard;
  }

  /**
   * @param {Samples} out
   * @param {number} count no more than are queued
   */
  #take(out, count) {
    let at = this.read;
    for (let i = 0; i < count; i++) {
      out[i] = this.ring[at];
      if (++at === CAPACITY) at = 0;
    }
    this.read = at;
    this.length -= count;
    for (let i = 0; i < count && this.fade > 0; i++) {
      this.fade -= 1;
      out[i] *= 1 - this.fade / FADE;
    }
  }

  #start() {
    if (this.length < START) return;
    if (this.readyAt < 0) {
      this.readyAt = this.clock;
      this.#learn();
    }
    if (this.clock - this.readyAt < this.hold) return;
    this.playing = true;
    this.fade = FADE;
    this.#watchAgain();
  }

  #starve() {
    this.counts.underruns += 1;
    this.playing = false;
    this.readyAt = -1;
    this.starvedAt = this.clock;
  }

  #learn() {
    const gap = this.clock - this.starvedAt;
    if (this.starvedAt >= 0 && gap < LONG_GAP) this.hold = Math.min(HOLD[1], this.hold + HOLD_STEP);
  }

  #jump() {
    this.counts.jumps += 1;
    this.#skip(this.length - this.hold - START);
    this.fade = FADE;
    this.#watchAgain();
  }

  /** @param {number} count */
  #skip(count) {
    this.read = (this.read + count) % CAPACITY;
    this.length -= count;
    for (const one of this.marks) one.left = Math.max(0, one.left - count);
  }

  // From here on the queue is watched: how low it runs tells how much of it is needed.
  #watchAgain() {
    this.lows = [];
    this.low = Infinity;
    this.calmLow = Infinity;
    this.watched = 0;
    this.reviewed = 0;
    this.cutAt = 0;
  }

  /** @param {number} count */
  #watch(count) {
    this.low = Math.min(this.low, this.length);
    this.watched += count;
    if (this.watched >= BUCKET) this.#closeBucket();
    this.cutAt += count;
    if (this.cutAt >= CUT_EVERY && this.lows.length === WINDOW) this.#trim();
  }

  #closeBucket() {
    this.calmLow = Math.min(this.calmLow, this.low);
    this.lows.push(this.low);
    if (this.lows.length > WINDOW) this.lows.shift();
    this.low = Infinity;
    this.reviewed += this.watched;
    this.watched = 0;
    if (this.reviewed >= REVIEW) this.#review();
  }

  #review() {
    if (this.calmLow > HOLD_STEP) this.hold = Math.max(HOLD[0], this.hold - HOLD_STEP);
    this.calmLow = Infinity;
    this.reviewed = 0;
  }

  #trim() {
    this.cutAt = 0;
    const excess = Math.min(this.low, ...this.lows) - this.hold;
    if (excess <= SPARE || this.length < CUT[1] + BLEND) return;
    const cut = this.#cut(Math.min(CUT[1], Math.floor(excess)));
    this.counts.trims += 1;
    this.low -= cut;
    this.lows = this.lows.map((low) => low - cut);
  }

  /**
   * Take out the piece whose ends fit each other best, and blend over the seam.
   * @param {number} longest
   */
  #cut(longest) {
    let [best, bestScore] = [longest, -Infinity];
    for (let lag = CUT[0]; lag <= longest; lag += 2) {
      const score = this.#likeness(lag);
      if (score > bestScore) [best, bestScore] = [lag, score];
    }
    for (let i = 0; i < BLEND; i++) {
      const to = (this.read + best + i) % CAPACITY;
      const from = this.ring[(this.read + i) % CAPACITY];
      this.ring[to] = from + ((this.ring[to] - from) * i) / BLEND;
    }
    this.#skip(best);
    return best;
  }

  /** @param {number} lag */
  #likeness(lag) {
    let [product, energy] = [0, 1e-9];
    for (let i = 0; i < BLEND; i += 2) {
      const there = this.ring[(this.read + lag + i) % CAPACITY];
      product += this.ring[(this.read + i) % CAPACITY] * there;
      energy += there * there;
    }
    return product / Math.sqrt(energy);
  }
}
