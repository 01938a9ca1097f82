// @ts-check
// The two panels this page draws itself: the state of the call, and the conversation.

import { Animation, Meter } from "./meters.js";
import { describe } from "./status.js";
import { TranscriptView, element, find } from "./transcript-view.js";

/**
 * @typedef {import("./transcript.js").Turn} Turn
 * @typedef {{delay: number | null, trip: number | null, queuedMs: number, step: number | null,
 *   lost: {underruns: number, jumps: number, unsent: number, late: number}}} CallStats
 */

const PASSING = 8000; // ms
const SLOW = "Your network is too slow: try “low bandwidth” under Settings.";

/** @param {number | null} value ms */
const rounded = (value) => (value === null ? "–" : `${Math.round(value)} ms`);

export class StatePanel {
  /** @param {HTMLElement} root */
  constructor(root) {
    this.card = find(root, ".state-card");
    this.headline = find(root, ".state-headline");
    this.detail = find(root, ".state-detail");
    this.problem = find(root, ".notice");
    this.delay = find(root, ".delay");
    this.lost = find(root, ".lost");
    this.model = find(root, ".model");
    this.mic = new Meter(find(root, ".meter.mic"));
    this.agent = new Meter(find(root, ".meter.agent"));
    this.animation = new Animation([this.mic, this.agent]);
    this.lasting = ""; // the notice that stays
    this.unsent = 0;
    this.timer = 0;
  }

  /** @param {import("./status.js").CallState} state */
  state(state) {
    const { tone, headline, detail } = describe(state);
    this.card.dataset.tone = tone;
    this.headline.textContent = headline;
    this.detail.textContent = detail;
    if (state.name === "idle" || state.name === "closed") this.animation.stop();
    else this.animation.start();
  }

  /** @param {import("./protocol.js").ReadyEvent} event */
  ready({ model, voice }) {
    this.model.textContent = model.slice(model.lastIndexOf("/") + 1);
    this.model.title = `${model}, voice ${voice}`;
  }

  /**
   * A passing notice gives way after a while to the one that stays (why there is no microphone).
   * @param {string} sentence
   */
  notice(sentence, passing = false) {
    clearTimeout(this.timer);
    if (passing) this.timer = setTimeout(() => this.#notice(this.lasting), PASSING);
    else this.lasting = sentence;
    this.#notice(sentence);
  }

  /** @param {string} sentence */
  #notice(sentence) {
    this.problem.textContent = sentence;
    this.problem.hidden = sentence === "";
  }

  /** @param {{mic?: number, agent?: number}} levels */
  levels({ mic, agent }) {
    if (mic !== undefined) this.mic.add(mic);
    if (agent !== undefined) this.agent.add(agent);
  }

  /** @param {CallStats} stats */
  stats({ delay, trip, queuedMs, lost, step }) {
    this.delay.textContent = rounded(delay);
    this.delay.title = `network ${rounded(trip)}, playback queue ${rounded(queuedMs)}, server step ${rounded(step)}`;
    const { underruns, jumps, unsent, late } = lost;
    this.lost.textContent = String(underruns + jumps + unsent);
    this.lost.title = `gaps ${underruns}, skips ${jumps}, not sent ${unsent}; late on the server ${late}`;
    if (unsent > this.unsent) this.notice(SLOW, true);
    this.unsent = unsent;
  }
}

export class ConversationPanel {
  /** @param {HTMLElement} root */
  constructor(root) {
    this.view = new TranscriptView(find(root, ".log"), find(root, ".empty"));
    this.hint = find(root, ".hint");
    this.waiting = find(root, ".queue");
  }

  clear() {
    this.view.clear();
    this.hint.hidden = true;
    this.queue([]);
  }

  /** @param {import("./protocol.js").ReadyEvent} event */
  ready({ transcript }) {
    this.hint.hidden = transcript;
  }

  /**
   * @param {Turn} turn
   * @param {Turn | null} before the turn that follows
   */
  turn(turn, before) {
    this.view.show(turn, before);
  }

  /**
   * What waits to be said.
   * @param {{text: string}[]} list
   */
  queue(list) {
    this.waiting.replaceChildren(...list.map(({ text }) => element("li", "queued", text)));
    this.waiting.hidden = list.length === 0;
  }
}
