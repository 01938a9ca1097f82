import assert from "node:assert/strict";
import test from "node:test";

import { KIND, encodeText, pcmBytes, pcmSamples, readError, socketUrl } from "../../../demo/page/static/protocol.js";
import { Recorder } from "../../../demo/page/static/recorder.js";
import { describe } from "../../../demo/page/static/status.js";

const SETTINGS = {
  codec: "pcm16", persona: "You are a & b?", voice: "NATM1", seed: 7, routing: null,
  textTemperature: 0.7, textTopK: 25, audioTemperature: 0.8, audioTopK: 250,
};

test("the socket's address follows the page's own, with every setting", () => {
  const url = new URL(socketUrl("https://host.example/?raw=1", SETTINGS));
  assert.equal(url.protocol, "wss:");
  assert.equal(url.pathname, "/api");
  assert.deepEqual(Object.fromEntries(url.searchParams), {
    events: "1", format: "pcm16", text_prompt: "You are a & b?", voice_prompt: "NATM1", seed: "7",
    text_temperature: "0.7", text_topk: "25", audio_temperature: "0.8", audio_topk: "250",
  });
  assert.ok(socketUrl("http://localhost:8998/", { ...SETTINGS, routing: true }).includes("routing=1"));
});

test("samples survive the way to 16 bits and back; too loud ones are clipped", () => {
  const back = pcmSamples(pcmBytes(Float32Array.of(0, 0.5, -0.5, 2, -2)));
  for (const [i, value] of [0, 0.5, -0.5, 1, -1].entries()) assert.ok(Math.abs(back[i] - value) < 1e-4);
});

test("a message is its kind and then UTF-8", () => {
  assert.deepEqual([...encodeText(KIND.say, "é")], [7, 0xc3, 0xa9]);
});

test("only the errors of the table end a conversation", () => {
  assert.deepEqual(readError("busy: retry in 3 s"), { kind: "busy", text: "retry in 3 s" });
  assert.equal(readError("time limit: over").kind, "time limit");
  assert.equal(readError("say: the text is empty").kind, null);
});

test("the state line has plain words for every state", () => {
  const states = [
    { name: "idle" }, { name: "microphone" }, { name: "connecting" }, { name: "waking" },
    { name: "waking", phase: "loading", percent: 40.2 }, { name: "busy", seconds: 3 },
    { name: "dropped", seconds: 1 }, ...["talk", "muted", "paused", "silent"].map((mode) => ({ name: "live", mode })),
    ...["hung up", "idle", "time limit", "closing", "unauthorized", "busy", "dropped", "unreachable"]
      .map((reason) => ({ name: "closed", reason })),
    { name: "closed", reason: "bad parameter", text: "seed is x" },
  ];
  for (const state of states) {
    const { headline, detail } = describe(state);
    assert.ok(headline && detail && !`${headline}${detail}`.includes("undefined"), JSON.stringify(state));
  }
  assert.equal(describe(states[4]).headline, "Waking up: loading 40 %");
  assert.equal(describe(states[5]).headline, "Your turn in 3 s");
});

test("the recording is stereo: agent left, user right", async () => {
  const recorder = new Recorder();
  for (let i = 0; i < 3; i++) recorder.agent(new Float32Array(480).fill(0.5));
  for (let i = 0; i < 2; i++) recorder.user(new Float32Array(480).fill(-0.25));
  const view = new DataView(await recorder.wav().arrayBuffer());
  assert.equal(view.byteLength, 44 + 2 * 480 * 4);
  assert.equal(view.getUint16(22, true), 2);
  assert.equal(view.getUint32(24, true), 24000);
  assert.equal(view.getUint32(40, true), 2 * 480 * 4);
  assert.ok(Math.abs(view.getInt16(44, true) / 32767 - 0.5) < 1e-3);
  assert.ok(Math.abs(view.getInt16(46, true) / 32767 + 0.25) < 1e-3);
});

test("a long recording is whole", async () => {
  const recorder = new Recorder();
  for (let i = 0; i < 1100; i++) { // 22 s: more than two parts
    recorder.agent(new Float32Array(480).fill(i / 2200));
    recorder.user(new Float32Array(480));
  }
  const view = new DataView(await recorder.wav().arrayBuffer());
  assert.equal(view.byteLength, 44 + 1100 * 480 * 4);
  const last = view.getInt16(44 + (1100 * 480 - 1) * 4, true) / 32767;
  assert.ok(Math.abs(last - 1099 / 2200) < 1e-3);
});
