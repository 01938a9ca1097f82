"""Whether a device computes what the CPU does: golden runs, graphs = eager, neighbours, idle slots.

Correctness only, no times. Uses the tiny checkpoint and generated weights; needs no pytest, so
that it runs on a machine that holds little more than torch.
"""

import argparse
import json
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

from engine.bench.device import KV_TYPES, add_model_arguments, device_of, loop_of, release
from engine.bench.report import save, table
from engine.config import FRAME_SAMPLES, GREEDY
from engine.dialogue.persona import prompt_ids
from engine.errors import EngineError
from engine.model.gpu.graphs import Prefill, Ticks
from engine.model.gpu.kernels import ROWS
from engine.model.transformer import Active, Rings
from engine.runtime.backend import HeardRow, Opening
from engine.runtime.drive import drive_conversation, split_frames
from engine.runtime.personaplex import PersonaPlexBackend
from engine.weights.generated import SMALL, TINY, generated
from engine.weights.loading import load_checkpoint, load_recogniser
from engine.weights.voices import Voices

STT_TINY = Path("tests/golden/stt_tiny")
GOLDEN = ("gen_voice_pt", "gen_forced_text")
FRAMES = 81
PRECISIONS = (("bf16", "bf16"), ("int8", "int8"))  # of weights, of keys and values
PROMPT = 40  # columns
ROOM = 89  # columns of the rings of a call that is renewed
PROMPT_OFF = 0.05  # of keys and values in bf16, relative to their norm; a wrong one is 1 off
Result = tuple[str, bool, str]  # what was checked, whether it holds, a number or a place


