"""Does int8 say the same? Teacher forced over one conversation: KL and top-1 of the text.

The plain model talks to silence; the same columns then go through int8 weights, and through int8
keys and values. With `--transcribe` a recogniser reads what the model said, and once more with int8
weights. The verdict is kept beside the model's weights, where `--weights auto` and `--kv auto`
look. It is a gate for numbers: before a default changes, people should listen too.
"""

import argparse
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from engine.bench.device import release
from engine.bench.report import save, table
from engine.config import SamplingConfig
from engine.dialogue.voices import Voices
from engine.errors import ConfigError
from engine.model.lm import LM, Temporal
from engine.model.loop import Loop
from engine.model.mimi import Mimi
from engine.model.state import Active
from engine.model.stt import Hearing
from engine.runtime.hub import find
from engine.runtime.loader import load_checkpoint
from engine.runtime.recogniser import download_recogniser, load_recogniser
from engine.runtime.verdict import keep

LEAST_FRAMES = 1500  # of a conversation that a verdict is reached on: two minutes
LEAST_TOP1 = 0.97  # of frames
MOST_DRIFT = 0.5  # of the mean KL, that a straight line may rise over the whole run
SMALL_RISE = 1e-3  # of KL over the whole run: no drift, whatever the mean
BLOCKS = 10  # parts of a run, whose means are nearly independent: 12 s each, longer than a turn
SURE = 2.5  # standard errors that a rise must exceed: about one steady run in fifty does
LIMITS = {  # kept with a result
    "top1": LEAST_TOP1,
    "rise of mean": MOST_DRIFT,
    "rise": SMALL_RISE,
    "rise of error": SURE,
}


def talk(loop: Loop, frames: int) -> tuple[Tensor, Tensor]:
    """A conversation of slot 0 with silence: its columns [T, K], its sound [T, 1920]."""
    active, columns, sound = loop.active([0]), [], []
    user = torch.tensor(loop.lm.config.silence_tokens, device=loop.device).expand(loop.slots, -1)
    hush = torch.zeros(loop.slots, dtype=torch.bool, device=loop.device)
    loop.sampler.tune(0, SamplingConfig())
    loop.sampler.seed(0, 1)
    for _ in range(frames):
        columns.append(torch.cat([loop.agent[0], user[0]]))
        codes = loop.say(loop.think(user, active), hush, active)
        sound.append(loop.mimi.decode(codes, loop.decoder, active)[0])
    return torch.stack(columns), torch.stack(sound)


def forced_logits(lm: Temporal, columns: Tensor, kv: torch.dtype | None = None) -> Tensor:
    """Text logits [T, V] on the host, frame by frame, as a conversation would meet them."""
    return forced(lm, columns, kv)[0]


