"""The whole GPU suite in one command: correctness and loading, then times; all into one json file.

`soak` takes an hour of its own and is not part of the suite.

The check is a subject of its own, `verify`: whether a device computes what the CPU does (golden
runs, graphs = eager, neighbours, idle slots, prompts, renewals). It uses the tiny checkpoint and
generated weights, and needs no pytest, so that it runs on a machine that holds little more than
torch.
"""

import argparse
import json
import os
import tempfile
import time
import traceback
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

from engine.bench.__main__ import load_subject
from engine.bench.device import (
    KV_TYPES,
    add_model_arguments,
    make_loop,
    pick_config,
    pick_device,
    release_memory,
)
from engine.bench.report import Subject, parse_options, result_path, save, table
from engine.commands.offline import drive_conversation, split_frames
from engine.config import FRAME_SAMPLES, GREEDY, PAD, SamplingConfig
from engine.dialogue.persona import prompt_ids
from engine.errors import EngineError
from engine.model.gpu.graphs import Prefill, Ticks
from engine.model.loop import PIECES
from engine.model.transformer import Active, Rings
from engine.runtime.backend import HeardRow, Opening
from engine.runtime.personaplex import PersonaPlexBackend
from engine.weights.generated import SMALL, TINY, generated
from engine.weights.loading import load_checkpoint, load_recogniser

PARTS = {  # subject -> its options, chosen so that all of it takes less than 9 minutes on an H200
    "verify": [],
    "load": [],
    "tick": ["--context", "100", "750", "2999", "--ticks", "50"],
    "stages": ["--slots", "1", "16"],
    "connect": [],
    "memory": ["--kv", "int8"],
    "capacity": ["--step-seconds", "4", "--seconds", "180", "--holds", "1"],
}
READING = ("load", "capacity")  # they share one generated checkpoint on disk


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--random", action="store_true", help="generated weights (the only source)")
    parser.add_argument("--small", action="store_true", help="a reduced size, for a CPU")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.set_defaults(device="auto")


def run(args: argparse.Namespace) -> int:
    """1 if a part found something wrong or could not be run; the others run all the same."""
    if args.small:  # models so small only wait for each other's threads; the servers are told too
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    pick_config(args)  # raises ConfigError where the full size cannot be run
    target, results = result_path("gpu", args.json), {}
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        for part in args.parts:
            options = ["--small"] if args.small else [*PARTS[part]]  # a CPU has each subject's own
            options += ["--folder", folder] if part in READING else []
            begun = time.perf_counter()
            print(f"== {part}", flush=True)
            result = run_guarded(part, [*options, "--json", f"{folder}/{part}.json"])
            seconds = time.perf_counter() - begun
            print(f"== {part}: {seconds:.0f} s", flush=True)
            results[part] = {"seconds": seconds} | result
            save("gpu", results, str(target))  # at once: what is measured is kept
    return max(result["code"] for result in results.values())


def run_guarded(part: str, options: list[str]) -> dict[str, Any]:
    """Run a subject: its exit code, what it has written, and what ended it, if anything did."""
    release_memory()  # a server beside us needs what the part before has left
    code, error, path = 1, {}, Path(options[-1])
    try:
        subject = load_subject(part)
        code = subject.run(parse_options(subject, options))
    except Exception as fault:  # boundary between parts: whatever ends one must not end others
        print(traceback.format_exc(), flush=True)
        error = {"error": traceback.format_exception_only(fault)[-1].strip()}
    return {"code": code} | (json.loads(path.read_text()) if path.exists() else {}) | error


# -- verify: does the device compute what the CPU does? --------------------------------------------

STT_TINY = TINY.parent / "stt_tiny"
PATHS = {"cpu": (False,), "cuda": (False, True)}  # without graphs, and with them
GOLDEN_RUNS = ("gen_voice_pt", "gen_forced_text")
GOLDEN_FRAMES = 81
CHECKED_PRECISIONS = (("bf16", "bf16"), ("int8", "int8"))  # of weights, of keys and values
PROMPT = 40  # columns
ROOM = 89  # columns of the rings of a call that is renewed
PROMPT_OFF = 0.05  # of keys and values in bf16, relative to their norm; a wrong one is 1 off
Check = tuple[str, bool, str]  # what was checked, whether it holds, a number or a place


@torch.inference_mode()
def run_verify(args: argparse.Namespace) -> int:
    device, results = pick_device(args), []
    runs = check_golden_runs(device), check_recogniser(device), check_teacher_forcing(device)
    for check in (*runs, check_paths(args), check_prompts(args), check_renewals(device)):
        results += [{"check": c, "holds": ok, "detail": d} for c, ok, d in check]
    print(table(results))
    save("verify", {"device": device, "checks": results}, args.json)
    return 0 if all(row["holds"] for row in results) else 1


