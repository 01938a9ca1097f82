"""Make `assets/router.json`: the weights of the router, from the dialogues to tune on.

    python -m engine.tools.fit_router

Ridge logistic regression on tests/dialogues/routing/tune (each dialogue as written and as heard)
and on the acted dialogues of tests/dialogues. Into each product's dialogues go turns that lie near
its facts (near.toml), and others of any product and of none (assets/talk.toml). The direction is
fitted on the vectors alone, by least squares. A product's turns are read along a direction that was
fitted on the other products, as a new product's turns will be. The thresholds come from products
that were left out of the fit, one after the other; so did the choice of the relations.
Deterministic; the measured dialogues are never read. Some minutes.
"""

import dataclasses
import hashlib
import itertools
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from engine.evals.decisions import as_heard, read_dialogues, turns_of
from engine.lookup.evidence import (
    RELATIONS,
    TALK_FILE,
    Evidence,
    load_talk,
    read_along,
    read_form,
)
from engine.lookup.handover import PHRASES_FILE, load_phrases
from engine.lookup.knowledge import KNOWLEDGE_FOLDER, Knowledge
from engine.lookup.router import MARK, WEIGHTS_FILE
from engine.lookup.vectors import WIDTH, SentenceVectors

DIALOGUES = Path(__file__).parents[2] / "tests" / "dialogues"
ROUTING = DIALOGUES / "routing"
OURS = "transgate"
REPLIES = {  # of the agent to a turn that was put into a dialogue
    "left": ("Ha, good question.", "I couldn't say.", "I see."),
    "routed": ("I have no information about that.", "Yes.", "No, sorry."),
}
INSERTED = 0.4  # of a dialogue's turns have one before them
BANK_EACH = 300  # sentences of talk.toml for each product
SEED = 7
IGNORED_FROM = 0.65  # cosine: bank sentences that may have been written for one of these turns
RIDGE = 20.0
VECTOR_RIDGE = 1.0  # of the direction
WEIGHT, BANK_WEIGHT = 0.5, 0.15  # of a turn: each is there twice
ACTED_WEIGHT = 0.35  # acted agents talk nonsense
STEPS, SMALL_STEP = 50, 1e-6
# Share of usual turns, with punctuation and without any; 0.20 and 0.25 are promised
MOST_DOUBT = {"": 0.165, "bare_": 0.205}
DIRECTIONS: dict[frozenset[str], np.ndarray] = {}  # by the products that they are of
GRID = np.arange(0.02, 0.98, 0.01)


@dataclasses.dataclass(frozen=True, slots=True)
class Rows:
    """Turns of one product: what is known of them, and what was wanted."""

    relations: np.ndarray  # [N, R]; the last one, of the direction, is filled in later
    vectors: np.ndarray  # [N, 384]
    wanted: np.ndarray  # [N] 0 or 1
    weights: np.ndarray  # [N]
    judged: np.ndarray  # [N] bool: counts when the thresholds are found
    usual: np.ndarray  # [N] bool: of a dialogue as it is; such doubts are counted
    written: np.ndarray  # [N] bool: as it was written, not as it is heard


def join(rows: Iterable[Rows]) -> Rows:
    columns = zip(*(dataclasses.astuple(one) for one in rows), strict=True)
    return Rows(*map(np.concatenate, columns))


def main() -> None:
    rows = read_rows()
    chances, wanted, usual, written, bare = leave_one_out(rows)
    kinds = {  # the first pair is found on all turns: twice as many say more
        "": (chances, wanted, usual & written),
        "bare_": (chances[bare], wanted[bare], usual[bare]),
    }
    found = {kind: find_thresholds(*rows, MOST_DOUBT[kind]) for kind, rows in kinds.items()}
    direction, (mean, spread, factors) = fit_all(rows)
    relations = zip(RELATIONS, mean, spread, factors[:-1], strict=True)
    weights = {
        "made_from": name_inputs(),
        **{f"{kind}doubt_from": round(low, 2) for kind, (low, _) in found.items()},
        **{f"{kind}yes_from": round(high, 2) for kind, (_, high) in found.items()},
        "bias": round(float(factors[-1]), 4),
        "relations": {
            name: [round(float(number), 4) for number in numbers] for name, *numbers in relations
        },
        "direction": [round(float(number), 4) for number in direction],
    }
    text = json.dumps(weights, indent=1)
    WEIGHTS_FILE.write_text(re.sub(r"(?<=[\d,\[])\n +(?=[-\d])", " ", text) + "\n", "utf-8")
    for kind, (low, high) in found.items():
        print(f"{kind}doubt from {low:.2f}, yes from {high:.2f}; on products left out of the fit:")
        print(count(*kinds[kind], low, high))


