"""The page's layout in Gradio: named places, each with its HTML and the script that fills it.

Every listener is a line of JavaScript (`fn=None`). Therefore talking makes no HTTP request, a
container holds no page state, and an idle tab keeps nothing open. The HTML of a place stands in
html/, its look in static/*.css, and what it does in static/main.js.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
from fastapi import FastAPI

from demo.page import look
from engine.config import SamplingConfig
from engine.dialogue.persona import Persona

HERE = Path(__file__).parent
STATIC = HERE / "static"
SAMPLES = HERE.parents[1] / "assets" / "voices"
TITLE = "PersonaPlex: talk to it"
TOP_K_MAX = 500  # the slider's end; the protocol allows more
IMPORT = "window.pageModules.load('pp/main.js')"
PRIVATE = {"queue": False, "api_visibility": "private"}


@dataclass(frozen=True, slots=True)
class PageConfig:
    """What the page knows before it asks the server."""

    voices: Sequence[str]
    personas: Sequence[Persona]
    voice: str  # chosen at first
    routing: bool | None = None  # whether questions are looked up at first; None: never, no Ask
    why_not: str = ""  # why nothing can be looked up; empty: it can

    @property
    def can_ask(self) -> bool:
        return self.routing is not None and not self.why_not

    def json(self) -> str:
        """As a JavaScript value, safe in any markup: nothing in it can end an element."""
        personas = [
            {
                "title": one.title,
                "text": one.text,
                "looksUp": one.looks_up,
                "line": one.line,
                "toTry": one.to_try,
            }
            for one in self.personas
        ]
        base = SamplingConfig()
        whole = {
            "voices": list(self.voices),
            "personas": personas,
            "voice": self.voice,
            "samples": find_samples(),
            "routing": self.can_ask,
            "whyNot": self.why_not,
            "sampling": {
                "textTemperature": base.text_temperature,
                "textTopK": base.text_top_k,
                "audioTemperature": base.audio_temperature,
                "audioTopK": base.audio_top_k,
            },
        }
        return json.dumps(whole).replace("<", "\\u003c")


def find_samples() -> dict[str, list[str]]:
    """Which model's voices can be heard beforehand (`engine voices --samples`): model -> voices."""
    found: dict[str, list[str]] = {}
    for path in sorted(SAMPLES.glob("*/*.opus")):
        found.setdefault(path.parent.name, []).append(path.stem)
    return found


def place(name: str, config: str = "null") -> gr.HTML:
    """`#pp-NAME`, filled with html/NAME.html, and handed to `mount` in static/main.js.

    Gradio reads the HTML as Handlebars and as a JavaScript template: no braces, no backticks.
    """
    mount = f"m => m.page.mount('{name}', element, {config})"
    return gr.HTML(
        html_template=(HERE / "html" / f"{name}.html").read_text(encoding="utf-8"),
        apply_default_css=False,
        elem_id=f"pp-{name}",
        js_on_load=f"{IMPORT}.then({mount});",
    )


def lay_out(config: PageConfig) -> None:
    """All places, in the order in which a keyboard reaches them."""
    place("bar", config.json())
    with gr.Row(elem_classes="pp-columns"):
        with gr.Column(elem_classes="pp-left", scale=3, min_width=320):
            place("stage")
            place("summary")
            place("cast")
        with gr.Column(elem_classes="pp-right", scale=2, min_width=320):
            place("conversation")
    with gr.Column(elem_id="pp-drawer"):
        place("tools")
        lay_out_tuning()


def lay_out_tuning() -> None:
    base = SamplingConfig()
    controls: list[gr.Textbox | gr.Slider] = [
        gr.Textbox(label="Seed (empty: random)", max_lines=1, max_length=10, elem_id="pp-seed"),
        make_slider(0, 2, base.text_temperature, "Text temperature", "pp-temp"),
        make_slider(1, TOP_K_MAX, base.text_top_k, "Text top-k", "pp-topk"),
        make_slider(0, 2, base.audio_temperature, "Audio temperature", "pp-audio-temp"),
        make_slider(1, TOP_K_MAX, base.audio_top_k, "Audio top-k", "pp-audio-topk"),
    ]
    for control in controls:
        control.change(None, controls, None, js=TUNE, **PRIVATE)


def make_slider(low: int, high: int, value: float, label: str, elem_id: str) -> gr.Slider:
    """A slider over whole numbers, or over hundredths when it starts at 0."""
    step = 0.01 if low == 0 else 1
    return gr.Slider(low, high, value=value, step=step, label=label, elem_id=elem_id)


TUNE = """(seed, textTemperature, textTopK, audioTemperature, audioTopK) =>
 window.PersonaPlex.tune({seed: /^[0-9]+$/.test(seed) ? Number(seed) : null, textTemperature,
 textTopK, audioTemperature, audioTopK})"""


def build_page(config: PageConfig) -> gr.Blocks:
    """The page, not yet served."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as page:
        lay_out(config)
    return page


def mount(page: gr.Blocks) -> FastAPI:
    """The page as an ASGI application at `/`, with everything off that keeps requests open."""
    return gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="/",
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
        theme=look.make_theme(),
    )
