import assert from "node:assert/strict";
import test from "node:test";

import { FORMATS } from "../../../demo/page/static/downloads.js";
import { Transcript } from "../../../demo/page/static/transcript.js";

function transcript() {
  const seen = { queue: [], order: [] };
  const made = new Transcript(
    (turn, before) => { seen.order.push([turn.text, before?.text ?? null]); },
    (list) => { seen.queue = list.map((one) => one.text); });
  return { made, seen };
}

const say = (id, state, text = "", spoken = "") => ({ type: "say", id, state, text, spoken, t: 0 });
const shape = (turns) => turns.map(({ who, kind, text }) => [who, kind, text]);

test("pieces grow one turn; a pause opens the next", () => {
  const { made } = transcript();
  made.text(" Hel", 0.1);
  made.text("lo", 0.2);
  made.text(" again", 6);
  assert.deepEqual(shape(made.turns), [["agent", "own", "Hello"], ["agent", "own", "again"]]);
  assert.deepEqual([made.turns[0].start, made.turns[0].end], [0.1, 0.2]);
});

test("given words stand apart from the agent's own", () => {
  const { made, seen } = transcript();
  made.text(" Well", 0.1);
  made.event(say(1, "queued", "Hi there."));
  assert.deepEqual(seen.queue, ["Hi there."]);
  made.event(say(1, "speaking", "Hi there."));
  assert.deepEqual(seen.queue, []);
  made.text(" Hi", 0.4);
  made.text(" there.", 0.6);
  made.event(say(1, "done", "Hi there.", "Hi there."));
  made.text(" So", 0.9);
  assert.deepEqual(shape(made.turns), [
    ["agent", "own", "Well"], ["agent", "given", "Hi there."], ["agent", "own", "So"]]);
});

test("two texts said one after the other are two turns", () => {
  const { made } = transcript();
  for (const id of [1, 2]) {
    made.event(say(id, "speaking", "Yes."));
    made.text(" Yes.", id / 10);
    made.event(say(id, "done", "Yes.", "Yes."));
  }
  assert.equal(made.turns.length, 2);
});

test("what was cut off is kept apart, and what never began leaves only the queue", () => {
  const { made, seen } = transcript();
  made.event(say(1, "speaking", "One two three."));
  made.event(say(2, "queued", "Later."));
  made.text(" One", 0.1);
  made.event(say(1, "cancelled", "One two three.", "One two"));
  made.event(say(2, "cancelled", "Later.", ""));
  assert.equal(made.turns[0].cut, " three.");
  assert.equal(made.turns.length, 1);
  assert.deepEqual(seen.queue, []);
});

test("the user's words grow in place and stand where they were said", () => {
  const { made } = transcript();
  made.text(" Hello.", 0.5);
  made.event({ type: "user_text", text: "What", start: 2, end: 2.2, final: false });
  made.text(" Mm", 2.5);
  made.event({ type: "user_text", text: "What is it?", start: 2, end: 3, final: true });
  made.event({ type: "user_text", text: "Tell me.", start: 4, end: 5, final: true });
  assert.deepEqual(shape(made.turns), [
    ["agent", "own", "Hello."], ["user", "heard", "What is it?"], ["agent", "own", "Mm"],
    ["user", "heard", "Tell me."]]);
});

test("words that come late stand before what was said after them", () => {
  const { made, seen } = transcript();
  made.text(" Hello.", 5);
  made.event({ type: "user_text", text: "Hi", start: 2, end: 2.2, final: true });
  assert.deepEqual(shape(made.turns), [["user", "heard", "Hi"], ["agent", "own", "Hello."]]);
  assert.deepEqual(seen.order.at(-1), ["Hi", "Hello."]);
});

test("a question shows that it is being checked, then the answer and where it is from", () => {
  const { made } = transcript();
  const route = (state, more = {}) => made.event({
    type: "route", id: 4, state, question: "How much?", source: "client", knowledge: true, t: 1, ...more });
  route("asking");
  assert.equal(made.turns[0].state, "checking…");
  route("answering");
  made.event(say(7, "speaking", "Fourteen dollars."));
  made.text(" Fourteen", 2);
  assert.equal(made.turns[1].kind, "answer");
  assert.equal(made.turns[1].mark, "from the product facts");
  made.event(say(7, "done", "Fourteen dollars.", "Fourteen dollars."));
  route("done");
  assert.equal(made.turns[0].state, "");
});

