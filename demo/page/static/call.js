// @ts-check
// One call: from Connect to the end, over lost connections and taken places. Owns the devices, the
// socket, the codec and the recording; shows nothing itself.

import { Devices, openMicrophone } from "./audio.js";
import { Client } from "./client.js";
import { newCodec } from "./codec.js";
import { rms } from "./meters.js";
import { SAMPLE_RATE, socketUrl, tunable } from "./protocol.js";
import { Recorder } from "./recorder.js";
import { Retry } from "./retry.js";

const LONG_CONNECT = 4000; // ms without an answer: the server is being woken up
const TUNE_WAIT = 200; // ms after the last move of a slider
const FRAME = 80; // ms: the server answers in frames of this length

/**
 * @typedef {import("./protocol.js").ServerEvent} ServerEvent
 * @typedef {import("./protocol.js").Settings} Settings
 * @typedef {import("./protocol.js").StatsEvent} StatsEvent
 * @typedef {import("./protocol.js").Tuning} Tuning
 * @typedef {import("./status.js").CallState} CallState
 * @typedef {object} CallListeners
 * @property {(state: CallState) => void} state
 * @property {(sentence: string, passing?: boolean) => void} notice
 * @property {(levels: {mic?: number, agent?: number}) => void} levels
 * @property {(stats: import("./panels.js").CallStats) => void} stats
 * @property {(event: import("./protocol.js").ReadyEvent) => void} ready
 * @property {import("./transcript.js").Transcript} transcript
 */

export class Call {
  /**
   * @param {AudioContext} context
   * @param {Settings} settings
   * @param {import("./audio.js").DeviceOptions} options
   * @param {CallListeners} on
   */
  constructor(context, settings, options, on) {
    this.settings = settings;
    this.on = on;
    this.options = options;
    this.devices = new Devices(context, options, {
      chunk: (samples) => this.#chunk(samples),
      played: (samples) => this.#played(samples),
      report: (report) => this.#report(report),
    });
    this.recorder = settings.record ? new Recorder() : null;
    this.retry = new Retry();
    this.ended = false;
    this.live = false;
    this.muted = false;
    this.paused = false;
    this.received = 0; // samples of agent audio in this conversation
    this.server = /** @type {StatsEvent | null} */ (null); // the newest `stats`
    this.silence = new Float32Array(0);
    this.microphone = false;
    this.untuned = false; // new sampling values that the server does not know yet
    this.timer = 0;
    this.tuneTimer = 0;
    this.client = /** @type {Client | null} */ (null);
    this.codec = /** @type {ReturnType<typeof newCodec> | null} */ (null);
  }

  async start() {
    this.#state({ name: "microphone" });
    const { stream, problem } = await openMicrophone(this.options.raw);
    this.microphone = Boolean(stream);
    for (const track of stream?.getTracks() ?? []) track.onended = () => this.#unplugged();
    if (problem) this.on.notice(problem);
    const soundless = await this.devices.open(stream ?? null);
    if (soundless) this.on.notice(soundless);
    if (this.ended) await this.devices.close(); // hung up while the microphone was being asked for
    else this.#connect();
  }

  hangUp() {
    if (this.ended) return;
    this.client?.close();
    this.#finish("hung up");
  }

  /**
   * Something here broke: say it, and leave nothing open.
   * @param {Error} error
   */
  fail(error) {
    console.error(error);
    this.client?.close();
    this.#finish("this page failed", error.message);
  }

  mute() {
    this.muted = !this.muted;
    this.#showLive();
  }

  pause() {
    this.paused = !this.paused;
    this.client?.pause(this.paused);
    this.#showLive();
  }

  /**
   * New sampling values: now, or once a conversation is there. A moved slider sends one message,
   * not fifty.
   * @param {Tuning} values
   */
  tune(values) {
    Object.assign(this.settings, values);
    this.untuned = true;
    clearTimeout(this.tuneTimer);
    this.tuneTimer = setTimeout(() => this.#sendTuning(), TUNE_WAIT);
  }

  #sendTuning() {
    if (!this.live || !this.untuned) return;
    this.untuned = false;
    this.client?.set(tunable(this.settings));
  }

  // Seconds of agent audio received: the clock of the transcript.
  get time() {
    return this.received / SAMPLE_RATE;
  }

