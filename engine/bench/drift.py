"""Does int8 say the same? Teacher forced over one conversation: KL and top-1 of the text.

The plain model talks to silence; the same columns then go through int8 weights, and through int8
keys and values. The verdict is kept beside the weights, where `--weights auto` and `--kv auto`
look. It is a gate for numbers: before a default changes, people should listen too.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.bench.device import release
from engine.bench.report import save, table
from engine.config import SamplingConfig
from engine.dialogue.voices import Voices
from engine.model.lm import LM
from engine.model.loop import Loop
from engine.model.state import Active
from engine.runtime.hub import find
from engine.runtime.loader import load_checkpoint
from engine.runtime.verdict import keep

LEAST_TOP1 = 0.97  # of frames
MOST_DRIFT = 0.5  # of the mean KL, that a straight line may rise over the whole run
SMALL_RISE = 1e-3  # of KL over the whole run: no drift, whatever the mean
LIMITS = {"top1": LEAST_TOP1, "rise of mean": MOST_DRIFT, "rise": SMALL_RISE}  # kept with a result


def talk(loop: Loop, frames: int) -> Tensor:
    """The columns [T, K] of a conversation of slot 0 with silence."""
    active, columns = loop.active([0]), []
    user = torch.tensor(loop.lm.config.silence_tokens, device=loop.device).expand(loop.slots, -1)
    hush = torch.zeros(loop.slots, dtype=torch.bool, device=loop.device)
    loop.sampler.tune(0, SamplingConfig())
    loop.sampler.seed(0, 1)
    for _ in range(frames):
        columns.append(torch.cat([loop.agent[0], user[0]]))
        loop.say(loop.think(user, active), hush, active)
    return torch.stack(columns)


def forced_logits(lm: LM, columns: Tensor, kv: torch.dtype | None) -> Tensor:
    """Text logits [T, V] on the host, frame by frame, as a conversation would meet them."""
    rings, rows = lm.rings(1, kv), []
    device = rings.kv.device
    active = Active.of([0], 1, device)
    for column in columns.to(device):
        hidden = lm.step(lm.embed(column[None]), rings, active)
        rows.append(lm.text_logits(hidden)[0].cpu())
    return torch.stack(rows)


def compare(name: str, plain: Tensor, other: Tensor) -> dict:
    """One row of the table, with its verdict."""
    p, q = plain.log_softmax(-1), other.log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1).numpy()  # [T]
    rise = float(np.polyfit(np.arange(len(kl)), kl, 1)[0] * len(kl))
    mean = float(kl.mean())
    top1 = float((plain.argmax(-1) == other.argmax(-1)).float().mean())
    good = top1 >= LEAST_TOP1 and abs(rise) <= max(MOST_DRIFT * mean, SMALL_RISE)
    rms = float((plain - other).square().mean().sqrt())
    return {"what": name, "kl": mean, "kl_rise": rise, "rms": rms, "top1": top1, "good": good}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="tests/golden/tiny", help="a folder or a repository")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--frames", type=int, default=1500)
    parser.add_argument("--verdict", action="store_true", help="keep the verdict by the weights")
    parser.add_argument("--json", help="where to write the result")


@torch.inference_mode()
def run(args: argparse.Namespace) -> int:
    base = load_checkpoint(args.model, Voices, device=args.device)
    columns = talk(Loop(base.lm, base.mimi, 1), args.frames)
    plain = forced_logits(base.lm, columns, None)
    rows = [compare("int8 KV", plain, forced_logits(base.lm, columns, torch.int8))]
    del base
    release()
    lm = load_checkpoint(args.model, Voices, device=args.device, int8=True).lm
    rows.insert(0, compare("int8 weights", plain, forced_logits(lm, columns, None)))
    rows.append(compare("both", plain, forced_logits(lm, columns, torch.int8)))
    print(table(rows))
    weights, kv, both = (row["good"] for row in rows)
    if args.verdict:
        folder = Path(find(args.model, None, lambda phase, percent: None))
        print("verdict:", keep(folder, weights, kv and both, {"frames": args.frames}))
    result = {"frames": args.frames, "limits": LIMITS, "rows": rows}
    print("written:", save("drift", result, args.json))
    return 0
