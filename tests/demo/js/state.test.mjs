// The state of a call: which event leads where, what is shown of all that is true, and how long.

import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import test from "node:test";

import { CallState, Steady, TABLE } from "../../../demo/page/static/state.js";
import { ENDS } from "../../../demo/page/static/protocol.js";
import { closingNotice, describe, refusal, whyUnanswered } from "../../../demo/page/static/status.js";

const ENGINE = new URL("../../../engine", import.meta.url).pathname;

function after(...events) {
  const state = new CallState();
  for (const event of events) {
    const [name, facts] = Array.isArray(event) ? event : [event, {}];
    assert.ok(state.on(name, facts), `${state.phase} knows no ${name}`);
  }
  return state;
}
const live = (facts = {}) => {
  const state = after("start", "allowed", "live");
  state.tell({ microphone: true, ...facts });
  return state;
};

const WAYS = [
  [[], "ready"],
  [["start"], "permission"],
  [["start", "allowed"], "calling"],
  [["start", "allowed", "waking"], "waking"],
  [["start", "allowed", "busy"], "waiting"],
  [["start", "allowed", "busy", "busy", "busy"], "waiting"],
  [["start", "allowed", "busy", "live"], "listening"],
  [["start", "allowed", "waking", "live"], "listening"],
  [["start", "allowed", "live", "stutter"], "unstable"],
  [["start", "allowed", "live", "stutter", "steady"], "listening"],
  [["start", "allowed", "live", "stutter", "lost"], "reconnecting"],
  [["start", "allowed", "live", "lost", "lost", "live"], "listening"],
  [["start", "allowed", "live", "lost", "end"], "ended"],
  [["start", "end", "start"], "permission"],
];
for (const [events, face] of WAYS) {
  test(`${events.join(", ") || "at first"}: ${face}`, () => {
    const state = after(...events);
    state.tell({ microphone: true });
    assert.equal(state.face, face);
  });
}

test("an event that a phase does not know changes nothing and tells nobody", () => {
  const events = [...new Set(Object.values(TABLE).flatMap((row) => Object.keys(row)))];
  for (const [phase, row] of Object.entries(TABLE)) {
    for (const event of events.filter((name) => !(name in row))) {
      const state = new CallState(() => assert.fail("told"));
      state.phase = phase;
      const before = JSON.stringify(state.facts);
      assert.equal(state.on(event, { reason: "x", muted: true }), false, `${phase}: ${event}`);
      assert.equal(state.phase, phase);
      assert.equal(JSON.stringify(state.facts), before);
    }
  }
});

test("from every phase of a call one can end it, and from no other", () => {
  for (const [phase, row] of Object.entries(TABLE)) {
    const state = new CallState();
    state.phase = phase;
    assert.equal(state.calling, "end" in row, phase);
  }
});

test("after the end nothing but a new start happens", () => {
  assert.deepEqual(Object.keys(TABLE.ended), ["start"]);
});

// Every combination of what can be true at once in a call, and what is shown of it.
const FACTS = ["sound", "microphone", "muted", "paused", "user", "agent", "question"];
const expected = ({ sound, microphone, muted, paused, user, agent, question }) =>
  !sound ? "silenced" : paused ? "paused" : user && agent ? "both" : agent ? "speaking"
    : question ? "looking" : !microphone ? "deaf" : muted ? "muted" : "listening";

test("of everything that can be true at once one thing is shown", () => {
  for (let bits = 0; bits < 2 ** FACTS.length; bits++) {
    const facts = Object.fromEntries(FACTS.map((name, i) => [name, Boolean(bits & (1 << i))]));
    const state = live({ ...facts, question: facts.question ? "how much?" : null });
    assert.equal(state.face, expected(facts), JSON.stringify(facts));
    const { word, sentence } = describe(state);
    assert.ok(word && sentence, state.face);
  }
});

test("paused and muted does not claim to listen; paused alone does", () => {
  assert.match(describe(live({ paused: true })).sentence, /keeps listening/);
  for (const facts of [{ muted: true }, { microphone: false }]) {
    assert.match(describe(live({ paused: true, ...facts })).sentence, /does not hear you/);
  }
});

test("a lost line is never shown as a live one, whatever else is true", () => {
  for (const event of ["stutter", "lost", "end"]) {
    const state = live({ muted: true, user: true, agent: true, question: "x" });
    state.on(event);
    assert.ok(["unstable", "reconnecting", "ended"].includes(state.face));
  }
});

test("a lost conversation is called kept only where the server keeps it", () => {
  for (const [kept, says] of [[true, /is kept/], [false, /new conversation/]]) {
    const state = live();
    state.on("lost", { kept });
    assert.match(describe(state).sentence, says);
    state.on("lost", { kept: false }); // a second try
    assert.doesNotMatch(describe(state).sentence, /is kept/);
  }
});

test("a new call forgets what was true of the last", () => {
  const state = live({ muted: true, paused: true, question: "x" });
  state.on("end", { reason: "idle", text: "nobody spoke" });
  state.on("start");
  assert.deepEqual([state.facts.muted, state.facts.paused, state.facts.question, state.facts.reason], [false, false, null, ""]);
});

test("a pause lasts over a lost line", () => {
  const state = live({ paused: true });
  state.on("lost");
  state.on("live");
  assert.equal(state.face, "paused");
});

test("whoever is told the same again is not told", () => {
  let told = 0;
  const state = new CallState(() => { told += 1; });
  state.tell({ muted: true });
  state.tell({ muted: true });
  assert.equal(told, 1);
});

// -- what a server says is for programs; the page has its own words ---------------------------------------

