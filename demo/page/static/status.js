// @ts-check
// What the stage says: one word or two for every state, and one plain sentence.

/** @type {Record<string, string>} */
const ENDED = {
  "hung up": "You ended it. What was said stays here until you start again.",
  idle: "Nobody spoke for a long time, so the server hung up.",
  "time limit": "This conversation reached its time limit.",
  closing: "The server is being restarted. Try again in a minute.",
  unauthorized: "This server needs an access token: open the page with the link you were given.",
  busy: "All places stayed taken for three minutes. Please try again later.",
  dropped: "The connection was lost and did not come back. Check your network, then start again.",
  unreachable: "The server does not answer. Check your network, then start again.",
  gone: "The connection came back too late to go on where you were.",
};

/**
 * @param {import("./state.js").CallState} state
 * @returns {{word: string, sentence: string}}
 */
export function describe({ face, facts }) {
  const [word, sentence] = words(face, facts);
  return { word, sentence };
}

/**
 * @param {import("./state.js").Face} face
 * @param {import("./state.js").Facts} facts
 * @returns {[string, string]}
 */
function words(face, facts) {
  switch (face) {
    case "ready": return ["Ready", "Press Start talking and say hello."];
    case "permission": return ["Allow the microphone", "Your browser asks for it in a small window."];
    case "calling": return ["Calling", "One moment, the server makes room for you."];
    case "waking": return waking(facts);
    case "waiting": return ["Waiting for a place", waiting(facts)];
    case "listening": return ["Listening", "Just talk; you may interrupt at any time."];
    case "speaking": return ["Speaking", facts.muted ? MUTED : "It hears you all the same. Interrupt it."];
    case "both": return ["Both talking", "It listens while it speaks."];
    case "looking": return ["Looking it up", facts.question ? `“${facts.question}”` : "One moment."];
    case "deaf": return ["No microphone", "It cannot hear you. Type a text, and it says it."];
    case "muted": return ["Muted", MUTED];
    case "paused": return ["Paused", facts.muted || !facts.microphone
      ? "It stays silent, and it does not hear you either."
      : "It stays silent and keeps listening."];
    case "silenced": return ["Sound stopped", "The system has taken the sound: a call, or a locked screen. Tap anywhere to go on."];
    case "unstable": return ["Unstable", "The connection stutters."];
    case "reconnecting": return ["Reconnecting", facts.kept
      ? "Your conversation is kept; it goes on when the network is back."
      : "When the network is back, a new conversation begins."];
    default: return ["Ended", ending(facts)];
  }
}

const MUTED = "Your microphone is off: it does not hear you.";

/** @param {import("./state.js").Facts} facts */
function ending({ reason, text }) {
  const known = ENDED[reason];
  if (reason === "gone" && text) return `${known} (${text})`;
  return known ?? (text ? `${reason}: ${text}` : reason);
}

/** @param {import("./state.js").Facts} facts @returns {[string, string]} */
function waking({ waking: phase, percent }) {
  const sentence = phase ? `The server was asleep: ${phase}.` : "The server was asleep. This can take a minute or two.";
  return [percent === null ? "Waking up" : `Waking up ${Math.round(percent)} %`, sentence];
}

/** @param {import("./state.js").Facts} facts */
function waiting({ places }) {
  const taken = places === null ? "All places are taken" : `All ${places} places are taken`;
  return `${taken}. Your microphone is off; we keep trying, and a chime tells you.`;
}
