// @ts-check
// What was heard and said, kept in the browser: stereo, agent left, user right, on the page's clock.
// As Opus where the browser can (2 MB in five minutes), else as it is (29 MB); a WAV of either on demand.

import { OggMuxer } from "./ogg.js";
import { SAMPLE_RATE } from "./protocol.js";

const PACKET = 20; // ms
const PART = 500; // packets in one part: a Blob, which the browser may put on disk
const ENVELOPE = SAMPLE_RATE / 10; // samples behind one bar of the replay
/** @type {AudioEncoderConfig} */
const ENCODER = {
  codec: "opus", sampleRate: SAMPLE_RATE, numberOfChannels: 2, bitrate: 48000,
  opus: { frameDuration: PACKET * 1000, complexity: 5 },
};

let opus = false; // known before the first call can begin
if (typeof AudioEncoder !== "undefined") {
  AudioEncoder.isConfigSupported(ENCODER).then(({ supported }) => { opus = Boolean(supported); }, () => {});
}

export class Recorder {
  seconds = 0;
  bars = /** @type {[number[], number[]]} */ ([[], []]); // the loudest sample of each tenth of a second
  loudest = /** @type {[number, number]} */ ([0, 0]); // in the bar that grows
  pairs = 0; // in the bar that grows
  parts = /** @type {Blob[]} */ ([]);
  open = /** @type {Bytes[]} */ ([]); // pages, or samples, that are in no part yet
  // Chunks of one side, up to which the other side has not come yet.
  waiting = /** @type {[Samples[], Samples[]]} */ ([[], []]);
  encoder = /** @type {AudioEncoder | null} */ (null);
  muxer = new OggMuxer(SAMPLE_RATE, 2);

  constructor(asOpus = opus) {
    this.muxer.sequence = 2; // the two pages of the head are made last, when all is known
    if (!asOpus) return;
    this.encoder = new AudioEncoder({ output: (packet) => this.#encoded(packet), error: console.error });
    this.encoder.configure(ENCODER);
  }

  /** @param {Samples} samples */
  agent(samples) { this.#take(0, samples); }
  /** @param {Samples} samples */
  user(samples) { this.#take(1, samples); }

  /**
   * Both sides run on the device's clock, in pieces of equal length: pair them as they come.
   * @param {0 | 1} side agent, user
   * @param {Samples} samples
   */
  #take(side, samples) {
    this.waiting[side].push(samples);
    const [agent, user] = this.waiting;
    while (agent.length > 0 && user.length > 0) {
      this.#pair(/** @type {Samples} */ (agent.shift()), /** @type {Samples} */ (user.shift()));
    }
  }

  /**
   * @param {Samples} agent
   * @param {Samples} user
   */
  #pair(agent, user) {
    this.#measure(agent, user);
    if (this.encoder) this.#encode(agent, user);
    else this.#keep(new Uint8Array(interleave(agent, user).buffer));
    this.seconds += agent.length / SAMPLE_RATE;
  }

  /**
   * @param {Samples} agent
   * @param {Samples} user
   */
  #measure(agent, user) {
    for (let i = 0; i < agent.length; i++) {
      this.loudest[0] = Math.max(this.loudest[0], Math.abs(agent[i]));
      this.loudest[1] = Math.max(this.loudest[1], Math.abs(user[i]));
    }
    this.pairs += agent.length;
    if (this.pairs < ENVELOPE) return;
    this.bars[0].push(this.loudest[0]);
    this.bars[1].push(this.loudest[1]);
    this.loudest = [0, 0];
    this.pairs -= ENVELOPE;
  }

  /**
   * @param {Samples} agent
   * @param {Samples} user
   */
  #encode(agent, user) {
    const both = new Float32Array(2 * agent.length);
    both.set(agent);
    both.set(user, agent.length);
    const data = new AudioData({
      format: "f32-planar", sampleRate: SAMPLE_RATE, numberOfFrames: agent.length, numberOfChannels: 2,
      timestamp: Math.round(this.seconds * 1e6), data: both,
    });
    if (this.encoder?.state === "configured") this.encoder.encode(data);
    data.close();
  }

