import assert from "node:assert/strict";
import test from "node:test";

import { CaptureCore, mixDown } from "../../../demo/page/static/capture-core.js";
import { PlaybackCore } from "../../../demo/page/static/playback-core.js";
import { Resampler } from "../../../demo/page/static/resample.js";

function resample(from, to, samples, block) {
  const resampler = new Resampler(from, to);
  const out = [];
  const scratch = new Float32Array(4096);
  for (let i = 0; i < samples.length; i += block) {
    const piece = samples.subarray(i, i + block);
    out.push(...scratch.slice(0, resampler.process(piece, piece.length, scratch)));
  }
  return out;
}

const tone = (rate, hz, seconds) =>
  Float32Array.from({ length: rate * seconds }, (_, i) => Math.sin((2 * Math.PI * hz * i) / rate));

for (const [from, to] of [[44100, 24000], [48000, 24000], [16000, 24000], [24000, 44100]]) {
  test(`a tone keeps its pitch and level from ${from} to ${to} Hz`, () => {
    const out = resample(from, to, tone(from, 1000, 1), 128);
    assert.ok(Math.abs(out.length - to) < 100);
    for (let i = 200; i < out.length - 200; i++) {
      assert.ok(Math.abs(out[i] - Math.sin((2 * Math.PI * 1000 * i) / to)) < 0.01, `sample ${i}`);
    }
  });
}

test("what 24 kHz cannot carry is taken out, not folded back", () => {
  const out = resample(48000, 24000, tone(48000, 15000, 1), 128);
  assert.ok(Math.max(...out.slice(200, -200).map(Math.abs)) < 0.01);
});

test("the block size changes nothing", () => {
  const samples = tone(44100, 440, 0.5);
  const [small, large] = [resample(44100, 24000, samples, 37), resample(44100, 24000, samples, 900)];
  const count = Math.min(small.length, large.length);
  for (let i = 0; i < count; i++) assert.ok(Math.abs(small[i] - large[i]) < 1e-6, `sample ${i}`);
});

test("needs() says exactly how much input a block of output takes", () => {
  const resampler = new Resampler(24000, 44100);
  const out = new Float32Array(128);
  for (let i = 0; i < 500; i++) {
    const count = resampler.needs(128);
    assert.equal(resampler.process(new Float32Array(count), count, out), 128);
  }
});

test("capture gives chunks of 480 samples, 50 a second, from any number of channels", () => {
  const core = new CaptureCore(48000);
  const block = new Float32Array(128);
  const chunks = [];
  for (let i = 0; i < 375; i++) {
    mixDown([new Float32Array(128).fill(0.2), new Float32Array(128).fill(0.6)], block);
    core.take(block, (chunk) => chunks.push(chunk));
  }
  assert.ok(chunks.length === 49 || chunks.length === 50);
  assert.ok(chunks.every((chunk) => chunk.length === 480));
  assert.ok(Math.abs(chunks[10][100] - 0.4) < 0.001);
});

test("capture without a channel gives silence", () => {
  const block = new Float32Array(128).fill(1);
  mixDown([], block);
  assert.ok(block.every((sample) => sample === 0));
});

test("playback hands the recording every sample it took, in pieces of 20 ms", () => {
  const told = [];
  const core = new PlaybackCore(44100, (message) => told.push(message));
  core.playout.push(new Float32Array(4800).fill(0.25));
  for (let i = 0; i < 345; i++) core.fill(new Float32Array(128));
  const played = told.filter((message) => message.played);
  const reports = told.filter((message) => message.report);
  assert.ok(played.length === 49 || played.length === 50);
  assert.equal(played.flatMap((m) => [...m.played]).filter((s) => s === 0.25).length, 4800 - 47); // less the fade-in
  assert.ok(reports.length >= 9 && reports[0].report.queuedMs > 0);
});
