"""What tests use of `demo.page`, loaded when the first of them runs.

Gradio takes two seconds to load, and every worker of pytest collects every test.
"""

from importlib import import_module
from typing import Any

from engine.config import VOICE_NAMES
from engine.dialogue.persona import load_personas

MODULES = {
    "bundle": ("ASSETS", "FRONTEND", "NEEDS", "find_parts", "make_bundle"),
    "files": ("OWN_ADDRESS", "PageFiles"),
    "login": ("ask_for_token",),
    "routes": ("METHODS", "add_page"),
    "ui": ("PageConfig", "STATIC", "build_page", "mount"),
}


def __getattr__(name: str) -> Any:
    for module, names in MODULES.items():
        if name in names:
            return getattr(import_module(f"demo.page.{module}"), name)
    raise AttributeError(f"{name} is not listed in {__name__}")


def page_config(**more: Any) -> Any:
    """A page's configuration with our voices and personas."""
    return __getattr__("PageConfig")(VOICE_NAMES, load_personas(), VOICE_NAMES[0], **more)
