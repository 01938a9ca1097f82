// @ts-check
// The audio devices: microphone in, speaker out, both at 24 kHz mono for the rest of the page.

import { CaptureCore } from "./capture-core.js";
import { PlaybackCore } from "./playback-core.js";

const RESUME_WAIT = 3000; // ms; without an audio device `resume()` may never settle
const FALLBACK_BLOCK = 1024; // samples, where the browser offers no AudioWorklet

// Made in the click itself: stricter browsers let only a user's gesture start the sound.
export function newContext() {
  return new AudioContext({ latencyHint: "interactive" });
}

/**
 * @typedef {import("./playback-core.js").Report} Report
 * @typedef {import("./playback-core.js").PlaybackMessage} PlaybackMessage
 * @typedef {{currentFrame: number, samples: Samples}} Tap what one block of a worklet was, for tests
 * @typedef {{raw: boolean, tap: boolean}} DeviceOptions
 * @typedef {object} DeviceListeners
 * @property {(samples: Samples) => void} chunk of the microphone, 20 ms
 * @property {(samples: Samples) => void} played
 * @property {(report: Report) => void} report
 */

export class Devices {
  /**
   * @param {AudioContext} context
   * @param {DeviceOptions} options
   * @param {DeviceListeners} on
   */
  constructor(context, options, on) {
    this.context = context;
    this.options = options;
    this.on = on;
    this.taps = { capture: /** @type {Tap[]} */ ([]), playback: /** @type {Tap[]} */ ([]) };
    this.stream = /** @type {MediaStream | null} */ (null);
    this.nodes = /** @type {AudioNode[]} */ ([]);
    this.playback = /** @type {AudioWorkletNode | null} */ (null);
    this.capture = /** @type {AudioWorkletNode | null} */ (null);
    this.core = /** @type {PlaybackCore | null} */ (null); // without worklets
  }

  /**
   * Resolves to null, or to one sentence why there is no sound.
   * @param {MediaStream | null} stream
   */
  async open(stream) {
    this.stream = stream;
    if (this.context.audioWorklet) await this.#openWorklets();
    else this.#openFallback();
    return this.#resume();
  }

  /** @param {Samples} samples */
  play(samples) { this.#order({ push: samples }, [samples.buffer]); }
  clear() { this.#order({ clear: true }, []); }

  async close() {
    this.#order({ stop: true }, []);
    this.capture?.port.postMessage("stop");
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    for (const node of this.nodes) node.disconnect();
    if (this.context.state !== "closed") await this.context.close();
  }

  /**
   * @param {import("./playback-worklet.js").Order} order
   * @param {Transferable[]} transfer
   */
  #order(order, transfer) {
    if (this.playback) this.playback.port.postMessage(order, transfer);
    else if (order.push) this.core?.playout.push(order.push);
    else if (order.clear) this.core?.playout.clear();
  }

  async #openWorklets() {
    const { audioWorklet } = this.context;
    await Promise.all(
      ["capture", "playback"].map((name) =>
        audioWorklet.addModule(window.pageModules.address(`pp/${name}-worklet.js`))),
    );
    this.playback = this.#worklet("playback", { numberOfInputs: 0, outputChannelCount: [1] });
    this.capture = this.#worklet("capture", { outputChannelCount: [1] });
    if (this.stream) this.#source(this.stream).connect(this.capture);
    this.capture.port.onmessage = ({ data }) => this.#fromCapture(data);
    this.playback.port.onmessage = ({ data }) => this.#fromPlayback(data);
  }

  /**
   * @param {string} name
   * @param {AudioWorkletNodeOptions} shape
   */
  #worklet(name, shape) {
    const processorOptions = { tap: this.options.tap };
    const node = new AudioWorkletNode(this.context, name, { ...shape, processorOptions });
    node.connect(this.context.destination); // the capture's output is silence: it keeps it running
    this.nodes.push(node);
    return node;
  }

  /** @param {MediaStream} stream */
  #source(stream) {
    const source = this.context.createMediaStreamSource(stream);
    this.nodes.push(source);
    return source;
  }

  // A page that is not in a secure context has no worklets, and no microphone either: the queue
  // and the resampler are the same, run by the page's own thread.
  #openFallback() {
    const node = this.context.createScriptProcessor(FALLBACK_BLOCK, 1, 1);
    const capture = new CaptureCore(this.context.sampleRate);
    const silence = new Float32Array(FALLBACK_BLOCK);
    const playback = new PlaybackCore(
      this.context.sampleRate, (message) => this.#fromPlayback(message));
    this.core = playback;
    node.onaudioprocess = (event) => {
      playback.fill(event.outputBuffer.getChannelData(0));
      capture.take(silence, this.on.chunk);
    };
    node.connect(this.context.destination);
    this.nodes.push(node);
  }

  /** @param {{chunk: Samples} | {tap: Tap}} data */
  #fromCapture(data) {
    if ("chunk" in data) this.on.chunk(data.chunk);
    else this.taps.capture.push(data.tap);
  }

  /** @param {PlaybackMessage | {tap: Tap}} data */
  #fromPlayback(data) {
    if ("played" in data) this.on.played(data.played);
    else if ("report" in data) this.on.report(data.report);
    else this.taps.playback.push(data.tap);
  }

  async #resume() {
    const timer = new Promise((resolve) => { setTimeout(resolve, RESUME_WAIT); });
    await Promise.race([this.context.resume(), timer]);
    if (this.context.state === "running") return null;
    return "No sound: this device has no audio output that the browser may use.";
  }
}

/**
 * The microphone, or one plain sentence that says how to mend it.
 * @param {boolean} raw without echo cancellation and the like
 * @returns {Promise<{stream: MediaStream, problem?: undefined} | {stream?: undefined, problem: string}>}
 */
export async function openMicrophone(raw) {
  if (!window.isSecureContext || !navigator.mediaDevices) {
    return { problem: "The microphone works only over https: open this page with https:// (or on localhost)." };
  }
  const clean = !raw; // echo cancellation is what lets both speak at once on loudspeakers
  const audio = {
    echoCancellation: clean, noiseSuppression: clean, autoGainControl: clean, channelCount: 1,
  };
  try {
    return { stream: await navigator.mediaDevices.getUserMedia({ audio }) };
  } catch (error) {
    return { problem: microphoneProblem(error instanceof Error ? error.name : String(error)) };
  }
}

/** @param {string} name of the error */
function microphoneProblem(name) {
  if (name === "NotAllowedError") {
    return "The microphone is blocked: allow it with the icon beside the address, then connect again.";
  }
  if (name === "NotFoundError") {
    return "No microphone found: plug one in or pick one in the system's sound settings, then connect again.";
  }
  if (name === "NotReadableError") {
    return "Another program is using the microphone: close it there, then connect again.";
  }
  return `The microphone did not start (${name}): check the system's sound settings, then connect again.`;
}
