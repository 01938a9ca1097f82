// @ts-check
// Draws the state of the call: the orb, one word, one sentence, the strip and the dock. What is
// true is decided elsewhere (state.js); here nothing is.

import { Orb } from "./orb.js";
import { Steady } from "./state.js";
import { describe } from "./status.js";
import { Strip } from "./strip.js";
import { loudness } from "./timeline.js";
import { find } from "./transcript-view.js";

const PASSING = 8000; // ms
const SLOW = "Your network is slow: the next call uses a tenth of the data.";

export class Stage {
  lasting = ""; // the notice that stays
  unsent = 0;
  steady = new Steady();
  timer = 0;
  noticeTimer = 0;
  loud = { mic: 0, agent: 0 }; // as the orb shows it, 0 to 1; for tests and nobody else

  /**
   * @param {HTMLElement} root
   * @param {typeof import("./main.js").page} page
   */
  constructor(root, page) {
    this.page = page;
    this.card = find(root, ".stage");
    this.word = find(root, ".state-word");
    this.sentence = find(root, ".state-sentence");
    this.aloud = find(root, "[role=status]");
    this.problem = find(root, ".notice");
    this.orb = new Orb(find(root, ".orb"));
    this.strip = new Strip(find(root, ".strip"));
    const button = (/** @type {string} */ id) => /** @type {HTMLButtonElement} */ (find(root, id));
    this.start = button("#pp-start");
    this.mic = button("#pp-mic");
    this.pause = button("#pp-pause");
    this.quiet = button("#pp-quiet");
    this.end = button("#pp-end");
    this.start.onclick = this.end.onclick = () => page.press();
    this.mic.onclick = () => page.call?.mute();
    this.pause.onclick = () => page.call?.pause();
    this.quiet.onclick = () => page.call?.beQuiet();
    this.start.disabled = false; // until now a press would have been lost
    for (const id of ["#pp-words", "#pp-keys"]) {
      const one = button(id);
      one.onclick = () => this.sheet(one.dataset.sheet ?? "");
    }
    document.addEventListener("keydown", (event) => { if (event.key === "Escape") this.sheet(""); });
  }

  /**
   * Pull a sheet up, or push it down: `conversation`, `composer` or `drawer`.
   * @param {string} name
   */
  sheet(name) {
    const { dataset } = document.documentElement;
    const open = dataset.sheet === name ? "" : name;
    if ((dataset.sheet ?? "") === open) return;
    dataset.sheet = open;
    for (const one of document.querySelectorAll("[data-sheet][aria-expanded]")) {
      one.setAttribute("aria-expanded", String(one.getAttribute("data-sheet") === open));
    }
    document.dispatchEvent(new CustomEvent("pp-sheet", { detail: open }));
  }

  /** @param {import("./state.js").CallState} state */
  state(state) {
    clearTimeout(this.timer);
    const wait = this.steady.show(state.face, performance.now());
    if (wait > 0) this.timer = setTimeout(() => this.state(state), wait);
    else this.#draw(state);
  }

  /** @param {import("./state.js").CallState} state */
  #draw(state) {
    const { word, sentence } = describe(state);
    const { facts, calling, live } = state;
    Object.assign(this.card.dataset, { phase: state.phase, face: state.face });
    document.documentElement.dataset.phase = state.phase;
    write(this.word, word);
    write(this.sentence, sentence);
    write(this.aloud, spokenWord(state.face, word, sentence) ?? this.aloud.textContent ?? "");
    this.orb.show(state.face, facts.percent);
    this.start.hidden = calling;
    name(this.start, state.phase === "ended" ? "Talk again" : "Start talking");
    for (const one of [this.mic, this.pause, this.quiet]) one.hidden = !live;
    this.end.hidden = !calling;
    name(this.end, live ? "End" : "Cancel");
    if (!live) this.strip.draw(); // its last second, which who wants no motion has not seen yet
    const mute = facts.microphone && !facts.muted;
    name(this.mic, !facts.microphone ? "Find mic" : mute ? "Mute" : "Unmute", !mute);
    name(this.pause, facts.paused ? "Go on" : "Pause", facts.paused);
  }

  ready() {
    this.strip.show(this.page.call?.timeline ?? null);
  }

  clear() {
    this.strip.show(null);
    this.unsent = 0;
  }

  /**
   * A passing notice gives way after a while to the one that stays (why there is no microphone).
   * @param {string} sentence
   */
  notice(sentence, passing = false) {
    clearTimeout(this.noticeTimer);
    if (passing) this.noticeTimer = setTimeout(() => this.#notice(this.lasting), PASSING);
    else this.lasting = sentence;
    this.#notice(sentence);
  }

  /** @param {string} sentence */
  #notice(sentence) {
    write(this.problem, sentence);
    this.problem.hidden = sentence === "";
  }

  /** @param {{mic?: number, agent?: number}} levels root mean squares */
  levels({ mic, agent }) {
    if (mic !== undefined) this.loud.mic = loudness(mic);
    if (agent !== undefined) this.loud.agent = loudness(agent);
    this.orb.hear({ mic: above(this.loud.mic), agent: above(this.loud.agent) });
    this.strip.update();
  }

  /** @param {import("./call.js").CallStats} stats */
  stats({ lost }) {
    if (lost.unsent > this.unsent) this.notice(SLOW, true);
    this.unsent = lost.unsent;
  }
}

// What is quieter than this does not move the orb.
const FAINT = 0.3;

/** @param {number} loud */
function above(loud) {
  return Math.max(0, (loud - FAINT) / (1 - FAINT));
}

/** @param {HTMLElement} element @param {string} text */
function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * @param {HTMLElement} button
 * @param {string} label
 * @param {boolean} on what it does has been done, and it undoes it
 */
function name(button, label, on = false) {
  write(find(button, ".label"), label);
  button.dataset.on = String(on);
}

// Who speaks is heard; a screen reader need not say it each time.
const UNSAID = new Set(/** @type {import("./state.js").Face[]} */ (["speaking", "both"]));

/**
 * @param {import("./state.js").Face} face
 * @param {string} word
 * @param {string} sentence
 */
function spokenWord(face, word, sentence) {
  if (UNSAID.has(face)) return null;
  return face === "waking" ? "Waking up." : `${word}. ${sentence}`;
}