  /** @param {EncodedAudioChunk} packet */
  #encoded(packet) {
    const bytes = new Uint8Array(packet.byteLength);
    packet.copyTo(bytes);
    this.#keep(this.muxer.packet(bytes, PACKET));
  }

  /** @param {Bytes} bytes */
  #keep(bytes) {
    this.open.push(bytes);
    if (this.open.length < PART) return;
    this.parts.push(new Blob(this.open));
    this.open = [];
  }

  /**
   * The recording as it was kept: Ogg/Opus, or WAV.
   * @param {Record<string, string>} about what is written into the file beside the sound
   */
  async file(about) {
    if (!this.encoder) return this.#asWav(about);
    if (this.encoder.state === "configured") await this.encoder.flush();
    const comments = Object.entries(about).map(([name, value]) => `${name.toUpperCase()}=${value}`);
    const head = new OggMuxer(SAMPLE_RATE, 2).headers(comments);
    return new Blob([...head, ...this.parts, ...this.open], { type: "audio/ogg" });
  }

  /** @param {Record<string, string>} about */
  async wav(about) {
    if (!this.encoder) return this.#asWav(about);
    const bytes = await (await this.file(about)).arrayBuffer();
    const sound = await new OfflineAudioContext(2, 1, SAMPLE_RATE).decodeAudioData(bytes);
    const samples = interleave(sound.getChannelData(0), sound.getChannelData(1));
    return new Blob([wavHeader(samples.byteLength, about), samples], { type: "audio/wav" });
  }

  /** @param {Record<string, string>} about */
  #asWav(about) {
    const bytes = [...this.parts, ...this.open].reduce((sum, one) => sum + ("size" in one ? one.size : one.length), 0);
    return new Blob([wavHeader(bytes, about), ...this.parts, ...this.open], { type: "audio/wav" });
  }
}

/**
 * @param {Samples} left
 * @param {Samples} right
 */
function interleave(left, right) {
  const both = new Int16Array(2 * left.length);
  for (let i = 0; i < left.length; i++) {
    both[2 * i] = level(left[i]);
    both[2 * i + 1] = level(right[i]);
  }
  return both;
}

/** @param {number} sample */
function level(sample) {
  return Math.round(Math.max(-1, Math.min(1, sample)) * 32767);
}

// Names of what RIFF knows; the rest goes into the comment.
const TAGS = { title: "INAM", date: "ICRD", voice: "IART" };

/**
 * @param {number} bytes of samples
 * @param {Record<string, string>} about
 */
export function wavHeader(bytes, about) {
  const [channels, width] = [2, 2];
  const known = Object.entries(TAGS).filter(([name]) => about[name]).map(([name, tag]) => chunk(tag, text(about[name])));
  const comment = Object.entries(about).map(([name, value]) => `${name}: ${value}`).join("; ");
  const list = chunk("LIST", joined(ascii("INFO"), ...known, chunk("ICMT", text(comment))));
  const format = new DataView(new ArrayBuffer(16));
  format.setUint16(0, 1, true); // plain PCM
  format.setUint16(2, channels, true);
  format.setUint32(4, SAMPLE_RATE, true);
  format.setUint32(8, SAMPLE_RATE * channels * width, true);
  format.setUint16(12, channels * width, true);
  format.setUint16(14, 8 * width, true);
  const parts = joined(ascii("WAVE"), chunk("fmt ", new Uint8Array(format.buffer)), list);
  return joined(ascii("RIFF"), size(parts.length + 8 + bytes), parts, ascii("data"), size(bytes));
}

/** @param {string} name @param {Bytes} body */
function chunk(name, body) {
  return joined(ascii(name), size(body.length), body, new Uint8Array(body.length % 2));
}

/** @param {string} words */
function text(words) {
  return joined(new TextEncoder().encode(words), new Uint8Array(1));
}

/** @param {string} name */
function ascii(name) {
  return Uint8Array.from(name, (letter) => letter.charCodeAt(0));
}

/** @param {number} bytes */
function size(bytes) {
  const view = new DataView(new ArrayBuffer(4));
  view.setUint32(0, bytes, true);
  return new Uint8Array(view.buffer);
}

/** @param {Bytes[]} parts */
function joined(...parts) {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