def name_product(path: Path) -> str:
    """Whose dialogues these are; two files may be about the same product."""
    return path.stem.partition("-")[0]


def name_inputs() -> dict[str, str]:
    """What the weights are made of, in short: the texts, and what is read in their words.

    A test compares it with the file: who changes either makes the weights anew.
    """
    tuned = sorted((ROUTING / "tune").glob("*.json"))
    products = {name_product(path) for path in tuned}  # what is only measured makes no weights
    files = [*tuned, *(file for name in products for file in ROUTING.glob(f"knowledge/{name}/*"))]
    files += [ROUTING / "near.toml"]
    files += [*DIALOGUES.glob("*.toml"), *KNOWLEDGE_FOLDER.rglob("*.*"), TALK_FILE, PHRASES_FILE]
    texts = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files)))
    forms = hashlib.sha256()
    for path in tuned:
        for dialogue in read_dialogues(path):
            for turn, _ in itertools.chain(turns_of(dialogue, str), turns_of(dialogue, as_heard)):
                forms.update(repr(read_form(turn.text)).encode())
    return {"texts": texts.hexdigest()[:16], "forms": forms.hexdigest()[:16]}


def read_rows() -> dict[str, Rows]:
    """The turns of each product, of all its files."""
    vectors, talk, everyday = SentenceVectors(), load_talk(), load_phrases().smalltalk
    near = tomllib.loads((ROUTING / "near.toml").read_text(encoding="utf-8"))
    bank = [(text, "left") for text in (*talk.everyday, *talk.world)]
    bank += [(text, "routed") for text in talk.customers]
    random, rows = Random(SEED), {}
    for path in sorted((ROUTING / "tune").glob("*.json")):
        product = name_product(path)
        folder = KNOWLEDGE_FOLDER if product == OURS else ROUTING / "knowledge" / product
        knowledge = Knowledge.load(folder, everyday)
        evidence = Evidence(knowledge, vectors, talk, np.zeros(WIDTH + 1), IGNORED_FROM)
        dialogues = read_dialogues(path)
        groups = [(dialogues, WEIGHT, True)]
        if product not in rows:
            own = [(text, "left") for text in near[product]["left"]]
            own += [(text, "routed") for text in near[product]["routed"]]
            groups.append((insert(own, dialogues, random), WEIGHT, True))
            some = random.sample(bank, BANK_EACH)
            groups.append((insert(some, dialogues, random), BANK_WEIGHT, False))
            if product == OURS:
                groups.append((list(read_acted()), ACTED_WEIGHT, False))
        for group, weight, judged in groups:
            more = describe(evidence, group, weight, judged, group is dialogues)
            rows[product] = join([rows[product], more]) if product in rows else more
        print(f"{product}: {len(rows[product].wanted)} turns", flush=True)
    return rows


def insert(
    lines: Sequence[tuple[str, str]], dialogues: Sequence[dict[str, Any]], random: Random
) -> list[dict[str, Any]]:
    """The dialogues with these turns put into them; they count, and the turns after them."""
    left, made, around = random.sample(lines, len(lines)), [], itertools.cycle(dialogues)
    while left:
        turns: list[dict[str, Any]] = []
        follows = False
        for turn in next(around)["turns"]:
            if turn["speaker"] == "user" and turns and left and random.random() < INSERTED:
                text, expect = left.pop()
                turns.append({"speaker": "user", "text": text, "expect": expect, "counts": True})
                turns.append({"speaker": "agent", "text": random.choice(REPLIES[expect])})
                follows = True
            turns.append(turn | {"counts": follows and turn["speaker"] == "user"})
            follows = follows and turn["speaker"] != "user"
        made.append({"turns": turns})
    return made


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
    evidence: Evidence, dialogues: Sequence[dict[str, Any]], weight: float, judged: bool, real: bool
) -> Rows:
    """All turns of the user that count, written and heard."""
    relations, vectors, wanted, written = [], [], [], []
    for dialogue in dialogues:
        users = [turn for turn in dialogue["turns"] if turn["speaker"] == "user"]
        for write in (str, as_heard):
            for (turn, expected), user in zip(turns_of(dialogue, write), users, strict=True):
                if user.get("counts", True):
                    relations.append(evidence.of(turn))
                    vectors.append(evidence.vector(turn))
                    wanted.append(expected == "routed")
                    written.append(write is str)
    size = len(wanted)
    return Rows(
        np.array(relations),
        np.array(vectors, float),
        np.array(wanted, float),
        np.full(size, weight),
        np.full(size, judged),
        np.full(size, real),
        np.array(written, bool),
    )


