"""docs/measurements/cards.json, and the two tables of the documents that are made from it.

After a change of the file `python -m tests.test_cards` prints both tables, to be put in place.
"""

import json
from pathlib import Path

import numpy as np
import pytest

DOCS = Path(__file__).parents[1] / "docs"
MEASURED = DOCS / "measurements"
CARDS = json.loads((MEASURED / "cards.json").read_text(encoding="utf-8"))
PRICES, READ = CARDS["prices"], CARDS["read_gb"]
BY_NAME = {card["name"]: card for card in CARDS["cards"]}
AT_MOST_MS = 60  # a frame that comes when a tick has just begun is in the next one, within 120 ms
CONTEXT = 2999  # columns: full rings
KEYS, FIGURES = ("weights", "kv", "slots"), ("p50_ms", "p99_ms", "share")
Mode = tuple[str, str]  # of weights, of keys and values


def beside_usd() -> float:
    """$ a second of a container's cores and memory."""
    return PRICES["cores"] * PRICES["core_usd_per_s"] + PRICES["gib"] * PRICES["gib_usd_per_s"]


def minute_usd(card: dict, conversations: int) -> float:
    """$ of a minute of one of so many conversations, with cores and memory."""
    return 60 * (card["usd_per_s"] + beside_usd()) / conversations


def floor_ms(card: dict, weights: str, kv: str, slots: int) -> float:
    """What a tick of full rings reads, over the card's bandwidth."""
    read = READ["weights"][weights] + READ["codec"] + slots * READ["full_ring"][kv]
    return 1e3 * read / card["gb_per_s"]


def above_ms(weights: str, kv: str, slots: int) -> float:
    """What the H100 took above its own floor, which was measured in the same run."""
    rows = [r for r in BY_NAME["H100"]["measured"] if (r["weights"], r["kv"]) == (weights, kv)]
    above = [row["p50_ms"] * (1 - row["share"]) for row in rows]
    return float(np.interp(slots, [row["slots"] for row in rows], above))


def projected_ms(card: dict, weights: str, kv: str, slots: int) -> float:
    return floor_ms(card, weights, kv, slots) + above_ms(weights, kv, slots)


def performance_table() -> list[str]:
    """One line a card, precision and number of conversations; measured ones first."""
    lines = [
        "| GPU | weights / KV | conversations | tick p50, p99 ms | share of floor | "
        "$ per conversation minute | |",
        "|---|---|---|---|---|---|---|",
    ]
    for card in reversed(CARDS["cards"]):
        for row in card.get("measured", []):
            lines.append(
                f"| {card['name']} | {row['weights']} / {row['kv']} | {row['slots']} "
                f"| {row['p50_ms']:.2f}, {row['p99_ms']:.1f} | {row['share']:.2f} "
                f"| {minute_usd(card, row['slots']):.4f} | measured |"
            )
        for weights, kv, slots in card.get("projected", []):
            took = projected_ms(card, weights, kv, slots)
            share = floor_ms(card, weights, kv, slots) / took
            lines.append(
                f"| {card['name']} | {weights} / {kv} | {slots} | about {took:.0f}, – "
                f"| {share:.1f} | {minute_usd(card, slots):.4f} | projected |"
            )
    return lines


def most(card: dict, mode: Mode) -> int:
    """Conversations of a card in a precision: the largest row that is in time."""
    held = [r for r in card.get("measured", []) if r.get("held", True)]
    rows = [(r["weights"], r["kv"], r["slots"]) for r in held]
    return max(s for *own, s in [*rows, *card.get("projected", [])] if tuple(own) == mode)


def tick_of(card: dict, mode: Mode, slots: int) -> float:
    rows = {(r["weights"], r["kv"], r["slots"]): r["p50_ms"] for r in card.get("measured", [])}
    return rows.get((*mode, slots)) or projected_ms(card, *mode, slots)


