// @ts-check
// Runs in the audio thread: the microphone in 20 ms chunks to the page.

import { CaptureCore, mixDown } from "./capture-core.js";

const BLOCK = 128; // samples the audio thread handles at once

class Capture extends AudioWorkletProcessor {
  /** @param {{processorOptions: {tap: boolean}}} options */
  constructor(options) {
    super();
    this.core = new CaptureCore(sampleRate);
    this.block = new Float32Array(BLOCK);
    this.tap = options.processorOptions.tap;
    this.running = true;
    this.port.onmessage = () => { this.running = false; };
  }

  /** @param {Samples[][]} inputs */
  process(inputs) {
    mixDown(inputs[0], this.block); // no microphone, no channels: silence keeps the clock going
    this.core.take(this.block, (chunk) => this.port.postMessage({ chunk }, [chunk.buffer]));
    if (this.tap) this.port.postMessage({ tap: { currentFrame, samples: this.block.slice() } });
    return this.running;
  }
}

registerProcessor("capture", Capture);
