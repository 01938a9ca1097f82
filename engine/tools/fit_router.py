"""Make `assets/router.json`: the weights of the router, from the dialogues to tune on.

    python -m engine.tools.fit_router

Ridge logistic regression on tests/dialogues/routing/tune (each dialogue as written and as heard)
and on the acted dialogues of tests/dialogues. The thresholds come from products that were left out
of the fit, one after the other. Deterministic; the measured dialogues are never read. A minute.
"""

import json
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.evals.decisions import as_heard, read_dialogues, turns_of
from engine.lookup.evidence import RELATIONS, Evidence, load_talk
from engine.lookup.handover import load_phrases
from engine.lookup.knowledge import KNOWLEDGE_FOLDER, Knowledge
from engine.lookup.router import WEIGHTS_FILE
from engine.lookup.vectors import SentenceVectors

DIALOGUES = Path(__file__).parents[2] / "tests" / "dialogues"
OURS = "transgate"
IGNORED_FROM = 0.65  # cosine: bank sentences that may have been written for one of these turns
RIDGE = 20.0
WEIGHT, ACTED_WEIGHT = 0.5, 0.35  # of a turn: each is there twice; acted agents talk nonsense
STEPS = 50
MOST_DOUBT = 0.18  # share of all turns; 0.20 is promised
GRID = np.arange(0.02, 0.98, 0.01)


def main() -> None:
    vectors, talk, everyday = SentenceVectors(), load_talk(), load_phrases().smalltalk
    rows: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    for path in sorted((DIALOGUES / "routing" / "tune").glob("*.json")):
        ours = path.stem == OURS
        folder = KNOWLEDGE_FOLDER if ours else DIALOGUES / "routing" / "knowledge" / path.stem
        evidence = Evidence(Knowledge.load(folder, everyday), vectors, talk, IGNORED_FROM)
        rows[path.stem] = describe(evidence, read_dialogues(path), WEIGHT)
        if ours:
            rows["acted"] = describe(evidence, list(read_acted()), ACTED_WEIGHT)
    probabilities, wanted = leave_one_out(rows)
    doubt_from, yes_from = find_thresholds(probabilities, wanted)
    mean, spread, factors = fit(list(rows.values()))
    relations = zip(RELATIONS, mean, spread, factors[:-1], strict=True)
    weights = {
        "doubt_from": round(doubt_from, 2),
        "yes_from": round(yes_from, 2),
        "bias": round(float(factors[-1]), 4),
        "relations": {
            name: [round(float(number), 4) for number in numbers] for name, *numbers in relations
        },
    }
    WEIGHTS_FILE.write_text(json.dumps(weights, indent=1) + "\n", encoding="utf-8")
    print(f"doubt from {doubt_from:.2f}, yes from {yes_from:.2f}; on products left out of the fit:")
    print(count(probabilities, wanted, doubt_from, yes_from))


def read_acted() -> Iterator[dict[str, Any]]:
    """The dialogues that `bench routing` acts out, in the form of the written ones."""
    for path in sorted(DIALOGUES.glob("*.toml")):
        for dialogue in tomllib.loads(path.read_text(encoding="utf-8"))["dialogue"]:
            turns = []
            for turn in dialogue["turns"]:
                if turn.get("transcribed", True):
                    expect = "routed" if turn.get("routed") else "left"
                    turns.append({"speaker": "user", "text": turn["user"], "expect": expect})
                said = turn.get("agent", "").replace("!", "")
                turns.append({"speaker": "agent", "text": said})
            yield {"turns": turns}


def describe(
    evidence: Evidence, dialogues: Sequence[dict[str, Any]], weight: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Relations [N, R], wanted [N], weights [N] of all turns of the user, written and heard."""
    relations, wanted = [], []
    for dialogue in dialogues:
        for write in (str, as_heard):
            for turn, expected in turns_of(dialogue, write):
                relations.append(evidence.of(turn))
                wanted.append(expected == "routed")
    return np.array(relations), np.array(wanted, float), np.full(len(wanted), weight)


def fit(rows: Sequence[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean [R], spread [R] and factors [R + 1], the last one the bias. Newton's method."""
    relations, wanted, weights = (np.concatenate(part) for part in zip(*rows, strict=True))
    mean, spread = relations.mean(axis=0), relations.std(axis=0) + 1e-6
    inputs = np.c_[(relations - mean) / spread, np.ones(len(relations))]  # [N, R + 1]
    ridge = np.r_[np.full(len(mean), RIDGE), 1e-8]
    factors = np.zeros(len(ridge))
    for _ in range(STEPS):
        chance = 1 / (1 + np.exp(-inputs @ factors))
        slope = inputs.T @ (weights * (chance - wanted)) + ridge * factors
        curve = (inputs * (weights * chance * (1 - chance))[:, None]).T @ inputs + np.diag(ridge)
        factors -= np.linalg.solve(curve, slope)
    return mean, spread, factors


def leave_one_out(rows: dict[str, tuple[np.ndarray, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and what was wanted, each product judged by weights of the others."""
    chances, wanted = [], []
    for name in rows:
        if name == "acted":
            continue
        others = [rows[n] for n in rows if n != name and not (name == OURS and n == "acted")]
        mean, spread, factors = fit(others)
        odds = (rows[name][0] - mean) / spread @ factors[:-1] + factors[-1]
        chances.append(1 / (1 + np.exp(-odds)))
        wanted.append(rows[name][1])
    return np.concatenate(chances), np.concatenate(wanted) == 1


def find_thresholds(chances: np.ndarray, wanted: np.ndarray) -> tuple[float, float]:
    """Where doubt begins and ends: the best of the worse of precision and recall."""
    best = (-1.0, 0.0, 0.0)
    for low in GRID[GRID < 0.5]:
        for high in GRID[GRID >= 0.5]:
            shares = count(chances, wanted, low, high)
            if shares["doubt"] > MOST_DOUBT:
                continue
            worse = min(shares["precision"], shares["recall"])
            score = worse + 0.2 * (shares["precision"] + shares["recall"])
            score += min(shares["left_alone"], 0.975)  # a hijacked talk is worse than a miss
            best = max(best, (score, low, high))
    return float(best[1]), float(best[2])


def count(chances: np.ndarray, wanted: np.ndarray, low: float, high: float) -> dict[str, float]:
    yes, doubt = chances >= high, (chances >= low) & (chances < high)
    return {
        "precision": round(float(wanted[yes].mean()) if yes.any() else 1.0, 4),
        "recall": round(float((yes | doubt)[wanted].mean()), 4),
        "left_alone": round(float(1 - yes[~wanted].mean()), 4),
        "doubt": round(float(doubt.mean()), 4),
    }


if __name__ == "__main__":
    main()
