import assert from "node:assert/strict";
import test from "node:test";

import { FORMATS, cues, describeCall } from "../../../demo/page/static/downloads.js";
import { Recorder, wavHeader } from "../../../demo/page/static/recorder.js";
import { Transcript, wordsOf } from "../../../demo/page/static/transcript.js";

const ABOUT = describeCall({
  info: { model: "org/model-7b", voice: "NATF2" },
  settings: { voice: "", persona: "You are --> a <pirate>.", seed: 7 },
  startedAt: new Date("2026-11-27T10:00:00Z"),
}, "Custom");

/** What somebody who talks without a stop makes of it, while the agent talks, too. */
function monologue() {
  const made = new Transcript(() => {}, () => {});
  for (let i = 0; i < 120; i++) made.text(i % 3 ? " word" : " considerable", 1 + i * 0.25);
  for (let i = 0; i < 10; i++) {
    const start = 2 + i * 3;
    made.event({ type: "user_text", text: "I speak at the same time, quite a lot of words at once.", start, end: start + 2.9, final: true });
  }
  made.text(` ${"x".repeat(200)}`, 40);
  return made.turns;
}

const seconds = (stamp) => stamp.split(/[:,.]/).reduce((sum, part, i) => sum + Number(part) * [3600, 60, 1, 0.001][i], 0);

test("no subtitle has more than two lines of 42 characters, and none overlaps the next", () => {
  for (const [format, point] of [["srt", ","], ["vtt", "."]]) {
    const written = FORMATS[format].write(monologue(), ABOUT);
    const blocks = written.split("\n\n").filter((block) => block.includes(" --> ") && !block.startsWith("NOTE"));
    assert.ok(blocks.length > 10);
    let last = 0;
    for (const block of blocks) {
      const lines = block.split("\n");
      const at = lines.findIndex((line) => /^\d\d:.* --> /.test(line));
      const shown = lines.slice(at + 1).map((line) => line.replace(/^<v \w+>/, ""));
      assert.ok(shown.length <= 2, block);
      for (const line of shown) assert.ok(line.length <= 42, line);
      const [start, end] = lines[at].split(" --> ").map(seconds);
      assert.ok(start >= last && end >= start, `${block} after ${last} (${point})`);
      last = end;
    }
  }
});

test("a subtitle begins with its first word, and every word is in one", () => {
  const all = cues(monologue());
  const agents = all.filter(({ who }) => who === "Agent");
  assert.equal(agents[0].start, 1);
  const words = agents.flatMap(({ text }) => text.replace(/\n/g, " ").split(" ")).filter((word) => word === "considerable");
  assert.equal(words.length, 40);
});

test("every file says model, voice, persona, seed and date", () => {
  for (const [format, { write }] of Object.entries(FORMATS)) {
    const written = write(monologue(), ABOUT).replace(/\n/g, " ");
    const wanted = ["NATF2", "Custom", "7", "2026-11-27T10:00:00"];
    for (const one of wanted) assert.ok(written.includes(one), `${format}: ${one}`);
    assert.ok(/model-7b/.test(written), format);
  }
  const header = new TextDecoder("latin1").decode(wavHeader(0, ABOUT));
  for (const one of ["LIST", "ICMT", "model: org/model-7b", "voice: NATF2", "seed: 7", "ICRD"]) assert.ok(header.includes(one), one);
});

test("a role in a VTT note cannot end it", () => {
  assert.ok(!FORMATS.vtt.write([], ABOUT).includes("--> a"));
});

test("words are whole, each with the second in which it began", () => {
  const made = new Transcript(() => {}, () => {});
  for (const [piece, t] of [[" Hel", 1], ["lo", 1.1], [" there.", 1.5]]) made.text(piece, t);
  assert.deepEqual(wordsOf(made.turns[0]), [{ text: "Hello", t: 1 }, { text: "there.", t: 1.5 }]);
  made.event({ type: "user_text", text: "Aa bb", start: 4, end: 6, final: true });
  assert.deepEqual(wordsOf(made.turns[1]), [{ text: "Aa", t: 4 }, { text: "bb", t: 5 }]);
});

test("the recording pairs both sides and keeps the loudest of each tenth of a second", async () => {
  const recorder = new Recorder(false);
  const chunk = (level) => new Float32Array(480).fill(level);
  for (let i = 0; i < 10; i++) recorder.agent(chunk(i / 10));
  for (let i = 0; i < 12; i++) recorder.user(chunk(-0.5)); // two more: their agent has not come yet
  assert.equal(recorder.seconds.toFixed(3), "0.200");
  assert.deepEqual(recorder.bars.map((side) => side.map((one) => one.toFixed(1))), [["0.4", "0.9"], ["0.5", "0.5"]]);
  const bytes = new DataView(await (await recorder.wav({ title: "x" })).arrayBuffer());
  assert.equal(bytes.getUint32(4, true), bytes.byteLength - 8);
  assert.equal(bytes.byteLength % 2, 0);
  assert.deepEqual([bytes.getInt16(bytes.byteLength - 4, true), bytes.getInt16(bytes.byteLength - 2, true)], [29490, -16383]);
});
