"""Whether int8 has been shown to be good with these weights: the verdict that `bench drift` keeps.

A small json file beside the weights; without one, `auto` is bf16.
"""

import json
from pathlib import Path

VERDICT = "precision.json"


def keep(folder: Path, weights_good: bool, kv_good: bool, measured: dict) -> Path:
    """Write a verdict beside the weights; the path of its file."""
    path = folder / VERDICT
    path.write_text(json.dumps({"weights": weights_good, "kv": kv_good, **measured}, indent=2))
    return path


def precise(asked: tuple[str, str], folder: Path) -> tuple[str, str]:
    """(weights, keys and values) as asked for; `auto` is what the verdict allows."""
    path = folder / VERDICT
    known = json.loads(path.read_text()) if path.exists() else {}
    good = (known.get("weights", False), known.get("kv", False))
    weights, kv = (
        ("int8" if fine else "bf16") if name == "auto" else name
        for name, fine in zip(asked, good, strict=True)
    )
    return weights, kv
