// The two panels this page draws itself: the state of the call, and the conversation.

import { Animation, Meter } from "./meters.js";
import { describe } from "./status.js";
import { TranscriptView, element } from "./transcript-view.js";

const PASSING = 8000; // ms
const SLOW = "Your network is too slow: try “low bandwidth” under Settings.";

const rounded = (value) => (value === null ? "–" : `${Math.round(value)} ms`);

export class StatePanel {
  constructor(root) {
    const find = (name) => root.querySelector(name);
    this.card = find(".state-card");
    this.headline = find(".state-headline");
    this.detail = find(".state-detail");
    this.problem = find(".notice");
    this.delay = find(".delay");
    this.lost = find(".lost");
    this.model = find(".model");
    this.mic = new Meter(find(".meter.mic"));
    this.agent = new Meter(find(".meter.agent"));
    this.animation = new Animation([this.mic, this.agent]);
    this.lasting = ""; // the notice that stays
    this.unsent = 0;
  }

  state(state) {
    const { tone, headline, detail } = describe(state);
    this.card.dataset.tone = tone;
    this.headline.textContent = headline;
    this.detail.textContent = detail;
    if (state.name === "idle" || state.name === "closed") this.animation.stop();
    else this.animation.start();
  }

  ready({ model, voice }) {
    this.model.textContent = String(model).split("/").at(-1);
    this.model.title = `${model}, voice ${voice}`;
  }

  // A passing notice gives way after a while to the one that stays (why there is no microphone).
  notice(sentence, passing = false) {
    clearTimeout(this.timer);
    if (passing) this.timer = setTimeout(() => this.#notice(this.lasting), PASSING);
    else this.lasting = sentence;
    this.#notice(sentence);
  }

  #notice(sentence) {
    this.problem.textContent = sentence;
    this.problem.hidden = sentence === "";
  }

  levels({ mic, agent }) {
    if (mic !== undefined) this.mic.hear(mic);
    if (agent !== undefined) this.agent.hear(agent);
  }

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
  constructor(root) {
    this.view = new TranscriptView(root.querySelector(".log"), root.querySelector(".empty"));
    this.hint = root.querySelector(".hint");
    this.waiting = root.querySelector(".queue");
  }

  clear() {
    this.view.clear();
    this.hint.hidden = true;
    this.queue([]);
  }

  ready({ transcript }) {
    this.hint.hidden = transcript;
  }

  turn(turn, before) {
    this.view.show(turn, before);
  }

  // What waits to be said.
  queue(list) {
    this.waiting.replaceChildren(...list.map(({ text }) => element("li", "queued", text)));
    this.waiting.hidden = list.length === 0;
  }
}
