// Who spoke when: gaps before answers, overlaps, and the bars of the strip.

import assert from "node:assert/strict";
import test from "node:test";

import { BAR, STEP, Timeline } from "../../../demo/page/static/timeline.js";

const [LOUD, QUIET] = [0.2, 0.0005];

// "u 500" the user speaks for 500 ms, "a 300" the agent, "b" both, "-" nobody.
function play(...parts) {
  const timeline = new Timeline();
  for (const part of parts) {
    const [who, ms] = part.split(" ");
    for (let i = 0; i < Number(ms) / STEP; i++) {
      timeline.hearUser(who === "u" || who === "b" ? LOUD : QUIET);
      timeline.hearAgent(who === "a" || who === "b" ? LOUD : QUIET);
    }
  }
  return timeline;
}

const TALKS = [
  ["you stop, it begins", ["u 1000", "- 320", "a 1000"], [320]],
  ["at once", ["u 1000", "- 40", "a 1000"], [40]],
  ["it greets, nobody has spoken", ["- 500", "a 1000"], []],
  ["it pauses within its own turn", ["u 1000", "- 300", "a 1000", "- 600", "a 1000"], [300]],
  ["both talk, and it goes on when you stop", ["a 1000", "b 800", "a 1000"], []],
  ["it begins while you talk", ["u 1000", "b 500", "u 500"], []],
  ["you interrupt, it stops, and answers", ["a 1000", "b 300", "u 1000", "- 400", "a 500"], [400]],
  ["an uh-huh while it pauses is answered by its going on", ["a 1000", "- 500", "u 200", "- 200", "a 500"], [200]],
  ["you pause within your turn", ["u 600", "- 200", "u 600", "- 500", "a 500"], [500]],
  ["so late that it is no answer", ["u 600", "- 9000", "a 500"], []],
  ["you only drew breath", ["u 1000", "- 100", "a 100", "b 500", "a 500"], []],
  ["two turns", ["u 600", "- 300", "a 500", "- 800", "u 500", "- 440", "a 500"], [300, 440]],
];
for (const [name, parts, gaps] of TALKS) {
  test(`gaps: ${name}`, () => {
    assert.deepEqual(play(...parts).gaps.map(({ ms }) => Math.round(ms / STEP) * STEP), gaps);
  });
}

test("a gap lies where it was heard, in seconds of the recording", () => {
  const [gap] = play("- 1000", "u 1000", "- 500", "a 500").gaps;
  assert.ok(Math.abs(gap.from - 2) < 0.03 && Math.abs(gap.to - 2.5) < 0.03, JSON.stringify(gap));
});

test("interruptions are counted once each", () => {
  assert.equal(play("a 1000", "b 300", "a 600", "- 500", "a 600", "b 400", "u 600").overlaps, 2);
});

test("who speaks is known at once, and for 350 ms after", () => {
  const timeline = play("u 20");
  assert.equal(timeline.user.talking, true);
  assert.equal(play("u 200", "- 320").user.talking, true);
  assert.equal(play("u 200", "- 380").user.talking, false);
});

test("the noise of a room is not speech", () => {
  const timeline = new Timeline();
  let talked = 0;
  for (let i = 0; i < 3000; i++) {
    timeline.hearUser(0.006 + 0.002 * Math.sin(i));
    timeline.hearAgent(0);
    talked += timeline.user.talking ? 1 : 0;
  }
  assert.equal(talked, 0);
});

test("a louder room is learned within half a minute", () => {
  const timeline = new Timeline();
  for (let i = 0; i < 1500; i++) {
    timeline.hearUser(0.02);
    timeline.hearAgent(0);
  }
  assert.equal(timeline.user.talking, false);
});

test("twenty seconds of bars are kept, and which of them are both", () => {
  const timeline = play(...new Array(30).fill(["u 900", "- 100"]).flat(), "b 1000", "a 1000");
  assert.equal(timeline.bars.length, 20_000 / STEP / BAR);
  const both = timeline.bars.filter((bar) => bar.both).length * BAR * STEP;
  assert.ok(both >= 1000 && both <= 1500, `${both} ms`);
});

test("an answer at once is a gap, and no moment of it counts as both talking", () => {
  for (const gap of [0, 40, 200, 340]) {
    const timeline = play("u 1000", `- ${gap}`, "a 1000");
    assert.deepEqual(timeline.bars.filter((bar) => bar.both), [], `${gap} ms`);
  }
});

test("one side that is late does not shift the other", () => {
  const timeline = new Timeline();
  for (let i = 0; i < 50; i++) timeline.hearUser(LOUD);
  assert.equal(timeline.steps, 0);
  for (let i = 0; i < 50; i++) timeline.hearAgent(QUIET);
  assert.equal(timeline.steps, 50);
});
