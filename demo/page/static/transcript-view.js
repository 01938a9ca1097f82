// @ts-check
// Draws the transcript's turns; every word goes in as text, never as markup.

/** @typedef {import("./transcript.js").Turn} Turn */

const WHO = { agent: "Agent", user: "You", page: "" };
/** @type {Partial<Record<Turn["kind"], string>>} */
const KIND = { given: "given to say", answer: "looked up", question: "asked" };

export class TranscriptView {
  /**
   * @param {HTMLElement} log
   * @param {HTMLElement} empty shown while there is no turn
   */
  constructor(log, empty) {
    this.log = log;
    this.empty = empty;
    this.items = /** @type {Map<Turn, HTMLElement>} */ (new Map());
  }

  clear() {
    this.items.clear();
    this.log.replaceChildren();
    this.empty.hidden = false;
  }

  /**
   * Draw a turn that is new or has changed.
   * @param {Turn} turn
   * @param {Turn | null} before the turn that follows
   */
  show(turn, before) {
    const follows = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 60;
    let item = this.items.get(turn);
    if (!item) {
      item = newItem(turn);
      this.items.set(turn, item);
      this.log.insertBefore(item, before && (this.items.get(before) ?? null));
      this.empty.hidden = true;
    }
    fill(item, turn);
    if (follows) this.log.scrollTop = this.log.scrollHeight;
  }
}

/** @param {Turn} turn */
function newItem(turn) {
  const item = element("div", `turn ${turn.who} ${turn.kind}`);
  const head = element("p", "turn-head");
  head.append(element("span", "turn-who", WHO[turn.who]));
  if (KIND[turn.kind]) head.append(element("span", "turn-kind", KIND[turn.kind]));
  if (turn.who !== "page") head.append(element("span", "turn-time", clock(turn.start)));
  const words = element("p", "turn-words");
  words.append(element("span", "said"), element("s", "cut"));
  item.append(head, words, element("p", "turn-state"));
  return item;
}

/**
 * @param {HTMLElement} item
 * @param {Turn} turn
 */
function fill(item, turn) {
  find(item, ".said").textContent = turn.text;
  const cut = find(item, ".cut");
  cut.textContent = turn.cut;
  cut.hidden = turn.cut === "";
  const state = find(item, ".turn-state");
  state.textContent = turn.state || turn.mark;
  state.hidden = state.textContent === "";
  item.classList.toggle("partial", turn.final === false);
}

/**
 * The element that a selector names. Our own markup has it.
 * @param {HTMLElement} root
 * @param {string} selector
 */
export function find(root, selector) {
  const found = root.querySelector(selector);
  if (!(found instanceof HTMLElement)) throw new Error(`${selector} is missing from the page`);
  return found;
}

/**
 * @param {string} name
 * @param {string} className
 */
export function element(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

/** @param {number} seconds */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}
