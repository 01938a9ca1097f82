// @ts-check
// The orb: a teal core that is the agent's level, violet rings that are yours, an amber rim while
// both talk. One canvas; nothing is drawn while nothing moves.

const POINTS = 72; // of an outline
const CALM = matchMedia("(prefers-reduced-motion: reduce)");
const FORCED = matchMedia("(forced-colors: active)");
const EVERY = 33; // ms between two pictures
const EVERY_CALM = 100; // the same for those who want no motion: they see steps anyway
const EARLY = 4; // ms, so that a timer that is a little late does not cost a picture of the screen
const STEPS = 5; // sizes, for those who want no motion
const BREATH = 6000; // ms
const BREATHS = 10; // in a minute; then it rests
const BREATHE_EVERY = 400; // ms, a third of a pixel: sixty pictures a second would cost a tenth of a core

/** @typedef {{core: string, shade: string, light: string, ring: string, rim: string, faint: string}} Palette */

export class Orb {
  level = { mic: 0, agent: 0 }; // as shown, 0 to 1
  aim = { mic: 0, agent: 0 };
  at = 0; // ms, when the last picture was drawn
  asked = false; // for the next picture
  progress = /** @type {number | null} */ (null); // of waking up, 0 to 1
  face = /** @type {import("./state.js").Face} */ ("ready");
  lit = 0; // how strongly the core shines, 0 to 1
  breathing = 0; // the timer
  drawn = ""; // what the picture shows, for those who want no motion

  /** @param {HTMLElement} root */
  constructor(root) {
    this.root = root;
    this.canvas = root.getElementsByTagName("canvas")[0];
    const again = () => {
      this.drawn = "";
      this.#ask();
    };
    for (const query of [CALM, FORCED, matchMedia("(prefers-color-scheme: dark)")]) query.addEventListener("change", again);
    new ResizeObserver(again).observe(root);
  }

  /**
   * @param {import("./state.js").Face} face
   * @param {number | null} percent
   */
  show(face, percent) {
    if (face !== this.face || face === "ready") this.#breathe(face === "ready" && !CALM.matches);
    this.face = face;
    this.progress = percent === null ? null : percent / 100;
    if (!LEVELS.has(face)) this.aim = { mic: 0, agent: 0 };
    this.#ask();
  }

  /** @param {{mic?: number, agent?: number}} levels loudness, 0 to 1 */
  hear(levels) {
    Object.assign(this.aim, levels);
    if (this.aim.mic + this.aim.agent > 0.01) this.#ask();
  }

