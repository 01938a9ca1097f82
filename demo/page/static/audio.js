// @ts-check
// The audio devices: microphone in, speaker out, both at 24 kHz mono for the rest of the page. They
// are watched as long as a call is on: each can be taken away at any moment.

import { CaptureCore } from "./capture-core.js";
import { PlaybackCore } from "./playback-core.js";

const RESUME_WAIT = 3000; // ms; without an audio device `resume()` may never settle
const GESTURES = ["pointerdown", "keydown"];
const FALLBACK_BLOCK = 1024; // samples, where the browser offers no AudioWorklet

/**
 * @typedef {import("./playback-core.js").Report} Report
 * @typedef {import("./playback-core.js").PlaybackMessage} PlaybackMessage
 * @typedef {{currentFrame: number, samples: Samples}} Tap what one block of a worklet was, for tests
 * @typedef {{raw: boolean, tap: boolean}} DeviceOptions
 * @typedef {object} DeviceListeners
 * @property {(samples: Samples) => void} chunk of the microphone, 20 ms
 * @property {(samples: Samples, at: number) => void} played by the speaker, and when: samples of its clock
 * @property {(mark: number, at: number) => void} passed a mark was reached
 * @property {(report: Report) => void} report
 * @property {(running: boolean) => void} running the system has taken the sound away, or given it back
 * @property {(what: "ended" | "silent" | "back", label: string) => void} microphone
 */

/**
 * The page's one audio context. It is made, and its worklets are loaded, with the page: a server
 * that sleeps or refuses cannot keep them back when the call begins.
 */
export class Sound {
  context = /** @type {AudioContext | null} */ (null);
  loaded = /** @type {Promise<void> | null} */ (null);

  /** @param {DeviceOptions} options */
  constructor(options) {
    this.options = options;
  }

  prepare() {
    if (this.context && this.context.state !== "closed") return;
    const context = new AudioContext({ latencyHint: "interactive" });
    this.context = context;
    context.suspend(); // where a browser would let it run at once, silence would cost 2 % of a core
    const modules = ["capture", "playback"].map((name) =>
      context.audioWorklet?.addModule(window.pageModules.address(`pp/${name}-worklet.js`)));
    this.loaded = Promise.all(modules).then(() => {});
    this.loaded.catch(() => { this.context = null; }); // the next call tries again
  }

  // In the click itself: only a user's gesture may start the sound.
  wake() {
    this.prepare();
    this.context?.resume();
  }
}

export class Devices {
  /**
   * @param {Sound} sound
   * @param {DeviceListeners} on
   */
  constructor(sound, on) {
    sound.prepare();
    this.context = /** @type {AudioContext} */ (sound.context);
    this.loaded = sound.loaded;
    this.options = sound.options;
    this.on = on;
    this.taps = { capture: /** @type {Tap[]} */ ([]), playback: /** @type {Tap[]} */ ([]) };
    this.stream = /** @type {MediaStream | null} */ (null);
    this.source = /** @type {AudioNode | null} */ (null);
    this.nodes = /** @type {AudioNode[]} */ ([]);
    this.playback = /** @type {AudioWorkletNode | null} */ (null);
    this.capture = /** @type {AudioWorkletNode | null} */ (null);
    this.core = /** @type {PlaybackCore | null} */ (null); // without worklets
    this.awake = () => this.on.running(this.running);
    this.gesture = () => { if (!this.running) this.context.resume(); };
  }

  get running() {
    return this.context.state === "running";
  }

  // False where there is no sound at all.
  async open() {
    await this.loaded;
    if (this.context.audioWorklet) this.#openWorklets();
    else this.#openFallback();
    this.#plug();
    const timer = new Promise((resolve) => { setTimeout(resolve, RESUME_WAIT); });
    await Promise.race([this.context.resume(), timer]);
    this.context.addEventListener("statechange", this.awake);
    for (const name of GESTURES) document.addEventListener(name, this.gesture, true);
    return this.running;
  }

  /**
   * Hear this microphone from now on, and no other.
   * @param {MediaStream} stream
   */
  listen(stream) {
    this.deafen();
    this.stream = stream;
    for (const track of stream.getAudioTracks()) {
      track.onended = () => { if (this.stream === stream) this.on.microphone("ended", track.label); };
      track.onmute = () => { if (this.stream === stream) this.on.microphone("silent", track.label); };
      track.onunmute = () => { if (this.stream === stream) this.on.microphone("back", track.label); };
    }
    this.#plug();
  }

