// @ts-check
// A streaming resampler: windowed sinc, 256 phases, a running position. Pure: runs in worklets too.

const ZERO_CROSSINGS = 16; // on each side of the kernel's centre
const PHASES = 256;
const CUTOFF = 0.94; // of the lower Nyquist frequency
const CAPACITY = 16384; // samples held at once

export class Resampler {
  /**
   * @param {number} from Hz
   * @param {number} to Hz
   */
  constructor(from, to) {
    this.step = from / to; // input samples per output sample
    const cutoff = CUTOFF * Math.min(1, to / from);
    this.half = Math.ceil(ZERO_CROSSINGS / cutoff); // input samples on each side
    this.rows = kernel(cutoff, this.half);
    this.buffer = new Float32Array(CAPACITY);
    this.filled = this.half - 1; // silence before the first sample
    this.position = this.half - 1; // of the next output sample, in the buffer
  }

  /**
   * How many input samples are missing for `count` output samples.
   * @param {number} count
   */
  needs(count) {
    const last = this.position + (count - 1) * this.step;
    return Math.max(0, Math.floor(last) + this.half + 1 - this.filled);
  }

  /**
   * Take `count` samples of `input`, write what can be made into `output`, return how many.
   * @param {Samples} input
   * @param {number} count
   * @param {Samples} output
   */
  process(input, count, output) {
    this.buffer.set(count === input.length ? input : input.subarray(0, count), this.filled);
    this.filled += count;
    let made = 0;
    while (made < output.length && Math.floor(this.position) + this.half < this.filled) {
      output[made++] = this.#sample();
      this.position += this.step;
    }
    this.#forget();
    return made;
  }

  #sample() {
    const whole = Math.floor(this.position);
    const row = this.rows[Math.round((this.position - whole) * PHASES)];
    const first = whole - this.half + 1;
    let sum = 0;
    for (let k = 0; k < row.length; k++) sum += row[k] * this.buffer[first + k];
    return sum;
  }

  #forget() {
    const old = Math.floor(this.position) - this.half + 1;
    if (old <= 0) return;
    this.buffer.copyWithin(0, old, this.filled);
    this.filled -= old;
    this.position -= old;
  }
}

/**
 * One row of weights per phase; each sums to 1, so that silence and level stay what they were.
 * @param {number} cutoff of the Nyquist frequency of the input
 * @param {number} half input samples on each side
 */
function kernel(cutoff, half) {
  const rows = [];
  for (let phase = 0; phase <= PHASES; phase++) {
    const row = new Float32Array(2 * half);
    let sum = 0;
    for (let k = 0; k < row.length; k++) {
      const t = k - (half - 1) - phase / PHASES;
      row[k] = sinc(cutoff * t) * hann(t / half);
      sum += row[k];
    }
    rows.push(row.map((weight) => weight / sum));
  }
  return rows;
}

/** @param {number} x */
function sinc(x) {
  return x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
}

/** @param {number} x */
function hann(x) {
  return Math.abs(x) >= 1 ? 0 : 0.5 + 0.5 * Math.cos(Math.PI * x);
}
