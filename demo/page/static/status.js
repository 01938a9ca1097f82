// @ts-check
// What the state line says: one short headline and one sentence for people, for every state.

/** @type {Record<string, string>} */
const ENDED = {
  "hung up": "You hung up. Connect starts a new conversation.",
  idle: "It was quiet for a long time, so the server hung up. Connect whenever you like.",
  "time limit": "This conversation reached its time limit. Connect starts a new one.",
  closing: "The server is being restarted. Connect again in a minute.",
  unauthorized: "This server needs an access token: open the page with the link you were given.",
  busy: "All places stayed taken for three minutes. Please try again later.",
  dropped: "The connection was lost and did not come back. Check your network, then connect again.",
  unreachable: "The server does not answer. Check your network, then connect again.",
};

const LIVE = {
  talk: ["You are live", "Just talk; you may interrupt at any time."],
  muted: ["Live, microphone muted", "The agent does not hear you until you unmute."],
  paused: ["Paused", "The agent stays silent and keeps listening. Resume when you are ready."],
  silent: ["Live, without a microphone", "Type a text below and the agent says it."],
};

/**
 * The states of a call, each with what its line needs.
 * @typedef {{name: "idle" | "microphone" | "connecting"}
 *   | {name: "waking", phase?: string, percent?: number | null}
 *   | {name: "busy" | "dropped", seconds: number}
 *   | {name: "live", mode: keyof typeof LIVE}
 *   | {name: "closed", reason: string, text: string}} CallState
 */

/** @param {CallState} state */
export function describe(state) {
  const [headline, detail] = words(state);
  return { tone: state.name, headline, detail };
}

/** @param {CallState} state */
function words(state) {
  switch (state.name) {
    case "idle": return ["Ready when you are", "Press Connect, allow the microphone and say hello."];
    case "microphone": return ["Allow the microphone", "Your browser asks for it in a small window."];
    case "connecting": return ["Connecting", "Calling the server."];
    case "waking": return waking(state);
    case "busy": return [`Your turn in ${state.seconds} s`, "All places are taken; the page keeps trying by itself."];
    case "dropped": return [`Connection lost, again in ${state.seconds} s`, "The next conversation starts anew."];
    case "live": return LIVE[state.mode];
    default: return ["Conversation ended", ENDED[state.reason] ?? `${state.reason}: ${state.text}`];
  }
}

/** @param {{phase?: string, percent?: number | null}} state */
function waking({ phase, percent = null }) {
  const detail = "The server was asleep. This can take a minute or two; you need not do anything.";
  if (!phase) return ["Waking up", detail];
  return [`Waking up: ${phase}${percent === null ? "" : ` ${Math.round(percent)} %`}`, detail];
}
