"""A tick on this device: how long it takes, what it is made of, and what a server needs around it.

Four subjects: `tick` (slots x context x precision against the floor), `stages` (what a tick is
made of), `connect` (how long a newcomer waits) and `memory` (where the bytes go). All run the
model's own code on generated weights, without a server.

The floor of a tick is what it must read (weights once, each slot's valid keys and values, the codec
once) over the bandwidth of a large copy in the same run.
"""

import argparse
from collections.abc import Callable, Iterable
from functools import partial
from itertools import product
from statistics import median

import numpy as np
import torch

from engine.bench.device import (
    Row,
    Work,
    add_model_arguments,
    count_launches,
    fill_context,
    generate_models,
    make_loop,
    measure_bandwidth,
    pick_config,
    pick_device,
    release_memory,
    rewind,
    run_tick,
    skip_if_full,
    synchronize,
    time_once,
    time_work,
)
from engine.bench.report import BenchRecord, Subject, add_precisions, positive, table
from engine.config import FRAME_SAMPLES, PAD, SamplingConfig
from engine.model.gpu.graphs import Ticks
from engine.model.lm import LM
from engine.model.loop import Loop, PromptState
from engine.model.prompt import Prompt, Voice, build_prompt, prompt_frames
from engine.model.transformer import Active, Linear, Rings
from engine.weights.sizing import bytes_of, free_bytes


def run_modes(
    args: argparse.Namespace,
    record: BenchRecord,
    modes: Iterable[Row],
    add_rows: Callable[..., None],
) -> int:
    """The rows of every mode, or one that says that it does not fit; prints the table.

    `add_rows(args, record, *mode)` gives its models back when it ends, before the next are made.
    """
    for mode in modes:
        with skip_if_full(mode, record.add):
            add_rows(args, record, *mode.values())
    print(table(record.result["rows"]))
    return 0


# -- tick: how long one takes ----------------------------------------------------------------------

MIMI_BYTES = 0.33e9  # one encode and one decode of the public codec, read once a tick
WARM_UP_TICKS = 5
SMALL_OPTIONS = {"slots": [1, 2], "context": [100], "ticks": 5}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--slots", type=positive, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--context", type=positive, nargs="+", default=[100, 750, 1500, 3000])
    parser.add_argument("--ticks", type=positive, default=500)
    add_precisions(parser, ("weights", "kv"))


@torch.inference_mode()
def run(args: argparse.Namespace) -> int:
    most = pick_config(args).lm.context - 1
    args.context = sorted({min(columns, most) for columns in args.context})
    speed = measure_bandwidth(pick_device(args))
    record = BenchRecord("tick", args, copy_gb_per_s=speed / 1e9)
    return run_modes(args, record, ({"weights": each} for each in args.weights), add_tick_rows)


def add_tick_rows(args: argparse.Namespace, record: BenchRecord, weights: str) -> None:
    """Every row of one precision of the weights."""
    lm, mimi = generate_models(args, weights)
    for kv, slots in product(args.kv, args.slots):
        head = {"weights": weights, "kv": kv, "slots": slots}
        with skip_if_full(head, record.add):
            add_context_rows(args, record, head, make_loop(lm, mimi, slots, kv))


def add_context_rows(args: argparse.Namespace, record: BenchRecord, head: Row, loop: Loop) -> None:
    """One row a context."""
    launches = count_launches(loop, loop.slots)
    ticks = Ticks(loop)
    for columns in args.context:
        codec = 0 if args.small else MIMI_BYTES
        read = read_bytes(loop.lm, loop.rings, loop.slots, columns, codec)
        floor_ms = read / record.result["copy_gb_per_s"] / 1e6
        p50, p99 = np.percentile(measure(ticks, columns, args.ticks), (50, 99)).tolist()
        row = {
            "context": columns, "p50_ms": p50, "p99_ms": p99, "launches": launches,
            "read_gb": read / 1e9, "floor_ms": floor_ms, "share": floor_ms / p50,
        }  # fmt: skip
        record.add(head | row)


def measure(ticks: Ticks, columns: int, count: int) -> np.ndarray:
    """Milliseconds of each tick of all slots.

    Every tick reads the same number of columns: what a tick pushes is taken back.
    """
    loop = ticks.loop
    fill_context(loop, columns)
    rng = np.random.default_rng(0)
    pcm = rng.standard_normal((loop.slots, FRAME_SAMPLES)).astype(np.float32) * 0.1
    taken = []
    for _ in range(WARM_UP_TICKS + count):
        rewind(loop, columns)
        synchronize()  # the tick must not wait for the rewinding
        taken.append(run_tick(ticks, loop.slots, pcm) * 1e3)
    return np.array(taken[WARM_UP_TICKS:])


def read_bytes(lm: LM, rings: Rings, slots: int, columns: int, codec: float = MIMI_BYTES) -> float:
    """What a tick must read: the floor is this over the bandwidth."""
    return weight_bytes(lm) + codec + slots * kv_bytes(rings, columns)


