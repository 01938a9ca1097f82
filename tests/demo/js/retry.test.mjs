import assert from "node:assert/strict";
import test from "node:test";

import { Retry } from "../../../demo/page/static/retry.js";

function retry() {
  const clock = { now: 0 };
  return { clock, rule: new Retry(() => clock.now, () => 0.5) };
}

const END = (kind) => ({ kind, text: "" });

for (const kind of ["idle", "time limit", "closing", "unauthorized", "bad parameter", "bad audio",
  "too fast", "internal error"]) {
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
