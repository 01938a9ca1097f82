"""How long a start reads and writes: a checkpoint in bf16, in int8, and in int8 that was kept.

The checkpoint has generated weights, in the layout of a release. What is timed is
`load_checkpoint` of the whole folder (language model, codec, tokenizer, voices) in this process.
"""

import argparse
import ctypes
import shutil
import tempfile
import threading
from collections.abc import Callable
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

WATCH_SECONDS = 0.005  # between two looks at the memory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--folder", type=Path, help="kept; what is there is used")


@torch.inference_mode()
def run(args: argparse.Namespace) -> int:
    """The disk needs 26 GB for the full size."""
    if args.folder:
        args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        rows = measure_phases(folder, args)
        files = (LM_FILE, Path(LM_FILE).with_suffix(INT8_SUFFIX), MIMI_FILE)
        sizes = {str(name): gigabytes(files_of(folder / name)) for name in files}
    print(table(rows))
    reads = "warm: what was just written is still in memory"
    result = {"device": pick_device(args), "reads": reads, "files_gb": sizes, "rows": rows}
    save("load", result, args.json)
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
        files = [file for path in paths for file in files_of(path)]
        rows.append(measure_phase(name, files, run))
        print(f"{name}: {rows[-1]['s']:.1f} s", flush=True)
    return rows


def measure_phase(name: str, files: list[Path], work: Callable[[], object]) -> Row:
    """One row: seconds of some work, the bytes of its files, growth of the host's memory."""
    release_memory()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)  # the C library keeps freed memory, and growth would not be seen
    before, watch = anonymous_bytes(), Watch()
    watch.start()
    seconds, kept = time_once(work)
    peak = watch.stop()
    del kept  # not earlier: the memory of the result counts
    size = gigabytes(files)  # which the work may have written
    return {
        "phase": name, "s": seconds, "GB": size, "GB/s": size / seconds,
        "host_peak_gb": max(0, peak - before) / 1e9,
    }  # fmt: skip


def files_of(path: Path) -> list[Path]:
    """A file, or those of a folder."""
    return sorted(path.iterdir()) if path.is_dir() else [path]


def gigabytes(files: list[Path]) -> float:
    return sum(file.stat().st_size for file in files) / 1e9


def anonymous_bytes() -> int:
    """Resident memory of this process that no file backs; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


class Watch(threading.Thread):
    """The highest anonymous memory while it runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self._done = anonymous_bytes(), threading.Event()

    def run(self) -> None:
        while not self._done.wait(WATCH_SECONDS):
            self.peak = max(self.peak, anonymous_bytes())

    def stop(self) -> int:
        self._done.set()
        self.join()
        return self.peak
