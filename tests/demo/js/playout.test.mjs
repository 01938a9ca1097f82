// Conversations of half an hour, simulated sample by sample: delay, gaps, stalls, drift.

import assert from "node:assert/strict";
import test from "node:test";

import { Playout } from "../../../demo/page/static/playout.js";

const RATE = 24000;
const FRAME = 1920; // samples, 80 ms
const QUANTUM = 64; // samples at 24 kHz that a 48 kHz device pulls at once

// Numbers in [0, 1) that are the same in every run.
function random(seed) {
  let state = seed;
  return () => {
    state = (state * 1664525 + 1013904223) % 2 ** 32;
    return state / 2 ** 32;
  };
}

// A server's frames over a network into a player, whose clock runs `drift` faster. Each sample's
// value is the time (s) at which it was made; what is played tells how old it is by then.
// late(i) is the delay of frame i in ms; frames never overtake each other.
function simulate({ seconds, drift = 0, late = () => 0 }) {
  const playout = new Playout();
  const out = new Float32Array(QUANTUM);
  const delays = []; // [time, delay], in s
  let [sent, arrival, pulled] = [0, 0, 0];
  while (pulled / RATE < seconds) {
    const now = pulled / RATE / (1 + drift);
    for (;;) {
      const made = ((sent + 1) * FRAME) / RATE; // the frame is complete
      arrival = Math.max(arrival, made + late(sent, made) / 1000);
      if (arrival > now) break;
      playout.push(new Float32Array(FRAME).fill(made));
      sent += 1;
    }
    playout.pull(out, QUANTUM);
    pulled += QUANTUM;
    const newest = out[QUANTUM - 1];
    const counts = pulled % (8 * QUANTUM) === 0; // every 21 ms
    if (counts && newest > 0 && playout.playing && playout.fade === 0) delays.push([now, now - newest]);
  }
  return { playout, delays };
}

function mean(delays, from, to) {
  let [sum, count] = [0, 0];
  for (const [time, delay] of delays) {
    if (time >= from && time < to) [sum, count] = [sum + delay, count + 1];
  }
  return sum / count;
}

for (const drift of [1e-4, -1e-4]) {
  test(`in 30 minutes with clock drift ${drift} the delay grows by 20 ms at most`, () => {
    const { delays, playout } = simulate({ seconds: 1800, drift });
    const first = mean(delays, 5, 65);
    for (let minute = 2; minute < 30; minute++) {
      const later = mean(delays, 60 * minute, 60 * minute + 60);
      assert.ok(later - first <= 0.02, `minute ${minute}: ${first} s became ${later} s`);
    }
    assert.ok(playout.counts.underruns <= 8, `${playout.counts.underruns} gaps`);
    assert.equal(playout.counts.jumps, 0);
  });
}

test("30 minutes of 0–80 ms of jitter: the delay stays, and gaps become rare", () => {
  const roll = random(7);
  const jitter = [];
  const late = (i) => (jitter[i] ??= roll() * 80);
  const { delays, playout } = simulate({ seconds: 1800, late });
  const first = mean(delays, 60, 180);
  const last = mean(delays, 1680, 1800);
  assert.ok(last - first <= 0.02, `${first} s became ${last} s`);
  assert.ok(playout.counts.underruns < 60, `${playout.counts.underruns} gaps in 30 minutes`);
});

for (const jitter of [0, 80]) {
  test(`a stall of 1 s with ${jitter} ms of jitter is forgotten within 5 s`, () => {
    const roll = random(3);
    const jitters = [];
    const late = (i, made) => {
      jitters[i] ??= roll() * jitter;
      return made > 30 && made < 31 ? Math.max(jitters[i], (31 - made) * 1000) : jitters[i];
    };
    const { delays } = simulate({ seconds: 60, late });
    const before = mean(delays, 20, 30);
    const after = mean(delays, 36, 40);
    assert.ok(after - before <= 0.03, `${before} s before, ${after} s after`);
  });
}

test("it starts with 20 ms queued, and 40 ms after that", () => {
  const playout = new Playout();
  const out = new Float32Array(240);
  playout.push(new Float32Array(470).fill(0.5)); // less than 20 ms
  for (let i = 0; i < 20; i++) playout.pull(out, 240);
  assert.equal(playout.playing, false);
  playout.push(new Float32Array(1920).fill(0.5));
  let waited = 0;
  while (!playout.playing) {
    playout.pull(out, 240);
    waited += 10;
  }
  assert.equal(waited, 50); // the fifth pull, 40 ms after the first that saw enough
});

