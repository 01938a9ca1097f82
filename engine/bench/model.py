"""`python -m engine bench model`: the language model's step on this machine, random weights.

The step (embedding to last codebook, greedy) beside the bare matrix products of the same sizes in
the same run; then prompts, connects, loading and memory.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F

from engine.bench.report import positive, save, table, zero_or_more
from engine.model.config import LMConfig, MimiConfig, ModelConfig, TransformerConfig
from engine.model.lm import LM
from engine.model.loop import Loop
from engine.model.mimi import Mimi
from engine.model.prompt import Voice, build_prompt, prompt_frames
from engine.model.transformer import Active, Linear, pack_products
from engine.weights.checkpoint import load
from engine.weights.generated import write_model
from engine.weights.names import lm_pieces, unused_by_lm

BATCHES = (1, 2, 4, 8)
FILLED = (100, 749)  # frames in the ring
PROMPT_COLUMNS = 100
CONFIG = LMConfig(  # performance.md 4.2, where other implementations were timed
    dim=512, num_heads=8, num_layers=8, context=750,
    depformer_dim=256, depformer_num_heads=4, depformer_num_layers=6,
    depformer_dim_feedforward=1056,
)  # fmt: skip
CODEC = MimiConfig(dimension=64, n_filters=8, transformer=TransformerConfig(64, 4, 2, 128))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=positive, default=40, help="timed steps of each kind")
    parser.add_argument(
        "--threads", type=zero_or_more, default=0, help="0: as many as there are cores"
    )
    parser.add_argument("--json", help="where to write the result")


def random_lm(config: LMConfig = CONFIG) -> LM:
    """Seeded weights on the CPU, not yet packed."""
    with torch.device("meta"):
        lm = LM(config)
    lm = lm.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for parameter in lm.parameters():
        parameter.normal_(0, 0.02, generator=generator)
    return lm


def milliseconds(work: Callable[[], object], times: int) -> float:
    """Median of a few runs after a warm-up."""
    for _ in range(3):
        work()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(1000 * (time.perf_counter() - start))
    return median(taken)


def greedy(codebook: int, logits: torch.Tensor) -> torch.Tensor:
    return logits.argmax(-1)


def step_ms(lm: LM, batch: int, filled: int, times: int) -> float:
    """One step of a full batch whose rings hold `filled` frames."""
    rings, everyone = lm.rings(batch), Active.of(list(range(batch)), batch, torch.device("cpu"))
    rings.kv.normal_(0, 0.1)
    for slot in range(batch):
        rings.set_position(slot, filled)
    tokens = torch.randint(0, lm.config.card, (batch, lm.config.n_q + 1))

    def step() -> torch.Tensor:
        hidden = lm.step(lm.embedding(tokens), rings, everyone)
        text = lm.text_logits(hidden).argmax(-1)
        return lm.depformer(hidden, text, greedy)

    return milliseconds(step, times)


def matmul_ms(weights: list[torch.Tensor], batch: int, times: int) -> float:
    """The bare products of one step, as PyTorch does them on plain weights."""
    inputs = {w.shape[1]: torch.randn(batch, w.shape[1]) for w in weights}
    return milliseconds(lambda: [F.linear(inputs[w.shape[1]], w) for w in weights], times)


def packed_ms(lm: LM, inputs: list[int], batch: int, times: int) -> float:
    """The bare products of one step on the re-ordered weights that the model uses."""
    products = [module for module in lm.modules() if isinstance(module, Linear)]
    x = {width: torch.randn(batch, width) for width in inputs}
    pairs = list(zip(products, inputs, strict=True))
    return milliseconds(lambda: [product(x[width]) for product, width in pairs], times)


def steps(times: int) -> list[dict]:
    """One row per batch size."""
    lm, rows = random_lm(), []
    weights = [m.weight.clone() for m in lm.modules() if isinstance(m, Linear)]
    plain = {batch: matmul_ms(weights, batch, times) for batch in BATCHES}
    widths = [w.shape[1] for w in weights]
    del weights
    pack_products(lm)
    for batch in BATCHES:
        row = {"B": batch}
        row |= {f"step at {n}, ms": step_ms(lm, batch, n, times) for n in FILLED}
        row["packed products, ms"] = packed_ms(lm, widths, batch, times)
        row["plain products, ms"] = plain[batch]
        rows.append(row)
    return rows


def prompts(times: int) -> dict[str, float]:
    """A prompt of 100 columns in one pass, step by step, and from the cache."""
    lm = random_lm()
    pack_products(lm)
    with torch.device("meta"):
        mimi = Mimi(CODEC)
    loop = Loop(lm, mimi.to_empty(device="cpu"), 1)
    silence = prompt_frames(lm.config, tuple(range(10, 10 + PROMPT_COLUMNS - 11)))
    prompt = build_prompt(lm.config, Voice(), silence)
    embedded, active = lm.embedding(prompt.columns[:-1]), loop.active([0])

    def at_once() -> None:
        loop.clear(0)
        for part in embedded.split(64):
            lm.prefill(part, loop.rings, 0)

    def one_by_one() -> None:
        loop.clear(0)
        for column in embedded:
            lm.step(column[None], loop.rings, active)

    result = {
        "columns": len(embedded),
        "prefill, ms": milliseconds(at_once, max(2, times // 10)),
        "stepwise, ms": milliseconds(one_by_one, 2),
    }
    ready = loop.save_prompt(0, prompt)

    def connect() -> None:
        loop.clear(0)
        loop.start(0, ready)

    return result | {"connect from cache, ms": milliseconds(connect, times)}


def loading() -> dict[str, float]:
    """Write the model as bf16, load it again as the engine does, on the CPU in float32."""
    lm = random_lm()
    pieces = list(lm_pieces(lm))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        write_model(path, pieces, lm.named_parameters(), torch.bfloat16)
        size = path.stat().st_size
        with torch.device("meta"):
            empty = LM(CONFIG)
        start = time.perf_counter()
        load(empty, path, pieces, torch.device("cpu"), torch.float32, unused=_unused(empty))
    return {"file, MB": size / 1e6, "load, s": time.perf_counter() - start}


def _unused(lm: LM) -> Callable[[str], bool]:
    return lambda name: unused_by_lm(lm, name)


def run(args: argparse.Namespace) -> int:
    from engine.bench.recogniser import measure_recogniser  # it times with what is here

    if args.threads:
        torch.set_num_threads(args.threads)
    with torch.inference_mode():
        rows = steps(args.steps)
        print(table(rows))
        heard = measure_recogniser(args.steps)
        print(table(heard))
        rest = prompts(args.steps) | loading()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rest |= {"peak memory, MB": peak / 1e6, "threads": torch.get_num_threads()}
    print(table([rest]))
    config = json.loads(json.dumps(asdict(ModelConfig(lm=CONFIG).lm)))
    save("model", {"config": config, "steps": rows, "recogniser": heard, "other": rest}, args.json)
    return 0
