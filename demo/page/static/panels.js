// @ts-check
// The places beside the stage: who to talk to, the conversation, and what is left of it.

import { TranscriptView, element, find } from "./transcript-view.js";

/**
 * @typedef {import("./transcript.js").Turn} Turn
 * @typedef {typeof import("./main.js").page} Page
 * @typedef {import("./state.js").CallState} CallState
 */

export class CastPanel {
  /**
   * @param {HTMLElement} root
   * @param {Page} page
   */
  constructor(root, page) {
    this.page = page;
    this.preset = /** @type {HTMLSelectElement} */ (find(root, "#pp-preset"));
    this.role = /** @type {HTMLTextAreaElement} */ (find(root, "#pp-persona"));
    this.voice = /** @type {HTMLSelectElement} */ (find(root, "#pp-voice"));
    this.preset.append(...page.config.personas.map(({ title }) => new Option(title, title)));
    this.role.value = page.settings.persona;
    this.preset.onchange = () => this.#choose();
    this.role.oninput = () => { page.settings.persona = this.role.value; };
    this.voice.onchange = () => { page.settings.voice = this.voice.value; };
    this.voices(page.config.voices);
  }

  #choose() {
    const persona = this.page.config.personas.find(({ title }) => title === this.preset.value);
    this.role.value = persona?.text ?? "";
    this.page.settings.persona = this.role.value;
    this.page.settings.routing = this.page.config.routing && (persona?.looksUp ?? false);
  }

  /** @param {string[]} names */
  voices(names) {
    this.voice.replaceChildren(...names.map((name) => new Option(name, name)));
    if (this.page.settings.voice) this.voice.value = this.page.settings.voice;
  }

  state() {}
}

export class ConversationPanel {
  /**
   * @param {HTMLElement} root
   * @param {Page} page
   */
  constructor(root, page) {
    this.view = new TranscriptView(find(root, ".log"), find(root, ".empty"));
    this.hint = find(root, ".hint");
    this.waiting = find(root, ".queue");
    this.text = /** @type {HTMLInputElement} */ (find(root, "#pp-text"));
    this.kind = /** @type {HTMLSelectElement} */ (find(root, "#pp-kind"));
    this.send = /** @type {HTMLButtonElement} */ (find(root, "#pp-send"));
    find(root, ".composer").addEventListener("submit", (event) => {
      event.preventDefault();
      const kind = this.kind.value === "ask" ? "ask" : "say";
      if (page.speak(kind, this.text.value)) this.text.value = "";
    });
  }

  /** @param {CallState} state */
  state(state) {
    this.text.disabled = this.send.disabled = !state.live;
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

export class SummaryPanel {
  /**
   * @param {HTMLElement} root
   * @param {Page} page
   */
  constructor(root, page) {
    this.page = page;
    this.card = find(root, ".summary");
  }

  clear() {
    this.card.hidden = true;
  }

  /**
   * @param {CallState} state
   * @param {import("./call.js").Call | null} call the one that is on, or the last one
   */
  state(state, call) {
    this.card.hidden = !(state.phase === "ended" && call?.begun);
  }
}
