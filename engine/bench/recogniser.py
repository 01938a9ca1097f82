"""What the recogniser costs in a tick: its step and the codebooks it needs beyond the model's 8.

Random weights. `--real` takes the sizes of kyutai/stt-1b-en_fr, else those that stand to it as the
small model of `bench model` stands to PersonaPlex.
"""

import argparse
from typing import Any

import torch

from engine.bench.model import BATCHES, CODEC, FILLED, milliseconds
from engine.bench.report import positive, save, table
from engine.model.config import MimiConfig
from engine.model.mimi import Mimi
from engine.model.stt import Hearing, Recogniser, SttConfig
from engine.model.transformer import Active, pack_products, quantise_products

SMALL = SttConfig(dim=256, num_heads=4, num_layers=4, hidden=704)
MODEL_CODEBOOKS = 8


def random_recogniser(
    config: SttConfig, device: torch.device, dtype: torch.dtype, int8: bool = False
) -> Recogniser:
    """Seeded weights, ready to run."""
    with torch.device("meta"):
        stt = Recogniser(config)
    stt = stt.to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for parameter in stt.parameters():
        parameter.normal_(0, 0.02, generator=generator)
    if int8:
        quantise_products(stt)
    pack_products(stt)
    stt.use_fused_kernels()
    return stt


def step_ms(stt: Recogniser, batch: int, filled: int, times: int) -> float:
    """One step of a full batch whose rings hold `filled` frames, tokens on the host."""
    hearing, device = Hearing(stt, batch), stt.embedding.table.device
    everyone = Active.of(list(range(batch)), batch, device)
    hearing.rings.kv.normal_(0, 0.1)
    for slot in range(batch):
        hearing.rings.set_position(slot, filled)
    codes = torch.randint(0, stt.config.card, (batch, stt.config.n_q), device=device)
    return milliseconds(lambda: hearing.step(codes, everyone)[0].cpu(), times)


def codebooks_ms(mimi: Mimi, batch: int, codebooks: int, times: int) -> float:
    """The quantizer alone over so many codebooks."""
    device = next(mimi.parameters()).device
    latent = torch.randn(batch, mimi.config.dimension, device=device)
    return milliseconds(lambda: mimi.quantizer.encode(latent, codebooks).cpu(), times)


def random_mimi(config: MimiConfig, device: torch.device) -> Mimi:
    with torch.device("meta"):
        mimi = Mimi(config)
    mimi = mimi.to_empty(device=device)
    for parameter in mimi.parameters():
        parameter.normal_(0, 0.1)
    mimi.prepare()
    pack_products(mimi)
    return mimi


def measure_recogniser(times: int, real: bool = False, device: str = "cpu") -> list[dict[str, Any]]:
    """One row per batch size; also printed by `bench model`."""
    where = torch.device(device)
    dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
    config = SttConfig() if real else SMALL
    stt = random_recogniser(config, where, dtype)
    mimi, rows = random_mimi(MimiConfig() if real else CODEC, where), []
    for batch in BATCHES:
        few, all_of_them = (
            codebooks_ms(mimi, batch, count, times) for count in (MODEL_CODEBOOKS, config.n_q)
        )
        row = {"B": batch}
        row |= {f"recogniser at {n}, ms": step_ms(stt, batch, n, times) for n in FILLED}
        rows.append(row | {"more codebooks, ms": all_of_them - few})
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=positive, default=40, help="timed steps of each kind")
    parser.add_argument("--real", action="store_true", help="the size of kyutai/stt-1b-en_fr")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", help="where to write the result")


def run(args: argparse.Namespace) -> int:
    with torch.inference_mode():
        rows = measure_recogniser(args.steps, args.real, args.device)
    print(table(rows))
    print("written:", save("recogniser", {"steps": rows, "real": args.real}, args.json))
    return 0
