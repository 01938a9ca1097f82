"""The page's layout and widgets in Gradio. Nothing of it runs on the server.

Every listener is a line of JavaScript (`fn=None`). Therefore talking makes no HTTP request, a
container holds no page state, and an idle tab keeps nothing open.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
from fastapi import FastAPI

from demo.page import look
from engine.config import SamplingConfig
from engine.dialogue.persona import MAX_PROMPT_CHARS, Persona

STATIC = Path(__file__).parent / "static"
TITLE = "PersonaPlex: talk to it"
SEED_MAX = 2**31 - 1
TOP_K_MAX = 500  # the slider's end; the protocol allows more
SAY_MAX = 2000  # characters (docs/api.md)
IMPORT = "window.pageModules.load('pp/main.js')"
PRIVATE = {"queue": False, "api_visibility": "private"}
SENDS = (
    "While this is on, questions about the product and the last turns of both sides go to "
    "DeepSeek, a text model outside this server."
)


@dataclass(frozen=True, slots=True)
class PageConfig:
    """What the page knows before it asks the server."""

    voices: Sequence[str]
    personas: Sequence[Persona]
    voice: str  # chosen at first
    routing: bool | None = None  # whether questions are looked up at first; None: never, no Ask

    @property
    def can_ask(self) -> bool:
        return self.routing is not None

    def json(self) -> str:
        """As a JavaScript value, safe in any markup: nothing in it can end an element."""
        personas = [
            {"title": one.title, "text": one.text, "looksUp": one.looks_up} for one in self.personas
        ]
        whole = {"voices": list(self.voices), "personas": personas, "routing": self.can_ask}
        return json.dumps(whole).replace("<", "\\u003c")


class Widgets:
    """All widgets by name, in the order in which they are laid out."""

    def __init__(self, config: PageConfig) -> None:
        gr.HTML(look.HEADER, apply_default_css=False)
        with gr.Row(elem_classes="pp-columns"):
            with gr.Column(scale=3, min_width=300):
                self._call(config)
                self._conversation(config)
            with gr.Column(scale=2, min_width=300):
                with gr.Column(elem_classes="pp-card"):
                    self._settings(config)
                with gr.Column(elem_classes="pp-card"):
                    gr.HTML(look.DOWNLOADS, apply_default_css=False)
                    with gr.Row(elem_classes="pp-tight"):
                        self.wav = make_button("Sound", "pp-save-wav")
                        self.txt = make_button("Text", "pp-save-txt")
                        self.srt = make_button("SRT", "pp-save-srt")
                        self.vtt = make_button("VTT", "pp-save-vtt")
                        self.json = make_button("JSON", "pp-save-json")

    def _call(self, config: PageConfig) -> None:
        self.state = gr.HTML(
            html_template=look.STATE,
            apply_default_css=False,
            elem_id="pp-state",
            js_on_load="const events = ['refresh', 'voices'];"
            f" const config = {config.json()};"
            f" {IMPORT}.then(m => m.page.mountState(element, trigger, config));",
        )
        with gr.Row(elem_classes="pp-tight"):
            self.connect = gr.Button(
                "Connect", variant="primary", elem_id="pp-connect", min_width=100
            )
            self.mute = make_button("Mute", "pp-mute")
            self.pause = make_button("Pause", "pp-pause")

    def _conversation(self, config: PageConfig) -> None:
        gr.HTML(
            html_template=look.CONVERSATION,
            apply_default_css=False,
            elem_id="pp-conversation",
            js_on_load=f"{IMPORT}.then(m => m.page.mountConversation(element));",
        )
        with gr.Row(elem_classes=["pp-line", "pp-tight"]):
            self.say = make_line("Say", "Text for the agent to speak", "pp-say")
            self.say_now = make_button("Say", "pp-say-now")
            self.cancel = make_button("Stop", "pp-cancel")
        with gr.Row(elem_classes=["pp-line", "pp-tight"], visible=config.can_ask):
            self.ask = make_line("Ask", "A question to look up", "pp-ask")
            self.ask_now = make_button("Ask", "pp-ask-now")

    def _settings(self, config: PageConfig) -> None:
        titles = [persona.title for persona in config.personas]
        first = config.personas[0]
        self.preset = gr.Dropdown(titles, value=first.title, label="Persona", elem_id="pp-preset")
        self.persona = gr.Textbox(
            first.text,
            label="Its role, in words",
            lines=4,
            max_lines=8,
            max_length=MAX_PROMPT_CHARS,
            elem_id="pp-persona",
        )
        self.voice = gr.Dropdown(
            list(config.voices), value=config.voice, label="Voice", elem_id="pp-voice"
        )
        self.routing = gr.Checkbox(
            bool(config.routing and first.looks_up),
            label="Look things up",
            info=SENDS,
            visible=config.can_ask,
        )
        with gr.Accordion("Settings", open=False, elem_id="pp-settings"):
            base = SamplingConfig()
            self.seed = gr.Number(
                -1, label="Seed (−1: random)", precision=0, minimum=-1, maximum=SEED_MAX
            )
            self.text_temperature = make_slider(
                0, 2, base.text_temperature, "Text temperature", "pp-temp"
            )
            self.text_top_k = make_slider(1, TOP_K_MAX, base.text_top_k, "Text top-k", "pp-topk")
            self.audio_temperature = make_slider(
                0, 2, base.audio_temperature, "Audio temperature", "pp-audio-temp"
            )
            self.audio_top_k = make_slider(
                1, TOP_K_MAX, base.audio_top_k, "Audio top-k", "pp-audio-topk"
            )
            self.low_bandwidth = gr.Checkbox(
                label="Low bandwidth", info="Opus instead of plain PCM: a tenth of the data"
            )
            self.record = gr.Checkbox(
                True, label="Record in this browser", info="Nothing is kept on the server"
            )

    def changing(self) -> list[gr.components.Component]:
        """What `widgets()` in static/main.js describes, in its order."""
        return [
            *(self.connect, self.mute, self.pause),
            *(self.say, self.say_now, self.cancel, self.ask, self.ask_now),
            *(self.preset, self.persona, self.voice, self.seed, self.low_bandwidth, self.record),
            *(self.wav, self.txt, self.srt, self.vtt, self.json),
        ]

    def sampling(self) -> list[gr.components.Component]:
        """The four controls that act during a call."""
        return [
            *(self.text_temperature, self.text_top_k),
            *(self.audio_temperature, self.audio_top_k),
        ]


def make_button(label: str, elem_id: str) -> gr.Button:
    """A button that has nothing to do before a call."""
    return gr.Button(label, interactive=False, min_width=64, elem_id=elem_id)


def make_line(label: str, placeholder: str, elem_id: str) -> gr.Textbox:
    return gr.Textbox(
        label=label,
        placeholder=placeholder,
        max_length=SAY_MAX,
        max_lines=1,
        interactive=False,
        scale=4,
        min_width=200,
        elem_id=elem_id,
    )


def make_slider(low: int, high: int, value: float, label: str, elem_id: str) -> gr.Slider:
    """A slider over whole numbers, or over hundredths when it starts at 0."""
    step = 0.01 if low == 0 else 1
    return gr.Slider(low, high, value=value, step=step, label=label, elem_id=elem_id)


def connect_widgets(widgets: Widgets) -> None:
    """Let every widget call window.PersonaPlex (static/main.js)."""
    start = [
        *(widgets.persona, widgets.voice, widgets.seed, *widgets.sampling()),
        *(widgets.low_bandwidth, widgets.record, widgets.routing),
    ]
    widgets.connect.click(None, start, None, js=TOGGLE, **PRIVATE)
    for name in ("mute", "pause", "cancel"):
        getattr(widgets, name).click(None, js=f"() => window.PersonaPlex.{name}()", **PRIVATE)
    for kind, box, press in (
        ("say", widgets.say, widgets.say_now),
        ("ask", widgets.ask, widgets.ask_now),
    ):
        js = f"text => window.PersonaPlex.speak('{kind}', text)"
        gr.on([box.submit, press.click], None, [box], [box], js=js, **PRIVATE)
    for control in (*widgets.sampling(), widgets.routing):
        inputs = [*widgets.sampling(), widgets.routing]
        control.change(None, inputs, None, js=SET, **PRIVATE)
    widgets.preset.change(
        None,
        [widgets.preset],
        [widgets.persona, widgets.routing],
        js="title => window.PersonaPlex.persona(title)",
        **PRIVATE,
    )
    for ending in ("wav", "txt", "srt", "vtt", "json"):
        js = f"() => window.PersonaPlex.save('{ending}')"
        getattr(widgets, ending).click(None, js=js, **PRIVATE)
    state = widgets.state
    state.refresh(
        None, None, widgets.changing(), js="() => window.PersonaPlex.widgets()", **PRIVATE
    )
    state.voices(
        None, None, [widgets.voice], js="() => window.PersonaPlex.voiceChoices()", **PRIVATE
    )


TOGGLE = """(persona, voice, seed, textTemperature, textTopK, audioTemperature, audioTopK,
 lowBandwidth, record, routing) => window.PersonaPlex.toggle({persona, voice, seed, textTemperature,
 textTopK, audioTemperature, audioTopK, lowBandwidth, record, routing})"""

SET = """(textTemperature, textTopK, audioTemperature, audioTopK, routing) =>
 window.PersonaPlex.set({textTemperature, textTopK, audioTemperature, audioTopK, routing})"""


def build_page(config: PageConfig) -> gr.Blocks:
    """The page, not yet served."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=False) as page:
        connect_widgets(Widgets(config))
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
