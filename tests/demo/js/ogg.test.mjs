import assert from "node:assert/strict";
import test from "node:test";

import { OggDemuxer, OggMuxer } from "../../../demo/page/static/ogg.js";

const packet = (length, seed = 1) => Uint8Array.from({ length }, (_, i) => (i * 31 + seed) % 256);

function stream(sizes) {
  const muxer = new OggMuxer(24000);
  const pages = [...muxer.headers(), ...sizes.map((size, i) => muxer.packet(packet(size, i), 20))];
  return Uint8Array.from(pages.flatMap((page) => [...page]));
}

const oggPage = (flags, lacing, body) => Uint8Array.from([
  ...[0x4f, 0x67, 0x67, 0x53, 0, flags], ...new Array(20).fill(0), lacing.length, ...lacing, ...body,
]);

test("packets of any size come back as they went in, headers left out", () => {
  const sizes = [1, 80, 254, 255, 256, 510, 511, 1200];
  const packets = new OggDemuxer().take(stream(sizes));
  assert.deepEqual(packets.map((p) => p.length), sizes);
  packets.forEach((p, i) => assert.deepEqual(p, packet(sizes[i], i)));
});

for (const piece of [1, 7, 100]) {
  test(`bytes in pieces of ${piece} give the same packets`, () => {
    const bytes = stream([80, 300, 90]);
    const demuxer = new OggDemuxer();
    const packets = [];
    for (let i = 0; i < bytes.length; i += piece) packets.push(...demuxer.take(bytes.slice(i, i + piece)));
    assert.deepEqual(packets.map((p) => p.length), [80, 300, 90]);
  });
}

test("rubbish between pages is passed over", () => {
  const bytes = stream([80, 90]);
  const packets = new OggDemuxer().take(Uint8Array.from([9, 9, 0x4f, 0x67, ...bytes]));
  assert.deepEqual(packets.map((p) => p.length), [80, 90]);
});

test("a packet that goes on in the next page is joined", () => {
  const demuxer = new OggDemuxer();
  assert.deepEqual(demuxer.take(oggPage(0, [255], packet(255))), []);
  const [joined] = demuxer.take(oggPage(1, [45], packet(45)));
  assert.equal(joined.length, 300);
});

test("the first page is marked as the beginning and its time runs at 48 kHz", () => {
  const muxer = new OggMuxer(24000);
  const [head] = muxer.headers();
  assert.equal(head[5], 2);
  const second = muxer.packet(packet(80), 20);
  assert.equal(new DataView(second.buffer).getUint32(6, true), 960);
});

test("the beginning of a packet whose rest was lost is not joined to the next packet", () => {
  const demuxer = new OggDemuxer();
  assert.deepEqual(demuxer.take(oggPage(0, [255], packet(255))), []); // goes on in a page that was lost
  const packets = demuxer.take(oggPage(0, [45], packet(45, 7)));
  assert.deepEqual(packets, [packet(45, 7)]);
});

test("a page carries the checksum of its bytes, computed bit by bit", () => {
  const muxer = new OggMuxer(24000);
  for (const page of [...muxer.headers(), muxer.packet(packet(300), 20)]) {
    const stored = new DataView(page.buffer).getUint32(22, true);
    const bare = page.slice().fill(0, 22, 26);
    let crc = 0;
    for (const byte of bare) {
      crc ^= byte << 24;
      for (let bit = 0; bit < 8; bit++) crc = crc < 0 ? (crc << 1) ^ 0x04c11db7 : crc << 1;
    }
    assert.equal(stored, crc >>> 0);
  }
});
