// Runs in the audio thread: the agent's samples from the page to the speaker.

import { PlaybackCore } from "./playback-core.js";

class Playback extends AudioWorkletProcessor {
  constructor(options) {
    super();
    const tell = (message, transfer) => this.port.postMessage(message, transfer);
    this.core = new PlaybackCore(sampleRate, tell);
    this.tap = options.processorOptions.tap;
    this.running = true;
    this.port.onmessage = (message) => this.#obey(message.data);
  }

  #obey(order) {
    if (order.push) this.core.playout.push(order.push);
    else if (order.clear) this.core.playout.clear();
    else this.running = false;
  }

  process(_, outputs) {
    const output = outputs[0][0];
    this.core.fill(output);
    for (const other of outputs[0].slice(1)) other.set(output);
    if (this.tap) this.port.postMessage({ tap: { currentFrame, samples: output.slice() } });
    return this.running;
  }
}

registerProcessor("playback", Playback);