  /** @param {boolean} on */
  #breathe(on) {
    clearInterval(this.breathing);
    const began = performance.now();
    const size = (/** @type {number} */ passed) => {
      this.canvas.style.transform = `scale(${1.02 - 0.02 * Math.cos((passed / BREATH) * 2 * Math.PI)})`;
    };
    size(0);
    if (!on) return;
    this.breathing = setInterval(() => {
      const passed = performance.now() - began;
      if (passed >= BREATHS * BREATH || CALM.matches) this.#breathe(false);
      else size(passed);
    }, BREATHE_EVERY);
  }

  // A timer waits for the next picture: a frame that is asked for makes the browser work, drawn or not.
  #ask() {
    if (this.asked) return;
    this.asked = true;
    const wait = Math.max(0, this.at + (CALM.matches ? EVERY_CALM : EVERY) - EARLY - performance.now());
    setTimeout(() => requestAnimationFrame((now) => this.#tick(now)), wait);
  }

  /** @param {number} now ms */
  #tick(now) {
    this.asked = false;
    const passed = performance.now() - this.at;
    this.at += passed;
    const keep = Math.exp(-Math.min(passed, 100) / 90);
    let moving = TURNING.has(this.face) && !CALM.matches;
    for (const side of /** @type {const} */ (["mic", "agent"])) {
      const left = this.level[side] - this.aim[side];
      this.level[side] = Math.abs(left) < 0.004 ? this.aim[side] : this.aim[side] + left * keep;
      if (this.level[side] !== this.aim[side] || this.level[side] > 0.01) moving = true;
    }
    const aim = LIT.has(this.face) ? 1 : this.face === "unstable" ? 0.35 : 0;
    this.lit = Math.abs(this.lit - aim) < 0.02 ? aim : aim + (this.lit - aim) * keep;
    if (this.lit !== aim) moving = true;
    this.#draw(now);
    if (moving) this.#ask();
  }

  /** @param {number} now ms */
  #draw(now) {
    const { canvas } = this;
    const scale = Math.min(2, window.devicePixelRatio || 1);
    const size = Math.round(this.root.clientWidth * scale);
    const paint = canvas.getContext("2d");
    if (!paint || size === 0) return;
    const time = CALM.matches ? 0 : now / 1000;
    const calm = (/** @type {number} */ level) => CALM.matches ? Math.round(level * STEPS) / STEPS : level;
    const [mic, agent] = [calm(this.level.mic), calm(this.level.agent)];
    const shows = CALM.matches ? [size, this.face, this.progress, this.lit, mic, agent].join(" ") : "";
    if (shows && shows === this.drawn) return; // thirty times a second the same would cost a tenth of a core
    this.drawn = shows;
    if (canvas.width !== size) canvas.width = canvas.height = size;
    paint.setTransform(1, 0, 0, 1, 0, 0);
    paint.clearRect(0, 0, size, size);
    paint.setTransform(size / 2, 0, 0, size / 2, size / 2, size / 2); // the canvas is -1 to 1
    const colour = palette(this.root);
    if (FORCED.matches) drawPlain(paint, mic, agent, this.face);
    else drawOrb(paint, colour, { time, mic, agent, lit: this.lit, wobble: CALM.matches ? 0 : 1, face: this.face });
    if (this.face === "waking") drawProgress(paint, colour, this.progress, time);
    if (this.face === "waiting" || this.face === "calling" || this.face === "reconnecting") drawDots(paint, colour, time);
    if (this.face === "looking") drawMoon(paint, colour, time);
    if (this.face === "permission") drawArrow(paint, colour, time);
  }
}

/** @typedef {import("./state.js").Face} Face */
const LEVELS = new Set(/** @type {Face[]} */ (["listening", "speaking", "both", "looking", "deaf", "muted", "paused"]));
const LIT = new Set(/** @type {Face[]} */ (["listening", "speaking", "both", "looking", "deaf", "muted", "paused"]));
const TURNING = new Set(/** @type {Face[]} */ (["permission", "calling", "waking", "waiting", "looking", "reconnecting"]));

/** @param {HTMLElement} root @returns {Palette} */
function palette(root) {
  const style = getComputedStyle(root);
  const [core, shade, light, ring, rim, faint] = ["core", "shade", "light", "ring", "rim", "faint"]
    .map((name) => style.getPropertyValue(`--orb-${name}`).trim());
  return { core, shade, light, ring, rim, faint };
}

/**
 * @param {CanvasRenderingContext2D} paint
 * @param {Palette} colour
 * @param {{time: number, mic: number, agent: number, lit: number, wobble: number, face: Face}} how
 */
function drawOrb(paint, colour, { time, mic, agent, lit, wobble, face }) {
  const radius = 0.5 + 0.12 * agent;
  for (const [reach, alpha, pace] of [[0.34, 0.22, 0.9], [0.2, 0.4, 1.3]]) {
    paint.globalAlpha = alpha * (0.35 + 0.65 * lit);
    paint.fillStyle = colour.ring;
    outline(paint, Math.min(0.97, 0.54 + 0.05 * lit + reach * mic), wobble * (0.012 + 0.09 * mic), time * pace, 5);
    paint.fill();
  }
  if (face === "both") {
    paint.globalAlpha = 1;
    paint.strokeStyle = colour.rim;
    paint.lineWidth = 0.035;
    outline(paint, radius + 0.035, wobble * 0.05 * agent, time * 1.7, 4);
    paint.stroke();
  }
  for (const [alpha, fill] of /** @type {[number, CanvasGradient | string][]} */ (
    [[1, colour.faint], [lit, gradient(paint, colour, radius)]])) {
    paint.globalAlpha = alpha;
    paint.fillStyle = fill;
    outline(paint, radius, wobble * 0.06 * agent, time * 1.7, 4);
    paint.fill();
  }
  paint.globalAlpha = 1;
}

/**
 * @param {CanvasRenderingContext2D} paint
 * @param {Palette} colour
 * @param {number} radius
 */
