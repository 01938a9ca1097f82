"""Whether int8 has been shown to be good with these weights: the verdict that `bench drift` keeps.

A small json file beside the weights. Without one, or with one that is damaged or was reached with
other weights, `auto` is bf16. Loads torch only where there is a verdict to check.
"""

import json
import logging
import time
from pathlib import Path
from typing import Any

from engine.runtime.hub import LM_FILE

logger = logging.getLogger(__name__)

VERDICT = "precision.json"


def keep(
    folder: Path,
    weights_good: bool,
    kv_good: bool,
    both_good: bool,
    measured: dict[str, Any],
    recogniser: tuple[Path, bool] | None = None,
) -> Path:
    """Write a verdict beside the weights; the path of its file.

    kv_good: keys and values in int8 while the weights are not; both_good: while they are too.
    measured: numbers and limits, for people. recogniser: the folder of the one that was judged too,
    and whether its int8 is good.
    """
    verdict = {
        "weights": weights_good,
        "kv": kv_good,
        "both": both_good,
        "source": identity(folder),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if recogniser:
        where, good = recogniser
        verdict["recogniser"] = {"weights": good, "source": identity(where)}
    path = folder / VERDICT
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps({**verdict, **measured}, indent=2), encoding="utf-8")
    draft.replace(path)
    return path


def precise(asked: tuple[str, str], folder: Path) -> tuple[str, str]:
    """(weights, keys and values) as asked for; `auto` is what the verdict allows.

    Where either alone is good and both together are not, int8 goes to the weights: they are more of
    what a tick reads.
    """
    known = read(folder) if "auto" in asked else {}
    if known and not _is_of(known, folder):
        known = {}
    weights = _choose(asked[0], known.get("weights"))
    judged = ("kv", "both") if weights == "int8" else ("kv",)
    return weights, _choose(asked[1], all(known.get(name) is True for name in judged))


def precise_recogniser(asked: str, folder: Path, recogniser: Path) -> str:
    """The same for a recogniser's weights: what the verdict in the model's folder says of them."""
    known = read(folder).get("recogniser") if asked == "auto" else None
    if not isinstance(known, dict) or not _is_of(known, recogniser):
        known = {}
    return _choose(asked, known.get("weights"))


def read(folder: Path) -> dict[str, Any]:
    """What the verdict says; nothing, where there is none or it cannot be read."""
    path = folder / VERDICT
    if not path.exists():
        return {}
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return _ignored(path, f"it cannot be read ({error})")
    if not isinstance(known, dict):
        return _ignored(path, "it is no verdict")
    return known


def identity(folder: Path) -> str:
    """What tells these weights from others."""
    from engine.runtime.int8_cache import fingerprint  # torch: only where there are weights

    return fingerprint(folder / LM_FILE)


def _is_of(known: dict[str, Any], folder: Path) -> bool:
    """Whether this was said of the weights in a folder; otherwise a line in the log."""
    try:
        same = known.get("source") == identity(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:  # who loads them will say it better
        _ignored(folder / LM_FILE, f"it cannot be read ({error})")
        return False
    if not same:
        _ignored(folder / VERDICT, "it was reached with other weights; run bench drift again")
    return same


def _ignored(path: Path, why: str) -> dict[str, Any]:
    logger.warning("%s is ignored, auto is bf16: %s", path, why)
    return {}


def _choose(asked: str, good: Any) -> str:
    if asked != "auto":
        return asked
    return "int8" if good is True else "bf16"
