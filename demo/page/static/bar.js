// @ts-check
// The line at the top: what the server is, how many places it has, and whether it is the real one.

import { find } from "./transcript-view.js";

/** @typedef {import("./main.js").Health} Health */

/** @param {Health | null} health @returns {boolean} a voice stands in for the model */
export function isDemo(health) {
  return health?.model === "embedded";
}

export class Bar {
  /**
   * @param {HTMLElement} root
   * @param {typeof import("./main.js").page} page
   */
  constructor(root, page) {
    this.pill = find(root, ".pill");
    this.text = find(root, ".pill-text");
    this.short = find(root, ".pill-short");
    this.badge = find(root, ".demo-badge");
    const tuning = find(root, "#pp-tuning");
    tuning.addEventListener("click", () => page.stage?.sheet("drawer"));
  }

  /** @param {Health | null} health */
  health(health) {
    const { tone, text, short } = summarise(health);
    this.pill.dataset.tone = tone;
    this.text.textContent = text;
    this.short.textContent = short;
    this.badge.hidden = !isDemo(health);
  }
}

/**
 * @param {Health | null} health null: no answer
 * @returns {{tone: "ready" | "full" | "waking" | "away", text: string, short: string}}
 */
function summarise(health) {
  if (!health) return { tone: "away", text: "the server does not answer", short: "no answer" };
  const { status, free, slots, percent } = health;
  if (status === "ok" && free) {
    return { tone: "ready", text: `ready · ${free} of ${slots} places free`, short: `${free} free` };
  }
  if (status === "ok") return { tone: "full", text: `all ${slots} places are taken`, short: "all taken" };
  const far = percent ? `${Math.round(percent)} %` : "";
  if (status === "waking") return { tone: "waking", text: `waking up${far && ` · ${far}`}`, short: far || "waking" };
  return { tone: "away", text: "the server is in trouble", short: "trouble" };
}