def fit_all(products: dict[str, Rows]) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """The direction [385], and mean [R], spread [R] and factors [R + 1], the last one the bias."""
    readings = []  # each product's by a direction of the others: as of a product that is new
    for name, rows in products.items():
        direction = find_direction({n: products[n] for n in products if n != name})
        readings.append([read_along(direction, vector) for vector in rows.vectors])
    together = join(products.values())
    relations = np.c_[together.relations[:, :-1], np.concatenate(readings)]
    mean, spread = relations.mean(axis=0), relations.std(axis=0) + 1e-6
    factors = fit((relations - mean) / spread, together.wanted, together.weights)
    return find_direction(products), (mean, spread, factors)


def find_direction(products: dict[str, Rows]) -> np.ndarray:
    """[385]: along it lie the vectors of what should be looked up."""
    if (names := frozenset(products)) not in DIRECTIONS:
        rows = join(products.values())
        inputs = np.c_[rows.vectors, np.ones(len(rows.wanted))]  # [N, 385]
        weighed = inputs * rows.weights[:, None]
        ridge = np.diag(np.r_[np.full(WIDTH, VECTOR_RIDGE), 1e-8])
        slope = weighed.T @ (2 * rows.wanted - 1)
        DIRECTIONS[names] = np.linalg.solve(weighed.T @ inputs + ridge, slope)
    return DIRECTIONS[names]


def fit(inputs: np.ndarray, wanted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Factors [R + 1] of ridge logistic regression, the last one the bias. Newton's method."""
    inputs = np.c_[inputs, np.ones(len(inputs))]  # [N, R + 1]
    ridge = np.r_[np.full(inputs.shape[1] - 1, RIDGE), 1e-8]
    factors = np.zeros(len(ridge))
    for _ in range(STEPS):
        chance = 1 / (1 + np.exp(-inputs @ factors))
        slope = inputs.T @ (weights * (chance - wanted)) + ridge * factors
        curve = (inputs * (weights * chance * (1 - chance))[:, None]).T @ inputs + np.diag(ridge)
        step = np.linalg.solve(curve, slope)
        factors -= step
        if np.abs(step).max() < SMALL_STEP:
            break
    return factors


def leave_one_out(rows: dict[str, Rows]) -> Iterator[np.ndarray]:
    """Probabilities, what was wanted, usual, written, and without punctuation, all [N].

    Each product's are by weights of the others.
    """
    columns = []
    for name, own in rows.items():
        direction, (mean, spread, factors) = fit_all({n: rows[n] for n in rows if n != name})
        readings = [read_along(direction, vector) for vector in own.vectors]
        relations = np.c_[own.relations[:, :-1], readings][own.judged]
        odds = (relations - mean) / spread @ factors[:-1] + factors[-1]
        known = (own.wanted == 1, own.usual, own.written, own.relations[:, MARK] == 0)
        columns.append([1 / (1 + np.exp(-odds)), *(column[own.judged] for column in known)])
    return map(np.concatenate, zip(*columns, strict=True))


def find_thresholds(
    chances: np.ndarray, wanted: np.ndarray, usual: np.ndarray, most_doubt: float
) -> tuple[float, float]:
    """Where doubt begins and ends: the best of the worse of precision and recall."""
    best = (-1.0, 0.0, 0.0)
    for low in GRID[GRID < 0.5]:
        for high in GRID[GRID >= 0.5]:
            shares = count(chances, wanted, usual, low, high)
            if shares["doubt"] > most_doubt:
                continue
            worse = min(shares["precision"], shares["recall"])
            score = worse + 0.2 * (shares["precision"] + shares["recall"])
            score += min(shares["left_alone"], 0.975)  # a hijacked talk is worse than a miss
            best = max(best, (score, low, high))
    return float(best[1]), float(best[2])


def count(
    chances: np.ndarray, wanted: np.ndarray, usual: np.ndarray, low: float, high: float
) -> dict[str, float]:
    yes, doubt = chances >= high, (chances >= low) & (chances < high)
    return {
        "precision": round(float(wanted[yes].mean()) if yes.any() else 1.0, 4),
        "recall": round(float((yes | doubt)[wanted].mean()), 4),
        "left_alone": round(float(1 - yes[~wanted].mean()), 4),
        "doubt": round(float(doubt[usual].mean()), 4),
    }


if __name__ == "__main__":
    main()
