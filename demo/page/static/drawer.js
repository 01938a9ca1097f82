// @ts-check
// The drawer "Tuning": which microphone and how loud it is, how much data, and what is measured. The
// sliders in it are Gradio's (demo/page/ui.py).

import { readableVoice } from "./cards.js";
import { loudness, rms } from "./timeline.js";
import { element, find } from "./transcript-view.js";

const TEST = 10_000; // ms that a test of the microphone lasts
const LOOK = 80; // ms between two looks at the level

/**
 * @typedef {typeof import("./main.js").page} Page
 * @typedef {import("./call.js").CallStats} CallStats
 */

export class Drawer {
  stream = /** @type {MediaStream | null} */ (null); // while the microphone is tested
  asking = false; // for the microphone
  context = /** @type {AudioContext | null} */ (null);
  timer = 0;
  until = 0; // ms
  last = /** @type {CallStats | null} */ (null);

  /**
   * @param {HTMLElement} root
   * @param {Page} page
   */
  constructor(root, page) {
    this.page = page;
    this.microphones = /** @type {HTMLSelectElement} */ (find(root, "#pp-microphone"));
    this.test = /** @type {HTMLButtonElement} */ (find(root, "#pp-test"));
    this.meter = /** @type {HTMLMeterElement} */ (find(root, "#pp-level"));
    this.problem = find(root, ".test-problem");
    this.bandwidth = /** @type {HTMLSelectElement} */ (find(root, "#pp-bandwidth"));
    this.record = /** @type {HTMLInputElement} */ (find(root, "#pp-record"));
    this.lookup = /** @type {HTMLInputElement} */ (find(root, "#pp-lookup"));
    this.figures = find(root, ".figures");
    this.microphones.onchange = () => { page.settings.microphone = this.microphones.value; };
    this.bandwidth.onchange = () => { page.settings.bandwidth = this.bandwidth.value === "low" ? "low" : "auto"; };
    this.record.onchange = () => { page.settings.record = this.record.checked; };
    this.lookup.onchange = () => page.tune({ routing: this.lookup.checked });
    this.test.onclick = () => this.#toggle();
    find(root, ".drawer-close").onclick = () => page.stage?.sheet("drawer");
    document.addEventListener("keydown", (event) => this.#key(event));
    document.addEventListener("pp-sheet", (event) => this.#opened(/** @type {CustomEvent} */ (event).detail === "drawer"));
    navigator.mediaDevices?.addEventListener("devicechange", () => this.#list());
    this.#list();
    this.stats(null);
  }

  // Whether this call looks things up; without one, whether the next will.
  state() {
    const { call, config, settings, state } = this.page;
    find(document.body, ".check:has(#pp-lookup)").hidden = !config.routing;
    this.lookup.checked = (state.calling && call ? call.settings : settings).routing ?? false;
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const typing = event.target instanceof Element && event.target.closest("input, textarea, select, [contenteditable]");
    if (event.key.toLowerCase() !== "t" || event.ctrlKey || event.metaKey || event.altKey || typing) return;
    this.page.stage?.sheet("drawer");
  }

  /** @param {boolean} open */
  #opened(open) {
    if (open) {
      this.#list();
      this.stats(this.last);
      find(document.body, ".drawer-close").focus();
    } else {
      this.#stop();
    }
  }

  async #list() {
    const all = await navigator.mediaDevices?.enumerateDevices().catch(() => []) ?? [];
    const found = all.filter(({ kind, deviceId }) => kind === "audioinput" && deviceId && deviceId !== "default");
    const options = found.map(({ label, deviceId }, i) => new Option(label || `Microphone ${i + 1}`, deviceId));
    this.microphones.replaceChildren(new Option("The system's own choice", ""), ...options);
    const { settings } = this.page;
    if (!found.some(({ deviceId }) => deviceId === settings.microphone)) settings.microphone = "";
    this.microphones.value = settings.microphone;
  }

  #toggle() {
    if (this.stream) this.#stop();
    else if (!this.asking) this.#start();
  }

  async #start() {
    this.asking = true;
    this.problem.textContent = "";
    const { microphone } = this.page.settings;
    const audio = microphone ? { deviceId: { exact: microphone } } : true;
    const stream = await navigator.mediaDevices?.getUserMedia({ audio }).catch(() => null);
    this.asking = false;
    if (!stream) {
      this.problem.textContent = "The browser does not give this microphone.";
      return;
    }
    this.stream = stream;
    if (document.documentElement.dataset.sheet !== "drawer") { // closed meanwhile
      this.#stop();
      return;
    }
    this.test.textContent = "Stop the test";
    this.#list(); // now the browser tells their names
    const context = new AudioContext();
    const analyser = new AnalyserNode(context, { fftSize: 2048 });
    context.createMediaStreamSource(stream).connect(analyser);
    const samples = new Float32Array(analyser.fftSize);
    this.until = performance.now() + TEST;
    this.timer = setInterval(() => {
      analyser.getFloatTimeDomainData(samples);
      this.meter.value = loudness(rms(samples));
      if (performance.now() > this.until) this.#stop();
    }, LOOK);
    this.context = context;
  }

  #stop() {
    clearInterval(this.timer);
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.context?.close();
    this.stream = null;
    this.context = null;
    this.meter.value = 0;
    this.test.textContent = "Test it";
  }

  /** @param {CallStats | null} stats */
  stats(stats) {
    this.last = stats;
    if (stats && document.documentElement.dataset.sheet !== "drawer") return;
    const { health, call } = this.page;
    const { info } = call ?? {};
    const ms = (/** @type {number | null | undefined} */ value) => (value === null || value === undefined ? "–" : `${Math.round(value)} ms`);
    const lost = stats ? stats.lost : { underruns: 0, jumps: 0, unsent: 0, late: 0 };
    this.#figures([
      ["Model", info?.model ?? health?.model ?? "–"],
      ["Voice", info ? readableVoice(info.voice) : "–"],
      ["Sound travels as", call ? call.settings.codec : "–"],
      ["Delay, there and back", ms(stats?.delay)],
      ["of which network", ms(stats?.trip)],
      ["of which waiting to be played", ms(stats?.queuedMs)],
      ["Model, for 80 ms of speech", ms(stats?.step)],
      ["Gaps, skips, not sent", `${lost.underruns}, ${lost.jumps}, ${lost.unsent}`],
      ["Late at the server", String(lost.late)],
    ]);
  }

  /** @param {[string, string][]} rows */
  #figures(rows) {
    this.figures.replaceChildren(...rows.map(([name, value]) => {
      const row = element("div", "");
      row.append(element("dt", "", name), element("dd", "", value));
      return row;
    }));
  }
}
