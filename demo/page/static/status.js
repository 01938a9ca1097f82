// @ts-check
// The page's words for what a server tells: one word or two for every state, one plain sentence, and why
// something ended or was refused. A server's sentences are for programs (docs/api.md); none of them is shown.

const BROKEN = "Something broke on the server. Start again.";

/**
 * Why a conversation ended, by the reason's kind.
 * @type {Record<string, string | ((text: string) => string)>}
 */
const ENDED = {
  "hung up": "You ended it. What was said stays here until you start again.",
  idle: "Nobody spoke for a long time, so the server hung up.",
  "time limit": "This conversation reached its time limit.",
  closing: "The server is being restarted. Try again in a minute.",
  unauthorized: "This server needs an access token: open the page with the link you were given.",
  busy: "All places stayed taken for three minutes. Please try again later.",
  dropped: "The connection was lost and did not come back. Check your network, then start again.",
  unreachable: "The server does not answer. Check your network, then start again.",
  gone: "The connection came back, but the server no longer has this conversation. Start again.",
  "bad parameter": (text) => {
    const [, setting] = SETTINGS.find(([name]) => text.startsWith(name)) ?? ["", "one of your settings"];
    return `The server does not take ${setting}. Change it, then start again.`;
  },
  "bad audio": "The server cannot read this browser’s sound. Start again, or try another browser.",
  "too fast": "The connection fell too far behind. Start again.",
  "internal error": (text) => {
    const number = /^[0-9a-f]{8}\b/.exec(text)?.[0]; // by which its operator finds it in the log
    return number ? `Something broke on the server: error ${number}. Start again.` : BROKEN;
  },
  "this page failed": "Something broke on this page. Load it again.",
};

// What a sentence about a parameter begins with, and what that is on the page.
const SETTINGS = [
  ["text_prompt", "this role"], ["voice", "this voice"], ["seed", "this seed"],
  ["text_temperature", "this text temperature"], ["text_top", "this text top-k"],
  ["audio_temperature", "this audio temperature"], ["audio_top", "this audio top-k"],
];

/** Why something was not done in a conversation that goes on. @type {[RegExp, string][]} */
const REFUSED = [
  [/^say: \d+ texts are waiting/, "Too many texts wait already. Wait for one, or press Be quiet."],
  [/^say: nothing in this text/, "Nothing in the text can be said aloud."],
  [/^(say|ask): the text has/, "The text is too long."],
  [/^(say|ask): the text is empty/, "The text is empty."],
  [/^ask: .*routing is off/, "Looking things up is switched off: see Tuning."],
  [/^ask: \d+ questions a minute/, "Those were many questions for one minute. Ask again a little later."],
  [/^ask: .* of this day are used up/, "All questions of this day are used up. Ask again tomorrow."],
  [/^set:/, "The server does not take this value of Tuning."],
];

/** Why a question has no answer. @type {[RegExp, string][]} */
const UNANSWERED = [
  [/^no key/, "this server cannot look things up"],
  [/^no transcript/, "the words were not understood"],
  [/^(no answer in time|cut off)/, "the answer took too long"],
  [/^(no connection|service busy|paused)/, "the text model cannot be reached now"],
  [/^(key refused|no credit|request refused)/, "the text model does not serve this server"],
  [/^(empty|invalid) answer/, "the text model said nothing of use"],
  [/^interrupted/, "you spoke"],
  [/^another/, "another question came"],
  [/^switched off/, "looking things up was switched off"],
  [/^restart/, "the conversation began anew"],
];

/** What a server does while it wakes up. @type {[RegExp, string][]} */
const WAKING = [
  [/load/, "loading the model"],
  [/fetch|download|saving|keeping/, "fetching the model"],
  [/warm|compil|kernel|graph|timing/, "warming up"],
];

/**
 * @param {[RegExp, string][]} table
 * @param {string} text of the server
 */
function sentenceFor(table, text) {
  return table.find(([pattern]) => pattern.test(text))?.[1];
}

/** @param {string} sentence that refuses something in a conversation that goes on */
export function refusal(sentence) {
  return sentenceFor(REFUSED, sentence) ?? "The server did not take that.";
}

/** @param {string} reason of a question that failed or is not needed any more; empty: nothing to say */
export function whyUnanswered(reason) {
  return sentenceFor(UNANSWERED, reason) ?? "";
}

/** @param {import("./protocol.js").ClosingEvent} event */
export function closingNotice({ reason, seconds_left: left }) {
  const why = reason === "time limit" ? "This conversation reaches its time limit" : "The server is being restarted";
  return left ? `${why}: it ends in ${Math.round(left)} s.` : `${why}.`;
}

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
  const known = ENDED[reason] ?? "The server ended the conversation. Start again.";
  return typeof known === "string" ? known : known(text);
}

/** @param {import("./state.js").Facts} facts @returns {[string, string]} */
function waking({ waking: phase, percent }) {
  const doing = sentenceFor(WAKING, phase);
  const sentence = doing ? `The server was asleep: ${doing}.` : "The server was asleep. This can take a minute or two.";
  return [percent === null ? "Waking up" : `Waking up ${Math.round(percent)} %`, sentence];
}

/** @param {import("./state.js").Facts} facts */
function waiting({ places }) {
  const taken = places === null ? "All places are taken" : `All ${places} places are taken`;
  return `${taken}. Your microphone is off; we keep trying, and a chime tells you.`;
}
