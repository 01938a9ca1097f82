// @ts-check
// Two level meters: a rolling picture of the last seconds on a canvas, and a figure for screen readers.

const FLOOR = -60; // dB shown as nothing
const BARS = 48;
const PUSH_EVERY = 80; // ms per bar

export class Meter {
  /** @param {HTMLElement} root */
  constructor(root) {
    this.canvas = root.getElementsByTagName("canvas")[0];
    this.root = root;
    this.levels = new Array(BARS).fill(0);
    this.peak = 0; // since the last bar
    this.pushedAt = 0;
  }

  /** @param {number} level root mean square of some samples, 0 to 1 */
  add(level) {
    this.peak = Math.max(this.peak, loudness(level));
  }

  still() {
    this.levels.fill(0);
    this.peak = 0;
    this.#describe(0);
    this.draw();
  }

  /**
   * Once a picture; moves on by one bar every 80 ms.
   * @param {number} now ms
   */
  tick(now) {
    if (now - this.pushedAt < PUSH_EVERY) return;
    this.pushedAt = now;
    this.levels.push(this.peak);
    this.levels.shift();
    this.#describe(this.peak);
    this.peak *= 0.5;
    this.draw();
  }

  /** @param {number} value 0 to 1, for screen readers */
  #describe(value) {
    this.root.setAttribute("aria-valuenow", String(Math.round(value * 100)));
  }

  draw() {
    const { canvas } = this;
    const scale = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth * scale, canvas.clientHeight * scale];
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const paint = canvas.getContext("2d");
    if (!paint) return;
    paint.clearRect(0, 0, width, height);
    paint.fillStyle = getComputedStyle(canvas).color;
    const step = width / BARS;
    this.levels.forEach((level, i) => {
      const tall = Math.max(2 * scale, level * height);
      paint.globalAlpha = 0.3 + 0.7 * (i / BARS);
      paint.beginPath();
      paint.roundRect(i * step + step * 0.2, (height - tall) / 2, step * 0.6, tall, step * 0.3);
      paint.fill();
    });
  }
}

// Draws the meters while there is a call, and nothing when there is none.
export class Animation {
  /** @param {Meter[]} meters */
  constructor(meters) {
    this.meters = meters;
    this.running = false;
  }

  start() {
    if (this.running) return;
    this.running = true;
    /** @param {number} now ms */
    const step = (now) => {
      if (!this.running) return;
      for (const meter of this.meters) meter.tick(now);
      requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
  }

  stop() {
    this.running = false;
    for (const meter of this.meters) meter.still();
  }
}

/** @param {Samples} samples */
export function rms(samples) {
  let sum = 0;
  for (const sample of samples) sum += sample * sample;
  return Math.sqrt(sum / samples.length);
}

/** @param {number} level */
function loudness(level) {
  if (level <= 0) return 0;
  return Math.max(0, Math.min(1, 1 - (20 * Math.log10(level)) / FLOOR));
}
