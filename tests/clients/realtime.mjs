// A conversation of about 20 s through @openai/agents-realtime over WebSocket, as Node runs it.
//   npm i @openai/agents-realtime@0.20.0 ws && node tests/clients/realtime.mjs ws://localhost:8998 speech.wav
// It prints one line of JSON and exits with 1 where something is missing.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const from = process.env.NODE_CLIENTS ? join(process.env.NODE_CLIENTS, 'x.js') : import.meta.url;
const found = createRequire(from).resolve('@openai/agents-realtime');
const { RealtimeAgent, RealtimeSession } = await import(pathToFileURL(found).href);

const [url, wav] = process.argv.slice(2);
const pcm = readFileSync(wav).subarray(44); // 24 kHz, mono, 16 bits
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const seen = { events: {}, audioBytes: 0, transcripts: [], heard: [], interrupted: 0, errors: [] };

const agent = new RealtimeAgent({ name: 'Ann', instructions: 'You are Ann.' });
const session = new RealtimeSession(agent, { transport: 'websocket', model: 'gpt-realtime' });
session.on('audio', (event) => { seen.audioBytes += event.data.byteLength; });
session.on('audio_interrupted', () => { seen.interrupted += 1; });
session.on('error', (error) => seen.errors.push(JSON.stringify(error).slice(0, 300)));
session.transport.on('*', (event) => {
  seen.events[event.type] = (seen.events[event.type] ?? 0) + 1;
  if (event.type === 'response.output_audio_transcript.done') seen.transcripts.push(event.transcript);
  if (event.type.endsWith('input_audio_transcription.completed')) seen.heard.push(event.transcript);
});
await session.connect({ apiKey: process.env.PERSONAPLEX_TOKEN || 'none', url: `${url}/v1/realtime` });

async function speak(bytes, seconds) {
  for (let at = 0; at < bytes.length && seconds > 0; at += 1920, seconds -= 0.04) {
    const piece = bytes.subarray(at, at + 1920);
    session.sendAudio(piece.buffer.slice(piece.byteOffset, piece.byteOffset + piece.byteLength));
    await sleep(40);
  }
}
const silence = Buffer.alloc(48000 * 10);
await speak(silence, 3); // it greets
await speak(pcm, 60);
await speak(silence, 8); // it answers
const create = (text) => session.transport.sendEvent(
  { type: 'response.create', response: { instructions: text } });
create('Seven yellow umbrellas are waiting for you behind the door of the old theatre.');
await speak(silence, 1.6);
await speak(pcm, 2); // the user interrupts it
await speak(silence, 5);
const history = session.history.map((item) => `${item.role}:${item.status}`);
session.close();
console.log(JSON.stringify({ ...seen, history }));
const said = seen.transcripts.join(' ');
const whole = seen.audioBytes > 48000 && seen.interrupted > 0 && said.includes('Seven')
  && !said.includes('theatre') && seen.events['input_audio_buffer.speech_started'] > 0;
process.exit(whole && seen.errors.length === 0 ? 0 : 1);
