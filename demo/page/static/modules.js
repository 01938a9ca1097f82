// @ts-check
// Loads ES modules out of one file, which the server writes (demo/page/bundle.py): this script, then the
// text of every module. A module gets an address of its own in memory (blob:), and what it imports is put
// in by address. So they stay real modules, each runs once, and one request brings them all. What is not
// in the file is fetched when it is asked for.

// `from"./x.js"`, `import "./x.js"`: what a module needs before it runs.
const STATIC = /\b(from|import)\s*"\.\/([\w.-]+\.js)"/g;
const DYNAMIC = /\bimport\(\s*[`"]\.\/([\w.-]+\.js)[`"]\s*\)/g;
// Vite's list of what to fetch beside a later import; our file has most of it.
const LISTED = "=>i.map(i=>d[i])";
const STYLE = /`\.\/(assets\/[\w-]+\.css)`/g; // Gradio asks whether the page has its first style

// Gradio's sign of loading counts time sixty times a second, and goes on when it has long gone (6.31). It keeps
// the requestAnimationFrame that is there when its module runs: it gets one that ends when the page is there.
const frame = window.requestAnimationFrame;
window.requestAnimationFrame = (work) => (window.pageModules.there ? 0 : frame.call(window, work));

class PageModules {
  texts = /** @type {Map<string, string>} */ (new Map()); // by path below the page
  addresses = /** @type {Map<string, string>} */ (new Map());
  styles = /** @type {Set<string>} */ (new Set()); // paths of the styles that the page has already
  page = document.baseURI;
  there = false; // the page is drawn
  style = document.querySelector("link[rel=stylesheet]")?.getAttribute("href") ?? "";

  /**
   * @param {Record<string, string>} texts
   * @param {string[]} styles
   */
  add(texts, styles) {
    for (const [path, text] of Object.entries(texts)) this.texts.set(path, text);
    for (const path of styles) this.styles.add(path);
  }

  // The page is drawn: what draws from now on asks the browser itself.
  arrive() {
    this.there = true;
    window.requestAnimationFrame = frame;
  }

  /**
   * Run a module, once, however often it is asked for.
   * @param {string} path
   */
  async load(path) {
    await this.#fetch(path);
    return import(this.address(path));
  }

  /**
   * Where a module is in memory; its text and those that it needs must be here.
   * @param {string} path
   * @returns {string}
   */
  address(path) {
    const known = this.addresses.get(path);
    if (known) return known;
    const text = this.texts.get(path);
    if (text === undefined) throw new Error(`${path} is not one of the page's modules`);
    const made = URL.createObjectURL(new Blob([this.#link(path, text)], { type: "text/javascript" }));
    this.addresses.set(path, made);
    return made;
  }

  /**
   * Whether one of Vite's list is still to be fetched: a style that the page has not.
   * @param {string} name
   */
  lacks(name) {
    return name.endsWith(".css") && !this.styles.has(`assets/${name.replace("./", "")}`);
  }

  /**
   * @param {string} path
   * @param {string} text
   */
  #link(path, text) {
    const folder = path.slice(0, path.lastIndexOf("/") + 1);
    const own = new URL(path, this.page).href;
    const linked = text
      .replace(STATIC, (_, word, name) => `${word} "${this.address(folder + name)}"`)
      .replace(DYNAMIC, (_, name) => `pageModules.load("${folder}${name}")`)
      .replaceAll("import.meta.url", JSON.stringify(own))
      .replace(STYLE, (whole, style) => this.styles.has(style) ? JSON.stringify(this.style) : whole)
      .replace(LISTED, `${LISTED}.filter((name) => pageModules.lacks(name))`);
    return `${linked}\n//# sourceURL=${own}`;
  }

  /**
   * The text of a module and of all that it needs.
   * @param {string} path
   */
  async #fetch(path) {
    if (!this.texts.has(path)) {
      const answer = await fetch(new URL(path, this.page));
      if (!answer.ok) throw new Error(`${path}: the server answers ${answer.status}`);
      this.texts.set(path, await answer.text());
    }
    if (this.addresses.has(path)) return;
    const folder = path.slice(0, path.lastIndexOf("/") + 1);
    const needed = [...(this.texts.get(path) ?? "").matchAll(STATIC)].map((one) => folder + one[2]);
    for (const one of needed) await this.#fetch(one);
  }
}

window.pageModules = new PageModules();
