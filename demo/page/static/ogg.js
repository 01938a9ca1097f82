// @ts-check
// Ogg pages around Opus packets, both ways: one packet a page out, any split in. No codec here.

const SERIAL = 0x50504c58;
const PRE_SKIP = 312; // samples at 48 kHz: the delay of the codec
const HEADER = 27; // bytes of a page before its lacing table
const FLAG = { continued: 1, first: 2 };
const CAPTURE = [0x4f, 0x67, 0x67, 0x53]; // "OggS"

const CRC = new Uint32Array(256).map((_, byte) => {
  let crc = byte << 24;
  for (let bit = 0; bit < 8; bit++) crc = (crc << 1) ^ (crc & 0x80000000 ? 0x04c11db7 : 0);
  return crc >>> 0;
});

/** @param {Bytes} bytes */
function checksum(bytes) {
  let crc = 0;
  for (const byte of bytes) crc = ((crc << 8) ^ CRC[(crc >>> 24) ^ byte]) >>> 0;
  return crc;
}

export class OggMuxer {
  /** @param {number} rate of what was encoded, Hz */
  constructor(rate, channels = 1) {
    this.rate = rate;
    this.channels = channels;
    this.sequence = 0;
    this.granule = 0; // samples at 48 kHz
  }

  /**
   * The two pages that open the stream.
   * @param {string[]} comments NAME=value
   */
  headers(comments = []) {
    const listed = comments.map((one) => counted(one));
    const tags = [counted("page"), uint32(comments.length), ...listed].reduce(
      (all, part) => joined(all, part), new TextEncoder().encode("OpusTags"));
    return [this.#page(this.#head(), FLAG.first), this.#page(tags, 0)];
  }

  /**
   * @param {Bytes} bytes
   * @param {number} milliseconds
   */
  packet(bytes, milliseconds) {
    this.granule += 48 * milliseconds;
    return this.#page(bytes, 0);
  }

  #head() {
    const head = new Uint8Array(19);
    const view = new DataView(head.buffer);
    head.set(new TextEncoder().encode("OpusHead"));
    head[8] = 1; // version
    head[9] = this.channels;
    view.setUint16(10, PRE_SKIP, true);
    view.setUint32(12, this.rate, true);
    return head;
  }

  /**
   * @param {Bytes} packet
   * @param {number} flags
   */
  #page(packet, flags) {
    const full = Math.floor(packet.length / 255);
    const start = HEADER + full + 1;
    const page = new Uint8Array(start + packet.length);
    const view = new DataView(page.buffer);
    page.set(CAPTURE);
    page[5] = flags;
    view.setBigUint64(6, BigInt(this.granule), true);
    view.setUint32(14, SERIAL, true);
    view.setUint32(18, this.sequence++, true);
    page[26] = full + 1;
    page.fill(255, HEADER, HEADER + full);
    page[HEADER + full] = packet.length % 255;
    page.set(packet, start);
    view.setUint32(22, checksum(page), true);
    return page;
  }
}

export class OggDemuxer {
  constructor() {
    this.bytes = new Uint8Array(0);
    this.started = /** @type {Bytes | null} */ (null); // the beginning of a packet that goes on in the next page
  }

  /**
   * Take bytes as they come, return the whole audio packets that they complete.
   * @param {Bytes} more
   */
  take(more) {
    this.bytes = joined(this.bytes, more);
    const packets = /** @type {Bytes[]} */ ([]);
    for (let page = this.#nextPage(); page; page = this.#nextPage()) this.#split(page, packets);
    return packets.filter((packet) => !isHeader(packet));
  }

  #nextPage() {
    const at = indexOfCapture(this.bytes);
    this.bytes = this.bytes.subarray(at); // whatever is not a page is passed over
    if (this.bytes.length < HEADER) return null;
    const start = HEADER + this.bytes[26];
    const lacing = this.bytes.subarray(HEADER, start);
    const end = start + lacing.reduce((sum, size) => sum + size, 0);
    if (this.bytes.length < end || lacing.length < this.bytes[26]) return null;
    const page = { flags: this.bytes[5], lacing, body: this.bytes.subarray(start, end) };
    this.bytes = this.bytes.subarray(end);
    return page;
  }

  /**
   * @param {{flags: number, lacing: Bytes, body: Bytes}} page
   * @param {Bytes[]} packets
   */
  #split({ flags, lacing, body }, packets) {
    let part = flags & FLAG.continued ? this.started : null;
    let at = 0;
    let size = 0;
    for (const value of lacing) {
      size += value;
      if (value === 255) continue;
      packets.push(joined(part ?? new Uint8Array(0), body.subarray(at, at + size)));
      [part, at, size] = [null, at + size, 0];
    }
    this.started = size > 0 ? joined(part ?? new Uint8Array(0), body.subarray(at)) : null;
  }
}

/** @param {string} text @returns {Bytes} its length, and it */
function counted(text) {
  const bytes = new TextEncoder().encode(text);
  return joined(uint32(bytes.length), bytes);
}

/** @param {number} value */
function uint32(value) {
  const view = new DataView(new ArrayBuffer(4));
  view.setUint32(0, value, true);
  return new Uint8Array(view.buffer);
}

/**
 * @param {Bytes} a
 * @param {Bytes} b
 */
function joined(a, b) {
  const both = new Uint8Array(a.length + b.length);
  both.set(a);
  both.set(b, a.length);
  return both;
}

/** @param {Bytes} bytes */
function indexOfCapture(bytes) {
  for (let i = 0; i + 4 <= bytes.length; i++) {
    if (CAPTURE.every((byte, k) => bytes[i + k] === byte)) return i;
  }
  return Math.max(0, bytes.length - 3); // the beginning of a capture may be there
}

/** @param {Bytes} packet */
function isHeader(packet) {
  const name = String.fromCharCode(...packet.subarray(0, 8));
  return packet.length === 0 || name === "OpusHead" || name === "OpusTags";
}
