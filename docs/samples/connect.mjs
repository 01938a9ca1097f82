// How a page or a program gets a place: wait until the server is awake, connect, try again when busy.
//
//   node connect.mjs https://WORKSPACE--personaplex-server.modal.run "Hello from JavaScript!"
//
// Runs as it is in browsers and in Node 22 or later. Polling wakes a GPU that is paid by the second:
// do it only while somebody waits.

const PATIENCE = 600_000; // ms for waking up; a first start may also download 17 GB
const HANDSHAKE = 0, TEXT = 2, ERROR = 5, SAY = 7; // kinds of messages: the first byte

const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const words = (data) => new TextDecoder().decode(data.subarray(1));

// Polls /healthz until 200. Until then it says how far it is, or nothing answers yet. A server that
// has failed for good says so on the socket.
export async function waitUntilAwake(server, tell = () => {}) {
  const end = Date.now() + PATIENCE;
  while (Date.now() < end) {
    try {
      const answer = await fetch(`${server}/healthz`);
      const state = await answer.text();
      if (answer.ok || state.includes('"failed"')) return;
      tell(state);
    } catch (error) {
      tell(`no answer yet: ${error.message}`);
    }
    await pause(1000 + 1000 * Math.random());
  }
  throw new Error(`${server} did not wake up in ${PATIENCE / 1000} s`);
}

// A socket that has said 0x00. A busy server says when to come back; add jitter to that.
export async function connect(server) {
  for (;;) {
    const ws = new WebSocket(`${server.replace(/^http/, "ws")}/api?format=pcm16`);
    ws.binaryType = "arraybuffer";
    const first = await new Promise((done) => {
      ws.onmessage = (event) => done(new Uint8Array(event.data));
      ws.onclose = ws.onerror = () => done(null);
    });
    if (first?.[0] === HANDSHAKE) return ws;
    ws.close();
    const reason = first === null ? "" : words(first);
    if (!reason.startsWith("busy: ")) throw new Error(reason || "the server hung up");
    const wait = Number(/retry in (\d+) s/.exec(reason)?.[1] ?? 3);
    await pause(1000 * (wait + Math.random()));
  }
}

// Has a text spoken and hands on what the agent says until the socket closes.
export async function talk(server, text, heard) {
  await waitUntilAwake(server);
  const ws = await connect(server);
  const over = new Promise((done) => (ws.onclose = done));
  ws.onmessage = (event) => { // 1 is audio: 24 kHz, mono, signed 16-bit
    const data = new Uint8Array(event.data);
    if (data[0] === TEXT) heard(words(data));
    if (data[0] === ERROR) console.error("server:", words(data));
  };
  ws.send(new Uint8Array([SAY, ...new TextEncoder().encode(text)]));
  await over;
}

if (globalThis.process?.argv[2]) {
  const [server, text] = process.argv.slice(2);
  await talk(server.replace(/\/$/, ""), text, (piece) => process.stdout.write(piece));
}
