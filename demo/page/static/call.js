// @ts-check
// One call: from the press to the end, over lost connections and taken places. Owns the devices,
// the socket, the codec, the recording and the clock; tells the state what happens, shows nothing.

import { Devices, chime, openMicrophone, permissionPending } from "./audio.js";
import { Client } from "./client.js";
import { newCodec } from "./codec.js";
import { SAMPLE_RATE, countFrom, socketUrl, tunable } from "./protocol.js";
import { Recorder } from "./recorder.js";
import { CHECK_EVERY, Pulse, Retry } from "./retry.js";
import { closingNotice } from "./status.js";
import { Timeline, rms } from "./timeline.js";

const LONG_CONNECT = 4000; // ms without an answer: the server is being woken up
const RESUME_TRY = 5000; // ms that one attempt to come back may take
const TUNE_WAIT = 200; // ms after the last move of a slider
const FRAME = 80; // ms: the server answers in frames of this length
const DEAF_CHUNKS = 150; // of 20 ms, with nothing but zeros: the microphone is off somewhere
const HUSH = 200; // ms beyond the way there and back until the server is quiet

const THIN_BYTES = 24_000; // not yet sent: half a second of PCM
const THIN_TRIP = 800; // ms more than the quickest way there and back
const THIN_CHECKS = 8; // of CHECK_EVERY: 2 s

/**
 * @typedef {import("./protocol.js").ServerEvent} ServerEvent
 * @typedef {import("./protocol.js").Settings} Settings
 * @typedef {import("./protocol.js").StatsEvent} StatsEvent
 * @typedef {import("./protocol.js").Tuning} Tuning
 * @typedef {{delay: number | null, trip: number | null, queuedMs: number, step: number | null,
 *   lost: {underruns: number, jumps: number, unsent: number, late: number}}} CallStats
 * @typedef {object} CallListeners
 * @property {(sentence: string, passing?: boolean) => void} notice
 * @property {(sentence: string) => void} refused something in the call, in the server's words
 * @property {(levels: {mic?: number, agent?: number}) => void} levels root mean squares
 * @property {(stats: CallStats) => void} stats
 * @property {(event: import("./protocol.js").ReadyEvent) => void} ready
 * @property {import("./transcript.js").Transcript} transcript
 */

export class Call {
  begun = false; // a conversation was there: what was shown before it is gone
  ended = false;
  startedAt = new Date();
  received = 0; // samples of agent audio
  recorded = 0; // samples of agent audio that were played, with the silence between
  playedAt = 0; // the speaker's clock at the end of them
  sent = 0; // chunks of the user's audio
  heard = 0; // chunks of the user's audio that are recorded
  server = /** @type {StatsEvent | null} */ (null); // the newest `stats`
  info = /** @type {import("./protocol.js").ReadyEvent | null} */ (null); // the newest `ready`
  secret = ""; // with which this conversation goes on after a lost line
  timeline = new Timeline();
  pulse = new Pulse();
  retry = new Retry();
  untuned = false; // new sampling values that the server does not know yet
  hushedUntil = -Infinity; // ms
  zeros = 0; // chunks of nothing in a row
  silent = false; // the microphone delivers nothing
  waited = false; // for a place
  stale = /** @type {Client[]} */ ([]); // lost lines that are not closed yet
  thin = 0; // looks in a row at which the line was too thin
  bestTrip = Infinity; // ms there and back
  slowTrips = 0; // pings in a row that took much longer
  marks = 0;
  pending = /** @type {Map<number, (t: number) => void>} */ (new Map()); // what happens at each mark
  silence = new Float32Array(0);
  timer = 0;
  tuneTimer = 0;
  client = /** @type {Client | null} */ (null);
  codec = /** @type {ReturnType<typeof newCodec> | null} */ (null);

