// @ts-check
// Runs in the audio thread: the agent's samples from the page to the speaker.

import { PlaybackCore } from "./playback-core.js";

/** @typedef {{push?: Samples, mark?: number, clear?: true, stop?: true}} Order */

class Playback extends AudioWorkletProcessor {
  /** @param {{processorOptions: {tap: boolean}}} options */
  constructor(options) {
    super();
    this.core = new PlaybackCore(
      sampleRate, (message, transfer) => this.port.postMessage(message, transfer));
    this.tap = options.processorOptions.tap;
    this.running = true;
    this.port.onmessage = (message) => this.#obey(message.data);
  }

  /** @param {Order} order */
  #obey(order) {
    if (order.push) this.core.playout.push(order.push);
    else if (order.mark !== undefined) this.core.playout.mark(order.mark);
    else if (order.clear) this.core.playout.clear();
    else this.running = false;
  }

  /**
   * @param {Samples[][]} _
   * @param {Samples[][]} outputs
   */
  process(_, outputs) {
    const output = outputs[0][0];
    this.core.fill(output);
    for (const other of outputs[0].slice(1)) other.set(output);
    if (this.tap) this.port.postMessage({ tap: { currentFrame, samples: output.slice() } });
    return this.running;
  }
}

registerProcessor("playback", Playback);
