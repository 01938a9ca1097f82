// @ts-check
// Ties the page together: the places of demo/page/ui.py, each drawn by its own module; one call at
// a time; and the settings of the next one.

import { Sound } from "./audio.js";
import { Bar } from "./bar.js";
import { Call } from "./call.js";
import { opusSupported, chooseCodec } from "./codec.js";
import { CastPanel } from "./cards.js";
import { ConversationPanel } from "./composer.js";
import { Drawer } from "./drawer.js";
import { Stage } from "./stage.js";
import { CallState } from "./state.js";
import { refusal } from "./status.js";
import { SummaryPanel } from "./summary.js";
import { Transcript } from "./transcript.js";

const query = new URLSearchParams(location.search);
const FREED = 1000; // ms until a server has freed the place of a call that ended
const PRESS_AGAIN = 700; // ms within which a second press on the same place is one press

/**
 * @typedef {import("./protocol.js").Tuning} Tuning
 * @typedef {import("./protocol.js").Sampling} Sampling
 * PageConfig of demo/page/ui.py.
 * @typedef {{voices: string[], personas: import("./cards.js").Persona[], voice: string,
 *   samples: Record<string, string[]>, routing: boolean, whyNot: string, sampling: Sampling}} PageConfig
 * What `/healthz` says.
 * @typedef {{status: string, model?: string, slots?: number, free?: number, hears?: string,
 *   phase?: string, percent?: number, reason?: string}} Health
 */

class Page {
  config = /** @type {PageConfig} */ ({ voices: [], personas: [], voice: "", samples: {}, routing: false, whyNot: "",
    sampling: { textTemperature: null, textTopK: null, audioTemperature: null, audioTopK: null } });
  configured = false;
  places = /** @type {[string, HTMLElement][]} */ ([]); // that wait to be filled
  state = new CallState(() => this.#show());
  sound = new Sound({ raw: query.get("raw") === "1", tap: query.get("tap") === "1" });
  call = /** @type {Call | null} */ (null); // the one that is on, or the last one
  opus = false; // this browser can speak it
  health = /** @type {Health | null} */ (null); // the newest answer of the server
  pressedAt = -Infinity; // ms, Start or End
  phaseShown = /** @type {import("./state.js").Phase} */ ("ready");

  // What the next call is made with. An empty voice is the server's own choice, an empty number its default.
  settings = {
    persona: "", voice: "", seed: /** @type {number | null} */ (null), record: true, routing: false,
    bandwidth: /** @type {"auto" | "low"} */ ("auto"), microphone: "",
    textTemperature: /** @type {number | null} */ (null), textTopK: /** @type {number | null} */ (null),
    audioTemperature: /** @type {number | null} */ (null), audioTopK: /** @type {number | null} */ (null),
  };

  bar = /** @type {Bar | null} */ (null);
  stage = /** @type {Stage | null} */ (null);
  cast = /** @type {CastPanel | null} */ (null);
  conversation = /** @type {ConversationPanel | null} */ (null);
  summary = /** @type {SummaryPanel | null} */ (null);
  drawer = /** @type {Drawer | null} */ (null);

  transcript = new Transcript(
    (turn, before) => this.conversation?.turn(turn, before), (list) => this.conversation?.queue(list),
    (kind, text) => this.conversation?.taken(kind, text));

  /**
   * Gradio has put one place of demo/page/ui.py on the page. In whatever order they come, none is
   * filled before the bar has brought the configuration.
   * @param {string} name
   * @param {HTMLElement} root
   * @param {PageConfig | null} config with the bar
   */
  mount(name, root, config) {
    this.places.push([name, root]);
    if (config) this.#configure(config);
    if (!this.configured) return;
    for (const [place, element] of this.places.splice(0)) this.#fill(place, element);
    this.#show();
    const there = this.stage && this.conversation && this.cast;
    if (!there) return;
    document.documentElement.classList.add("pp-there"); // skeleton.css
    window.pageModules.arrive();
  }

  /**
   * @param {string} name
   * @param {HTMLElement} root
   */
  #fill(name, root) {
    if (name === "bar") this.bar = new Bar(root, this);
    if (name === "stage") this.stage = new Stage(root, this);
    if (name === "cast") this.cast = new CastPanel(root, this);
    if (name === "conversation") this.conversation = new ConversationPanel(root, this);
    if (name === "summary") this.summary = new SummaryPanel(root, this);
    if (name === "tools") this.drawer = new Drawer(root, this);
  }

