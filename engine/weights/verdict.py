"""Whether int8 has been shown to be good with these weights: the verdict that `bench drift` keeps.

A small json file beside the weights. Without one, or with one that is damaged or was reached with
other weights, on another kind of device or with another quantiser, `auto` is bf16. Loads torch only
where there is a verdict to check.
"""

import json
import logging
import re
import time
from pathlib import Path
from typing import Any

from engine.weights.hub import LM_FILE

logger = logging.getLogger(__name__)

VERDICT = "precision.json"


def write_verdict(
    folder: Path,
    device: str,
    weights_good: bool,
    kv_good: bool,
    both_good: bool,
    measured: dict[str, Any],
    recogniser: tuple[Path, bool] | None = None,
    into: Path | None = None,
) -> Path:
    """Write a verdict beside the weights, or into another folder; the path of its file.

    device: where it was reached. kv_good: keys and values in int8 while the weights are not;
    both_good: while they are too. measured: numbers and limits, for people. recogniser: the folder
    of the one that was judged too, and whether its int8 is good.
    """
    verdict = {
        "weights": weights_good,
        "kv": kv_good,
        "both": both_good,
        "source": identity(folder),
        **machine(device),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if recogniser:
        where, good = recogniser
        verdict["recogniser"] = {"weights": good, "source": identity(where)}
    path = (into or folder) / VERDICT
    _write(path, json.dumps({**verdict, **measured}, indent=2))
    return path


def publish(verdict: Path, folder: Path) -> None:
    """Put a verdict that was kept elsewhere beside the weights: from now on starts obey it."""
    _write(folder / VERDICT, verdict.read_text(encoding="utf-8"))


def choose_precision(asked: tuple[str, str], folder: Path, device: str) -> tuple[str, str]:
    """(weights, keys and values) as asked for; `auto` is what the verdict allows."""
    known = _read_of_device(folder, device) if "auto" in asked else {}
    return apply_verdict(asked, known if known and _is_of(known, folder) else {})


def choose_recogniser_precision(asked: str, folder: Path, recogniser: Path, device: str) -> str:
    """The same for a recogniser's weights: what the verdict in the model's folder says of them."""
    known = _read_of_device(folder, device).get("recogniser") if asked == "auto" else None
    good = isinstance(known, dict) and _is_of(known, recogniser)
    return apply_verdict((asked, "bf16"), known if good else {})[0]


def apply_verdict(asked: tuple[str, str], known: dict[str, Any]) -> tuple[str, str]:
    """What a verdict, or its part about a recogniser, allows, whatever it was reached with.

    Where weights alone and keys alone are good and both together are not, int8 goes to the weights:
    they are more of what a tick reads.
    """
    weights, kv = asked
    if weights == "auto":
        weights = "int8" if known.get("weights") is True else "bf16"
    if kv == "auto":
        judged = ("kv", "both") if weights == "int8" else ("kv",)
        kv = "int8" if all(known.get(name) is True for name in judged) else "bf16"
    return weights, kv


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
    from engine.weights.int8 import fingerprint  # torch: only where there are weights

    return fingerprint(folder / LM_FILE)


def machine(device: str) -> dict[str, str]:
    """What tells this kind of device, and what the quantiser makes on it, from others."""
    import torch  # only where there is a verdict

    from engine.weights import int8
    from engine.weights.checkpoint import usual_dtype

    where = torch.device(device)
    if where.type == "cuda" and not torch.cuda.is_available():
        return {"device": "no GPU", "quantiser": ""}  # loading the weights will say it better
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else where.type
    return {"device": name, "quantiser": int8.quantiser_hash(where, usual_dtype(where))}


def common_name(device: object) -> str:
    """One name for one kind of card: Modal's A10 and A10G are the same, and either is reported."""
    return re.sub(r"\bA10G\b", "A10", str(device))


def _read_of_device(folder: Path, device: str) -> dict[str, Any]:
    """What a verdict says that was reached on a device like this one; otherwise nothing."""
    known = read(folder)
    here = machine(device) if known else {}
    if known and common_name(known.get("device")) != common_name(here["device"]):
        there = known.get("device", "a device that it does not name")
        why = f"it was reached on {there}, and this is {here['device']}; run bench drift again"
        return _ignored(folder / VERDICT, why)
    if known.get("quantiser") != here.get("quantiser"):
        why = "it was reached with another quantiser; run bench drift again"
        return _ignored(folder / VERDICT, why)
    return known


def _is_of(known: dict[str, Any], folder: Path) -> bool:
    """Whether this was said of the weights in a folder; otherwise a line in the log."""
    try:
        same = known.get("source") == identity(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:  # loading says it better
        _ignored(folder / LM_FILE, f"it cannot be read ({error})")
        return False
    if not same:
        _ignored(folder / VERDICT, "it was reached with other weights; run bench drift again")
    return same


def _write(path: Path, text: str) -> None:
    """Whole or not at all: a start may look at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)  # of a full disk


def _ignored(path: Path, why: str) -> dict[str, Any]:
    logger.warning("%s is ignored, auto is bf16: %s", path, why)
    return {}