const OWN_ENDS = ["hung up", "dropped", "unreachable", "this page failed"];
const PROTOCOL = /0x0|PERSONAPLEX|resume|voice_prompt|text_prompt|connect with|token=|http|\bsocket\b|log\b|_|[{}]/i;
const PLAIN = /^[A-Z“].*[.”]$/;

function endedBy(reason, text = "") {
  return describe(after("start", ["end", { reason, text }])).sentence;
}

/** Everything that the engine's own code gives to an error of this class, its placeholders as they are. */
function sentencesOf(name) {
  const files = readdirSync(ENGINE, { recursive: true }).filter((file) => file.endsWith(".py"));
  const said = new RegExp(`${name}\\(\\s*f?(?:"([^"]+)"|'([^']+)')`, "g");
  const found = files.flatMap((file) => [...readFileSync(`${ENGINE}/${file}`, "utf-8").matchAll(said)]);
  return found.map(([, one, other]) => one ?? other);
}

test("every end has its own plain sentence", () => {
  const sentences = [...ENDS, ...OWN_ENDS].map((reason) => endedBy(reason));
  assert.equal(new Set(sentences).size, ENDS.length + OWN_ENDS.length);
  for (const one of sentences) assert.match(one, PLAIN);
});

test("no word of the protocol reaches a user, whatever the server says at the end", () => {
  const nasty = "connect without resume; set PERSONAPLEX_TOKEN, send 0x07 to http://host/api?token=…";
  for (const kind of [...ENDS, ...OWN_ENDS, "a newer kind"]) {
    for (const text of [nasty, `voice_prompt is x; ${nasty}`, `1a2b3c4d; ${nasty}`]) assert.doesNotMatch(endedBy(kind, text), PROTOCOL);
  }
  const classes = { GoneError: "gone", BusyError: "busy", BadParameterError: "bad parameter", BadAudioError: "bad audio",
    TooFastError: "too fast", IdleError: "idle", UnauthorizedError: "unauthorized", InternalError: "internal error" };
  for (const [name, kind] of Object.entries(classes)) {
    for (const said of sentencesOf(name)) assert.doesNotMatch(endedBy(kind, said), PROTOCOL, said);
  }
  assert.ok(sentencesOf("BadParameterError").length > 5, "the engine's code is where it is looked for");
});

test("what to change is named, and by which number the server's log knows a fault", () => {
  assert.match(endedBy("bad parameter", "seed is 99999999999; use -1 (random) or 0 to 5"), /this seed/);
  assert.match(endedBy("bad parameter", "voice 'Bob' not found; try NATF0"), /this voice/);
  assert.match(endedBy("internal error", "1a2b3c4d; the server's log has the details"), /error 1a2b3c4d\./);
  assert.doesNotMatch(endedBy("gone"), /quiet/);
});

test("each refusal that the page can meet has a sentence of its own", () => {
  const all = ["say: 10 texts are waiting already; wait for one, or cancel", "say: nothing in this text can be spoken; send words",
    ...sentencesOf("RefusedError").filter((said) => /^(say|ask|set): /.test(said))]
    .map((said) => said.replace(/\{self\.limit\}/, "10"))
    .filter((said) => !/not UTF-8|mode is|smart routing is off on this server/.test(said)); // no page sends these
  assert.ok(all.length > 8, all.join("\n"));
  for (const said of all) {
    assert.notEqual(refusal(said), refusal("what nobody knows"), said);
    assert.match(refusal(said), PLAIN);
    assert.doesNotMatch(refusal(said), PROTOCOL);
  }
});

test("why a question has no answer is said plainly, and what is unknown is not said", () => {
  const reasons = ["no key", "no transcript", "no connection", "no answer in time", "cut off", "empty answer", "invalid answer",
    "key refused (401)", "no credit (402)", "request refused (418)", "service busy (503)", "paused after failures",
    "interrupted", "another question", "switched off", "restart"]; // docs/api.md
  for (const reason of reasons) assert.match(whyUnanswered(reason), /^[a-z][^0-9()]+[a-z]$/, reason);
  assert.equal(whyUnanswered("internal error"), "");
});

test("the server's coming end is announced in the page's words", () => {
  assert.match(closingNotice({ type: "closing", reason: "time limit", seconds_left: 30 }), /time limit.* 30 s/);
  assert.match(closingNotice({ type: "closing", reason: "the server is being stopped or updated" }), /restarted\.$/);
});

test("waking says how far it is, where that is known", () => {
  assert.equal(describe(after("start", "allowed", "waking")).word, "Waking up");
  const far = after("start", "allowed", ["waking", { percent: 40.2, waking: "loading the model" }]);
  assert.equal(describe(far).word, "Waking up 40 %");
  assert.match(describe(far).sentence, /loading the model/);
});

test("waiting promises no time", () => {
  const state = after("start", "allowed", ["busy", { places: 16 }]);
  assert.match(describe(state).sentence, /All 16 places are taken/);
  assert.doesNotMatch(`${describe(state).word} ${describe(state).sentence}`, /\d+ s\b|second/);
});

// -- 350 ms before a state may change back --------------------------------------------------------------

test("a face may come at once, and go back after 350 ms at the earliest", () => {
  const steady = new Steady();
  assert.equal(steady.show("listening", 0), 0);
  assert.equal(steady.show("both", 1000), 0);
  assert.equal(steady.show("listening", 1100), 250);
  assert.equal(steady.shown, "both");
  assert.equal(steady.show("speaking", 1100), 0, "on to a third one: at once");
  assert.equal(steady.show("both", 1449), 1);
  assert.equal(steady.show("both", 1450), 0);
});

test("what somebody did is shown at once", () => {
  const steady = new Steady();
  steady.show("listening", 0);
  steady.show("paused", 10);
  steady.show("listening", 20);
  assert.equal(steady.show("paused", 30), 0);
  assert.equal(steady.show("ended", 40), 0);
});