  #connect() {
    this.#state({ name: "connecting" });
    this.timer = setTimeout(() => this.#state({ name: "waking" }), LONG_CONNECT);
    this.received = 0;
    this.untuned = false; // the address carries the newest values
    /**
     * Nothing happens after a hang-up.
     * @template {unknown[]} Given
     * @param {(...given: Given) => void} obey
     * @returns {(...given: Given) => void}
     */
    const going = (obey) => (...given) => { if (!this.ended) obey(...given); };
    const client = new Client(socketUrl(location.href, this.settings), {
      ready: going(() => this.#ready()),
      audio: going((payload) => this.codec?.decode(payload)),
      text: going((piece) => this.on.transcript.text(piece, this.time)),
      event: going((event) => this.#event(event)),
      notice: going((sentence) => this.on.notice(sentence, true)),
      closed: going(({ end }) => this.#closed(end)),
    });
    this.client = client;
    this.codec = newCodec(this.settings.codec, {
      bytes: (bytes) => client.audio(bytes),
      samples: (samples) => this.#agentSamples(samples),
    });
  }

  #ready() {
    clearTimeout(this.timer);
    this.live = true;
    this.paused = false;
    this.retry.live();
    this.devices.clear();
    this.#sendTuning();
    this.#showLive();
  }

  /** @param {ServerEvent} event */
  #event(event) {
    if (event.type === "waking") this.#waking(event);
    else if (event.type === "stats") this.server = event;
    else if (event.type === "closing") this.on.notice(closingNotice(event), true);
    else if (event.type === "ready") this.on.ready(event);
    else this.on.transcript.event(event);
  }

  /** @param {import("./protocol.js").WakingEvent} event */
  #waking({ phase, percent }) {
    clearTimeout(this.timer);
    this.#state({ name: "waking", phase, percent: percent ?? null });
  }

  /** @param {import("./client.js").EndReason | null} end */
  #closed(end) {
    clearTimeout(this.timer);
    this.codec?.close();
    const wasLive = this.live;
    this.live = false;
    const again = this.retry.after(end);
    if (again === null) this.#finish(end?.kind ?? this.#lostReason(), end?.text);
    else this.#wait(again, wasLive);
  }

  #lostReason() {
    return this.retry.liveAt === null ? "unreachable" : "dropped";
  }

  /**
   * @param {{why: "busy" | "dropped", wait: number}} again
   * @param {boolean} wasLive
   */
  #wait({ why, wait }, wasLive) {
    this.devices.clear();
    if (wasLive) this.on.transcript.restart("connection lost; a new conversation follows");
    this.#countDown(why, performance.now() + wait);
  }

  /**
   * @param {"busy" | "dropped"} why
   * @param {number} until ms, as performance.now()
   */
  #countDown(why, until) {
    const left = until - performance.now();
    if (left <= 0) {
      this.#connect();
      return;
    }
    this.#state({ name: why, seconds: Math.ceil(left / 1000) });
    this.timer = setTimeout(() => this.#countDown(why, until), Math.min(left, 1000));
  }

  /** @param {string} reason */
  #finish(reason, text = "") {
    clearTimeout(this.timer);
    this.ended = true;
    this.live = false;
    this.codec?.close();
    this.devices.close();
    this.#state({ name: "closed", reason, text });
  }

  /** @param {Samples} samples */
  #chunk(samples) {
    this.on.levels({ mic: this.muted ? 0 : rms(samples) });
    if (!this.live) return;
    if (this.muted && this.silence.length !== samples.length) this.silence = samples.map(() => 0);
    const sent = this.muted ? this.silence : samples;
    this.recorder?.user(sent);
    this.codec?.encode(sent);
  }

  /** @param {Samples} samples */
  #agentSamples(samples) {
    this.received += samples.length;
    if (this.live) this.devices.play(samples);
  }

  /** @param {Samples} samples */
  #played(samples) {
    if (this.live) this.recorder?.agent(samples);
  }

  /** @param {import("./audio.js").Report} report */
  #report({ level, queuedMs, underruns, jumps }) {
    this.on.levels({ agent: level });
    if (!this.live || !this.client) return;
    const out = (this.devices.context.outputLatency || 0) * 1000;
    const trip = this.client.roundTrip;
    const delay = trip === null ? null : trip + FRAME + queuedMs + out;
    const lost = { underruns, jumps, unsent: this.client.dropped, late: this.server?.late_frames ?? 0 };
    this.on.stats({ delay, trip, queuedMs, lost, step: this.server?.step_ms_p50 ?? null });
  }

  #unplugged() {
    if (this.ended) return;
    this.microphone = false;
    this.on.notice("The microphone was unplugged or taken away: check it, then connect again.");
    this.#showLive();
  }

  #showLive() {
    const mode = this.paused ? "paused" : this.muted ? "muted" : this.microphone ? "talk" : "silent";
    if (this.live) this.#state({ name: "live", mode });
  }

  /** @param {CallState} state */
  #state(state) {
    this.on.state(state);
  }
}

/** @param {import("./protocol.js").ClosingEvent} event */
function closingNotice({ reason, seconds_left: left }) {
  return `The server ends this conversation${left ? ` in ${Math.round(left)} s` : ""}: ${reason}.`;
}
