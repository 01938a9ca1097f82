// @ts-check
// One WebSocket: sends and receives messages, measures the way there and back. Knows nothing of
// audio devices, the page, or of trying again.

import { CONTROL, KIND, encode, encodeJson, encodeText, readError } from "./protocol.js";

const MAX_WAITING = 256 * 1024; // bytes not yet sent: beyond this the network is too slow
const PING_EVERY = 2000; // ms; also what keeps a silent conversation from being idle
const PING_MARK = "page-"; // our pings; the server's own are sent back

/**
 * @typedef {import("./protocol.js").ServerEvent} ServerEvent
 * @typedef {{kind: string | null, text: string}} EndReason
 * @typedef {object} ClientListeners
 * @property {() => void} ready
 * @property {(payload: Bytes) => void} audio
 * @property {(piece: string) => void} text
 * @property {(event: ServerEvent) => void} event
 * @property {(sentence: string) => void} refused
 * @property {() => void} pong
 * @property {(how: {end: EndReason | null}) => void} closed
 */

export class Client {
  /**
   * @param {string} url
   * @param {ClientListeners} on
   */
  constructor(url, on) {
    this.on = on;
    this.end = /** @type {EndReason | null} */ (null); // the error that ended the conversation, if the server named one
    this.roundTrip = /** @type {number | null} */ (null); // ms
    this.dropped = 0; // chunks of ours that the network was too slow for
    this.pings = /** @type {Map<string, number>} */ (new Map()); // when each mark was sent, ms
    this.socket = new WebSocket(url);
    this.socket.binaryType = "arraybuffer";
    this.socket.onmessage = (message) => this.#receive(message.data);
    this.socket.onclose = () => this.#closed();
    this.timer = setInterval(() => this.ping(), PING_EVERY);
  }

  get open() {
    return this.socket.readyState === WebSocket.OPEN;
  }

  // Bytes that we gave to the browser and it has not sent yet.
  get waiting() {
    return this.socket.bufferedAmount;
  }

  /**
   * Send audio, or drop it while earlier audio still waits to be sent.
   * @param {Bytes} bytes
   */
  audio(bytes) {
    if (!this.open) return;
    if (this.waiting > MAX_WAITING) this.dropped += 1;
    else this.socket.send(encode(KIND.audio, bytes));
  }

  /** @param {string} text */
  say(text) { this.#send(encodeText(KIND.say, text)); }
  /** @param {string} text */
  ask(text) { this.#send(encodeJson({ type: "ask", text })); }
  cancel() { this.#send(encodeJson({ type: "cancel" })); }
  /** @param {Record<string, string | number>} values */
  set(values) { this.#send(encodeJson({ type: "set", ...values })); }
  /** @param {boolean} on */
  pause(on) { this.#control(on ? CONTROL.pause : CONTROL.start); }
  beQuiet() { this.#control(CONTROL.endTurn); }
  close() { this.socket.close(1000); }

  // The line is dead: nothing that still comes over it counts, and nobody waits for its end. It is
  // not closed yet: a goodbye that arrives late would end the conversation that is to go on.
  abandon() {
    clearInterval(this.timer);
    this.socket.onmessage = this.socket.onclose = null;
  }

  ping() {
    if (!this.open) return;
    const mark = PING_MARK + this.pings.size + "-" + Math.random().toString(36).slice(2, 8);
    this.pings.set(mark, performance.now());
    this.#send(encodeText(KIND.ping, mark));
  }

  /** @param {number} control */
  #control(control) { this.#send(encode(KIND.control, Uint8Array.of(control))); }

  /** @param {Bytes} message */
  #send(message) {
    if (this.open) this.socket.send(message);
  }

  /** @param {Bytes} bytes */
  #pong(bytes) {
    const mark = new TextDecoder().decode(bytes);
    const sent = this.pings.get(mark);
    if (sent === undefined) {
      this.#send(encode(KIND.ping, bytes)); // the server asks whether we are there
      return;
    }
    this.pings.clear(); // earlier ones that never came back are lost
    this.roundTrip = performance.now() - sent;
    this.on.pong();
  }

  /** @param {ArrayBuffer | string} data */
  #receive(data) {
    if (typeof data === "string") return; // the protocol has binary messages only
    const bytes = new Uint8Array(data);
    const payload = bytes.subarray(1);
    switch (bytes[0]) {
      case KIND.handshake: this.ping(); this.on.ready(); break;
      case KIND.audio: this.on.audio(payload); break;
      case KIND.text: this.on.text(new TextDecoder().decode(payload)); break;
      case KIND.metadata: this.on.event(JSON.parse(new TextDecoder().decode(payload))); break;
      case KIND.error: this.#error(new TextDecoder().decode(payload)); break;
      case KIND.ping: this.#pong(payload); break;
      default: // a newer server's kind: ignored, as the protocol asks
    }
  }

  /** @param {string} sentence */
  #error(sentence) {
    const error = readError(sentence);
    if (error.kind) this.end = error;
    else this.on.refused(error.text);
  }

  #closed() {
    clearInterval(this.timer);
    this.on.closed({ end: this.end });
  }
}
