// @ts-check
// The conversation's column: the transcript, what waits to be said, and one line to type into. What was typed
// stays in the line until the server has taken it.

import { isDemo } from "./bar.js";
import { refusal } from "./status.js";
import { TranscriptView, element, find } from "./transcript-view.js";

const TAKEN_WITHIN = 5000; // ms; then the line is free again, with the text still in it
const NOTES = { say: "It says your words in its own voice.", ask: "Looked up by a text model outside this server, which is sent your question and the last turns." };

/**
 * @typedef {import("./transcript.js").Turn} Turn
 * @typedef {typeof import("./main.js").page} Page
 * @typedef {"say" | "ask"} Kind
 */

export class ConversationPanel {
  sent = /** @type {{kind: Kind, text: string} | null} */ (null); // what the server has not taken yet
  timer = 0;

  /**
   * @param {HTMLElement} root
   * @param {Page} page
   */
  constructor(root, page) {
    this.page = page;
    this.view = new TranscriptView(find(root, ".log"), find(root, ".empty"));
    this.hint = find(root, ".hint");
    this.demo = find(root, ".demo-note");
    this.health(page.health);
    this.waiting = /** @type {HTMLDetailsElement} */ (find(root, ".queue"));
    this.count = find(root, ".queue summary");
    this.list = find(root, ".queue ol");
    this.text = /** @type {HTMLInputElement} */ (find(root, "#pp-text"));
    this.button = /** @type {HTMLButtonElement} */ (find(root, "#pp-send"));
    this.note = find(root, ".composer-note");
    this.kinds = /** @type {Record<Kind, HTMLInputElement>} */ ({
      say: find(root, "#pp-kind-say"), ask: find(root, "#pp-kind-ask"),
    });
    const { routing, whyNot } = page.config;
    this.kinds.ask.disabled = !routing;
    this.whyNot = routing ? "" : whyNot || "Nothing is looked up on this server.";
    this.kinds.say.onchange = this.kinds.ask.onchange = () => this.#explain();
    find(root, ".composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    this.#explain();
  }

  /** @param {import("./main.js").Health | null} health */
  health(health) {
    this.demo.hidden = !isDemo(health);
  }

  get kind() {
    return /** @type {Kind} */ (this.kinds.ask.checked ? "ask" : "say");
  }

  #explain(problem = "") {
    const offered = this.whyNot && this.kind === "say" ? `${NOTES.say} ${this.whyNot}` : NOTES[this.kind];
    this.note.textContent = problem || offered;
    this.note.classList.toggle("problem", problem !== "");
  }

  #send() {
    const text = this.text.value.trim();
    if (!text || this.sent || !this.page.speak(this.kind, text)) return;
    this.sent = { kind: this.kind, text };
    this.#explain();
    this.#lock();
    this.timer = setTimeout(() => this.#release("The server has not taken it yet. Try again."), TAKEN_WITHIN);
  }

  #release(problem = "") {
    clearTimeout(this.timer);
    this.sent = null;
    this.#explain(problem);
    this.#lock();
  }

  // The line stays where the focus is: a disabled one would lose it.
  #lock() {
    this.text.readOnly = this.sent !== null;
    this.button.disabled = !this.page.state.live || this.sent !== null;
  }

  /**
   * The server has a text: if it is ours, the line is free for the next one.
   * @param {Kind} kind
   * @param {string} text
   */
  taken(kind, text) {
    if (this.sent?.kind !== kind || plain(this.sent.text) !== plain(text)) return;
    this.text.value = "";
    this.#release();
  }

  /**
   * Whether a sentence of the server's is about what was sent. Then the reason stands here, and the text stays, too.
   * @param {string} sentence
   */
  refused(sentence) {
    if (!this.sent || !sentence.startsWith(`${this.sent.kind}:`)) return false;
    this.#release(refusal(sentence));
    return true;
  }

  /** @param {import("./state.js").CallState} state */
  state(state) {
    this.text.disabled = !state.live;
    this.text.placeholder = state.live ? "Type here" : "Start talking first";
    if (!state.calling && this.sent) this.#release("The call ended before it was taken.");
    this.#lock();
    this.#count();
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
   * What waits to be said: one chip, which opens.
   * @param {{text: string}[]} list
   */
  queue(list) {
    this.list.replaceChildren(...list.map(({ text }) => element("li", "queued", text)));
    this.#count();
  }

  // What still waits when the call ends was not said; it can be read, and typed again.
  #count() {
    const texts = this.list.childElementCount;
    const [one, many] = this.page.state.calling ? ["waits", "wait"] : ["was not said", "were not said"];
    this.count.textContent = texts === 1 ? `1 text ${one}` : `${texts} texts ${many}`;
    this.waiting.hidden = texts === 0;
  }
}

/** @param {string} text */
function plain(text) {
  return text.trim().replace(/\s+/g, " ");
}
