// @ts-check
// What is left of a conversation: it can be heard again, word by word, and it is measured. A plain canvas
// draws both lanes from the levels that the recorder kept; a library such as wavesurfer (30 kB) would decode the
// whole recording again, half an hour into 350 MB, to find what is known here already.

import { FORMATS, describeCall, fileName, saveFile } from "./downloads.js";
import { loudness } from "./timeline.js";
import { wordsOf } from "./transcript.js";
import { clock, element, find } from "./transcript-view.js";

const LATER = 0.05; // s: a word counts as heard a little before its first sound

/**
 * @typedef {typeof import("./main.js").page} Page
 * @typedef {import("./call.js").Call} Call
 * @typedef {import("./transcript.js").Turn} Turn
 */

export class SummaryPanel {
  call = /** @type {Call | null} */ (null); // that is shown
  words = /** @type {{t: number, button: HTMLElement}[]} */ ([]);
  current = -1; // of the words
  url = "";

  /**
   * @param {HTMLElement} root
   * @param {Page} page
   */
  constructor(root, page) {
    this.page = page;
    this.card = find(root, ".summary");
    this.tallies = find(root, ".tallies");
    this.replay = find(root, ".replay");
    this.canvas = /** @type {HTMLCanvasElement} */ (find(root, ".lanes"));
    this.sound = /** @type {HTMLAudioElement} */ (find(root, ".replay audio"));
    this.play = find(root, ".play");
    this.time = find(root, ".time");
    this.spoken = find(root, ".spoken");
    this.gaps = find(root, ".gaps");
    this.menu = /** @type {HTMLDetailsElement} */ (find(root, ".save"));
    this.play.onclick = () => { if (this.sound.paused) this.sound.play(); else this.sound.pause(); };
    this.canvas.onclick = (event) => this.#seek((event.offsetX / this.canvas.clientWidth) * this.seconds);
    this.canvas.onkeydown = (event) => this.#key(event);
    this.sound.onplay = this.sound.onpause = () => this.#moved();
    this.sound.ontimeupdate = () => this.#moved();
    for (const one of this.menu.querySelectorAll("button")) one.onclick = () => this.#save(one.value);
    new ResizeObserver(() => this.#draw()).observe(this.canvas);
  }

  get seconds() {
    return this.call?.recorder?.seconds ?? 0;
  }

  clear() {
    this.card.hidden = true;
    this.call = null;
    this.sound.pause();
    this.sound.removeAttribute("src");
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = "";
  }

  /**
   * @param {import("./state.js").CallState} state
   * @param {Call | null} call the one that is on, or the last one
   */
  state(state, call) {
    if (state.phase !== "ended" || !call?.begun || call === this.call) return;
    this.clear();
    this.call = call;
    this.card.hidden = false;
    this.#tell(call);
    this.#list();
    this.replay.hidden = this.seconds === 0;
    if (this.seconds > 0) this.#load(call);
    this.#moved();
  }

  /** @param {Call} call */
  async #load(call) {
    const recorded = await call.recorder?.file(this.#about());
    if (!recorded || this.call !== call) return;
    this.url = URL.createObjectURL(recorded);
    this.sound.src = this.url;
  }

  /** @param {Call} call */
  #tell({ timeline, recorder }) {
    const gaps = timeline.gaps.map(({ ms }) => ms).sort((one, other) => one - other);
    const seconds = recorder?.seconds ?? timeline.steps * 0.02;
    const ms = (/** @type {number | undefined} */ value) => (value === undefined ? "–" : `${Math.round(value)} ms`);
    const rows = [
      ["Length", clock(seconds)],
      ["Answer gap, median", ms(median(gaps))],
      ["Worst", ms(gaps.at(-1))],
      ["Interruptions", String(timeline.overlaps)],
    ];
    this.tallies.replaceChildren(...rows.map(([name, value]) => {
      const row = element("div", "");
      row.append(element("dt", "", name), element("dd", "", value));
      return row;
    }));
    const worst = gaps.at(-1) ?? 1;
    this.gaps.replaceChildren(...timeline.gaps.map((gap, i) => {
      const bar = element("li", "");
      const button = element("button", "gap", `${gap.ms} ms`);
      button.style.setProperty("--share", String(gap.ms / worst));
      button.setAttribute("aria-label", `Answer ${i + 1}: ${gap.ms} ms. Hear it.`);
      button.onclick = () => this.#seek(Math.max(0, gap.from - 1));
      bar.append(button);
      return bar;
    }));
    find(this.card, ".gaps-title").hidden = gaps.length === 0;
  }

