// @ts-check
// Who the next call is with: a card for each persona, one for a role of the user's own, and the voices.

import { element, find } from "./transcript-view.js";

const CUSTOM = "Custom";
const FEW = 6; // voices that are shown at first
const KINDS = { NAT: "Natural", VAR: "Varied" };
const SEXES = { F: "female", M: "male" };

/**
 * @typedef {typeof import("./main.js").page} Page
 * @typedef {{title: string, text: string, looksUp: boolean, line: string, toTry: string}} Persona
 */

export class CastPanel {
  custom = ""; // a role that was edited: kept while another card is chosen
  chosen = ""; // the title of a card
  all = false; // voices are shown, not only a few
  unfolded = false; // in a call
  sound = /** @type {HTMLAudioElement | null} */ (null);

  /**
   * @param {HTMLElement} root
   * @param {Page} page
   */
  constructor(root, page) {
    this.page = page;
    this.card = find(root, ".cast");
    this.personas = find(root, ".personas");
    this.role = /** @type {HTMLTextAreaElement} */ (find(root, "#pp-persona"));
    this.chips = find(root, ".voices");
    this.more = /** @type {HTMLButtonElement} */ (find(root, ".more-voices"));
    this.folded = /** @type {HTMLButtonElement} */ (find(root, ".folded"));
    this.chosen = page.config.personas[0]?.title ?? CUSTOM;
    this.role.value = page.settings.persona;
    this.role.oninput = () => this.#edit();
    this.more.onclick = () => { this.all = !this.all; this.voices(page.config.voices); };
    this.folded.onclick = () => { this.unfolded = !this.unfolded; this.state(); };
    this.#deal();
    this.voices(page.config.voices);
  }

  #deal() {
    const own = { title: CUSTOM, line: "A role in your own words.", toTry: "", text: this.custom, looksUp: false };
    this.personas.replaceChildren(...[...this.page.config.personas, own].map((persona) => this.#personaCard(persona)));
  }

  /** @param {Persona} persona */
  #personaCard(persona) {
    const card = element("label", "persona");
    const radio = newRadio("pp-card", persona.title, persona.title === this.chosen);
    radio.onchange = () => this.#choose(persona.title);
    card.append(radio, element("b", "", persona.title), element("span", "persona-line", persona.line));
    if (persona.toTry) card.append(element("span", "persona-try", `Try: ${persona.toTry}`));
    return card;
  }

  /** @param {string} title */
  #choose(title) {
    this.chosen = title;
    const persona = this.page.config.personas.find((one) => one.title === title);
    this.#set(persona ? persona.text : this.custom || this.role.value, persona?.looksUp ?? false);
    if (persona) return;
    this.custom = this.role.value;
    const details = this.role.closest("details");
    if (details) details.open = true;
    this.role.focus();
  }

  // The first letter makes a role the user's own; the card it came from keeps its text.
  #edit() {
    this.custom = this.role.value;
    this.page.settings.persona = this.role.value;
    if (this.chosen === CUSTOM) return;
    this.chosen = CUSTOM;
    this.page.lookUp(false);
    for (const one of this.personas.querySelectorAll("input")) one.checked = one.value === CUSTOM;
  }

  /**
   * @param {string} text
   * @param {boolean} looksUp
   */
  #set(text, looksUp) {
    this.role.value = text;
    this.page.settings.persona = text;
    this.page.lookUp(looksUp);
  }

  /** @param {string[]} names of this server's voices, the default first */
  voices(names) {
    const own = this.page.settings.voice || (names.includes(this.page.config.voice) ? this.page.config.voice : names[0]);
    const shown = this.all ? names : names.filter((name, i) => i < FEW || name === own);
    this.chips.replaceChildren(...shown.map((name) => this.#chip(name, name === own)));
    this.more.hidden = names.length <= FEW;
    this.more.textContent = this.all ? "Fewer voices" : `All ${names.length} voices`;
    this.more.setAttribute("aria-expanded", String(this.all));
  }

  /**
   * @param {string} name
   * @param {boolean} chosen
   */
  #chip(name, chosen) {
    const chip = element("span", "voice");
    const label = element("label", "");
    const radio = newRadio("pp-voice", name, chosen);
    radio.onchange = () => { this.page.settings.voice = name; };
    label.append(radio, element("span", "", readableVoice(name)));
    label.title = name;
    chip.append(label);
    const model = (this.page.health?.model ?? "").split("/").at(-1) ?? "";
    if (this.page.config.samples[model]?.includes(name)) chip.append(this.#sample(model, name));
    return chip;
  }

  /**
   * @param {string} model
   * @param {string} name
   */
  #sample(model, name) {
    const button = /** @type {HTMLButtonElement} */ (element("button", "sample", "▶"));
    button.type = "button";
    button.setAttribute("aria-label", `Hear ${readableVoice(name)}`);
    button.onclick = () => {
      const playing = button.textContent === "■";
      this.sound?.pause();
      if (playing) return;
      const sound = new Audio(`pp/voices/${model}/${name}.opus`);
      this.sound = sound;
      button.textContent = "■";
      sound.onpause = sound.onended = sound.onerror = () => { button.textContent = "▶"; };
      sound.play().catch(() => { button.textContent = "▶"; });
    };
    return button;
  }

  // In a call one line; what is chosen then is for the next one.
  state() {
    const { calling } = this.page.state;
    if (!calling) this.unfolded = false;
    else this.sound?.pause();
    const { settings, config } = this.page;
    const voice = readableVoice(settings.voice || config.voice || config.voices[0] || "");
    this.card.classList.toggle("is-folded", calling && !this.unfolded);
    this.folded.hidden = !calling;
    this.folded.setAttribute("aria-expanded", String(this.unfolded));
    this.folded.replaceChildren(element("b", "", `${this.chosen} · ${voice}`), element("span", "", "change for the next call"));
  }
}

/** @param {string} name */
export function readableVoice(name) {
  const parts = /^(NAT|VAR)([FM])(\d+)$/.exec(name);
  if (!parts) return name;
  const [kind, sex] = [KINDS[/** @type {"NAT" | "VAR"} */ (parts[1])], SEXES[/** @type {"F" | "M"} */ (parts[2])]];
  return `${kind} ${sex} ${parts[3]}`;
}

/**
 * @param {string} group
 * @param {string} value
 * @param {boolean} checked
 */
function newRadio(group, value, checked) {
  const radio = document.createElement("input");
  Object.assign(radio, { type: "radio", name: group, value, checked });
  return radio;
}