def user_frames() -> np.ndarray:
    with wave.open(str(TINY / "input_user.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    return split_frames(samples.astype(np.float32) / 32768)


def golden_runs(device: str) -> Iterator[Result]:
    """Greedy conversations in float32, token for token, with graphs and without."""
    checkpoint = load_checkpoint(str(TINY), Voices, device=device, dtype=torch.float32)
    for graphs in (False, True):
        backend = PersonaPlexBackend(checkpoint, slots=2, graphs=graphs)
        for name in GOLDEN:
            want = load_file(TINY / "expected" / f"{name}.safetensors")["tokens"][1:]
            run = json.loads((TINY / "expected" / f"{name}.json").read_text())
            got = golden_run(backend, run)
            same = (got == want).all(1)
            at = "all" if same.all() else f"differs at frame {int(same.argmin())}"
            yield f"golden {name} float32 {'graphs' if graphs else 'eager'}", bool(same.all()), at


def golden_run(backend: PersonaPlexBackend, run: dict) -> np.ndarray:
    """[T, 17] tokens of a greedy conversation with the golden prompt and forced text."""
    forced, count = run.get("forced", {}), iter(range(10_000))
    ids = prompt_ids(run["text_prompt"], backend.tokenizer)
    opening = Opening(run["voice"].split(".")[0], ids, GREEDY)
    frames = drive_conversation(
        backend,
        opening,
        user_frames()[:FRAMES],
        lambda s, *_: (forced.get(str(next(count)), s), False),
    )
    return np.array([[f.text, *f.agent_codes, *f.user_codes] for f in frames])


def recogniser_runs(device: str) -> Iterator[Result]:
    """The recogniser's words and the agent's tokens in float32, in graphs and without, a flush."""
    checkpoint = load_checkpoint(str(TINY), Voices, device=device, dtype=torch.float32)
    where, want = torch.device(device), load_file(STT_TINY / "expected" / "stt.safetensors")
    stt = load_recogniser(str(STT_TINY), checkpoint.mimi, device=where, dtype=torch.float32)
    opening = Opening("TINYF0", (), GREEDY, transcribe=True)
    agents = []
    for graphs in (False, True):
        backend = PersonaPlexBackend(checkpoint, slots=2, recogniser=stt, graphs=graphs)
        flushed: list[HeardRow] = []
        frames = list(drive_conversation(backend, opening, user_frames(), flushed=flushed))
        got = [row.stt_text for row in (*(frame.heard for frame in frames), *flushed)]
        same = got == want["tokens"][1:].tolist()
        yield f"recogniser float32 {'graphs' if graphs else 'eager'}", same, f"{len(got)} steps"
        agents.append([(frame.text, *frame.agent_codes) for frame in frames])
    yield "agent beside a recogniser, graphs = eager", agents[0] == agents[1], ""


def teacher_forced(device: str) -> Iterator[Result]:
    """bf16 hidden states against the reference's float32, within twice its own bf16 distance."""
    want = load_file(TINY / "expected" / "lm_teacher_forced.safetensors")
    lm = load_checkpoint(str(TINY), Voices, device=device, dtype=torch.bfloat16).lm
    rings, active = lm.rings(1), Active.of([0], 1, torch.device(device))
    columns = torch.from_numpy(want["tokens"]).long().T.to(device)
    hidden = torch.cat([lm.step(lm.embed(c[None]), rings, active) for c in columns])
    exact = torch.from_numpy(want["hidden"])
    off = (hidden.float().cpu() - exact).abs().max().item()
    theirs = load_file(TINY / "expected" / "lm_teacher_forced.safetensors")
    allowed = 2 * float(np.abs(_floats(theirs["hidden_bf16"]) - want["hidden"]).max())
    yield "teacher forced bf16", off <= allowed, f"{off:.4f} of {allowed:.4f}"


def _floats(array: np.ndarray) -> np.ndarray:
    """bf16 kept as raw 16-bit numbers, or any float, as float32."""
    if array.dtype.itemsize == 2 and array.dtype != np.float16:
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def play(ticks: Ticks, slots: list[int], frames: int) -> tuple[np.ndarray, np.ndarray]:
    """A few frames of these slots: tokens [T, S, 1 + Q], pcm [T, S, 1920]; the rest is idle."""
    loop, rng = ticks.loop, np.random.default_rng(3)
    for slot in range(loop.slots):
        loop.clear(slot)
        loop.sampler.tune(slot, GREEDY if slot % 2 else type(GREEDY)())
        loop.sampler.seed(slot, slot)
    active, tokens, pcms = np.isin(np.arange(loop.slots), slots), [], []
    for _ in range(frames):
        pcm = rng.standard_normal((loop.slots, FRAME_SAMPLES)).astype(np.float32) * 0.1
        text, *_ = ticks.listen(pcm, active)
        spoken, codes = ticks.speak(np.where(active, text, 3), np.zeros(loop.slots, bool))
        tokens.append(np.concatenate([text[:, None], codes], 1)[slots])
        pcms.append(spoken[slots])
    return np.array(tokens), np.array(pcms)


def same_paths(args: argparse.Namespace) -> Iterator[Result]:
    """Graphs = eager bucket by bucket; a slot alone = the slot among others; idle slots unmoved."""
    frames = 12 if device_of(args) == "cuda" else 4  # where there are no graphs, both are the same
    for weights, kv in PRECISIONS:
        release()
        lm, mimi = generated(SMALL, device_of(args), weights)
        loop = loop_of(args, lm, mimi, 16, kv)
        eager, quick = Ticks(loop, graphs=False, every=True), Ticks(loop, every=True)
        for size in eager.buckets:
            slots = list(range(size))
            (a, x), (b, y) = play(eager, slots, frames), play(quick, slots, frames)
            good = bool((a == b).all()) and np.array_equal(x, y)
            yield f"graphs = eager, {size} slots, {weights}/{kv}", good, ""
        among, alone = play(quick, list(range(16)), frames)[0], play(quick, [15], frames)[0]
        good = bool((among[:, 15] == alone[:, 0]).all())
        yield f"slot 15 alone = among 16, {weights}/{kv}", good, ""
        idle = [t.clone() for t in loop.state(3)]
        play_on(quick, [15], 4)
        good = all(torch.equal(a, b) for a, b in zip(idle, loop.state(3), strict=True))
        yield f"an idle slot does not move, {weights}/{kv}", good, ""


def play_on(ticks: Ticks, slots: list[int], frames: int) -> None:
    """More frames, without starting anew."""
    active = np.isin(np.arange(ticks.loop.slots), slots)
    for _ in range(frames):
        text, *_ = ticks.listen(np.zeros((len(active), FRAME_SAMPLES), np.float32), active)
        ticks.speak(np.where(active, text, 3), np.zeros(len(active), bool))


def prompts(args: argparse.Namespace) -> Iterator[Result]:
    """A prompt's pieces as one launch = eager, wherever it is cut; and close to the plain ones."""
    for weights, kv in PRECISIONS:
        release()
        lm, _ = generated(SMALL, device_of(args), weights)
        rings, columns = lm.rings(4, KV_TYPES[kv]), lm.embedding.table[:PROMPT]
        graph, eager = Prefill(lm, rings, ROWS), Prefill(lm, rings, ROWS, graphs=False)
        for slot, prefill, cuts in (
            (0, graph, [16, 16, 8]), (1, eager, [16, 16, 8]), (2, graph, [5, 16, 3, 16]),
        ):  # fmt: skip
            for part in columns.split(cuts):
                prefill.run(slot, part)
        for part in columns.split(ROWS):
            lm.prefill(part, rings, 3)
        whole, once, cut, plain = (exact(rings, slot) for slot in range(4))
        yield f"a prompt, graphs = eager, {weights}/{kv}", torch.equal(whole, once), ""
        if lm.fused:  # the plain modules' bits do depend on it
            yield f"a prompt cut elsewhere, {weights}/{kv}", torch.equal(whole, cut), ""
        off = ((whole - plain).norm() / plain.norm()).item()
        yield f"a prompt = the plain one, {weights}/{kv}", off <= PROMPT_OFF, f"{off:.4f} off"


def renewed_calls(device: str) -> Iterator[Result]:
    """A call past its context, greedy in float32: what a GPU says, in graphs and without, and
    what a CPU says, whose renewal the tests hold to a fresh conversation."""
    if device == "cpu":
        return
    want = renewed_call("cpu", graphs=False)
    for graphs in (False, True):
        got = renewed_call(device, graphs)
        same = [a == b for a, b in zip(got, want, strict=True)]
        at = f"{len(got)} frames" if all(same) else f"differs at frame {same.index(False)}"
        yield f"a renewed call {'graphs' if graphs else 'eager'} = the CPU's", all(same), at


def renewed_call(device: str, graphs: bool) -> list[list[int]]:
    """Text and codes of every frame until well past a renewal; raises if there was none."""
    checkpoint = load_checkpoint(str(TINY), Voices, device=device, dtype=torch.float32)
    checkpoint.lm.window = ROOM  # the golden one is shorter than its prompts
    backend = PersonaPlexBackend(checkpoint, slots=2, graphs=graphs, renewal_frames=6)
    for _ in backend.open(1, Opening("TINYF0", (), GREEDY)):
        pass
    frames, active, said, renewed = user_frames(), np.arange(2) == 1, [], 0
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


def exact(rings: Rings, slot: int) -> torch.Tensor:
    """Keys and values that a slot holds, as float32 [L, 2, H, n, D]."""
    kept, scale = rings.used(slot).float(), rings.used_scale(slot)
    return kept if scale is None else kept * scale.float()[..., None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)


@torch.inference_mode()
def run(args: argparse.Namespace) -> int:
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    device, results = device_of(args), []
    runs = golden_runs(device), recogniser_runs(device), teacher_forced(device)
    for check in (*runs, same_paths(args), prompts(args), renewed_calls(device)):
        results += [{"check": c, "holds": ok, "detail": d} for c, ok, d in check]
    print(table(results))
    print("written:", save("verify", {"device": device, "checks": results}, args.json))
    return 0 if all(row["holds"] for row in results) else 1