def read_user_frames() -> np.ndarray:
    with wave.open(str(TINY / "input_user.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    return split_frames(samples.astype(np.float32) / 32768)


def check_golden_runs(device: str) -> Iterator[Check]:
    """Greedy conversations in float32, token for token, with graphs and without."""
    checkpoint = load_checkpoint(str(TINY), device=device, dtype=torch.float32)
    for graphs in PATHS[device]:
        backend = PersonaPlexBackend(checkpoint, slots=2, graphs=graphs)
        for name in GOLDEN_RUNS:
            want = load_file(TINY / "expected" / f"{name}.safetensors")["tokens"]
            want = want[1 : 1 + GOLDEN_FRAMES]
            run = json.loads((TINY / "expected" / f"{name}.json").read_text())
            forced, count = run.get("forced", {}), iter(range(10_000))
            ids = prompt_ids(run["text_prompt"], backend.tokenizer)
            frames = drive_conversation(
                backend,
                Opening(run["voice"].split(".")[0], ids, GREEDY),
                read_user_frames()[:GOLDEN_FRAMES],
                lambda sampled, *_, forced=forced, count=count: (
                    forced.get(str(next(count)), sampled),
                    False,
                ),
            )
            got = np.array([[f.text, *f.agent_codes, *f.user_codes] for f in frames])
            same = (got == want).all(1)
            at = "all" if same.all() else f"differs at frame {int(same.argmin())}"
            yield f"golden {name} float32 {'graphs' if graphs else 'eager'}", bool(same.all()), at


def check_recogniser(device: str) -> Iterator[Check]:
    """The recogniser's words and the agent's tokens in float32, in graphs and without, a flush."""
    checkpoint = load_checkpoint(str(TINY), device=device, dtype=torch.float32)
    where, want = torch.device(device), load_file(STT_TINY / "expected" / "stt.safetensors")
    stt = load_recogniser(str(STT_TINY), checkpoint.mimi, device=where, dtype=torch.float32)
    opening = Opening("TINYF0", (), GREEDY, transcribe=True)
    agents = []
    for graphs in PATHS[device]:
        backend = PersonaPlexBackend(checkpoint, slots=2, recogniser=stt, graphs=graphs)
        flushed: list[HeardRow] = []
        frames = list(drive_conversation(backend, opening, read_user_frames(), flushed=flushed))
        got = [row.stt_text for row in (*(frame.heard for frame in frames), *flushed)]
        same = got == want["tokens"][1:].tolist()
        yield f"recogniser float32 {'graphs' if graphs else 'eager'}", same, f"{len(got)} steps"
        agents.append([(frame.text, *frame.agent_codes) for frame in frames])
    if len(agents) > 1:
        yield "agent beside a recogniser, graphs = eager", agents[0] == agents[1], ""


def check_teacher_forcing(device: str) -> Iterator[Check]:
    """bf16 hidden states against the reference's float32, within twice its own bf16 distance."""
    want = load_file(TINY / "expected" / "lm_teacher_forced.safetensors")
    lm = load_checkpoint(str(TINY), device=device, dtype=torch.bfloat16).lm
    rings, active = lm.rings(1), Active.of([0], 1, torch.device(device))
    columns = torch.from_numpy(want["tokens"]).long().T.to(device)
    hidden = torch.cat([lm.step(lm.embed(c[None]), rings, active) for c in columns])
    exact = torch.from_numpy(want["hidden"])
    off = (hidden.float().cpu() - exact).abs().max().item()
    allowed = 2 * float(np.abs(want["hidden_bf16"] - want["hidden"]).max())
    yield "teacher forced bf16", off <= allowed, f"{off:.4f} of {allowed:.4f}"


def play(
    ticks: Ticks, slots: list[int], frames: int, anew: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """A few frames of these slots: tokens [T, S, 1 + Q], pcm [T, S, 1920]; the rest is idle."""
    loop, rng = ticks.loop, np.random.default_rng(3)
    for slot in range(loop.slots) if anew else ():
        loop.clear(slot)
        loop.sampler.tune(slot, GREEDY if slot % 2 else SamplingConfig())
        loop.sampler.seed(slot, slot)
    active, tokens, pcms = np.isin(np.arange(loop.slots), slots), [], []
    for _ in range(frames):
        pcm = rng.standard_normal((loop.slots, FRAME_SAMPLES)).astype(np.float32) * 0.1
        text, *_ = ticks.listen(pcm, active)
        spoken, codes = ticks.speak(np.where(active, text, PAD), np.zeros(loop.slots, bool))
        tokens.append(np.concatenate([text[:, None], codes], 1)[slots])
        pcms.append(spoken[slots])
    return np.array(tokens), np.array(pcms)


def check_paths(args: argparse.Namespace) -> Iterator[Check]:
    """Graphs = eager bucket by bucket; a slot alone = the slot among others; idle slots unmoved."""
    cuda = pick_device(args) == "cuda"
    frames = 12 if cuda else 4
    for weights, kv in CHECKED_PRECISIONS:
        release_memory()
        lm, mimi = generated(SMALL, pick_device(args), weights)
        loop = make_loop(lm, mimi, 16, kv)
        eager, quick = Ticks(loop, graphs=False, every=True), Ticks(loop, every=True)
        for size in eager.buckets if cuda else ():
            slots = list(range(size))
            (a, x), (b, y) = play(eager, slots, frames), play(quick, slots, frames)
            good = bool((a == b).all()) and np.array_equal(x, y)
            yield f"graphs = eager, {size} slots, {weights}/{kv}", good, ""
        among, alone = play(quick, list(range(16)), frames)[0], play(quick, [15], frames)[0]
        good = bool((among[:, 15] == alone[:, 0]).all())
        yield f"slot 15 alone = among 16, {weights}/{kv}", good, ""
        idle = [t.clone() for t in loop.state(3)]
        play(quick, [15], 4, anew=False)
        good = all(torch.equal(a, b) for a, b in zip(idle, loop.state(3), strict=True))
        yield f"an idle slot does not move, {weights}/{kv}", good, ""


def check_prompts(args: argparse.Namespace) -> Iterator[Check]:
    """A prompt's pieces as one launch = eager, wherever it is cut; and close to the plain ones."""
    for weights, kv in CHECKED_PRECISIONS:
        release_memory()
        lm, _ = generated(SMALL, pick_device(args), weights)
        rings, columns = lm.rings(4, KV_TYPES[kv]), lm.embedding.table[:PROMPT]
        graph, eager = Prefill(lm, rings), Prefill(lm, rings, graphs=False)
        for slot, prefill, cuts in (
            (0, graph, [16, 16, 8]), (1, eager, [16, 16, 8]), (2, graph, [5, 35]),
        ):  # fmt: skip
            for part in columns.split(cuts):
                prefill.run(slot, part)
        for part in columns.split(min(PIECES)):
            lm.prefill(part, rings, 3)
        whole, once, cut, plain = (read_keys(rings, slot) for slot in range(4))
        yield f"a prompt, graphs = eager, {weights}/{kv}", torch.equal(whole, once), ""
        if lm.fused:  # the plain modules' bits do depend on it
            yield f"a prompt cut elsewhere, {weights}/{kv}", torch.equal(whole, cut), ""
        off = ((whole - plain).norm() / plain.norm()).item()
        yield f"a prompt = the plain one, {weights}/{kv}", off <= PROMPT_OFF, f"{off:.4f} off"


def check_renewals(device: str) -> Iterator[Check]:
    """A call past its context, greedy in float32: what a GPU says, in graphs and without, and
    what a CPU says, whose renewal the tests hold to a fresh conversation."""
    if device == "cpu":
        return
    want = play_renewal("cpu", graphs=False)
    for graphs in (False, True):
        got = play_renewal(device, graphs)
        same = [a == b for a, b in zip(got, want, strict=True)]
        at = f"{len(got)} frames" if all(same) else f"differs at frame {same.index(False)}"
        yield f"a renewed call {'graphs' if graphs else 'eager'} = the CPU's", all(same), at


def play_renewal(device: str, graphs: bool) -> list[list[int]]:
    """Text and codes of every frame until well past a renewal; raises if there was none."""
    checkpoint = load_checkpoint(str(TINY), device=device, dtype=torch.float32)
    checkpoint.lm.window = ROOM  # the golden one is shorter than its prompts
    backend = PersonaPlexBackend(checkpoint, slots=2, graphs=graphs, renewal_frames=6)
    for _ in backend.open(1, Opening("TINYF0", (), GREEDY)):
        pass
    frames, active, said, renewed = read_user_frames(), np.arange(2) == 1, [], 0
    while len(said) < 2 * ROOM:
        heard = np.broadcast_to(frames[len(said) % len(frames)], (2, FRAME_SAMPLES))
        text = backend.listen(heard, active).text
        codes = backend.speak(text, np.zeros(2, bool)).codes
        said.append([int(text[1]), *codes[1].tolist()])
        if work := backend.renew(1):
            renewed += all(piece is None for piece in work)
    if not renewed:
        raise EngineError(f"no renewal in {len(said)} frames, with {ROOM} columns")
    return said


def read_keys(rings: Rings, slot: int) -> torch.Tensor:
    """Keys and values that a slot holds, as float32 [L, 2, H, n, D]."""
    kept, *scale = (used.float() for used in rings.used(slot))
    return kept * scale[0][..., None] if scale else kept


VERIFY = Subject(add_model_arguments, run_verify)