  /** @param {PageConfig} config */
  #configure(config) {
    this.configured = true;
    this.config = config;
    this.settings.persona = config.personas[0]?.text ?? "";
    this.settings.routing = config.routing && (config.personas[0]?.looksUp ?? false);
    this.sound.prepare();
    opusSupported().then((can) => { this.opus = can; });
    this.learn();
    window.addEventListener("focus", () => { if (!this.state.calling) this.learn(); });
  }

  // What the running server knows: whether it is awake, its places, and its voices. Asked when the
  // page is loaded, looked at again, or has ended a call; never in between.
  async learn() {
    const ask = (/** @type {string} */ path) => fetch(path).then((a) => a.json()).catch(() => null);
    [this.health, this.config.voices] = await Promise.all(
      [ask("healthz"), ask("voices").then((voices) => voices ?? this.config.voices)]);
    if (!this.config.voices.includes(this.settings.voice)) this.settings.voice = "";
    this.bar?.health(this.health);
    this.conversation?.health(this.health);
    if (this.state.phase === "waiting") this.state.tell({ places: this.health?.slots ?? null });
    this.cast?.voices(this.config.voices);
  }

  // Start talking; or end the call, in whatever state it is.
  press() {
    const now = performance.now();
    if (now - this.pressedAt < PRESS_AGAIN) return;
    this.pressedAt = now;
    if (this.state.calling) this.call?.hangUp();
    else this.#start();
  }

  #start() {
    if (!this.state.on("start")) return;
    this.sound.wake(); // in the click itself: stricter browsers let only a gesture start the sound
    const codec = query.get("codec") ?? chooseCodec(this.settings.bandwidth, this.opus, location, navigator);
    const opus = this.opus && !query.has("codec");
    const routing = this.config.routing ? this.settings.routing : null;
    const settings = { ...this.settings, codec, opus, routing, token: window.accessToken };
    this.stage?.notice("");
    const call = new Call(this.sound, this.state, settings, {
      notice: (sentence, passing) => this.stage?.notice(sentence, passing),
      refused: (sentence) => {
        if (!this.conversation?.refused(sentence)) this.stage?.notice(refusal(sentence), true);
      },
      levels: (levels) => this.stage?.levels(levels),
      stats: (stats) => {
        this.stage?.stats(stats);
        this.drawer?.stats(stats);
      },
      ready: (ready) => this.#live(call, ready),
      transcript: this.transcript,
    });
    this.call = call;
    call.start().catch((error) => call.fail(error));
  }

  /**
   * The new conversation is there: now the last one may go.
   * @param {Call} call
   * @param {import("./protocol.js").ReadyEvent} ready
   */
  #live(call, ready) {
    if (!call.begun) {
      this.transcript.clear();
      this.conversation?.clear();
      this.summary?.clear();
      this.stage?.clear();
    }
    call.begun = true;
    this.conversation?.ready(ready);
    this.stage?.ready();
  }

  #show() {
    this.stage?.state(this.state);
    this.cast?.state();
    this.conversation?.state(this.state);
    this.summary?.state(this.state, this.call);
    this.drawer?.state();
    if (this.phaseShown === this.state.phase) return;
    this.phaseShown = this.state.phase;
    if (this.phaseShown === "ended") setTimeout(() => this.learn(), FREED);
    if (this.phaseShown === "waiting") this.learn();
  }

  /**
   * The drawer: now, and for the next call. A seed, like a card that is chosen in a call, is for the next one only.
   * @param {Partial<Tuning> & {seed?: number | null}} values
   */
  tune({ seed, ...values }) {
    Object.assign(this.settings, values, seed === undefined ? {} : { seed });
    if (this.state.calling) this.call?.tune(values);
  }

  /**
   * Whether the next call looks things up, as its persona says.
   * @param {boolean} on
   */
  lookUp(on) {
    this.settings.routing = this.config.routing && on;
    this.drawer?.state();
  }

  /**
   * A text of the composer. False: it was not sent.
   * @param {"say" | "ask"} kind
   * @param {string} text
   */
  speak(kind, text) {
    const words = text.trim();
    if (!words || !this.state.live) return false;
    this.call?.client?.[kind](words);
    return true;
  }
}

export const page = new Page();
window.PersonaPlex = page;

window.addEventListener("pagehide", () => page.call?.hangUp());
window.addEventListener("beforeunload", (event) => { if (page.state.calling) event.preventDefault(); });
