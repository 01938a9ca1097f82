import assert from "node:assert/strict";
import test from "node:test";

import { CHECK_EVERY, Pulse, Retry } from "../../../demo/page/static/retry.js";

function retry() {
  const clock = { now: 0 };
  return { clock, rule: new Retry(() => clock.now, () => 0.5) };
}

const END = (kind) => ({ kind, text: "" });

for (const kind of ["idle", "time limit", "closing", "unauthorized", "bad parameter", "bad audio",
  "too fast", "internal error", "gone"]) {
  test(`after "${kind}" it stays closed`, () => {
    const { rule } = retry();
    rule.live();
    assert.equal(rule.after(END(kind)), null);
  });
}

test("a drop during a conversation is repaired, with longer and longer waits", () => {
  const { rule, clock } = retry();
  rule.live();
  const waits = [];
  for (let i = 0; i < 6; i++) {
    const { why, wait } = rule.after(null);
    assert.equal(why, "dropped");
    waits.push(wait);
    clock.now += wait;
  }
  assert.deepEqual(waits, [500, 1000, 2000, 4000, 8000, 10000]);
});

test("a failure before any conversation is no drop", () => {
  assert.equal(retry().rule.after(null), null);
});

for (const [name, end] of [["busy", END("busy")], ["a drop", null]]) {
  test(`after three minutes of ${name} it gives up`, () => {
    const { rule, clock } = retry();
    rule.live();
    let again = rule.after(end);
    while (again) {
      clock.now += again.wait;
      again = rule.after(end);
    }
    assert.ok(clock.now > 165_000 && clock.now <= 180_000, `${clock.now} ms`);
  });
}

test("busy waits 2 to 3 s, at random", () => {
  for (const roll of [0, 0.5, 0.999]) {
    const { wait } = new Retry(() => 0, () => roll).after(END("busy"));
    assert.ok(wait >= 2000 && wait <= 3000);
  }
});

test("a server that drops us right after each handshake does not keep us for ever", () => {
  const { rule, clock } = retry();
  rule.live();
  let again = rule.after(null);
  while (again) {
    clock.now += again.wait;
    rule.live();
    clock.now += 50;
    again = rule.after(null);
  }
  assert.ok(clock.now <= 181_000);
});

test("after a steady conversation a new drop starts anew", () => {
  const { rule, clock } = retry();
  rule.live();
  rule.after(null);
  rule.after(null);
  clock.now += 1000;
  rule.live();
  clock.now += 60_000;
  assert.equal(rule.after(null).wait, 500);
});

// -- the pulse of a line --------------------------------------------------------------------------------

// Looks every CHECK_EVERY ms; what the line is after each look.
function watch(seconds, { audio = () => true, flowing = () => true, asked = () => false } = {}) {
  const pulse = new Pulse();
  const signs = [];
  for (let now = 0; now <= seconds * 1000; now += CHECK_EVERY) {
    if (audio(now)) pulse.audio(now);
    signs.push([now, pulse.look(now, flowing(now), asked(now))]);
  }
  return signs;
}
const first = (signs, wanted) => signs.find(([, sign]) => sign === wanted)?.[0];

test("a line with audio is steady", () => {
  assert.ok(watch(60).every(([, sign]) => sign === "steady"));
});

test("without audio it stutters within 1.5 s and is dead after 5", () => {
  const signs = watch(10, { audio: (now) => now < 2000 });
  const lastHeard = 2000 - CHECK_EVERY;
  assert.ok(first(signs, "stutter") - lastHeard >= 1000 && first(signs, "stutter") - lastHeard <= 1500);
  assert.ok(first(signs, "dead") - lastHeard >= 5000 && first(signs, "dead") - lastHeard <= 5500);
});

test("when audio comes back in time it is steady again", () => {
  const signs = watch(10, { audio: (now) => now < 2000 || now > 5000 });
  assert.equal(first(signs, "dead"), undefined);
  assert.equal(signs.at(-1)[1], "steady");
});

test("where nothing is sent no audio is owed, and a ping without an answer is what counts", () => {
  const quiet = { audio: () => false, flowing: () => false };
  assert.ok(watch(60, quiet).every(([, sign]) => sign === "steady"));
  const dead = first(watch(60, { ...quiet, asked: (now) => now >= 4000 }), "dead");
  assert.ok(dead >= 8500 && dead <= 9500, `${dead}`);
});

test("a page that slept an hour does not call the line dead before it has listened", () => {
  const pulse = new Pulse();
  pulse.look(0, true, false);
  assert.notEqual(pulse.look(3_600_000, true, false), "dead");
  pulse.audio(3_600_100);
  assert.equal(pulse.look(3_600_250, true, false), "steady");
});