function gradient(paint, colour, radius) {
  const made = paint.createRadialGradient(-0.18, -0.2, 0.02, 0, 0, radius * 1.1);
  made.addColorStop(0, colour.light);
  made.addColorStop(0.45, colour.core);
  made.addColorStop(1, colour.shade);
  return made;
}

/**
 * A circle with waves on it.
 * @param {CanvasRenderingContext2D} paint
 * @param {number} radius
 * @param {number} wave how high
 * @param {number} time s
 * @param {number} lobes
 */
function outline(paint, radius, wave, time, lobes) {
  paint.beginPath();
  for (let i = 0; i <= POINTS; i++) {
    const angle = (i / POINTS) * 2 * Math.PI;
    const r = Math.min(0.98, radius + wave * (Math.sin(lobes * angle + 2.1 * time) + 0.6 * Math.sin((lobes - 2) * angle - 1.4 * time)));
    if (i === 0) paint.moveTo(r * Math.cos(angle), r * Math.sin(angle));
    else paint.lineTo(r * Math.cos(angle), r * Math.sin(angle));
  }
  paint.closePath();
}

/**
 * Outlines only, in the system's colours.
 * @param {CanvasRenderingContext2D} paint
 * @param {number} mic
 * @param {number} agent
 * @param {Face} face
 */
function drawPlain(paint, mic, agent, face) {
  paint.strokeStyle = "CanvasText";
  paint.lineWidth = 0.03;
  for (const radius of [0.45 + 0.12 * agent, 0.62 + 0.3 * mic]) {
    outline(paint, radius, 0, 0, 4);
    paint.stroke();
  }
  if (face !== "both") return;
  paint.strokeStyle = "Highlight";
  outline(paint, 0.53 + 0.1 * agent, 0, 0, 4);
  paint.stroke();
}

/**
 * @param {CanvasRenderingContext2D} paint
 * @param {Palette} colour
 * @param {number | null} progress
 * @param {number} time s
 */
function drawProgress(paint, colour, progress, time) {
  paint.lineWidth = 0.05;
  paint.strokeStyle = colour.core;
  paint.lineCap = "round";
  const start = progress === null ? time * 1.6 : -Math.PI / 2;
  paint.beginPath();
  paint.arc(0, 0, 0.8, start, start + 2 * Math.PI * (progress ?? 0.22));
  paint.stroke();
}

/**
 * @param {CanvasRenderingContext2D} paint
 * @param {Palette} colour
 * @param {number} time s
 */
function drawDots(paint, colour, time) {
  paint.fillStyle = colour.core;
  for (let i = 0; i < 16; i++) {
    const angle = (i / 16) * 2 * Math.PI + time * 0.35;
    paint.beginPath();
    paint.arc(0.8 * Math.cos(angle), 0.8 * Math.sin(angle), 0.028, 0, 2 * Math.PI);
    paint.fill();
  }
}

/**
 * @param {CanvasRenderingContext2D} paint
 * @param {Palette} colour
 * @param {number} time s
 */
function drawMoon(paint, colour, time) {
  paint.strokeStyle = colour.ring;
  paint.lineWidth = 0.012;
  paint.beginPath();
  paint.arc(0, 0, 0.8, 0, 2 * Math.PI);
  paint.stroke();
  paint.fillStyle = colour.rim;
  paint.beginPath();
  paint.arc(0.8 * Math.cos(time * 2.2), 0.8 * Math.sin(time * 2.2), 0.07, 0, 2 * Math.PI);
  paint.fill();
}

/**
 * Towards the browser's question, which is at the top left.
 * @param {CanvasRenderingContext2D} paint
 * @param {Palette} colour
 * @param {number} time s
 */
function drawArrow(paint, colour, time) {
  const shift = -0.04 * (1 + Math.sin(3 * time));
  paint.strokeStyle = colour.core;
  paint.lineWidth = 0.06;
  paint.lineCap = paint.lineJoin = "round";
  paint.beginPath();
  paint.moveTo(-0.56 + shift, -0.56 + shift);
  paint.lineTo(-0.84 + shift, -0.84 + shift);
  paint.moveTo(-0.62 + shift, -0.86 + shift);
  paint.lineTo(-0.86 + shift, -0.86 + shift);
  paint.lineTo(-0.86 + shift, -0.62 + shift);
  paint.stroke();
}
