"""NVIDIA's web client, and its forks, in a real browser: deaf until their decoder is warm."""

import base64

import numpy as np

from tests.sound import assert_says

DEAF_MS = 1000  # after its connect: until then it throws away what it gets, and asks for nothing
CLIENT = """([url, deaf]) => new Promise((resolve, reject) => {
    const ws = new WebSocket(url), kept = [];
    let opened, words = "", after = 0;
    ws.binaryType = "arraybuffer";
    ws.onopen = () => {
        opened = performance.now();
        ws.send(new Uint8Array([7, ...new TextEncoder().encode("hello friend")]));
    };
    ws.onerror = () => reject(new Error("no socket"));
    ws.onmessage = ({ data }) => {
        const message = new Uint8Array(data);
        if (message[0] === 2) words += new TextDecoder().decode(message.subarray(1));
        if (message[0] !== 1) return;
        if (performance.now() - opened >= deaf) kept.push(...message.subarray(1));
        if (words.endsWith("friend") && ++after === 8) {
            ws.close();
            let text = "";
            for (const byte of kept) text += String.fromCharCode(byte);
            resolve([btoa(text), words]);
        }
    };
})"""


def test_who_is_deaf_for_a_second_after_the_connect_hears_hello(bare_page, server):
    bare_page.goto(f"{server.url}healthz")
    query = "format=pcm16&voice_prompt=NATM0.pt&repetition_penalty_context=1.0&text_topk=25.0"
    url = f"ws://127.0.0.1:{server.port}/api/chat?{query}"
    kept, words = bare_page.evaluate(CLIENT, [url, DEAF_MS])
    pcm = np.frombuffer(base64.b64decode(kept), "<i2").astype(np.float32) / 32768
    assert words == " hello friend"
    assert_says(pcm, ["hello"], voice="NATM0", at_least=0.8)