  #list() {
    this.words = [];
    this.current = -1;
    const lines = this.page.transcript.turns.filter(({ who, text }) => who !== "page" && text);
    this.spoken.replaceChildren(...lines.map((turn) => {
      const line = element("p", `line ${turn.who}`);
      line.append(element("b", "", turn.who === "agent" ? "Agent " : "You "));
      for (const { text, t } of wordsOf(turn)) {
        const button = element("button", "word", text);
        button.onclick = () => this.#seek(t);
        this.words.push({ t, button });
        line.append(button, " ");
      }
      return line;
    }));
    this.words.sort((one, other) => one.t - other.t);
  }

  /** @param {number} t s */
  #seek(t) {
    if (!this.url) return;
    this.sound.currentTime = Math.max(0, Math.min(t, this.seconds));
    this.sound.play();
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const by = { ArrowLeft: -2, ArrowRight: 2 }[event.key];
    if (by) this.#seek(this.sound.currentTime + by);
    if (event.key === " ") this.play.click();
    if (by || event.key === " ") event.preventDefault();
  }

  #moved() {
    const now = this.sound.currentTime;
    this.play.textContent = this.sound.paused ? "Play" : "Stop";
    this.time.textContent = `${clock(now)} / ${clock(this.seconds)}`;
    this.canvas.setAttribute("aria-valuenow", String(Math.round(now)));
    this.canvas.setAttribute("aria-valuemax", String(Math.round(this.seconds)));
    this.canvas.setAttribute("aria-valuetext", clock(now));
    const at = this.words.findLastIndex(({ t }) => t <= now + LATER);
    if (at !== this.current) {
      this.words[this.current]?.button.classList.remove("now");
      if (!this.sound.paused) this.words[at]?.button.classList.add("now");
      this.current = at;
    }
    this.#draw();
  }

  // You above the line, the agent below; what was heard already in full colour.
  #draw() {
    const { canvas, call } = this;
    const scale = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(canvas.clientWidth * scale), Math.round(canvas.clientHeight * scale)];
    const paint = canvas.getContext("2d");
    if (!paint || !call?.recorder || width === 0) return;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    paint.clearRect(0, 0, width, height);
    const style = getComputedStyle(canvas);
    const [agent, user] = call.recorder.bars;
    const heard = this.sound.currentTime / Math.max(this.seconds, 0.1);
    const count = Math.max(1, Math.min(Math.floor(width / (3 * scale)), agent.length));
    const step = width / count;
    for (let i = 0; i < count; i++) {
      const [from, to] = [Math.floor((i * agent.length) / count), Math.floor(((i + 1) * agent.length) / count)];
      const tall = (/** @type {number[]} */ levels) => loudness(Math.max(0, ...levels.slice(from, Math.max(to, from + 1)))) * (height / 2 - scale);
      paint.globalAlpha = i / count <= heard ? 1 : 0.4;
      paint.fillStyle = style.getPropertyValue("--pp-user-line");
      paint.fillRect(i * step, height / 2 - tall(user), Math.max(scale, step - scale), tall(user));
      paint.fillStyle = style.getPropertyValue("--pp-agent-line");
      paint.fillRect(i * step, height / 2, Math.max(scale, step - scale), tall(agent));
    }
    paint.globalAlpha = 1;
    paint.fillStyle = style.getPropertyValue("--pp-ink");
    paint.fillRect(Math.min(width - 2 * scale, heard * width), 0, 2 * scale, height);
  }

  #about() {
    const role = this.call?.settings.persona;
    const persona = this.page.config.personas.find(({ text }) => text === role);
    return describeCall(/** @type {Call} */ (this.call), persona?.title ?? "Custom");
  }

  /** @param {string} ending */
  async #save(ending) {
    this.menu.open = false;
    const { call } = this;
    if (!call) return;
    const about = this.#about();
    if (ending === "ogg" || ending === "wav") {
      const recorded = await (ending === "wav" ? call.recorder?.wav(about) : call.recorder?.file(about));
      if (recorded) saveFile(fileName(recorded.type === "audio/ogg" ? "ogg" : "wav", call.startedAt), recorded);
      return;
    }
    const { type, write } = FORMATS[ending];
    saveFile(fileName(ending, call.startedAt), new Blob([write(this.page.transcript.turns, about)], { type }));
  }
}

/** @param {number[]} sorted @returns {number | undefined} */
function median(sorted) {
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : sorted.length ? (sorted[half - 1] + sorted[half]) / 2 : undefined;
}
