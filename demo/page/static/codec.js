// @ts-check
// Samples <-> the payload of audio messages: plain PCM, or Opus by the browser's own codec.

import { OggDemuxer, OggMuxer } from "./ogg.js";
import { SAMPLE_RATE, pcmBytes, pcmSamples } from "./protocol.js";
import { Resampler } from "./resample.js";

const PACKET = 20; // ms
/** @type {AudioEncoderConfig} */
const ENCODER = {
  codec: "opus", sampleRate: SAMPLE_RATE, numberOfChannels: 1, bitrate: 32000,
  opus: /** @type {OpusEncoderConfig & {application: string}} */ (
    { application: "voip", frameDuration: PACKET * 1000, complexity: 5 }),
};
const LOCAL = /^(localhost|127\.\d+\.\d+\.\d+|\[::1\])$/;
const DECODER = { codec: "opus", sampleRate: 48000, numberOfChannels: 1 };

export async function opusSupported() {
  if (typeof AudioEncoder === "undefined" || typeof AudioDecoder === "undefined") return false;
  const answers = await Promise.all([
    AudioEncoder.isConfigSupported(ENCODER), AudioDecoder.isConfigSupported(DECODER),
  ]);
  return answers.every((answer) => answer.supported);
}

/**
 * How the next conversation is coded: Opus where the line is known to be thin, else plain PCM.
 * @param {"auto" | "low"} bandwidth
 * @param {boolean} can this browser has Opus
 * @param {{hostname: string}} place where the page is from
 * @param {object} machine the navigator, which in some browsers knows its `connection`
 */
export function chooseCodec(bandwidth, can, place, machine) {
  if (!can) return "pcm16";
  if (bandwidth === "low") return "opus";
  if (LOCAL.test(place.hostname)) return "pcm16";
  const { connection } = /** @type {{connection?: {saveData?: boolean, effectiveType?: string}}} */ (machine);
  const { saveData = false, effectiveType = "4g" } = connection ?? {};
  return saveData || effectiveType !== "4g" ? "opus" : "pcm16";
}

/**
 * Where a codec's work goes: payloads to send, samples at 24 kHz to play.
 * @typedef {{bytes: (payload: Bytes) => void, samples: (samples: Samples) => void}} CodecOutputs
 */

/**
 * @param {string} name
 * @param {CodecOutputs} on
 */
export function newCodec(name, on) {
  return name === "opus" ? new OpusCodec(on) : new PcmCodec(on);
}

class PcmCodec {
  /** @param {CodecOutputs} on */
  constructor(on) { this.on = on; }
  /** @param {Samples} chunk */
  encode(chunk) { this.on.bytes(pcmBytes(chunk)); }
  /** @param {Bytes} payload */
  decode(payload) { this.on.samples(pcmSamples(payload)); }
  /** @param {() => void} work once everything that came is decoded */
  after(work) { work(); }
  close() {}
}

class OpusCodec {
  /** @param {CodecOutputs} on */
  constructor(on) {
    this.on = on;
    this.muxer = new OggMuxer(SAMPLE_RATE);
    this.demuxer = new OggDemuxer();
    this.down = new Resampler(48000, SAMPLE_RATE);
    this.time = 0; // microseconds
    this.received = 0; // packets
    this.decoded = 0; // packets
    this.later = /** @type {{packets: number, work: () => void}[]} */ ([]);
    this.headers = this.muxer.headers();
    this.encoder = new AudioEncoder({ output: (packet) => this.#encoded(packet), error: report });
    this.encoder.configure(ENCODER);
    this.decoder = new AudioDecoder({ output: (data) => this.#decoded(data), error: report });
    this.decoder.configure(DECODER);
  }

  /** @param {Samples} chunk */
  encode(chunk) {
    const data = new AudioData({
      format: "f32", sampleRate: SAMPLE_RATE, numberOfFrames: chunk.length, numberOfChannels: 1,
      timestamp: this.time, data: chunk,
    });
    this.time += PACKET * 1000;
    this.encoder.encode(data);
    data.close();
  }

  /** @param {Bytes} payload */
  decode(payload) {
    for (const data of this.demuxer.take(payload)) {
      this.decoder.decode(new EncodedAudioChunk({ type: "key", timestamp: this.received++, data }));
    }
  }

  /** @param {() => void} work once everything that came is decoded */
  after(work) {
    if (this.decoded >= this.received) work();
    else this.later.push({ packets: this.received, work });
  }

  close() {
    for (const codec of [this.encoder, this.decoder]) if (codec.state !== "closed") codec.close();
  }

  /** @param {EncodedAudioChunk} packet */
  #encoded(packet) {
    const bytes = new Uint8Array(packet.byteLength);
    packet.copyTo(bytes);
    for (const page of this.headers) this.on.bytes(page);
    this.headers = [];
    this.on.bytes(this.muxer.packet(bytes, PACKET));
  }

  /** @param {AudioData} data */
  #decoded(data) {
    const samples = new Float32Array(data.numberOfFrames);
    data.copyTo(samples, { planeIndex: 0, format: "f32-planar" });
    data.close();
    const half = new Float32Array((samples.length >> 1) + 1);
    this.on.samples(half.slice(0, this.down.process(samples, samples.length, half)));
    this.decoded += 1;
    while (this.later.length > 0 && this.later[0].packets <= this.decoded) this.later.shift()?.work();
  }
}

/** @param {Error} error */
function report(error) {
  console.error("audio codec:", error.message);
}