  /**
   * @param {import("./audio.js").Sound} sound
   * @param {import("./state.js").CallState} state
   * @param {Settings} settings
   * @param {CallListeners} on
   */
  constructor(sound, state, settings, on) {
    this.state = state;
    this.settings = settings;
    this.on = on;
    this.devices = new Devices(sound, {
      chunk: (samples) => this.#chunk(samples),
      played: (samples, at) => this.#played(samples, at),
      passed: (mark, at) => this.#passed(mark, at),
      report: (report) => this.#report(report),
      running: (running) => this.#running(running),
      microphone: (what, label) => this.#microphone(what, label),
    });
    this.recorder = settings.record ? new Recorder() : null;
    this.checking = setInterval(() => this.#check(), CHECK_EVERY);
    this.network = () => this.#network();
    for (const name of ["online", "offline"]) window.addEventListener(name, this.network);
    document.addEventListener("visibilitychange", this.network);
    this.plugged = () => this.#plugged();
    navigator.mediaDevices?.addEventListener("devicechange", this.plugged);
  }

  async start() {
    if (!await permissionPending()) this.state.on("allowed");
    await this.#takeMicrophone();
    if (this.ended) return;
    this.state.on("allowed");
    const sounds = await this.devices.open();
    if (this.ended) return;
    if (!sounds) this.on.notice("No sound: this device has no audio output that the browser may use.");
    this.state.tell({ sound: sounds });
    this.#connect();
  }

  async #takeMicrophone() {
    const { stream, problem } = await openMicrophone(this.devices.options.raw, this.settings.microphone);
    if (this.ended) {
      for (const track of stream?.getTracks() ?? []) track.stop(); // ended while it was asked for
      return;
    }
    if (stream) this.devices.listen(stream);
    this.zeros = 0;
    this.state.tell({ microphone: Boolean(stream) });
    this.on.notice(problem ?? "");
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
    if (this.ended) return;
    this.client?.close();
    this.#finish("this page failed");
  }

  // On and off; where the microphone was lost, another try to get one.
  mute() {
    if (!this.state.live) return;
    if (this.state.facts.microphone) this.state.tell({ muted: !this.state.facts.muted });
    else this.#takeMicrophone();
  }

  pause() {
    if (!this.state.live) return;
    const paused = !this.state.facts.paused;
    this.client?.pause(paused);
    if (paused) this.#hush();
    this.state.tell({ paused });
  }

  // Silent now: here at once, and on the server as soon as it has heard it.
  beQuiet() {
    if (!this.state.live) return;
    this.client?.beQuiet();
    this.#hush();
  }

