"""Smart routing by scripted dialogues: who hands over when, how fast, and at what pace.

Runs tests/dialogues in real time through session, scheduler, director, marker and router, with a
scripted text head and a local stand-in for the API that takes half a second. The user's words come
from a test double of the transcript; how well the end of a turn is told stands beside (turns.py).
"""

import argparse
import asyncio
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from engine.bench.arguments import positive
from engine.bench.report import save, table
from engine.bench.scripted import ScriptedBackend
from engine.bench.standin import Reply, StandIn, by_heart
from engine.bench.talks import Script, Talk, Turn, load_scripts
from engine.bench.turns import measure_turns
from engine.config import FRAME_SECONDS, DeepSeekConfig, ServerConfig
from engine.dialogue.answerer import Answerer
from engine.dialogue.answers import build_answers
from engine.dialogue.engine import Engine

API_SECONDS = 0.5  # until the stand-in's first word
AT_ONCE = 16  # conversations in real time beside each other: two cores keep their pace


def replies(scripts: Sequence[Script]) -> dict[str, float]:
    """Seconds until the API's first word, for the questions that say so."""
    turns = [turn for script in scripts for turn in script.turns]
    return {turn["user"]: turn["api"] for turn in turns if "api" in turn}


async def act(scripts: Sequence[Script], at_once: int) -> tuple[list[Talk], int]:
    """All dialogues acted out, and how often the API was asked."""
    slow = replies(scripts)

    def reply(question: str) -> Reply:
        return replace(by_heart(question), delay=slow.get(question, API_SECONDS))

    async with StandIn(reply) as api:
        backend = ScriptedBackend(
            2 * at_once, len(scripts)
        )  # a slot is free a tick after it is left
        answers = build_answers(ServerConfig(), {})
        answers = replace(answers, answerer=Answerer(DeepSeekConfig("sk-bench", api.url)))
        engine = Engine(lambda _progress: backend, answers=answers)
        engine.start()
        await asyncio.to_thread(engine.wait)
        free = asyncio.Semaphore(at_once)

        async def one(number: int, script: Script) -> Talk:
            async with free:
                talk = Talk(script, backend.heads[number], backend.probes[number])
                return await talk.run(engine, number)

        talks = await asyncio.gather(*(one(i, script) for i, script in enumerate(scripts)))
        await answers.answerer.close()
        engine.stop()
    return talks, len(api.requests)


def rows(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Who handed over, by kind of dialogue."""
    kinds = sorted({turn.kind for turn in turns})
    return [_row(kind, [t for t in turns if t.kind == kind]) for kind in kinds] + [
        _row("all", turns)
    ]


def _row(kind: str, turns: Sequence[Turn]) -> dict[str, Any]:
    should = [turn for turn in turns if turn.expected]
    did = [turn for turn in turns if turn.handed_over]
    right = [turn for turn in did if turn.expected == turn.handed_over]
    return {
        "dialogues": kind,
        "turns": len(turns),
        "should hand over": len(should),
        "did": len(did),
        "precision": _share(len(right), len(did)),
        "recall": _share(len(right), len(should)),
    }


def summary(talks: Sequence[Talk]) -> dict[str, Any]:
    """The figures the issue has aims for."""
    turns = [turn for talk in talks for turn in talk.turns]
    small = [turn for turn in turns if not turn.expected]
    product = [turn for turn in turns if turn.expected == "user"]
    model = [turn for turn in turns if turn.expected in ("marker", "phrase")]
    answered = [turn for turn in turns if turn.first_word]
    return {
        "small talk left alone": _share(sum(not t.handed_over for t in small), len(small)),
        "product questions routed": _share(
            sum(t.handed_over == "user" for t in product), len(product)
        ),
        "model's hand-overs caught": _share(
            sum(t.handed_over == t.expected for t in model), len(model)
        ),
        **_times("trigger to first word, s", [t.latency for t in answered if not t.filler]),
        **_times("the same after a filler, s", [t.latency for t in answered if t.filler]),
        "own words during hold": sum(talk.probe.own_while_held for talk in talks),
        **_pace(turns, talks),
        **_cancels(talks),
        "frames in minus out, max": max(abs(t.frames_in - t.frames_out) for t in talks),
    }


def _pace(turns: Sequence[Turn], talks: Sequence[Talk]) -> dict[str, Any]:
    paces = [60 * t.words / (t.frames * FRAME_SECONDS) for t in turns if t.frames]
    low, mid, high = np.percentile(paces, (0, 50, 100)) if paces else (0.0, 0.0, 0.0)
    said, frames = sum(t.words for t in turns), sum(t.frames for t in turns)
    spoken = sum(talk.probe.spoken_frames for talk in talks)
    padding = sum(talk.probe.padding_frames for talk in talks)
    return {
        "words/min": 60 * said / max(1.0, frames * FRAME_SECONDS),
        "words/min, slowest": float(low),
        "words/min, p50": float(mid),
        "words/min, fastest": float(high),
        "share of padding while speaking": _share(padding, spoken),
    }


def _cancels(talks: Sequence[Talk]) -> dict[str, Any]:
    excess = [frames for talk in talks for frames in talk.probe.cancel_excess]
    return {
        "barge-ins": len(excess),
        "cancel, frames beyond the word, max": max(excess, default=0),
    }


def _times(name: str, seconds: Sequence[float]) -> dict[str, Any]:
    p50, p95, most = np.percentile(seconds, (50, 95, 100)) if seconds else (0.0, 0.0, 0.0)
    cases = {f"{name}, cases": len(seconds)}
    return cases | {f"{name}, p50": float(p50), f"{name}, p95": float(p95), f"{name}, max": most}


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--at-once", type=positive, default=AT_ONCE, help="dialogues side by side")
    parser.add_argument("--only", metavar="KIND", help="one file of tests/dialogues")
    parser.add_argument("--json", help="where to write the result")


def run(args: argparse.Namespace) -> int:
    logging.getLogger("engine").setLevel(logging.WARNING)  # two lines a conversation are many here
    scripts = [one for one in load_scripts() if args.only in (None, one.kind)]
    print(f"{len(scripts)} dialogues, {args.at_once} at once, in real time …", flush=True)
    talks, asked = asyncio.run(act(scripts, args.at_once))
    turns = [turn for talk in talks for turn in talk.turns]
    by_kind, figures, ends = rows(turns), summary(talks), measure_turns()
    print(table(by_kind), end="\n\n")
    print(table(ends), end="\n\n")
    print(table([{"figure": name, "value": value} for name, value in figures.items()]))
    for turn in turns:
        if turn.handed_over != turn.expected:
            wanted, got = turn.expected or "nobody", turn.handed_over or "nobody"
            print(f"wanted {wanted}, was {got}: {turn.user}")
    told = {"rows": by_kind, "summary": figures, "turn_ends": ends, "asked": asked}
    path = save("routing", told | {"turns": [asdict(turn) for turn in turns]}, args.json)
    print(f"written: {path}")
    return 0