def weight_bytes(lm: LM) -> int:
    """Bytes of the products' weights and scales: what a tick reads of the language model."""
    total = 0
    for linear in (m for m in lm.modules() if isinstance(m, Linear)):
        kept = linear.weight if linear.packed is None else linear.packed
        total += kept.numel() * kept.element_size()
        total += 0 if linear.scale is None else linear.scale.numel() * 4
    return total


def kv_bytes(rings: Rings, columns: int) -> int:
    """Bytes of one slot's valid keys and values."""
    kv, scale = rings.kv, rings.scale
    layers, _, _, heads, _, width = kv.shape
    each = width * kv.element_size() + (0 if scale is None else 2)
    return 2 * layers * heads * each * min(columns, rings.capacity)


# -- stages: what a tick is made of ----------------------------------------------------------------


STAGE_TIMES = 30  # that each is timed; on a CPU at a reduced size fewer


def add_stages_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--slots", type=positive, nargs="+", default=[1, 8, 16])
    add_precisions(parser)
    parser.set_defaults(times=STAGE_TIMES)


@torch.inference_mode()
def run_stages(args: argparse.Namespace) -> int:
    modes = ({"weights_and_kv": each} for each in args.weights)
    return run_modes(args, BenchRecord("stages", args), modes, add_stages_rows)


def add_stages_rows(args: argparse.Namespace, record: BenchRecord, weights: str) -> None:
    """Milliseconds of every stage, of all of them, and of the tick that they make."""
    lm, mimi = generate_models(args, weights)
    for slots in args.slots:
        head: Row = {"weights_and_kv": weights, "slots": slots}
        with skip_if_full(head, record.add):
            loop, columns = make_loop(lm, mimi, slots, weights), lm.config.context - 1
            fill_context(loop, columns)
            before, row = partial(rewind, loop, columns), {}
            for name, work in list_stages(loop).items():
                row[f"{name}_ms"] = (
                    time_work(work, args.times, before, loop.device.type == "cuda") * 1e3
                )
            row["sum_ms"] = sum(row.values())
            row["tick_ms"] = float(np.median(measure(Ticks(loop), columns, args.times)))
            record.add(head | row)


def list_stages(loop: Loop) -> dict[str, Work]:
    """Each stage calls what the tick calls, for slots that all advance: an idle one costs less."""
    device, slots = loop.device, loop.slots
    everyone = torch.ones(slots, dtype=torch.bool, device=device)
    # As in `Ticks`: on a GPU only the device knows who is active, so that a graph can be replayed.
    busy = Active(everyone, tuple(range(slots)) if device.type == "cpu" else ())
    pcm = torch.randn(slots, FRAME_SAMPLES, device=device) * 0.1
    codes = torch.zeros(slots, loop.lm.config.codebooks, dtype=torch.int64, device=device)
    column = torch.cat([loop.agent, loop.user_now], 1)
    loop.hidden.normal_()
    text = torch.full((slots,), PAD, dtype=torch.int64, device=device)
    hush = torch.zeros(slots, dtype=torch.bool, device=device)
    return {
        "encode": lambda: loop.mimi.encode(pcm, loop.encoder, busy),
        "temporal": lambda: loop.lm.step(loop.lm.embed(column), loop.rings, busy),
        "text": loop.pick_text,
        "depformer": lambda: loop.step_depth(text, hush, busy),
        "decode": lambda: loop.mimi.decode(codes, loop.decoder, busy),
    }


STAGES = Subject(add_stages_arguments, run_stages, {"slots": [1], "times": 3})


# -- connect: how long a newcomer waits ------------------------------------------------------------
#
# From the opening to the first agent frame on the host, alone on the machine. Not in it: the 80 ms
# in which the first user frame is spoken, which that frame answers, and the network (`capacity` has
# both). Cold is weights, which are generated here (`load` reads them), kernels, graphs and the
# first opening; the second precision finds what it shares with the first compiled. A server's whole
# start is `ready_s` of `capacity`.

CONNECT_SLOTS = 2
GIVEN_COLUMNS = 11  # of a prompt without a voice: silence around the persona, less the last column
NEW, KEPT = 3, 9  # openings of each kind, of which the median one counts


def add_connect_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add_precisions(parser)
    parser.set_defaults(columns=[100, 400])


@torch.inference_mode()
def run_connect(args: argparse.Namespace) -> int:
    modes = ({"weights_and_kv": each} for each in args.weights)
    return run_modes(args, BenchRecord("connect", args), modes, add_connect_rows)