  #hush() {
    this.hushedUntil = performance.now() + (this.client?.roundTrip ?? HUSH) + HUSH;
    this.devices.clear();
  }

  /**
   * New sampling values: now, or once a conversation is there. A moved slider sends one message,
   * not fifty.
   * @param {Partial<Tuning>} values
   */
  tune(values) {
    Object.assign(this.settings, values);
    this.untuned = true;
    clearTimeout(this.tuneTimer);
    this.tuneTimer = setTimeout(() => this.#sendTuning(), TUNE_WAIT);
  }

  #sendTuning() {
    if (!this.state.live || !this.untuned) return;
    this.untuned = false;
    this.client?.set(tunable(this.settings));
  }

  // -- the line ------------------------------------------------------------------------------------

  #connect() {
    const resume = this.state.phase === "reconnecting" ? this.secret : "";
    if (resume) this.timer = setTimeout(() => this.#lost(), RESUME_TRY);
    else this.timer = setTimeout(() => this.state.on("waking"), LONG_CONNECT);
    if (!resume) this.untuned = false; // the address carries the newest values
    /**
     * Nothing happens after a hang-up.
     * @template {unknown[]} Given
     * @param {(...given: Given) => void} obey
     * @returns {(...given: Given) => void}
     */
    const going = (obey) => (...given) => { if (!this.ended) obey(...given); };
    const url = socketUrl(location.href, this.settings, resume, this.received / SAMPLE_RATE);
    const client = new Client(url, {
      ready: going(() => this.#ready()),
      audio: going((payload) => this.#audio(payload)),
      text: going((piece) => this.#inStep((t) => this.on.transcript.text(piece, t))),
      event: going((event) => this.#event(event)),
      refused: going((sentence) => this.on.refused(sentence)),
      pong: going(() => this.#pong()),
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
    for (const old of this.stale.splice(0)) old.close();
    if (this.waited) {
      this.waited = false;
      chime(this.devices.context);
      this.#takeMicrophone();
    }
    this.pulse = new Pulse();
    this.retry.live();
    this.devices.clear();
    this.state.on("live");
    if (this.state.facts.paused) this.client?.pause(true);
    this.#sendTuning();
  }

  /** @param {ServerEvent} event */
  #event(event) {
    if (event.type === "waking") this.#waking(event);
    else if (event.type === "stats") this.server = event;
    else if (event.type === "closing") this.on.notice(closingNotice(event), true);
    else if (event.type === "ready") this.#greet(event);
    else if (event.type === "user_text") this.#userText(event);
    else this.#inStep((t) => this.#tell(event, t));
  }

  /** @param {import("./protocol.js").ReadyEvent} event */
  #greet(event) {
    const anew = this.begun && !event.resumed;
    this.received = countFrom(event, this.info, this.received);
    this.info = event;
    this.secret = event.resume ?? "";
    if (anew) this.on.transcript.restart("connection lost; a new conversation follows");
    this.on.ready(event);
  }

  /**
   * @param {import("./protocol.js").SayEvent | import("./protocol.js").RouteEvent} event
   * @param {number} t s of the recording
   */
  #tell(event, t) {
    if (event.type === "route") {
      const asking = event.state === "asking" || event.state === "answering";
      this.state.tell({ question: asking ? event.question : null });
    }
    this.on.transcript.event(Object.assign(event, { t }));
  }

  /**
   * Its times are seconds of the audio that was sent; the recording may hold more.
   * @param {import("./protocol.js").UserTextEvent} event
   */
  #userText(event) {
    const more = Math.max(0, this.heard - this.sent) * 0.02;
    this.on.transcript.event({ ...event, start: event.start + more, end: event.end + more });
  }

  /** @param {import("./protocol.js").WakingEvent} event */
  #waking({ phase, percent }) {
    clearTimeout(this.timer);
    this.state.on("waking", { waking: phase, percent: percent ?? null });
  }

  #pong() {
    this.pulse.pong();
    const trip = this.client?.roundTrip ?? 0;
    this.bestTrip = Math.min(this.bestTrip, trip);
    this.slowTrips = trip > this.bestTrip + THIN_TRIP ? this.slowTrips + 1 : 0;
  }

  // Looks at the line four times a second, while there should be one.
  #check() {
    if (!this.state.live || !this.client) return;
    const flowing = this.devices.running;
    const sign = this.pulse.look(performance.now(), flowing, this.client.pings.size > 0);
    if (sign === "dead") this.#lost();
    else if (sign === "stutter" || navigator.onLine === false) this.state.on("stutter");
    else this.state.on("steady");
    if (this.state.phase === "live") this.#watchWidth();
    else this.thin = 0; // a line that stands still is not thin
  }

  // For plain PCM on a line that may be too thin for it: what waits to be sent, and the way there and back.
  #watchWidth() {
    const { client, settings } = this;
    if (!client || settings.codec !== "pcm16" || !settings.opus || !this.secret) return;
    const slow = client.waiting > THIN_BYTES || this.slowTrips > 1;
    this.thin = slow ? this.thin + 1 : 0;
    if (this.thin >= THIN_CHECKS) this.#useLess();
  }

  // The network came or went, or somebody looks at the page again.
  #network() {
    if (this.ended) return;
    if (this.state.live) this.client?.ping();
    this.#check();
    if (navigator.onLine && this.state.phase === "reconnecting" && !this.client) {
      clearTimeout(this.timer);
      this.#connect();
    }
  }

  #lost() {
    if (this.client) this.stale.push(this.client);
    this.client?.abandon();
    this.#closed(null);
  }

  // The line is too thin for what we send: the same conversation goes on with a tenth of the data.
  #useLess() {
    this.settings.codec = "opus";
    this.on.notice("Your network is slow: from here on it gets a tenth of the data.", true);
    if (this.client) this.stale.push(this.client);
    this.client?.abandon();
    this.#drop();
    this.state.on("lost", { kept: this.secret !== "" });
    this.#connect();
  }

  /** @param {import("./client.js").EndReason | null} end */
  #closed(end) {
    this.#drop();
    const again = this.retry.after(end);
    if (again === null) {
      this.#finish(end?.kind ?? (this.retry.liveAt === null ? "unreachable" : "dropped"), end?.text);
      return;
    }
    if (again.why === "busy") this.#wait();
    else this.state.on("lost", { kept: this.secret !== "" });
    this.timer = setTimeout(() => this.#connect(), again.wait);
  }

  // Nothing of this line counts any more.
  #drop() {
    clearTimeout(this.timer);
    this.codec?.close();
    this.client = null;
    this.#flush();
    this.devices.clear();
  }

  // For a place, without a microphone.
  #wait() {
    this.devices.deafen();
    this.waited = true;
    this.state.on("busy", { microphone: false });
  }

  /** @param {string} reason */
  #finish(reason, text = "") {
    clearTimeout(this.timer);
    clearTimeout(this.tuneTimer);
    clearInterval(this.checking);
    for (const name of ["online", "offline"]) window.removeEventListener(name, this.network);
    document.removeEventListener("visibilitychange", this.network);
    navigator.mediaDevices?.removeEventListener("devicechange", this.plugged);
    this.ended = true;
    for (const old of this.stale.splice(0)) old.close();
    this.#flush();
    this.codec?.close();
    this.devices.close();
    this.state.on("end", { reason, text, microphone: false });
  }

  // -- the sound -----------------------------------------------------------------------------------

  /** @param {Samples} samples */
  #chunk(samples) {
    if (!this.state.live) return;
    const { facts } = this.state;
    if (facts.microphone && !facts.muted) this.#watchZeros(samples);
    if (facts.muted && this.silence.length !== samples.length) this.silence = samples.map(() => 0);
    const given = facts.muted ? this.silence : samples;
    const level = rms(given);
    this.timeline.hearUser(level);
    this.state.tell({ user: this.timeline.user.talking });
    this.on.levels({ mic: level });
    this.recorder?.user(given);
    this.heard += 1;
    if (!this.client?.open) return;
    this.codec?.encode(given);
    this.sent += 1;
  }

  /** @param {Samples} samples */
  #watchZeros(samples) {
    this.zeros = samples.every((sample) => sample === 0) ? this.zeros + 1 : 0;
    const label = this.devices.stream?.getAudioTracks()[0]?.label;
    if (this.zeros === DEAF_CHUNKS) this.on.notice(`${microphoneName(label)} delivers only silence: is it switched off, or another one meant?`);
    if (this.zeros === 0 && this.silent) this.on.notice("");
    this.silent = this.zeros >= DEAF_CHUNKS;
  }

  /** @param {Bytes} payload */
  #audio(payload) {
    this.pulse.audio(performance.now());
    this.codec?.decode(payload);
  }

  /** @param {Samples} samples */
  #agentSamples(samples) {
    this.received += samples.length;
    if (!this.state.live) return;
    if (performance.now() < this.hushedUntil) samples.fill(0);
    this.devices.play(samples);
  }

  /**
   * @param {Samples} samples
   * @param {number} at the speaker's clock at their end
   */
  #played(samples, at) {
    if (!this.state.live) return;
    const level = rms(samples);
    this.timeline.hearAgent(level);
    this.state.tell({ agent: this.timeline.agent.talking });
    this.on.levels({ agent: level });
    this.recorder?.agent(samples);
    this.recorded += samples.length;
    this.playedAt = at;
  }

  // -- one clock: what is said is told when its sound is played ---------------------------------------

  /** @param {(t: number) => void} work gets the seconds of the recording */
  #inStep(work) {
    const mark = ++this.marks;
    this.pending.set(mark, work);
    if (!this.state.live || !this.devices.running) this.#flush();
    else if (this.codec) this.codec.after(() => this.devices.mark(mark));
  }

  /**
   * @param {number} mark
   * @param {number} at the speaker's clock
   */
  #passed(mark, at) {
    const work = this.pending.get(mark);
    this.pending.delete(mark);
    work?.(this.#timeOf(at));
  }

  // Nothing will be played any more, or nobody knows when.
  #flush() {
    const all = [...this.pending.values()];
    this.pending.clear();
    for (const work of all) work(this.#timeOf(this.playedAt));
  }

  /** @param {number} at the speaker's clock */
  #timeOf(at) {
    return Math.max(0, this.recorded - (this.playedAt - at)) / SAMPLE_RATE;
  }

  /** @param {import("./audio.js").Report} report */
  #report({ queuedMs, underruns, jumps }) {
    if (!this.state.live || !this.client) return;
    const out = (this.devices.context.outputLatency || 0) * 1000;
    const trip = this.client.roundTrip;
    const delay = trip === null ? null : trip + FRAME + queuedMs + out;
    const lost = { underruns, jumps, unsent: this.client.dropped, late: this.server?.late_frames ?? 0 };
    this.on.stats({ delay, trip, queuedMs, lost, step: this.server?.step_ms_p50 ?? null });
  }

  // -- devices come and go -----------------------------------------------------------------------------

  /** @param {boolean} sound whether the system lets us have it */
  #running(sound) {
    if (this.ended) return;
    if (!sound) this.#flush();
    this.state.tell({ sound });
  }

  /**
   * @param {"ended" | "silent" | "back"} what
   * @param {string} label
   */
  #microphone(what, label) {
    if (this.ended) return;
    const name = microphoneName(label);
    if (what === "ended") this.devices.deafen();
    this.state.tell({ microphone: what === "back" });
    if (what === "ended") this.on.notice(`${name} was unplugged or taken away: press Mic to use another one.`);
    else this.on.notice(what === "silent" ? `${name} fell silent: the system or another program has muted it.` : "");
  }

  // Another device is there. Who lost the microphone has it again without asking.
  #plugged() {
    if (this.state.live && !this.state.facts.microphone && !this.devices.stream?.active) this.#takeMicrophone();
  }
}

function microphoneName(label = "") {
  return label ? `The microphone “${label}”` : "The microphone";
}
