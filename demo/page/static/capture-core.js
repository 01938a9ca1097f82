// @ts-check
// Microphone samples of any rate and channel count -> 20 ms chunks of 24 kHz mono.

import { Resampler } from "./resample.js";

const CHUNK = 480; // samples at 24 kHz, 20 ms

export class CaptureCore {
  /** @param {number} rate of the device, Hz */
  constructor(rate) {
    this.resampler = new Resampler(rate, 24000);
    this.scratch = new Float32Array(1024);
    this.chunk = new Float32Array(CHUNK);
    this.filled = 0;
  }

  /**
   * Take one mono block. Each chunk that it completes goes to `give`, and then belongs to the caller.
   * @param {Samples} block
   * @param {(chunk: Samples) => void} give
   */
  take(block, give) {
    const made = this.resampler.process(block, block.length, this.scratch);
    for (let i = 0; i < made; i++) {
      this.chunk[this.filled++] = this.scratch[i];
      if (this.filled < CHUNK) continue;
      give(this.chunk);
      this.chunk = new Float32Array(CHUNK);
      this.filled = 0;
    }
  }
}

/**
 * The mean of all channels, into `out`; silence when there is no channel.
 * @param {Samples[]} channels
 * @param {Samples} out
 */
export function mixDown(channels, out) {
  out.fill(0);
  for (const channel of channels) {
    for (let i = 0; i < out.length; i++) out[i] += channel[i] / channels.length;
  }
}