test("a gap is silence, is counted, and makes the next start wait 20 ms longer", () => {
  const playout = new Playout();
  const out = new Float32Array(240);
  playout.push(new Float32Array(1920).fill(0.5));
  for (let i = 0; i < 20; i++) playout.pull(out, 240);
  assert.equal(playout.counts.underruns, 1);
  assert.ok(out.every((sample) => sample === 0));
  playout.push(new Float32Array(1920).fill(0.5));
  playout.pull(out, 240);
  assert.equal(playout.hold, 60 * 24);
});

test("the hold never grows beyond 200 ms", () => {
  const playout = new Playout();
  const out = new Float32Array(240);
  for (let i = 0; i < 40; i++) {
    playout.push(new Float32Array(1920).fill(0.5));
    for (let k = 0; k < 30; k++) playout.pull(out, 240);
  }
  assert.ok(playout.hold <= 200 * 24);
});

test("more than 600 ms in the queue: it jumps to the newest, once", () => {
  const playout = new Playout();
  for (let i = 0; i < 8; i++) playout.push(new Float32Array(1920).fill(i / 10));
  assert.equal(playout.counts.jumps, 1);
  assert.ok(playout.queuedMs < 100);
});

test("a steady tone stays steady where a piece is taken out", () => {
  const playout = new Playout();
  const out = new Float32Array(QUANTUM);
  let [phase, worst, before] = [0, 0, 0];
  const tone = () => Float32Array.from({ length: FRAME }, () => Math.sin((phase += 0.05)));
  for (let i = 0; i < 5; i++) playout.push(tone()); // 400 ms: far too much
  for (let i = 0; i < 3000; i++) {
    if (i % 30 === 0) playout.push(tone());
    playout.pull(out, QUANTUM);
    for (const sample of out) {
      if (i > 200) worst = Math.max(worst, Math.abs(sample - before)); // the first fade-in is over
      before = sample;
    }
  }
  assert.ok(playout.counts.trims > 5);
  assert.ok(worst < 0.15, `a step of ${worst} at a seam`); // the tone itself steps by 0.05
});

// -- marks: when a word's sound is heard ---------------------------------------------------------------

function marked() {
  const passed = [];
  const playout = new Playout((mark, at) => passed.push([mark, at]));
  return { playout, passed, pull: (count) => playout.pull(new Float32Array(count), count) };
}

test("a mark is passed when the sample after it is played, not when it came", () => {
  const { playout, passed, pull } = marked();
  playout.push(new Float32Array(FRAME));
  playout.mark(1);
  playout.push(new Float32Array(FRAME).fill(0.5));
  while (!playout.playing) pull(QUANTUM);
  assert.deepEqual(passed, []);
  const startedAt = playout.clock - QUANTUM;
  while (passed.length === 0) pull(QUANTUM);
  assert.deepEqual(passed, [[1, startedAt + FRAME]]);
});

test("a mark waits through a gap for its own sound", () => {
  const { playout, passed, pull } = marked();
  playout.push(new Float32Array(FRAME));
  for (let i = 0; i < 100; i++) pull(QUANTUM); // played out
  playout.mark(7);
  for (let i = 0; i < 100; i++) pull(QUANTUM);
  assert.deepEqual(passed, []);
  playout.push(new Float32Array(FRAME));
  for (let i = 0; i < 200 && passed.length === 0; i++) pull(QUANTUM);
  assert.equal(passed[0][0], 7);
  assert.ok(passed[0][1] > 200 * QUANTUM);
});

test("marks on sound that is skipped are passed at the next sound that is heard, in order", () => {
  const { playout, passed, pull } = marked();
  for (let i = 0; i < 8; i++) {
    playout.mark(i);
    playout.push(new Float32Array(FRAME)); // 640 ms: more than the queue keeps
  }
  playout.mark(8);
  playout.push(new Float32Array(FRAME));
  for (let i = 0; i < 500 && passed.length < 9; i++) pull(QUANTUM);
  assert.deepEqual(passed.map(([mark]) => mark), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
  assert.equal(passed[0][1], passed[7][1]);
  assert.ok(passed[8][1] > passed[0][1]);
});

test("what is cleared passes its marks at once", () => {
  const { playout, passed } = marked();
  playout.push(new Float32Array(FRAME));
  playout.mark(3);
  playout.clear();
  assert.deepEqual(passed, [[3, 0]]);
});
