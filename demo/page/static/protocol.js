// @ts-check
// The wire protocol as this page speaks it: kinds, addresses, and what an error sentence means.

export const KIND = Object.freeze({
  handshake: 0, audio: 1, text: 2, control: 3, metadata: 4, error: 5, ping: 6, say: 7,
});
export const CONTROL = Object.freeze({ start: 0, endTurn: 1, pause: 2, restart: 3 });
export const SAMPLE_RATE = 24000; // Hz, mono, both directions

/**
 * How words and sounds are drawn; null is the server's default.
 * @typedef {{textTemperature: number | null, textTopK: number | null,
 *   audioTemperature: number | null, audioTopK: number | null}} Sampling
 * What can be changed during a call; `routing` is null where nothing is looked up.
 * @typedef {Sampling & {routing: boolean | null}} Tuning
 * What a call is made with. An empty voice is the server's own.
 * @typedef {Tuning & {persona: string, voice: string, seed: number | null, record: boolean,
 *   codec: string, opus: boolean, microphone: string, token?: string}} Settings
 */

/**
 * What the server tells with 0x04 (docs/api.md); `t` is seconds of agent audio.
 * @typedef {{type: "waking", phase: string, percent?: number | null}} WakingEvent
 * @typedef {{type: "ready", model: string, voice: string, transcript: boolean, session?: string,
 *   t?: number, resume?: string, resumed?: boolean}} ReadyEvent
 * @typedef {{type: "stats", step_ms_p50: number, late_frames: number}} StatsEvent
 * @typedef {{type: "closing", reason: string, seconds_left?: number}} ClosingEvent
 * @typedef {{type: "say", id: number, text: string, spoken?: string,
 *   state: "queued" | "speaking" | "done" | "cancelled"}} SayEvent
 * @typedef {{type: "route", id: number, t: number, question: string, reason?: string, source?: string,
 *   knowledge?: boolean, state: "asking" | "answering" | "done" | "failed" | "stale"}} RouteEvent
 * @typedef {{type: "user_text", text: string, start: number, end: number, final: boolean
 *   }} UserTextEvent
 * @typedef {SayEvent | RouteEvent | UserTextEvent} SpeechEvent
 * @typedef {WakingEvent | ReadyEvent | StatsEvent | ClosingEvent | SpeechEvent} ServerEvent
 */

// Errors that end the conversation start with one of these words and a colon.
export const ENDS = [
  "busy", "unauthorized", "bad parameter", "bad audio", "too fast", "idle", "time limit",
  "closing", "internal error", "gone",
];

/**
 * @param {number} kind
 * @param {Uint8Array} payload
 */
export function encode(kind, payload = new Uint8Array(0)) {
  const message = new Uint8Array(1 + payload.byteLength);
  message[0] = kind;
  message.set(new Uint8Array(payload.buffer, payload.byteOffset, payload.byteLength), 1);
  return message;
}

/**
 * @param {number} kind
 * @param {string} text
 */
export function encodeText(kind, text) {
  return encode(kind, new TextEncoder().encode(text));
}

/** @param {{type: string, [name: string]: unknown}} value */
export function encodeJson(value) {
  return encodeText(KIND.metadata, JSON.stringify(value));
}

/**
 * The kind of an error that ends the conversation, null if it goes on; and what the error says.
 * @param {string} sentence
 */
export function readError(sentence) {
  const kind = ENDS.find((word) => sentence.startsWith(`${word}:`)) ?? null;
  return { kind, text: kind ? sentence.slice(kind.length + 1).trim() : sentence };
}

/**
 * What can be changed during a call, under its names on the wire. What is empty is left out: the
 * server has a default for it.
 * @param {Tuning} settings
 */
export function tunable(settings) {
  return kept({
    text_temperature: settings.textTemperature,
    text_topk: settings.textTopK,
    audio_temperature: settings.audioTemperature,
    audio_topk: settings.audioTopK,
    routing: settings.routing === null ? null : Number(settings.routing),
  });
}

/**
 * @param {Record<string, string | number | null>} values
 * @returns {Record<string, string | number>}
 */
function kept(values) {
  const given = Object.entries(values).filter(
    ([, value]) => (value ?? "") !== "" && !Number.isNaN(value));
  return /** @type {Record<string, string | number>} */ (Object.fromEntries(given));
}

/**
 * How much agent audio of its conversation has arrived, as a `ready` tells: on a socket that resumes,
 * a frame of which only half had arrived comes again whole.
 * @param {ReadyEvent} event
 * @param {ReadyEvent | null} last the one before it
 * @param {number} received samples so far
 */
export function countFrom(event, last, received) {
  if (event.resumed) return Math.round((event.t ?? 0) * SAMPLE_RATE);
  return event.session === last?.session ? received : 0; // a restart goes on counting
}

/**
 * The socket's address beside the page's own one: a new conversation, or an old one that goes on.
 * @param {string} pageUrl
 * @param {Settings} settings
 * @param {string} resume the secret of the old one, else empty
 * @param {number} heard seconds of the old one's audio that have arrived
 */
export function socketUrl(pageUrl, settings, resume = "", heard = 0) {
  const url = new URL("api", pageUrl);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  const query = {
    events: 1,
    format: settings.codec === "opus" ? "opus" : "pcm16",
    ...(resume ? { resume, heard: heard.toFixed(2) } : {
      ...kept({ voice_prompt: settings.voice, seed: settings.seed }),
      text_prompt: settings.persona, // an empty one is nobody in particular
      ...tunable(settings),
    }),
    ...(settings.token ? { token: settings.token } : {}),
  };
  url.search = new URLSearchParams(
    Object.entries(query).map(([name, value]) => [name, String(value)])).toString();
  return url.href;
}

/** @param {Samples} samples */
export function pcmBytes(samples) {
  const pcm = new Int16Array(samples.length); // every browser's machine is little-endian
  for (let i = 0; i < samples.length; i++) {
    pcm[i] = Math.round(Math.max(-1, Math.min(1, samples[i])) * 32767);
  }
  return new Uint8Array(pcm.buffer);
}

/** @param {Bytes} bytes */
export function pcmSamples(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const samples = new Float32Array(bytes.byteLength >> 1);
  for (let i = 0; i < samples.length; i++) samples[i] = view.getInt16(2 * i, true) / 32768;
  return samples;
}