def forced(lm: Temporal, columns: Tensor, kv: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """Text logits [T, V], and the likeliest agent codes of every next frame [T - 1, Q]."""
    rings, rows, codes = lm.rings(1, kv), [], []
    columns = columns.to(rings.kv.device)
    active = Active.of([0], 1, columns.device)
    for now, column in enumerate(columns):
        hidden = lm.step(lm.embed(column[None]), rings, active)
        rows.append(lm.text_logits(hidden)[0].cpu())
        if isinstance(lm, LM) and now + 1 < len(columns):
            codes.append(likeliest_codes(lm, hidden, columns[now + 1]))
    return torch.stack(rows), torch.stack(codes) if codes else torch.empty(0)


def likeliest_codes(lm: LM, hidden: Tensor, after: Tensor) -> Tensor:
    """What the depformer would pick [Q], each step told the codes that really came after [K]."""
    picked: list[Tensor] = []

    def pick(step: int, logits: Tensor) -> Tensor:
        picked.append(logits[0].argmax().cpu())
        return after[1 + step : 2 + step]

    lm.depth(hidden, after[:1], pick)
    return torch.stack(picked)


def heard_columns(hearing: Hearing, mimi: Mimi, sound: Tensor) -> Tensor:
    """What a recogniser reads [T, 1 + n_q] of a sound [T, 1920], its own words included."""
    stream, active, columns = mimi.encoder_stream(1), Active.of([0], 1, sound.device), []
    for pcm in sound:
        codes = mimi.encode(pcm[None], stream, active, hearing.stt.config.n_q)
        columns.append(hearing.column(codes)[0])
        hearing.step(codes, active)
    return torch.stack(columns)


def compare(name: str, plain: Tensor, other: Tensor) -> dict:
    """One row of the table, with its verdict."""
    p, q = plain.log_softmax(-1), other.log_softmax(-1)
    drift = drift_of((p.exp() * (p - q)).sum(-1))
    top1 = float((plain.argmax(-1) == other.argmax(-1)).float().mean())
    rms = float((plain - other).square().mean().sqrt())
    good = top1 >= LEAST_TOP1 and drift.small
    return {"what": name, **asdict(drift), "rms": rms, "top1": top1, "good": good}


@dataclass(frozen=True, slots=True)
class Drift:
    """A KL over one run."""

    kl: float  # its mean
    kl_rise: float  # of a straight line through it, over the whole run
    kl_rise_error: float  # the standard error of that

    @property
    def small(self) -> bool:
        """A rise counts where it is both large and sure; a fall is none; what is no number does."""
        if math.isnan(self.kl_rise_error):  # `max` would hide it
            return False
        return self.kl_rise <= max(MOST_DRIFT * self.kl, SMALL_RISE, SURE * self.kl_rise_error)


def drift_of(kl: Tensor) -> Drift:
    """The straight line through the means of BLOCKS parts of a KL [T], T >= BLOCKS.

    An error comes in bursts, while the agent talks: a frame says much the same as its neighbour.
    How far the means of blocks lie off their line says how much of its rise is chance.
    """
    means = torch.stack([block.mean() for block in kl.double().tensor_split(BLOCKS)])
    at = torch.arange(BLOCKS).double() - (BLOCKS - 1) / 2
    spread = at.square().sum()
    slope = (at * means).sum() / spread  # of a block
    off = means - means.mean() - slope * at
    error = (off.square().sum() / (BLOCKS - 2) / spread).sqrt()
    return Drift(float(kl.mean()), float(slope) * BLOCKS, float(error) * BLOCKS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="tests/golden/tiny", help="a folder or a repository")
    parser.add_argument("--transcribe", default="", help="a recogniser to be judged too")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--frames", type=int, default=LEAST_FRAMES)
    parser.add_argument("--verdict", action="store_true", help="keep the verdict by the weights")
    parser.add_argument("--json", help="where to write the result")


@torch.inference_mode()
def judge_model(model: str, device: str, frames: int) -> tuple[list[dict], Mimi, Tensor]:
    """Rows of int8 weights, int8 keys and values, and both; the codec; the sound that was made."""
    base = load_checkpoint(model, Voices, device=device)
    mimi = base.mimi
    columns, sound = talk(Loop(base.lm, mimi, 1), frames)
    plain, codes = forced(base.lm, columns, None)
    kv, kv_codes = forced(base.lm, columns, torch.int8)
    del base
    release()
    lm = load_checkpoint(model, Voices, device=device, int8=True).lm
    tried = {
        "int8 weights": forced(lm, columns, None),
        "int8 KV": (kv, kv_codes),
        "both": forced(lm, columns, torch.int8),
    }
    rows = []
    for name, (logits, said) in tried.items():
        audio = float((said == codes).float().mean())  # told, not judged: most codes are a toss-up
        rows.append({**compare(name, plain, logits), "audio_top1": audio})
    return rows, mimi, sound


@torch.inference_mode()
def judge_recogniser(source: str, mimi: Mimi, sound: Tensor) -> dict:
    """The row of a recogniser's int8 weights, over the sound of the model's conversation."""
    stt = load_recogniser(source, mimi, device=sound.device).stt
    columns = heard_columns(Hearing(stt, 1), mimi, sound)
    plain = forced_logits(stt, columns)
    del stt
    release()
    other = load_recogniser(source, mimi, device=sound.device, int8=True).stt
    return compare("int8 recogniser", plain, forced_logits(other, columns))


def run(args: argparse.Namespace) -> int:
    """Raises ConfigError where so few frames are no ground for a verdict, or for a line."""
    if args.frames < BLOCKS:
        raise ConfigError(f"--frames is {args.frames}; use {BLOCKS} or more")
    if args.verdict and args.frames < LEAST_FRAMES:
        raise ConfigError(
            f"--frames is {args.frames}, but a verdict needs {LEAST_FRAMES} or more; "
            "give as many, or leave --verdict out"
        )
    rows, mimi, sound = judge_model(args.model, args.device, args.frames)
    weights, kv, both = (row["good"] for row in rows)
    recogniser = None
    if args.transcribe:
        rows.append(judge_recogniser(args.transcribe, mimi, sound))
        recogniser = download_recogniser(args.transcribe), rows[-1]["good"]
    print(table(rows))
    result = {"frames": args.frames, "limits": LIMITS, "rows": rows}
    if args.verdict:
        folder = Path(find(args.model, None, lambda phase, percent: None))
        print("verdict:", keep(folder, weights, kv, both, result, recogniser))
    print("written:", save("drift", result, args.json))
    return 0
