import assert from "node:assert/strict";
import test from "node:test";

import { chooseCodec } from "../../../demo/page/static/codec.js";
import { KIND, countFrom, encodeText, pcmBytes, pcmSamples, readError, socketUrl, tunable } from "../../../demo/page/static/protocol.js";
import { Recorder, wavHeader } from "../../../demo/page/static/recorder.js";

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

for (const empty of [null, "", NaN, undefined]) {
  test(`a field emptied to ${empty === "" ? "nothing" : empty} is the server's default, never a parameter`, () => {
    const settings = { ...SETTINGS, seed: empty, textTemperature: empty, audioTopK: empty, voice: "" };
    const { searchParams } = new URL(socketUrl("http://localhost:8998/", settings));
    for (const name of ["seed", "text_temperature", "audio_topk", "voice_prompt"]) assert.equal(searchParams.get(name), null);
    assert.equal(searchParams.get("text_topk"), "25");
    assert.deepEqual(tunable(settings), { text_topk: 25, audio_temperature: 0.8 });
  });
}

test("zero is a value", () => {
  const { searchParams } = new URL(socketUrl("http://h/", { ...SETTINGS, seed: 0, textTemperature: 0 }));
  assert.equal(searchParams.get("seed"), "0");
  assert.equal(searchParams.get("text_temperature"), "0");
});

test("an emptied role is nobody in particular, not the server's first persona", () => {
  assert.equal(new URL(socketUrl("http://h/", { ...SETTINGS, persona: "" })).searchParams.get("text_prompt"), "");
});

test("an old conversation goes on by its secret and what was heard of it, and says no more", () => {
  const url = new URL(socketUrl("https://host.example/talk/", { ...SETTINGS, codec: "opus" }, "s3cret", 12.5));
  assert.equal(url.pathname, "/talk/api");
  assert.deepEqual(Object.fromEntries(url.searchParams), { events: "1", format: "opus", resume: "s3cret", heard: "12.50" });
});

test("plain PCM on this machine; Opus where the line is thin, or where it is asked for", () => {
  const [home, away] = [{ hostname: "localhost" }, { hostname: "host.example" }];
  const thin = { connection: { saveData: true, effectiveType: "4g" } };
  assert.equal(chooseCodec("auto", true, away, {}), "pcm16");
  assert.equal(chooseCodec("auto", true, away, thin), "opus");
  for (const effectiveType of ["slow-2g", "2g", "3g"]) {
    assert.equal(chooseCodec("auto", true, away, { connection: { effectiveType } }), "opus");
  }
  assert.equal(chooseCodec("auto", true, home, thin), "pcm16");
  assert.equal(chooseCodec("low", true, home, {}), "opus");
  assert.equal(chooseCodec("low", false, away, thin), "pcm16");
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
  assert.equal(readError("gone: that conversation is over").kind, "gone");
  assert.equal(readError("say: the text is empty").kind, null);
});

test("the recording is stereo: agent left, user right", async () => {
  const recorder = new Recorder(false);
  for (let i = 0; i < 3; i++) recorder.agent(new Float32Array(480).fill(0.5));
  for (let i = 0; i < 2; i++) recorder.user(new Float32Array(480).fill(-0.25));
  const view = new DataView(await (await recorder.wav({})).arrayBuffer());
  const head = wavHeader(0, {}).length; // with its tags
  assert.equal(view.byteLength, head + 2 * 480 * 4);
  assert.equal(view.getUint16(22, true), 2);
  assert.equal(view.getUint32(24, true), 24000);
  assert.equal(view.getUint32(head - 4, true), 2 * 480 * 4);
  assert.ok(Math.abs(view.getInt16(head, true) / 32767 - 0.5) < 1e-3);
  assert.ok(Math.abs(view.getInt16(head + 2, true) / 32767 + 0.25) < 1e-3);
});

test("a long recording is whole", async () => {
  const recorder = new Recorder(false);
  for (let i = 0; i < 1100; i++) { // 22 s: more than two parts
    recorder.agent(new Float32Array(480).fill(i / 2200));
    recorder.user(new Float32Array(480));
  }
  const view = new DataView(await (await recorder.wav({})).arrayBuffer());
  const head = wavHeader(0, {}).length; // with its tags
  assert.equal(view.byteLength, head + 1100 * 480 * 4);
  const last = view.getInt16(head + (1100 * 480 - 1) * 4, true) / 32767;
  assert.ok(Math.abs(last - 1099 / 2200) < 1e-3);
});

test("what has arrived is counted from where a socket goes on, and anew in a new conversation", () => {
  const first = { type: "ready", session: "a", t: 0 };
  assert.equal(countFrom(first, null, 0), 0);
  assert.equal(countFrom({ ...first }, first, 4800), 4800); // a restart in the same socket
  assert.equal(countFrom({ ...first, resumed: true, t: 0.16 }, first, 4800), 3840); // half a frame comes again
  assert.equal(countFrom({ ...first, session: "b" }, first, 4800), 0);
});
