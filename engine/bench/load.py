"""How long a start reads and writes: a checkpoint in bf16, in int8, and in int8 that was kept.

The checkpoint has generated weights, in the layout of a release. What is timed is
`load_checkpoint` of the whole folder (language model, codec, tokenizer, voices) in this process.
Files are warm: what was just written is still in memory.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import torch

from engine.bench.device import (
    Row,
    add_model_arguments,
    pick_config,
    pick_device,
    release_memory,
    time_once,
)
from engine.bench.report import save, table
from engine.weights.generated import write_checkpoint
from engine.weights.hub import CONFIG, INT8_SUFFIX, LM_FILE, MIMI_FILE
from engine.weights.loading import Checkpoint, load_checkpoint, quantise_checkpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--folder", type=Path, help="kept; what is there is used")


@torch.inference_mode()
def run(args: argparse.Namespace) -> int:
    """The disk needs 26 GB for the full size."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        rows = measure_phases(folder, args)
    print(table(rows))
    save("load", {"device": pick_device(args), "rows": rows}, args.json)
    return 0


def measure_phases(folder: Path, args: argparse.Namespace) -> list[Row]:
    """Write, load, quantise as a start does, keep that, load what was kept."""
    device, weights, codec = pick_device(args), folder / LM_FILE, folder / MIMI_FILE
    cache = weights.with_suffix(INT8_SUFFIX)
    shutil.rmtree(cache, ignore_errors=True)
    torch.zeros(1, device=device)  # the device's own start is not a load's

    def load(int8: bool) -> Checkpoint:
        return load_checkpoint(str(folder), device=device, int8=int8)

    def write() -> None:
        write_checkpoint(folder, pick_config(args), device)

    work = {
        "write bf16": ([weights, codec], write),
        "load bf16": ([weights, codec], lambda: load(False)),
        "int8, nothing kept": ([weights, codec], lambda: load(True)),
        "quantise": ([weights], lambda: quantise_checkpoint(folder, device)),
        "int8 once kept": ([cache, codec], lambda: load(True)),
    }
    if (folder / CONFIG).exists():  # written last, so all of it is there
        del work["write bf16"]
    rows = []
    for name, (paths, run) in work.items():
        release_memory()
        seconds = time_once(run)[0]
        files = [f for path in paths for f in (path.iterdir() if path.is_dir() else [path])]
        size = sum(file.stat().st_size for file in files) / 1e9  # which the work may have written
        rows.append({"phase": name, "s": seconds, "GB": size, "GB/s": size / seconds})
        print(f"{name}: {seconds:.1f} s", flush=True)
    return rows