  #plug() {
    if (!this.capture || !this.stream) return;
    this.source = this.context.createMediaStreamSource(this.stream);
    this.source.connect(this.capture);
  }

  // Let the microphone go: the browser's own sign for it goes out.
  deafen() {
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.source?.disconnect();
    this.stream = this.source = null;
  }

  /** @param {Samples} samples */
  play(samples) { this.#order({ push: samples }, [samples.buffer]); }
  clear() { this.#order({ clear: true }, []); }

  /**
   * Tell when the sound that was pushed so far has been played: `passed` with this number.
   * @param {number} mark
   */
  mark(mark) { this.#order({ mark }, []); }

  close() {
    this.context.removeEventListener("statechange", this.awake);
    for (const name of GESTURES) document.removeEventListener(name, this.gesture, true);
    this.#order({ stop: true }, []);
    this.capture?.port.postMessage("stop");
    this.deafen();
    for (const node of this.nodes) node.disconnect();
    this.playback = this.capture = this.core = null;
    if (this.context.state !== "closed") this.context.suspend(); // kept for the next call
  }

  /**
   * @param {import("./playback-worklet.js").Order} order
   * @param {Transferable[]} transfer
   */
  #order(order, transfer) {
    if (this.playback) this.playback.port.postMessage(order, transfer);
    else if (order.push) this.core?.playout.push(order.push);
    else if (order.mark !== undefined) this.core?.playout.mark(order.mark);
    else if (order.clear) this.core?.playout.clear();
  }

  #openWorklets() {
    this.playback = this.#worklet("playback", { numberOfInputs: 0, outputChannelCount: [1] });
    this.capture = this.#worklet("capture", { outputChannelCount: [1] });
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
    if ("played" in data) this.on.played(data.played, data.at);
    else if ("passed" in data) this.on.passed(data.passed, data.at);
    else if ("report" in data) this.on.report(data.report);
    else this.taps.playback.push(data.tap);
  }
}

/**
 * The microphone, or one plain sentence that says how to mend it.
 * @param {boolean} raw without echo cancellation and the like
 * @param {string} deviceId which one; empty: the system's choice
 * @returns {Promise<{stream: MediaStream, problem?: undefined} | {stream?: undefined, problem: string}>}
 */
export async function openMicrophone(raw, deviceId = "") {
  if (!window.isSecureContext || !navigator.mediaDevices) {
    return { problem: "The microphone works only over https: open this page with https:// (or on localhost)." };
  }
  const clean = !raw; // echo cancellation is what lets both speak at once on loudspeakers
  const audio = {
    echoCancellation: clean, noiseSuppression: clean, autoGainControl: clean, channelCount: 1,
    ...(deviceId ? { deviceId: { ideal: deviceId } } : {}),
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
    return "The microphone is blocked: allow it with the icon beside the address, then press Mic.";
  }
  if (name === "NotFoundError") {
    return "No microphone found: plug one in or pick one in the system's sound settings, then start again.";
  }
  if (name === "NotReadableError") {
    return "Another program is using the microphone: close it there, then start again.";
  }
  return "The microphone did not start: check the system's sound settings, then start again.";
}

// Whether the browser will ask: only then is it true that it does.
export async function permissionPending() {
  try {
    const name = /** @type {PermissionName} */ ("microphone");
    return (await navigator.permissions.query({ name })).state === "prompt";
  } catch {
    return true; // a browser that does not tell
  }
}

/**
 * Two soft notes: a place has come free.
 * @param {AudioContext} context
 */
export function chime(context) {
  [660, 880].forEach((pitch, i) => {
    const start = context.currentTime + 0.16 * i;
    const [tone, volume] = [context.createOscillator(), context.createGain()];
    tone.frequency.value = pitch;
    volume.gain.setValueAtTime(0, start);
    volume.gain.linearRampToValueAtTime(0.12, start + 0.02);
    volume.gain.exponentialRampToValueAtTime(0.001, start + 0.5);
    tone.connect(volume).connect(context.destination);
    tone.start(start);
    tone.stop(start + 0.5);
  });
}
