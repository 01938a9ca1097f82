"""Does int8 say the same as bf16? Teacher forced over one conversation: KL and the likeliest words.

The plain model talks with a user who speaks, and opens as a caller's conversation does, with a
voice and a persona: what the model meets here is what it was made for. The same columns then go
through int8 weights, and through int8 keys and values. With `--transcribe` a recogniser reads what
the model said, once as it is and once with int8 weights. The verdict is kept beside the model's
weights, where `--weights auto` and `--kv auto` look. It is a gate for numbers: before a default
changes, people should listen too.
"""

import argparse
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.bench.device import release_memory
from engine.bench.report import save, table
from engine.commands.offline import drive_conversation, split_frames
from engine.config import EPAD, FRAME_SAMPLES, PAD, SamplingConfig
from engine.dialogue.persona import load_personas, prompt_ids
from engine.errors import ConfigError, ModelError
from engine.model import transformer
from engine.model.lm import LM, Temporal
from engine.model.mimi import Mimi
from engine.model.prompt import Prompt
from engine.model.stt import Hearing, Recogniser
from engine.model.transformer import Active
from engine.runtime import embedded as espeak
from engine.runtime.backend import Opening
from engine.runtime.personaplex import PersonaPlexBackend
from engine.weights.checkpoint import TensorFile, match_sources, read_parameters
from engine.weights.generated import TINY
from engine.weights.hub import LM_FILE, find
from engine.weights.loading import (
    Checkpoint,
    download_recogniser,
    load_checkpoint,
    load_recogniser,
    report_nothing,
)
from engine.weights.verdict import write_verdict

