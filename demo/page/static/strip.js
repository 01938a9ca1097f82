// @ts-check
// The last 20 s on one time axis: you above, the agent mirrored below, shaded where both talk, and
// the gap before each answer.

import { BAR, STEP, loudness } from "./timeline.js";

const BARS = 200;
const CALM = matchMedia("(prefers-reduced-motion: reduce)");
const SECOND = 1000 / (BAR * STEP); // bars: who wants no motion sees the strip move once in it
const LABEL = 48; // px for the names at the left

export class Strip {
  /** @param {HTMLElement} root */
  constructor(root) {
    this.root = root;
    this.canvas = root.getElementsByTagName("canvas")[0];
    this.drawn = -1; // steps, in the picture
    this.timeline = /** @type {import("./timeline.js").Timeline | null} */ (null);
    new ResizeObserver(() => this.draw()).observe(root);
    for (const query of ["(prefers-color-scheme: dark)", "(forced-colors: active)"]) {
      matchMedia(query).addEventListener("change", () => this.draw());
    }
  }

  /** @param {import("./timeline.js").Timeline | null} timeline of the call that is shown */
  show(timeline) {
    this.timeline = timeline;
    this.root.hidden = !timeline; // before the first conversation there is nothing to see
    this.drawn = -1;
    this.draw();
  }

  // Once for each new bar, ten times a second.
  update() {
    const bars = Math.floor((this.timeline?.steps ?? 0) / BAR);
    const every = CALM.matches ? SECOND : 1;
    if (this.drawn < 0 || Math.floor(bars / every) !== Math.floor(this.drawn / every)) this.draw();
  }

  draw() {
    const { canvas, root } = this;
    const scale = Math.min(2, window.devicePixelRatio || 1);
    const [wide, high] = [root.clientWidth, root.clientHeight];
    const paint = canvas.getContext("2d");
    if (!paint || wide === 0) return;
    if (canvas.width !== Math.round(wide * scale) || canvas.height !== Math.round(high * scale)) {
      canvas.width = Math.round(wide * scale);
      canvas.height = Math.round(high * scale);
    }
    paint.setTransform(scale, 0, 0, scale, 0, 0);
    paint.clearRect(0, 0, wide, high);
    const colour = colours(root);
    const middle = high / 2;
    paint.font = `600 12px ${colour.font}`;
    paint.textBaseline = "middle";
    paint.fillStyle = colour.user;
    paint.fillText("You", 0, middle / 2 + 2);
    paint.fillStyle = colour.agent;
    paint.fillText("Agent", 0, middle * 1.5 - 2);
    const left = LABEL;
    const step = (wide - left) / BARS;
    paint.fillStyle = colour.line;
    paint.fillRect(left, middle - 0.5, wide - left, 1);
    if (!this.timeline) return;
    const { bars, steps, gaps } = this.timeline;
    this.drawn = Math.floor(steps / BAR);
    const first = wide - step * bars.length;
    bars.forEach((bar, i) => {
      const x = first + i * step;
      if (bar.both) {
        paint.fillStyle = colour.both;
        paint.fillRect(x, 2, step + 0.5, high - 4);
      }
    });
    bars.forEach((bar, i) => {
      const x = first + i * step;
      const [up, down] = [height(bar.user, middle), height(bar.agent, middle)];
      paint.fillStyle = colour.user;
      if (up > 0) paint.fillRect(x, middle - 1 - up, Math.max(1, step * 0.7), up);
      paint.fillStyle = colour.agent;
      if (down > 0) paint.fillRect(x, middle + 1, Math.max(1, step * 0.7), down);
    });
    const now = (this.drawn * BAR * STEP) / 1000;
    const xOf = (/** @type {number} */ t) => wide - ((now - t) * 1000 / (BAR * STEP)) * step;
    paint.font = `600 11px ${colour.font}`;
    for (const { from, to, ms } of gaps) this.#gap(paint, colour, xOf(from), xOf(to), `${Math.round(ms / 10) * 10} ms`, left, wide, middle);
  }

  /**
   * @param {CanvasRenderingContext2D} paint
   * @param {{ink: string, card: string}} colour
   * @param {number} from px
   * @param {number} to px
   * @param {string} text
   * @param {number} left px
   * @param {number} wide px
   * @param {number} middle px
   */
  #gap(paint, { ink, card }, from, to, text, left, wide, middle) {
    if (from < left) return;
    paint.fillStyle = paint.strokeStyle = ink;
    paint.lineWidth = 1;
    paint.beginPath();
    paint.moveTo(from, middle - 6);
    paint.lineTo(from, middle + 6);
    paint.moveTo(from, middle);
    paint.lineTo(to, middle);
    paint.moveTo(to, middle - 6);
    paint.lineTo(to, middle + 6);
    paint.stroke();
    const width = paint.measureText(text).width + 8;
    const x = Math.max(left, Math.min(wide - width, (from + to - width) / 2));
    paint.fillStyle = card;
    paint.beginPath();
    paint.roundRect(x, 0, width, 16, 5);
    paint.fill();
    paint.fillStyle = ink;
    paint.fillText(text, x + 4, 8.5);
  }
}

/**
 * @param {number} level
 * @param {number} middle px
 */
function height(level, middle) {
  return Math.round(Math.max(0, (loudness(level) - 0.25) / 0.75) * (middle - 18)); // the labels stand above
}

/** @param {HTMLElement} root */
function colours(root) {
  const style = getComputedStyle(root);
  const value = (/** @type {string} */ name) => style.getPropertyValue(name).trim();
  return {
    user: value("--pp-user-line"), agent: value("--pp-agent-line"), both: value("--pp-both"),
    line: value("--pp-line"), card: value("--pp-card"), ink: value("--pp-ink"), font: style.fontFamily,
  };
}
