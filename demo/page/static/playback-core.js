// @ts-check
// The playback queue and its resampling to the device's rate, with what the page wants to know of it.

import { Playout } from "./playout.js";
import { Resampler } from "./resample.js";

const REPORT = 2400; // samples at 24 kHz between two reports: 10 a second
const PLAYED = 480; // samples at 24 kHz in one piece for the recording

/**
 * @typedef {{queuedMs: number, underruns: number, jumps: number, trims: number}} Report
 * `at` is the speaker's clock: samples at 24 kHz since it was opened.
 * @typedef {{played: Samples, at: number} | {passed: number, at: number} | {report: Report}} PlaybackMessage
 */

export class PlaybackCore {
  /**
   * @param {number} rate of the device, Hz
   * @param {(message: PlaybackMessage, transfer: Transferable[]) => void} post to the page
   */
  constructor(rate, post) {
    this.playout = new Playout((passed, at) => post({ passed, at }, []));
    this.resampler = new Resampler(24000, rate);
    this.scratch = new Float32Array(8192);
    this.played = new Float32Array(PLAYED);
    this.filled = 0;
    this.at = 0; // the end of what was handed over as played
    this.sinceReport = 0;
    this.post = post;
  }

  /** @param {Samples} output */
  fill(output) {
    const count = this.resampler.needs(output.length);
    this.playout.pull(this.scratch, count);
    this.resampler.process(this.scratch, count, output);
    for (let i = 0; i < count; i++) this.#keep(this.scratch[i]);
  }

  /** @param {number} sample */
  #keep(sample) {
    this.played[this.filled++] = sample;
    if (this.filled < PLAYED) return;
    this.at += PLAYED;
    this.post({ played: this.played, at: this.at }, [this.played.buffer]);
    this.played = new Float32Array(PLAYED);
    this.filled = 0;
    this.sinceReport += PLAYED;
    if (this.sinceReport >= REPORT) this.#report();
  }

  #report() {
    const { playout } = this;
    this.post({ report: { queuedMs: playout.queuedMs, ...playout.counts } }, []);
    this.sinceReport = 0;
  }
}
