// @ts-check
// Ties the page together: panels drawn here, widgets drawn by Gradio, one call at a time.
// Gradio's listeners call window.PersonaPlex; `refresh` and `voices` ask them to read back.

import { newContext } from "./audio.js";
import { Call } from "./call.js";
import { opusSupported } from "./codec.js";
import { FORMATS, fileName, saveFile } from "./downloads.js";
import { ConversationPanel, StatePanel } from "./panels.js";
import { Transcript } from "./transcript.js";

const query = new URLSearchParams(location.search);
const options = { raw: query.get("raw") === "1", tap: query.get("tap") === "1" };

/**
 * @typedef {import("./protocol.js").Tuning} Tuning
 * What the widgets of demo/page/ui.py say when Connect is pressed.
 * @typedef {Tuning & {persona: string, voice: string, seed: number, lowBandwidth: boolean,
 *   record: boolean}} WidgetValues
 * PageConfig of demo/page/ui.py.
 * @typedef {{voices: string[], personas: {title: string, text: string, looksUp: boolean}[], routing: boolean
 *   }} PageConfig
 * Asks Gradio to run the listeners of an event.
 * @typedef {(event: "refresh" | "voices") => void} Trigger
 */

class Page {
  constructor() {
    this.call = /** @type {Call | null} */ (null);
    this.context = /** @type {AudioContext | null} */ (null); // made in the click on Connect
    this.state = /** @type {import("./status.js").CallState} */ ({ name: "idle" });
    this.said = false; // there is something to save
    this.opus = false;
    this.voices = /** @type {string[]} */ ([]);
    this.config = /** @type {PageConfig} */ ({ voices: [], personas: [], routing: false });
    this.trigger = /** @type {Trigger} */ (() => {}); // until the page is mounted
    this.panel = /** @type {StatePanel | null} */ (null);
    this.conversation = /** @type {ConversationPanel | null} */ (null);
    this.transcript = new Transcript(
      (turn, before) => this.#turn(turn, before), (list) => this.conversation?.queue(list));
  }

  /**
   * @param {HTMLElement} root
   * @param {Trigger} trigger
   * @param {PageConfig} config
   */
  mountState(root, trigger, config) {
    this.config = config;
    this.voices = config.voices;
    this.panel = new StatePanel(root);
    this.trigger = trigger;
    this.panel.state(this.state);
    this.#learn();
  }

  /** @param {HTMLElement} root */
  mountConversation(root) {
    this.conversation = new ConversationPanel(root);
  }

  // What only the browser and the running server know: its codec and the voices.
  async #learn() {
    this.opus = await opusSupported();
    const answer = await fetch("voices").catch(() => null); // without it: the names we were built with
    if (answer?.ok) this.voices = await answer.json();
    this.trigger("voices");
    this.trigger("refresh");
    document.documentElement.classList.add("pp-there"); // static/skeleton.css
  }

  /** @param {WidgetValues} settings */
  toggle(settings) {
    if (this.call && !this.call.ended) {
      this.call.hangUp();
      return;
    }
    this.#start(settings);
  }

  /** @param {WidgetValues} settings */
  #start(settings) {
    const codec = query.get("codec") ?? (settings.lowBandwidth && this.opus ? "opus" : "pcm16");
    const context = this.context ?? newContext();
    this.context = null;
    this.transcript.clear();
    this.conversation?.clear();
    this.panel?.notice("");
    const routing = this.config.routing ? settings.routing : null;
    this.call = new Call(context, { ...settings, codec, routing, token: window.accessToken }, options, {
      state: (state) => this.#show(state),
      notice: (sentence, passing) => this.panel?.notice(sentence, passing),
      levels: (levels) => this.panel?.levels(levels),
      stats: (stats) => this.panel?.stats(stats),
      ready: (ready) => {
        this.panel?.ready(ready);
        this.conversation?.ready(ready);
      },
      transcript: this.transcript,
    });
    const { call } = this;
    call.start().catch((error) => call.fail(error));
  }

  /** @param {import("./status.js").CallState} state */
  #show(state) {
    this.state = state;
    this.panel?.state(state);
    this.trigger("refresh");
  }

  /**
   * @param {import("./transcript.js").Turn} turn
   * @param {import("./transcript.js").Turn | null} before the turn that follows
   */
  #turn(turn, before) {
    this.conversation?.turn(turn, before);
    if (this.said || turn.who === "page") return;
    this.said = true;
    this.trigger("refresh");
  }

  /**
   * One of the text boxes: returns what stays in it.
   * @param {"say" | "ask"} kind
   * @param {string} text
   */
  speak(kind, text) {
    const words = text.trim();
    if (!words || !this.call?.live) return text;
    this.call.client?.[kind](words);
    return "";
  }

  mute() { if (this.call?.live) this.call.mute(); }
  pause() { if (this.call?.live) this.call.pause(); }
  cancel() { if (this.call?.live) this.call.client?.cancel(); }

  /**
   * The sliders and the routing box, which act at once.
   * @param {Tuning} values
   */
  set(values) {
    const routing = this.config.routing ? values.routing : null;
    if (this.call && !this.call.ended) this.call.tune({ ...values, routing });
  }

  /**
   * Its role in words, and whether it looks things up.
   * @param {string} title
   */
  persona(title) {
    const persona = this.config.personas.find((one) => one.title === title);
    return [persona?.text ?? "", this.config.routing && (persona?.looksUp ?? false)];
  }

  /** @param {string} ending */
  save(ending) {
    if (ending === "wav") {
      if (this.call?.recorder?.seconds) saveFile(fileName("wav"), this.call.recorder.wav());
      return;
    }
    const { type, write } = FORMATS[ending];
    saveFile(fileName(ending), new Blob([write(this.transcript.turns)], { type }));
  }

  // What the widgets look like now, in the order of `changing` in demo/page/ui.py.
  widgets() {
    const { name } = this.state;
    const calling = name !== "idle" && name !== "closed";
    const live = name === "live";
    const recorded = Boolean(this.call?.recorder?.seconds) || (live && Boolean(this.call?.recorder));
    /** @param {boolean} interactive */
    const enabled = (interactive) => ({ __type__: "update", interactive });
    return [
      { __type__: "update", value: calling ? "Disconnect" : "Connect", variant: calling ? "stop" : "primary" },
      { ...enabled(live), value: live && this.call?.muted ? "Unmute" : "Mute" },
      { ...enabled(live), value: live && this.call?.paused ? "Resume" : "Pause" },
      ...[live, live, live, live, live].map(enabled), // say box and button, cancel, ask box and button
      ...[!calling, !calling, !calling, !calling].map(enabled), // preset, persona, voice, seed
      enabled(!calling && this.opus), // low bandwidth
      enabled(!calling), // record
      enabled(recorded),
      ...Object.keys(FORMATS).map(() => enabled(this.said)),
    ];
  }

  voiceChoices() {
    return { __type__: "update", choices: this.voices.map((voice) => [voice, voice]) };
  }
}

export const page = new Page();
window.PersonaPlex = page;

// Before Gradio's own listener runs: stricter browsers let only the click itself start the sound.
document.addEventListener("click", (event) => {
  const pressed = event.target instanceof Element && event.target.closest("#pp-connect");
  if (!pressed || (page.call && !page.call.ended)) return;
  page.context = newContext();
  page.context.resume();
}, true);

window.addEventListener("pagehide", () => page.call?.hangUp());