def add_connect_rows(args: argparse.Namespace, record: BenchRecord, weights: str) -> None:
    """One row a length of the prompt; only the first of them has a cold start."""
    generating, (lm, mimi) = time_once(lambda: generate_models(args, weights))
    capturing, ticks = time_once(lambda: Ticks(make_loop(lm, mimi, CONNECT_SLOTS, weights)))
    for index, columns in enumerate(args.columns):
        row = {"weights_and_kv": weights} | measure_openings(ticks, columns)
        if index == 0:
            row["cold_s"] = generating + capturing + row["first_audio_first_ms"] / 1e3
        record.add(row)


def measure_openings(ticks: Ticks, columns: int) -> Row:
    """Milliseconds; `first` is the first opening of this size, with whatever it compiles."""
    prompt = make_prompt(ticks.loop, columns)
    first, kept = open_slot(ticks, prompt)
    return {
        "columns": columns,
        "first_audio_first_ms": first,
        "first_audio_new_ms": median(open_slot(ticks, prompt)[0] for _ in range(NEW)),
        "first_audio_kept_ms": median(open_slot(ticks, prompt, kept)[0] for _ in range(KEPT)),
    }


def make_prompt(loop: Loop, columns: int) -> Prompt:
    """A prompt with that many columns before its last."""
    config = loop.lm.config
    frames = prompt_frames(config, (5,) * (columns - GIVEN_COLUMNS))
    return build_prompt(config, Voice(), frames)


def open_slot(
    ticks: Ticks, prompt: Prompt, kept: PromptState | None = None
) -> tuple[float, PromptState]:
    """Open slot 0 from the kept state of the prompt or anew; milliseconds, and what to keep.

    The time ends when the first tick that hears the user has given its frame.
    """
    loop = ticks.loop
    pcm = np.zeros((loop.slots, FRAME_SAMPLES), np.float32)

    def prepare() -> PromptState:
        loop.clear(0)
        if not kept:
            embedded = loop.lm.embedding(prompt.columns[:-1].to(loop.device))
            for piece in embedded.split(loop.piece_columns):
                ticks.prefill.run(0, piece)
        state = kept or loop.save_prompt(0, prompt)
        loop.start(0, state)
        loop.sampler.seed(0, 0)
        loop.sampler.tune(0, SamplingConfig())
        return state

    ready, state = time_once(prepare)
    return 1e3 * (ready + run_tick(ticks, 1, pcm) + run_tick(ticks, 1, pcm)), state


CONNECT = Subject(add_connect_arguments, run_connect, {"columns": [80]})


# -- memory: where the bytes go --------------------------------------------------------------------
#
# Serving is ticks of all slots and a piece of a prompt behind full contexts; kept prompts and a
# renewal's spare state come on top.

SERVING_TICKS = 3


def add_memory_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--slots", type=positive, default=4)
    add_precisions(parser, ("weights", "kv"))


@torch.inference_mode()
def run_memory(args: argparse.Namespace) -> int:
    modes = ({"weights": weights, "kv": kv} for weights, kv in product(args.weights, args.kv))
    return run_modes(args, BenchRecord("memory", args), modes, add_memory_rows)


def add_memory_rows(args: argparse.Namespace, record: BenchRecord, weights: str, kv: str) -> None:
    for item, size in measure_items(args, weights, kv).items():
        head = {"weights": weights, "kv": kv, "slots": args.slots}
        record.add({**head, "item": item, "measured_gb": size / 1e9})


def measure_items(args: argparse.Namespace, weights: str, kv: str) -> dict[str, int]:
    """Bytes by item; on a GPU also all that it takes to serve, graphs among it."""
    release_memory()
    before = free_bytes(torch.device(pick_device(args)))
    lm, mimi = generate_models(args, weights)
    loop = make_loop(lm, mimi, args.slots, kv)
    ticks = Ticks(loop)
    fill_context(loop, loop.rings.capacity)  # from here on what a full server does
    pcm, embeddings = np.zeros((args.slots, FRAME_SAMPLES), np.float32), lm.embedding.table
    for _ in range(SERVING_TICKS):
        run_tick(ticks, args.slots, pcm)
    loop.rings.set_position(0, max(0, loop.rings.capacity - loop.piece_columns))
    ticks.prefill.run(0, embeddings.new_zeros(loop.piece_columns, embeddings.shape[1]))
    sizes = {
        "language model": parameter_bytes(lm),
        "codec": parameter_bytes(mimi),
        "rings": bytes_of(loop.rings.tensors()),
        "codec's state": bytes_of([*loop.encoder.tensors(), *loop.decoder.tensors()]),
    }
    if before is not None:
        sizes["all of it"] = before - free_bytes(loop.device)
    return sizes


def parameter_bytes(model: torch.nn.Module) -> int:
    kept = [*model.parameters()]
    for module in model.modules():
        extra = (getattr(module, name, None) for name in ("packed", "scale"))
        kept += [value for value in extra if value is not None]
    return sum(t.numel() * t.element_size() for t in kept)


MEMORY = Subject(add_memory_arguments, run_memory, {"slots": 2})
