// @ts-check
// What was heard and said, as a stereo WAV made in the browser: agent left, user right.

import { SAMPLE_RATE } from "./protocol.js";

const HEADER = 44; // bytes
const PART = 10 * SAMPLE_RATE; // sample pairs in one part: a Blob, which the browser may put on disk

export class Recorder {
  constructor() {
    this.parts = /** @type {Blob[]} */ ([]);
    this.part = new Int16Array(2 * PART);
    this.pairs = 0; // in this part
    // Chunks of one side, up to which the other side has not come yet.
    this.waiting = /** @type {[Samples[], Samples[]]} */ ([[], []]);
    this.seconds = 0;
  }

  /** @param {Samples} samples */
  agent(samples) { this.#take(0, samples); }
  /** @param {Samples} samples */
  user(samples) { this.#take(1, samples); }

  /**
   * Both sides run on the device's clock, in pieces of equal length: pair them as they come.
   * @param {0 | 1} side agent, user
   * @param {Samples} samples
   */
  #take(side, samples) {
    this.waiting[side].push(samples);
    const [left, right] = this.waiting;
    const pairs = Math.min(left.length, right.length);
    for (let i = 0; i < pairs; i++) this.#pair(left[i], right[i]);
    left.splice(0, pairs);
    right.splice(0, pairs);
  }

  /**
   * @param {Samples} left
   * @param {Samples} right
   */
  #pair(left, right) {
    for (let i = 0; i < left.length; i++) {
      this.part[2 * this.pairs] = level(left[i]);
      this.part[2 * this.pairs + 1] = level(right[i]);
      this.pairs += 1;
      if (this.pairs === PART) this.#closePart();
    }
    this.seconds += left.length / SAMPLE_RATE;
  }

  #closePart() {
    this.parts.push(new Blob([this.part.subarray(0, 2 * this.pairs)]));
    this.part = new Int16Array(2 * PART);
    this.pairs = 0;
  }

  wav() {
    const last = this.part.slice(0, 2 * this.pairs);
    const bytes = this.parts.reduce((sum, part) => sum + part.size, last.byteLength);
    return new Blob([wavHeader(bytes), ...this.parts, last], { type: "audio/wav" });
  }
}

/** @param {number} sample */
function level(sample) {
  return Math.round(Math.max(-1, Math.min(1, sample)) * 32767);
}

/** @param {number} bytes of samples */
function wavHeader(bytes) {
  const [channels, width] = [2, 2];
  const view = new DataView(new ArrayBuffer(HEADER));
  /** @type {(at: number, text: string) => void} */
  const name = (at, text) => [...text].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  name(0, "RIFF");
  view.setUint32(4, HEADER - 8 + bytes, true);
  name(8, "WAVEfmt ");
  view.setUint32(16, 16, true); // size of the format block
  view.setUint16(20, 1, true); // plain PCM
  view.setUint16(22, channels, true);
  view.setUint32(24, SAMPLE_RATE, true);
  view.setUint32(28, SAMPLE_RATE * channels * width, true);
  view.setUint16(32, channels * width, true);
  view.setUint16(34, 8 * width, true);
  name(36, "data");
  view.setUint32(40, bytes, true);
  return view.buffer;
}
