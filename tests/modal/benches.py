"""Stand-ins for what the gates run: no process, no model, the same files."""

import json
from itertools import pairwise
from pathlib import Path

from engine.weights.verdict import (
    VERDICT,
    choose_precision,
    choose_recogniser_precision,
    write_verdict,
)
from tests.modal.rehearsal import ROOT

TINY = ROOT / "tests" / "golden" / "tiny"
STT = TINY.parent / "stt_tiny"


class Benches:
    """Stand-ins for the two benches, which keep the contract of their results."""

    def __init__(
        self, folder: Path, good: bool, held: dict[str, int], recogniser: bool | None = None
    ) -> None:
        self._folder, self._good, self._held = folder, good, held
        self._recogniser = None if recogniser is None else (STT, recogniser)
        self.said: list[str] = []  # what was run and committed, in order
        self.taken: list[tuple[str, str, str]] = []  # by each server: weights, KV, recogniser

    def commit(self) -> None:
        allowed = "a verdict" if (self._folder / VERDICT).exists() else "no verdict"
        self.said.append(f"committed {allowed}")

    def __call__(self, words: list[str]) -> int:
        given = dict(pairwise(words))  # an option -> its value
        assert given["--device"] == "cpu"
        result = self.drift(given) if words[0] == "drift" else self.capacity(given)
        Path(given["--json"]).write_text(json.dumps(result))
        return int(result is None)

    def drift(self, given: dict[str, str]) -> dict:
        self.said.append("drift")
        good, into = (self._good,) * 3, Path(given["--verdict"])
        assert given["--model"] == str(self._folder)
        write_verdict(self._folder, "cpu", *good, {"frames": 1500}, self._recogniser, into)
        return {"rows": [{"what": "int8 KV", "good": self._good}]}

    def capacity(self, given: dict[str, str]) -> dict | None:
        """What a server that is pointed there would take is noted."""
        mode, model = given["--weights"], Path(given["--model"])
        taken = choose_precision((mode, given["--kv"]), model, "cpu")
        recogniser = choose_recogniser_precision(mode, model, STT, "cpu")
        self.said.append(mode)
        self.taken.append((*taken, recogniser))
        if mode not in self._held:
            return None
        return {"servers": [{"held": self._held[mode], "slots": 16}]}