test("a question that was heard is not written twice", () => {
  const { made } = transcript();
  made.event({ type: "user_text", text: "How much?", start: 1, end: 2, final: true });
  made.event({ type: "route", id: 1, state: "asking", question: "How much?", t: 2 });
  made.event({ type: "route", id: 1, state: "failed", question: "How much?", reason: "no answer in time", t: 3 });
  assert.equal(made.turns.length, 1);
  assert.equal(made.turns[0].state, "no answer found: the answer took too long");
});

test("a question whose words nobody knows says so", () => {
  const { made } = transcript();
  made.event({ type: "route", id: 1, state: "asking", question: "", t: 2 });
  made.event({ type: "route", id: 1, state: "stale", question: "", reason: "interrupted", t: 3 });
  assert.equal(made.turns[0].text, "(words that were not transcribed)");
  assert.equal(made.turns[0].state, "no longer needed: you spoke");
});

test("an answer of which words were heard was interrupted, and not unneeded", () => {
  const { made } = transcript();
  const route = { type: "route", id: 4, question: "How much?", knowledge: true, t: 3 };
  made.event({ ...route, state: "asking" });
  made.event({ ...route, state: "answering" });
  made.event({ type: "say", id: 9, state: "speaking", text: "Fourteen dollars a month.", t: 4 });
  made.text(" Fourteen dollars", 4.1);
  made.event({ type: "say", id: 9, state: "cancelled", text: "Fourteen dollars a month.", spoken: "Fourteen dollars", t: 5 });
  made.event({ ...route, state: "stale", reason: "interrupted", t: 5 });
  assert.equal(made.turns[0].state, "interrupted");
  made.event({ ...route, id: 5, state: "asking", t: 6 });
  made.event({ ...route, id: 5, state: "stale", reason: "another question", t: 7 });
  assert.match(made.turns.at(-1).state, /no longer needed/);
});

test("a new conversation goes on below the old one", () => {
  const { made } = transcript();
  made.text(" One", 10);
  made.restart("connection lost");
  made.text(" Two", 12);
  assert.deepEqual(made.turns.map((turn) => turn.text), ["One", "connection lost", "Two"]);
  assert.equal(made.turns[2].start, 12);
});

test("a line that is lost four times in a row, with nothing said between, is noted once", () => {
  const { made } = transcript();
  made.text(" One", 10);
  for (let i = 0; i < 4; i++) made.restart("connection lost");
  made.text(" Two", 12);
  made.restart("connection lost");
  assert.deepEqual(made.turns.map((turn) => turn.text), ["One", "connection lost", "Two", "connection lost"]);
});

const TURNS = (() => {
  const { made } = transcript();
  made.text(" Hello <you>.", 1.25);
  made.event(say(1, "speaking", "One two"));
  made.text(" One", 3);
  made.event(say(1, "cancelled", "One two", "One"));
  made.event({ type: "user_text", text: "Stop", start: 62, end: 63.5, final: true });
  return made.turns;
})();

const ABOUT = { model: "m", voice: "v", persona: "p", seed: "1", date: "d" };

test("as text", () => {
  assert.ok(FORMATS.txt.write(TURNS, ABOUT).endsWith(
    "\n\n[00:00:01] Agent: Hello <you>.\n[00:00:03] Agent: One [cut off: two]\n[00:01:02] You: Stop\n"));
});

test("as SRT", () => {
  assert.ok(FORMATS.srt.write(TURNS, ABOUT).startsWith(
    "1\n00:00:01,250 --> 00:00:02,250\nAgent: Hello <you>.\n\n2\n00:00:03,000 --> "));
});

test("as WebVTT, with its own signs escaped", () => {
  const vtt = FORMATS.vtt.write(TURNS, ABOUT);
  assert.ok(vtt.startsWith("WEBVTT\n\nNOTE\nmodel: m\n"));
  assert.ok(vtt.includes("00:00:01.250 --> 00:00:02.250\n<v Agent>Hello &lt;you&gt;.\n"));
  assert.ok(vtt.includes("00:01:02.000 --> 00:01:03.500\n<v You>Stop"));
});

test("as JSON, with the times of both sides", () => {
  const { turns } = JSON.parse(FORMATS.json.write(TURNS, ABOUT));
  const { words, ...stop } = turns[2];
  assert.deepEqual(stop, { who: "user", kind: "heard", text: "Stop", cut: "", start: 62, end: 63.5 });
  assert.deepEqual(words, [{ text: "Stop", t: 62 }]);
  assert.equal(turns[1].cut, "two");
});
