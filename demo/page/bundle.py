"""The page's scripts in one file, and its styles in one: else a browser makes 80 requests.

Gradio comes built, in 900 small files. Which of them a page needs follows from its components; they
are read from Gradio's own code, so nothing is built and no list of names is kept. The scripts stay
the modules they are (static/modules.js links them); what was overlooked here is fetched by itself.
The styles of Gradio stand in a layer of their own: any rule of ours wins over any of Gradio's.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import gradio

FRONTEND = Path(gradio.__file__).parent / "templates" / "frontend"
ASSETS = FRONTEND / "assets"

ENTRY = re.compile(r'<script type="module" crossorigin src="\./assets/([^"]+)"></script>')
ENTRY_STYLE = re.compile(r'<link rel="stylesheet" crossorigin href="\./assets/([^"]+)">')
NEEDS = re.compile(r'\b(?:from|import)\s*"\./([\w.-]+\.js)"')  # what a script needs before it runs
LISTED = re.compile(r"m\.f=(\[.*?\])")  # Vite's list of what to fetch beside a later import
# A later import, and which of that list belong to it.
LATER = r"import\(`\./({})`\)[^`]*?__vite__mapDeps\(\[([\d,]*)\]\)"


@dataclass(frozen=True, slots=True)
class Bundle:
    """Two files, and where each part of them would stand alone (paths below the page)."""

    script: str
    style: str
    parts: tuple[str, ...]


def make_bundle(html: str, components: Iterable[str], own: Path) -> Bundle:
    """Of a page of these components, whose own scripts and styles are in the folder `own`.

    Raises RuntimeError if this version of Gradio is built otherwise.
    """
    entry, entry_style = ENTRY.search(html), ENTRY_STYLE.search(html)
    if entry is None or entry_style is None:
        raise RuntimeError("Gradio's page names no entry; adapt demo/page/bundle.py to its version")
    scripts, styles = find_parts(entry[1], components)
    styles = {entry_style[1]: None, **styles}
    texts = {f"assets/{name}": read(ASSETS / name) for name in scripts}
    texts |= {
        f"pp/{path.name}": read(path) for path in sorted(own.glob("*.js")) if path.name != LOADER
    }
    paths = [f"assets/{name}" for name in styles]
    script = (
        f"{read(own / LOADER)}\npageModules.add({json.dumps(texts)}, {json.dumps(paths)});\n"
        f"pageModules.load({json.dumps(f'assets/{entry[1]}')});\n"
    )
    gradios = "\n".join(read(ASSETS / name) for name in styles)
    gradios = gradios.replace("outline:none!important", "outline:none")  # the one that beats layers
    ours = "\n".join(read(path) for path in sorted(own.glob("*.css")))
    return Bundle(script, f"@layer gradio {{\n{gradios}\n}}\n{ours}", (*texts, *paths))


LOADER = "modules.js"


def find_parts(entry: str, components: Iterable[str]) -> tuple[dict[str, None], dict[str, None]]:
    """Names of Gradio's scripts and styles, each in the order in which they are needed."""
    scripts: dict[str, None] = {}
    styles: dict[str, None] = {}

    def add(name: str) -> None:
        if name in scripts:
            return
        for needed in NEEDS.findall(read(ASSETS / name)):
            add(needed)
        scripts[name] = None

    def add_later(importer: str, pattern: str) -> str:
        text = read(ASSETS / importer)
        found, listed = re.search(LATER.format(pattern), text), LISTED.search(text)
        if found is None or listed is None:
            raise RuntimeError(f"Gradio's {importer} names no {pattern}; adapt demo/page/bundle.py")
        add(found[1])
        beside = json.loads(listed[1])
        for part in (beside[int(i)].removeprefix("./") for i in found[2].split(",") if i):
            if part.endswith(".css"):
                styles[part] = None
        return found[1]

    add(entry)
    index, core = (add_later(entry, rf"{name}-[\w-]+\.js") for name in ("Index", "core"))
    add_later(index, r"Blocks-[\w-]+\.js")
    table = read(ASSETS / core)
    for component in sorted(set(components)):
        named = re.search(
            rf"[,{{]{component}:\{{.*?component:\(\)=>\w+\(\(\)=>import\(`\./([^`]+)`\)", table
        )
        if named:
            add_later(core, re.escape(named[1]))
    return scripts, styles


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
