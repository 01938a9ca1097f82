// Draws the transcript's turns; every word goes in as text, never as markup.

const WHO = { agent: "Agent", user: "You", page: "" };
const KIND = { given: "given to say", answer: "looked up", question: "asked" };

export class TranscriptView {
  constructor(log, empty) {
    this.log = log;
    this.empty = empty;
    this.items = new Map(); // turn -> element
  }

  clear() {
    this.items.clear();
    this.log.replaceChildren();
    this.empty.hidden = false;
  }

  // What changed(turn, before) of the transcript is for.
  show(turn, before) {
    const follows = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 60;
    let item = this.items.get(turn);
    if (!item) {
      item = newItem(turn);
      this.items.set(turn, item);
      this.log.insertBefore(item, before ? this.items.get(before) : null);
      this.empty.hidden = true;
    }
    fill(item, turn);
    if (follows) this.log.scrollTop = this.log.scrollHeight;
  }
}

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

function fill(item, turn) {
  item.querySelector(".said").textContent = turn.text;
  const cut = item.querySelector(".cut");
  cut.textContent = turn.cut;
  cut.hidden = turn.cut === "";
  const state = item.querySelector(".turn-state");
  state.textContent = turn.state || turn.mark;
  state.hidden = state.textContent === "";
  item.classList.toggle("partial", turn.final === false);
}

export function element(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}