# Of a conversation that a verdict is reached on: four minutes, so that the model's memory is full
# at the end, and its oldest columns are overwritten.
LEAST_FRAMES = 3000
LEAST_SPOKEN = 0.05  # of its frames have text: that padding is the likeliest says little
LEAST_TOP1 = 0.97  # of the frames have the same likeliest text
# Of the frames where either form's likeliest text is a word: few frames have one, and a model that
# says other words agrees in all the padding.
LEAST_WORDS_TOP1 = 0.95
# Nats of KL, of the text and of each codebook, on average. By Pinsker's inequality at most
# sqrt(KL / 2) of the draws come out otherwise: one in ten.
MOST_KL = 0.02
# A line through the other form's logits against the plain ones has slope 1, however they scatter:
# rounding is as often up as down. A scale that is off by 2 % is no rounding.
MOST_SLOPE_OFF = 0.01
# Steps of int8 that a weight is moved by: rounding moves it by half a one. Every weight counts, as
# a conversation meets few of the tokens: what is wrong with the others somebody else would hear.
MOST_STEPS_OFF = 0.6
MOST_DRIFT = 0.5  # of the mean KL, that a straight line may rise over the whole run
SMALL_RISE = 1e-3  # of KL over the whole run: no drift, whatever the mean
BLOCKS = 10  # parts of a run, whose means are nearly independent: two turns of the user each
SURE = 2.5  # standard errors that a rise must exceed: about one steady run in fifty does
LIMITS = {  # kept with a result
    "spoken": LEAST_SPOKEN,
    "top1": LEAST_TOP1,
    "words top1": LEAST_WORDS_TOP1,
    "kl": MOST_KL,
    "slope": MOST_SLOPE_OFF,
    "steps": MOST_STEPS_OFF,
    "rise of mean": MOST_DRIFT,
    "rise": SMALL_RISE,
    "rise of error": SURE,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=str(TINY), help="a folder or a repository")
    parser.add_argument("--transcribe", default="", help="a recogniser to be judged too")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--frames", type=int, default=LEAST_FRAMES)
    parser.add_argument(
        "--verdict", nargs="?", const="", metavar="FOLDER",
        help="keep the verdict beside the weights, where starts obey it, or in a folder",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Raises ConfigError for too few frames, ModelError where too little was said in them."""
    if args.frames < BLOCKS:
        raise ConfigError(f"--frames is {args.frames}; use {BLOCKS} or more")
    if args.verdict is not None and args.frames < LEAST_FRAMES:
        raise ConfigError(
            f"--frames is {args.frames}, but a verdict needs {LEAST_FRAMES} or more; "
            "give as many, or leave --verdict out"
        )
    rows, mimi, said = judge_model(args.model, args.device, args.frames)
    weights, kv, both = (row["good"] for row in rows)
    recogniser = None
    if args.transcribe:
        rows.append(judge_recogniser(args.transcribe, mimi, said.sound))
        recogniser = download_recogniser(args.transcribe), rows[-1]["good"]
    print(table(rows))
    print(f"frames with text: {said.spoken:.1%}")
    result = {"frames": args.frames, "spoken": said.spoken, "limits": LIMITS, "rows": rows}
    save("drift", result, args.json)
    if args.verdict is not None:
        if said.spoken < LEAST_SPOKEN:
            raise ModelError(
                f"only {said.spoken:.1%} of the frames have text, and a verdict needs "
                f"{LEAST_SPOKEN:.0%}: this model was silent, which any precision is; no verdict is "
                "written, give other weights or more --frames"
            )
        folder = Path(find(args.model, None, report_nothing))
        into = Path(args.verdict) if args.verdict else folder
        good = weights, kv, both
        print("verdict:", write_verdict(folder, args.device, *good, result, recogniser, into))
    return 0


@torch.inference_mode()
def judge_model(
    model: str, device: str, frames: int
) -> tuple[list[dict], Mimi, "ForcedConversation"]:
    """Rows of int8 weights, int8 keys and values, and both; the codec; what was said."""
    base = load_checkpoint(model, device=device)
    mimi, spoken = base.mimi, hold_conversation(base, frames, SamplingConfig())
    columns, before = spoken.columns, spoken.before
    plain = force_columns(base.lm, columns, None, before)
    of_kv = measure_steps(device)
    kv = judge("int8 KV", plain, force_columns(base.lm, columns, torch.int8, before), of_kv)
    del base
    release_memory()
    lm = load_checkpoint(model, device=device, int8=True).lm
    of_weights = measure_weights(lm, Path(find(model, None, report_nothing)) / LM_FILE)
    weights = judge("int8 weights", plain, force_columns(lm, columns, None, before), of_weights)
    forced = force_columns(lm, columns, torch.int8, before)
    both = judge("both", plain, forced, max(of_weights, of_kv))
    return [weights, kv, both], mimi, spoken


@torch.inference_mode()
def judge_recogniser(source: str, mimi: Mimi, sound: Tensor) -> dict:
    """The row of a recogniser's int8 weights, over the sound of the model's conversation."""
    stt = load_recogniser(source, mimi, device=sound.device).stt
    hearing, columns = Hearing(stt, 1), []  # what it reads, its own words included
    stream, active = mimi.encoder_stream(1), Active.of([0], 1, sound.device)
    for pcm in sound:
        codes = mimi.encode(pcm[None], stream, active, stt.config.n_q)
        columns.append(hearing.column(codes)[0])
        hearing.step(codes, active)
    columns = torch.stack(columns)  # [T, 1 + n_q]
    plain = force_columns(stt, columns).text
    del stt, hearing
    release_memory()
    other = load_recogniser(source, mimi, device=sound.device, int8=True).stt
    off = measure_weights(other, download_recogniser(source) / LM_FILE)
    return judge_steps(compare("int8 recogniser", plain, force_columns(other, columns).text), off)


# -- the verdict on numbers ------------------------------------------------------------------------


def compare(name: str, plain: Tensor, other: Tensor) -> dict:
    """One row of the table, with its verdict, from the text logits [T, V] of both forms.

    Without a single word there is nothing to judge, and that is not good.
    """
    drift = fit_drift(measure_kl(plain, other))
    mine, others = plain.argmax(-1), other.argmax(-1)
    same, words = (mine == others).float(), is_word(mine) | is_word(others)
    centred = plain - plain.mean(-1, keepdim=True)
    row = {
        "what": name, **asdict(drift), "top1": float(same.mean()),
        "words_top1": float(same[words].mean()),  # NaN where there are none
        "slope": float((centred * other).sum() / centred.square().sum()),
    }  # fmt: skip
    good = row["top1"] >= LEAST_TOP1 and row["words_top1"] >= LEAST_WORDS_TOP1
    good &= drift.kl <= MOST_KL and drift.small and abs(row["slope"] - 1) <= MOST_SLOPE_OFF
    return {**row, "good": bool(good)}


def judge(name: str, plain: "ForcedLogits", other: "ForcedLogits", steps: float) -> dict:
    """`compare`, the codebooks too; steps: the most by which int8 moves a number."""
    row = compare(name, plain.text, other.text)
    kl = measure_kl(plain.audio, other.audio).mean(0)  # [Q]
    same = plain.audio.argmax(-1) == other.audio.argmax(-1)
    row |= {"audio_kl": float(kl.max()), "audio_top1": float(same.float().mean())}  # of the worst
    row["good"] &= row["audio_kl"] <= MOST_KL
    return judge_steps(row, steps)


def judge_steps(row: dict, steps: float) -> dict:
    return {**row, "steps": steps, "good": row["good"] and steps <= MOST_STEPS_OFF}


def measure_kl(plain: Tensor, other: Tensor) -> Tensor:
    """Nats [...] that are lost by taking the other's logits [..., V] for the plain ones."""
    p, q = plain.log_softmax(-1), other.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def is_word(text: Tensor) -> Tensor:
    return (text != PAD) & (text != EPAD)


def measure_steps(device: str) -> float:
    """The most steps of int8 by which keys and values move a number of a probe."""
    exact = torch.randn(256, 128, generator=torch.Generator().manual_seed(0)).to(device)
    return count_steps(exact, *transformer.quantise_columns(exact))


def count_steps(exact: Tensor, steps: Tensor, scale: Tensor) -> float:
    """The most steps by which int8 [N, K] with scale [N] is off the exact numbers [N, K]."""
    exact = exact.float()
    step = (exact.abs().amax(-1) / transformer.INT8_MAX).clamp(min=transformer.TINY_SCALE)
    off = steps.float() * scale.float()[:, None] - exact
    return float((off / step[:, None]).abs().max())


def measure_weights(lm: LM | Recogniser, path: Path) -> float:
    """The most steps by which a loaded product is off its file's weights.

    What int8 does not touch (norms, embeddings) must be the file's to the bit; else infinite.
    """
    with torch.device("meta"):
        twin = type(lm)(lm.config)
    table, file, most = lm.embedding.table, TensorFile(path), 0.0
    sources = match_sources(twin, file)
    for name, exact in read_parameters(twin, file, sources, table.device, table.dtype):
        owner, _, leaf = name.rpartition(".")
        module = lm.get_submodule(owner)
        if isinstance(module, transformer.Linear):
            most = max(most, count_steps(exact, module.weight, module.scale))
        elif not torch.equal(exact, getattr(module, leaf)):
            return math.inf
    return most


@dataclass(frozen=True, slots=True)
class Drift:
    """A KL over one run."""

    kl: float  # its mean
    kl_rise: float  # of a straight line through it, over the whole run
    kl_rise_error: float  # the standard error of that

    @property
    def small(self) -> bool:
        """A rise counts where it is both large and sure. A fall is no rise; NaN counts as one."""
        if math.isnan(self.kl_rise_error):  # of an infinite KL too
            return False
        return self.kl_rise <= max(MOST_DRIFT * self.kl, SMALL_RISE, SURE * self.kl_rise_error)


def fit_drift(kl: Tensor) -> Drift:
    """The straight line through the means of BLOCKS parts of a KL [T], T >= BLOCKS.

    Errors come in bursts, while the agent talks, so neighbouring frames are not independent; the
    means of blocks nearly are. How far they lie off the line says how much of its rise is chance.
    """
    means = torch.stack([block.mean() for block in kl.double().tensor_split(BLOCKS)])
    at = torch.arange(BLOCKS).double() - (BLOCKS - 1) / 2
    spread = at.square().sum()
    slope = (at * means).sum() / spread  # of a block
    off = means - means.mean() - slope * at
    error = (off.square().sum() / (BLOCKS - 2) / spread).sqrt()
    return Drift(float(kl.mean()), float(slope) * BLOCKS, float(error) * BLOCKS)


# -- the conversation, and other forms of the model on its columns ---------------------------------

TURN_FRAMES = 150  # 12 s: a question, and quiet for an answer
QUESTIONS = (
    "Hello! Who are you, and what are you doing today?",
    "I would like to rent two bicycles for the weekend. What does that cost?",
    "Can you explain to me why the sky is blue, and red in the evening?",
    "I have never cooked anything. What should I begin with?",
    "My train leaves at seven. How long do I need to the station?",
    "Tell me about a journey that you remember well.",
    "I did not quite understand that. Could you say it again, more slowly?",
    "What would you do if it rained all day?",
    "Let us count to ten together. One, two, three.",
    "Thank you, that was very kind. Is there anything else I should know?",
)


@dataclass(frozen=True, slots=True)
class ForcedConversation:
    """What the temporal transformer read of it, and what came of that."""

    before: Tensor  # [P, dim]: voice and persona
    columns: Tensor  # [T, K]: of the frames
    sound: Tensor  # [T, 1920]: the agent's

    @property
    def spoken(self) -> float:
        """The share of the frames whose text is not padding."""
        return float(is_word(self.columns[:, 0]).float().mean())


@torch.inference_mode()
def hold_conversation(
    checkpoint: Checkpoint, frames: int, sampling: SamplingConfig
) -> ForcedConversation:
    """The default voice with the default persona, and a user who speaks."""
    backend = Remembering(checkpoint, slots=1, graphs=False)
    ids = prompt_ids(load_personas()[0].text, backend.tokenizer)
    opening = Opening(backend.voices[0], ids, sampling, seed=1)
    said = list(drive_conversation(backend, opening, make_user_frames(frames)))
    rows = np.array([[frame.text, *frame.agent_codes, *frame.user_codes] for frame in said])
    sound = torch.from_numpy(np.stack([frame.pcm for frame in said]))
    tokens = torch.from_numpy(rows)  # [T, K]
    # what the model reads of them: late rows of the frame before, at first of the prompt
    late = torch.tensor(backend.config.delays) == 1  # [K]
    columns = torch.where(late, torch.cat([backend.prompt.after[None], tokens[:-1]]), tokens)
    device = backend.loop.device
    return ForcedConversation(backend.read, columns.to(device), sound.to(device))


def make_user_frames(count: int) -> np.ndarray:
    """A user who asks and waits, again and again: frames [T, 1920]."""
    turns = [split_frames(espeak.synthesize(text))[:TURN_FRAMES] for text in QUESTIONS]
    turns = turns[: -(-count // TURN_FRAMES)]
    asked = np.concatenate([np.pad(t, ((0, TURN_FRAMES - len(t)), (0, 0))) for t in turns])
    return np.resize(asked, (count, FRAME_SAMPLES))


class Remembering(PersonaPlexBackend):
    """Keeps the prompt that it opens a slot with, and what the transformer reads of it."""

    prompt: Prompt
    read: Tensor  # [P, dim]

    def _embedded(self, prompt: Prompt) -> Tensor:
        embedded = super()._embedded(prompt)  # [P - 1, dim]
        last = self.checkpoint.lm.embed(prompt.columns[-1:].to(embedded.device))
        self.prompt, self.read = prompt, torch.cat([embedded, last])
        return embedded


@dataclass(frozen=True, slots=True)
class ForcedLogits:
    """What a form of the model makes of columns [T, K]; on the host."""

    text: Tensor  # [T, V]
    audio: Tensor  # [T - 1, Q, card]: of the next frame's codes; a recogniser has none


@torch.inference_mode()
def force_columns(
    lm: Temporal,
    columns: Tensor,
    kv: torch.dtype | None = None,
    before: Tensor | None = None,
) -> ForcedLogits:
    """Column by column, as a conversation would meet them. before [P, dim]: read first, if any."""
    rings, text, audio = lm.rings(1, kv), [], []
    columns = columns.to(rings.kv.device)
    active = Active.of([0], 1, columns.device)
    for row in () if before is None else before:
        lm.step(row[None], rings, active)
    for now, column in enumerate(columns):
        hidden = lm.step(lm.embed(column[None]), rings, active)
        text.append(lm.text_logits(hidden)[0].cpu())
        if isinstance(lm, LM) and now + 1 < len(columns):
            audio.append(force_depth(lm, hidden, columns[now + 1]))
    return ForcedLogits(torch.stack(text), torch.stack(audio or [torch.empty(0)]))


def force_depth(lm: LM, hidden: Tensor, after: Tensor) -> Tensor:
    """The depformer's logits [Q, card]; each step is given what came after [K]."""
    seen: list[Tensor] = []

    def pick(step: int, logits: Tensor) -> Tensor:
        seen.append(logits[0].cpu())
        return after[1 + step : 2 + step]

    lm.depth(hidden, after[:1], pick)
    return torch.stack(seen)
