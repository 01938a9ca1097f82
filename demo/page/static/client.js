// One WebSocket, which is one conversation: sends and receives messages, measures the way there
// and back. Knows nothing of audio devices, widgets or of trying again.

import { CONTROL, KIND, encode, encodeJson, encodeText, readError } from "./protocol.js";

const MAX_WAITING = 256 * 1024; // bytes not yet sent: beyond this the network is too slow
const PING_EVERY = 2000; // ms; also what keeps a silent conversation from being idle
const PING_MARK = "page-"; // our pings; the server's own are sent back

export class Client {
  // on: {ready(), audio(bytes), text(string), event(object), notice(string), closed({end})}
  constructor(url, on) {
    this.on = on;
    this.end = null; // the error that ended the conversation, if the server named one
    this.roundTrip = null; // ms
    this.dropped = 0; // chunks of ours that the network was too slow for
    this.pings = new Map();
    this.socket = new WebSocket(url);
    this.socket.binaryType = "arraybuffer";
    this.socket.onmessage = (message) => this.#receive(message.data);
    this.socket.onclose = (event) => this.#closed(event);
    this.timer = setInterval(() => this.#ping(), PING_EVERY);
  }

  get open() {
    return this.socket.readyState === WebSocket.OPEN;
  }

  // False when the chunk was dropped because earlier ones still wait to be sent.
  audio(bytes) {
    if (!this.open) return false;
    if (this.socket.bufferedAmount > MAX_WAITING) {
      this.dropped += 1;
      return false;
    }
    this.socket.send(encode(KIND.audio, bytes));
    return true;
  }

  say(text) { this.#send(encodeText(KIND.say, text)); }
  ask(text) { this.#send(encodeJson({ type: "ask", text })); }
  cancel() { this.#send(encodeJson({ type: "cancel" })); }
  set(values) { this.#send(encodeJson({ type: "set", ...values })); }
  pause(on) { this.#send(encode(KIND.control, Uint8Array.of(on ? CONTROL.pause : CONTROL.start))); }
  close() { this.socket.close(1000); }

  #send(message) {
    if (this.open) this.socket.send(message);
  }

  #ping() {
    if (!this.open) return;
    const mark = PING_MARK + this.pings.size + "-" + Math.random().toString(36).slice(2, 8);
    this.pings.set(mark, performance.now());
    this.#send(encodeText(KIND.ping, mark));
  }

  #pong(bytes) {
    const mark = new TextDecoder().decode(bytes);
    const sent = this.pings.get(mark);
    if (sent === undefined) {
      this.#send(encode(KIND.ping, bytes)); // the server asks whether we are there
      return;
    }
    this.pings.clear(); // earlier ones that never came back are lost
    this.roundTrip = performance.now() - sent;
  }

  #receive(data) {
    if (typeof data === "string") return; // the protocol has binary messages only
    const bytes = new Uint8Array(data);
    const payload = bytes.subarray(1);
    switch (bytes[0]) {
      case KIND.handshake: this.#ping(); this.on.ready(); break;
      case KIND.audio: this.on.audio(payload); break;
      case KIND.text: this.on.text(new TextDecoder().decode(payload)); break;
      case KIND.metadata: this.on.event(JSON.parse(new TextDecoder().decode(payload))); break;
      case KIND.error: this.#error(new TextDecoder().decode(payload)); break;
      case KIND.ping: this.#pong(payload); break;
      default: // a newer server's kind: ignored, as the protocol asks
    }
  }

  #error(sentence) {
    const error = readError(sentence);
    if (error.kind) this.end = error;
    else this.on.notice(error.text);
  }

  #closed(event) {
    clearInterval(this.timer);
    this.on.closed({ end: this.end, code: event.code });
  }
}