def modal_table() -> list[str]:
    """The rows of docs/modal-scaling.md that follow from prices and ticks, a card a column."""
    cards, bf16, int8 = CARDS["cards"], ("bf16", "bf16"), ("int8", "int8")
    whole = [3600 * (card["usd_per_s"] + beside_usd()) for card in cards]

    def row(label: str, cells: list[str], basis: str) -> str:
        return "| " + " | ".join([label, *cells, basis]) + " |"

    ticks = "projected; H100 by measured ticks"
    lines = [
        "| | " + " | ".join(f"{c['name']} ({c['memory']})" for c in cards) + " | |",
        "|" + "---|" * (len(cards) + 2),
        row("GPU alone, $/h", [f"{3600 * c['usd_per_s']:.2f}" for c in cards], "list price"),
        row("with CPU and memory, $/h", [f"{usd:.2f}" for usd in whole], "list price"),
    ]
    for label, mode in (("bf16 (default)", bf16), ("int8 weights and KV", int8)):
        counts = [most(card, mode) for card in cards]
        taken = [tick_of(c, mode, n) for c, n in zip(cards, counts, strict=True)]
        lines.append(row(f"conversations at once, {label}", [str(n) for n in counts], ticks))
        lines.append(row(f"one tick of them, {label}", [f"{t:.0f} ms" for t in taken], ticks))
    alone = [usd / 60 for usd in whole]
    cells = [f"{usd:.3f}" for usd in alone]
    lines.append(row("$ per conversation minute, one alone", cells, "list price"))
    for label, mode in (("bf16", bf16), ("int8", int8)):
        full = [f"{minute_usd(card, most(card, mode)):.4f}" for card in cards]
        lines.append(row(f"$ per conversation minute, all places taken, {label}", full, ticks))
    return lines


@pytest.mark.parametrize(
    ("name", "lines"),
    [("performance.md", performance_table()), ("modal-scaling.md", modal_table())],
)
def test_a_documents_table_is_that_of_the_file(name, lines):
    text = (DOCS / name).read_text(encoding="utf-8")
    missing = [line for line in lines if f"{line}\n" not in text]
    assert not missing, "\n".join([f"{name} lacks (python -m tests.test_cards):", *missing])


@pytest.mark.parametrize("name", ["performance.md", "modal-scaling.md"])
def test_no_document_has_a_row_of_a_card_that_is_not_in_the_file(name):
    known = {"performance.md": performance_table(), "modal-scaling.md": modal_table()}[name]
    text = (DOCS / name).read_text(encoding="utf-8")
    labels = {line.split("|")[1].strip() for line in known} - {"", "---"}
    rows = [line for line in text.splitlines() if line.split("|")[1:2]]
    own = [r for r in rows if r.split("|")[1].strip() in labels and r.count("|") > 5]
    assert set(own) <= set(known)


def test_every_card_says_what_it_costs_and_since_when():
    assert PRICES["date"] == "2026-11"
    assert "Modal" in PRICES["source"]
    for card in CARDS["cards"]:
        assert card["usd_per_s"] > 0
        assert ("measured" in card) == ("date" in card)


def test_what_is_called_measured_stands_in_a_run_that_is_kept():
    for card in CARDS["cards"]:
        runs = [json.loads((MEASURED / name).read_text()) for name in card.get("runs", [])]
        kept = [
            row for run in runs for row in run.get("tick", run)["rows"] if row["context"] == CONTEXT
        ]
        own = [
            {key: round(row[key], 2) if key in FIGURES else row[key] for key in (*KEYS, *FIGURES)}
            for row in kept
        ]
        said = [{k: row[k] for k in (*KEYS, *FIGURES)} for row in card.get("measured", [])]
        assert [row for row in said if row not in own] == []


def test_all_conversations_of_a_card_are_in_time():
    for card in CARDS["cards"]:
        for mode in (("bf16", "bf16"), ("int8", "int8")):
            assert tick_of(card, mode, most(card, mode)) <= AT_MOST_MS


if __name__ == "__main__":
    for lines in (performance_table(), modal_table()):
        print("\n".join(lines), end="\n\n")
