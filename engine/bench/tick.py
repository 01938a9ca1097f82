"""A tick on this device: how long it takes, what it is made of, and what a server needs around it.

Four subjects: `tick` (slots x context x precision against the floor), `stages` (what a tick is
made of), `connect` (how long a newcomer waits) and `memory` (where the bytes go). All run the
model's own code on generated weights, without a server.

The floor of a tick is what it must read (weights once, each slot's valid keys and values, the codec
once) over the bandwidth of a large copy in the same run.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import torch

from engine.bench.device import (
    HalfTimes,
    Row,
    Work,
    add_model_arguments,
    check_room,
    count_bytes,
    count_launches,
    fill_context,
    generate_models,
    make_hearing,
    make_loop,
    measure_bandwidth,
    pick_config,
    pick_device,
    plan_memory,
    release_memory,
    rewind,
    run_tick,
    skip_if_full,
    synchronize,
    time_once,
    time_work,
)
from engine.bench.report import BenchRecord, Subject, add_precisions, positive, table, zero_or_more
from engine.config import FRAME_SAMPLES, PAD, SamplingConfig
from engine.model.gpu.graphs import Block, Ticks
from engine.model.lm import LM
from engine.model.loop import Loop, PromptState
from engine.model.mimi import Mimi
from engine.model.prompt import Prompt, Voice, build_prompt, prompt_frames
from engine.model.stt import SttConfig
from engine.model.transformer import Active, Linear, Rings
from engine.runtime.personaplex import CPU_SLOTS
from engine.weights.generated import generated_recogniser
from engine.weights.sizing import Precision

# -- tick: how long one takes ----------------------------------------------------------------------

MIMI_BYTES = 0.33e9  # one encode and one decode of the public codec, read once a tick
SMALL_STT = SttConfig(dim=256, num_heads=4, num_layers=4, hidden=704)  # as the public one to FULL
SMALL_OPTIONS = {"slots": [1, 2], "context": [100], "ticks": 5, "warm_up": 1}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--slots", type=positive, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--context", type=positive, nargs="+", default=[100, 750, 1500, 3000])
    parser.add_argument("--ticks", type=positive, default=500)
    parser.add_argument("--warm-up", type=zero_or_more, default=50)
    add_precisions(parser, ("weights", "kv"))


@torch.inference_mode()
def run(args: argparse.Namespace) -> int:
    most = pick_config(args).lm.context - 1
    args.context = sorted({min(columns, most) for columns in args.context})
    device = pick_device(args)
    speed = measure_bandwidth(device)
    record = BenchRecord(
        "tick", args.json, device=device, copy_gb_per_s=speed / 1e9, rows=[], recogniser=[]
    )
    for weights in args.weights:
        with skip_if_full({"weights": weights}, record.add):
            add_tick_rows(args, weights, speed, record)
    print(table(record.result["rows"]))
    print(f"copy: {speed / 1e9:.0f} GB/s, read and written")
    print("\nwith the recogniser (its weights as the model's, its context full):")
    print(table(record.result["recogniser"]))
    return 0


def add_tick_rows(
    args: argparse.Namespace, weights: str, speed: float, record: BenchRecord
) -> None:
    """Every row of one precision of the weights, without and with a recogniser."""
    lm, mimi = generate_models(args, weights)
    for kv, slots in product(args.kv, args.slots):
        head = {"weights": weights, "kv": kv, "slots": slots}
        with skip_if_full(head, record.add):
            check_room(plan_memory(lm, mimi, Precision(weights, kv)), slots)
            for row in measure_contexts(args, lm, mimi, kv, slots, speed):
                record.add(head | row)
    mode, keep = Precision(weights, args.kv[-1]), partial(record.add, to="recogniser")
    head = {"weights": mode.weights, "kv": mode.kv}
    with skip_if_full(head, keep):
        add_recogniser_rows(args, lm, mimi, mode, keep)


def add_recogniser_rows(
    args: argparse.Namespace, lm: LM, mimi: Mimi, mode: Precision, keep: Callable[[Row], None]
) -> None:
    """What a recogniser of the same precision adds to a tick, with all contexts full."""
    config = SMALL_STT if args.small else SttConfig()
    stt = generated_recogniser(config, pick_device(args), mode.weights)
    columns = max(args.context)
    for slots in args.slots:
        head = {"weights": mode.weights, "kv": mode.kv, "slots": slots}
        with skip_if_full(head, keep):
            check_room(plan_memory(lm, mimi, mode, stt), slots)
            loop = make_loop(lm, mimi, slots, mode.kv)
            ticks = Ticks(loop, hearing=make_hearing(stt, slots))
            plain, heard = (
                float(np.median(measure(ticks, slots, columns, args, transcribe)[0]))
                for transcribe in (False, True)
            )
            times = {"p50_ms": plain, "with_ms": heard, "recogniser_ms": heard - plain}
            keep(head | {"context": columns} | times)


def measure_contexts(
    args: argparse.Namespace, lm: LM, mimi: Mimi, kv: str, slots: int, speed: float
) -> Iterator[Row]:
    """One row a context."""
    loop = make_loop(lm, mimi, slots, kv)
    launches = count_launches(loop, slots)
    ticks = Ticks(loop)
    for columns in args.context:
        taken, device = measure(ticks, slots, columns, args)
        read = read_bytes(lm, loop.rings, slots, columns, 0 if args.small else MIMI_BYTES)
        floor_ms = read / speed * 1e3
        p50, p99 = (float(p) for p in np.percentile(taken, (50, 99)))
        yield {
            "context": columns,
            "p50_ms": p50, "p99_ms": p99, "max_ms": float(taken.max()),
            **({} if device is None else {"device_ms": float(np.median(device))}),
            "launches": launches, "read_gb": read / 1e9, "gb_per_s": read / p50 / 1e6,
            "floor_ms": floor_ms, "share": floor_ms / p50,
        }  # fmt: skip


def measure(
    ticks: Ticks, slots: int, columns: int, args: argparse.Namespace, transcribe: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """Milliseconds of each tick by the wall clock, and by a GPU's events (a CPU has none).

    Every tick reads the same number of columns: what a tick pushes is taken back.
    """
    loop = ticks.loop
    fill_context(loop, columns)
    rng = np.random.default_rng(0)
    pcm = rng.standard_normal((loop.slots, FRAME_SAMPLES)).astype(np.float32) * 0.1

    def time_tick() -> tuple[float, float]:
        rewind(loop, columns)
        synchronize()  # the tick must not wait for the rewinding
        if not ticks.cuda:
            return run_tick(ticks, slots, pcm, transcribe) * 1e3, 0.0
        halves = HalfTimes()
        return run_tick(ticks, slots, pcm, transcribe, halves.mark) * 1e3, halves.milliseconds()

    for _ in range(args.warm_up):
        time_tick()
    wall, device = np.array([time_tick() for _ in range(args.ticks)]).T
    return wall, device if ticks.cuda else None


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


def add_stages_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--slots", type=positive, nargs="+", default=[1, 8, 16])
    parser.add_argument("--times", dest="ticks", type=positive, default=30)  # `measure` reads it
    add_precisions(parser)
    parser.set_defaults(warm_up=2)


@torch.inference_mode()
def run_stages(args: argparse.Namespace) -> int:
    record = BenchRecord("stages", args.json, device=pick_device(args), rows=[])
    for weights in args.weights:
        with skip_if_full({"weights_and_kv": weights}, record.add):
            add_stages_rows(args, Precision(weights, weights), record)
    print(table(record.result["rows"]))
    return 0


def add_stages_rows(args: argparse.Namespace, mode: Precision, record: BenchRecord) -> None:
    """Its models are given back when it ends, before the next ones are generated."""
    lm, mimi = generate_models(args, mode.weights)
    for slots in args.slots:
        head = {"weights_and_kv": mode.weights, "slots": slots}
        with skip_if_full(head, record.add):
            check_room(plan_memory(lm, mimi, mode), slots)
            record.add(head | measure_stages(args, lm, mimi, mode, slots))


def measure_stages(
    args: argparse.Namespace, lm: LM, mimi: Mimi, mode: Precision, slots: int
) -> Row:
    """Milliseconds of every stage, of all of them, and of the tick that they make."""
    loop, columns = make_loop(lm, mimi, slots, mode.kv), lm.config.context - 1
    fill_context(loop, columns)
    before, row = partial(rewind, loop, columns), {}
    for name, work in list_stages(loop).items():
        # the copies wait for the host, which no graph can hold
        captured = loop.device.type == "cuda" and name != "copies"
        row[f"{name}_ms"] = time_work(work, args.ticks, before, captured) * 1e3
    row["sum_ms"] = sum(row.values())
    return row | {"tick_ms": float(np.median(measure(Ticks(loop), slots, columns, args)[0]))}


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
        "copies": make_copies(loop),
    }


def make_copies(loop: Loop) -> Work:
    """What both halves of a tick carry up and down: samples, draws, tokens, from pinned memory."""
    slots, q, nobody = loop.slots, loop.lm.config.codebooks, loop.active([])

    def block(columns: int, dtype: torch.dtype = torch.float32) -> Block:
        return Block(slots, columns, dtype, loop.device)

    up, up_text = block(FRAME_SAMPLES + 3), block(2, torch.int64)
    heard, spoken = block(1 + q), block(FRAME_SAMPLES + q)

    def carry() -> None:
        up.send(slots)
        loop.sampler.draw(nobody)  # drawn while the tick before ran: here they are only copied
        heard.host.copy_(heard.device, non_blocking=True)
        synchronize()
        up_text.send(slots)
        spoken.host.copy_(spoken.device, non_blocking=True)

    return carry


STAGES = Subject(add_stages_arguments, run_stages, {"slots": [1], "ticks": 3})


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


@dataclass(frozen=True, slots=True)
class OpeningTimes:
    """One opening; seconds."""

    pieces: tuple[float, ...]  # of the prompt
    ready: float  # until the slot stands before its bootstrap tick
    bootstrap: float  # the tick of the last prompt column
    first_audio: float  # until the next tick, the first that hears the user, has given a frame


def add_connect_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add_precisions(parser)
    parser.set_defaults(columns=[100, 400])


@torch.inference_mode()
def run_connect(args: argparse.Namespace) -> int:
    record = BenchRecord("connect", args.json, device=pick_device(args), rows=[])
    for weights in args.weights:
        with skip_if_full({"weights_and_kv": weights}, record.add):
            add_connect_rows(args, weights, record)
    print(table(record.result["rows"]))
    return 0


def add_connect_rows(args: argparse.Namespace, weights: str, record: BenchRecord) -> None:
    """One row a length of the prompt; only the first of them has a cold start."""
    generating, (lm, mimi) = time_once(lambda: generate_models(args, weights))
    mode = Precision(weights, weights)
    check_room(plan_memory(lm, mimi, mode), CONNECT_SLOTS)
    capturing, ticks = time_once(lambda: Ticks(make_loop(lm, mimi, CONNECT_SLOTS, mode.kv)))
    for index, columns in enumerate(args.columns):
        row = {"weights_and_kv": weights, "generate_s": generating, "capture_s": capturing}
        row |= measure_openings(ticks, columns)
        if index == 0:
            row["cold_s"] = generating + capturing + row["first_audio_first_ms"] / 1e3
        record.add(row)


def measure_openings(ticks: Ticks, columns: int) -> Row:
    """Milliseconds; `first` is the first opening of this size, with whatever it compiles."""
    prompt = make_prompt(ticks.loop, columns)
    first, kept = open_slot(ticks, prompt)
    new = pick_median([open_slot(ticks, prompt)[0] for _ in range(NEW)])
    known = pick_median([open_slot(ticks, prompt, kept)[0] for _ in range(KEPT)])
    return {
        "columns": columns, "prefill_ms": sum(new.pieces) * 1e3,
        "longest_piece_ms": max(new.pieces) * 1e3, "kept_mb": kept.bytes / 1e6,
        "restore_ms": known.ready * 1e3, "bootstrap_ms": known.bootstrap * 1e3,
        "first_audio_first_ms": first.first_audio * 1e3,
        "first_audio_new_ms": new.first_audio * 1e3,
        "first_audio_kept_ms": known.first_audio * 1e3,
    }  # fmt: skip


def pick_median(openings: list[OpeningTimes]) -> OpeningTimes:
    return sorted(openings, key=lambda each: each.first_audio)[len(openings) // 2]


def make_prompt(loop: Loop, columns: int) -> Prompt:
    """A prompt with that many columns before its last."""
    config = loop.lm.config
    frames = prompt_frames(config, (5,) * (columns - GIVEN_COLUMNS))
    return build_prompt(config, Voice(), frames)


def open_slot(
    ticks: Ticks, prompt: Prompt, kept: PromptState | None = None
) -> tuple[OpeningTimes, PromptState]:
    """Open slot 0 until it speaks, from the kept state of the prompt or anew; what to keep."""
    loop, pieces = ticks.loop, []
    pcm = np.zeros((loop.slots, FRAME_SAMPLES), np.float32)

    def prepare() -> PromptState:
        loop.clear(0)
        if not kept:
            embedded = loop.lm.embedding(prompt.columns[:-1].to(loop.device))
            for piece in embedded.split(loop.prefill_columns):
                pieces.append(time_once(lambda piece=piece: ticks.prefill.run(0, piece))[0])
        state = kept or loop.save_prompt(0, prompt)
        loop.start(0, state)
        loop.sampler.seed(0, 0)
        loop.sampler.tune(0, SamplingConfig())
        return state

    ready, state = time_once(prepare)
    bootstrap = run_tick(ticks, 1, pcm)
    first_audio = ready + bootstrap + run_tick(ticks, 1, pcm)
    return OpeningTimes(tuple(pieces), ready, bootstrap, first_audio), state


CONNECT = Subject(add_connect_arguments, run_connect, {"columns": [80]})


# -- memory: where the bytes go --------------------------------------------------------------------
#
# Serving is ticks of all slots and a piece of a prompt behind full contexts; kept prompts and a
# renewal's spare state come on top.

SERVING_TICKS = 3


def add_memory_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument(
        "--slots", type=zero_or_more, default=0, help="0: as many as fit, at most 16"
    )
    add_precisions(parser, ("weights", "kv"))


@torch.inference_mode()
def run_memory(args: argparse.Namespace) -> int:
    record = BenchRecord("memory", args.json, device=pick_device(args), rows=[])
    for weights, kv in product(args.weights, args.kv):
        head = {"weights": weights, "kv": kv}
        with skip_if_full(head, record.add):
            slots, sizes = measure_items(args, Precision(weights, kv))
            for item, size in sizes.items():
                record.add({**head, "slots": slots, "item": item, "measured_gb": size / 1e9})
    print(table(record.result["rows"]))
    return 0


def measure_items(args: argparse.Namespace, mode: Precision) -> tuple[int, dict[str, int]]:
    """Slots, and bytes by item; on a CPU only the items that are tensors.

    Raises torch.OutOfMemoryError where the slots that were asked for do not fit.
    """
    begin_peak()
    lm, mimi = generate_models(args, mode.weights)
    loading = read_peak()
    memory = plan_memory(lm, mimi, mode)
    slots = args.slots or (max(1, memory.slots()) if memory else CPU_SLOTS)
    check_room(memory, slots)
    begin_peak()
    loop = make_loop(lm, mimi, slots, mode.kv)
    before = device_bytes()
    ticks = Ticks(loop)
    graphs = device_bytes() - before
    fill_context(loop, loop.rings.capacity)  # from here on what a full server does
    pcm, embeddings = np.zeros((slots, FRAME_SAMPLES), np.float32), lm.embedding.table
    for _ in range(SERVING_TICKS):
        run_tick(ticks, slots, pcm)
    loop.rings.set_position(0, max(0, loop.rings.capacity - loop.prefill_columns))
    ticks.prefill.run(0, embeddings.new_zeros(loop.prefill_columns, embeddings.shape[1]))
    rings, scale = loop.rings.kv, loop.rings.scale
    sizes = {
        "language model": parameter_bytes(lm), "codec": parameter_bytes(mimi),
        "rings": count_bytes([rings] if scale is None else [rings, scale]),
        "codec's state": count_bytes([*loop.encoder.tensors(), *loop.decoder.tensors()]),
        "graphs": graphs, "peak of loading": loading, "peak of serving": read_peak(),
    }  # fmt: skip
    return slots, {item: size for item, size in sizes.items() if size or ticks.cuda}


def device_bytes() -> int:
    """Bytes of the GPU that are taken; 0 without one.

    The allocator is not asked: a graph's intermediates lie in a private pool, which it calls free.
    """
    release_memory()
    if not torch.cuda.is_available():
        return 0
    free, total = torch.cuda.mem_get_info()
    return total - free


def begin_peak() -> None:
    release_memory()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def read_peak() -> int:
    """The most bytes that PyTorch has held of the GPU since `begin_peak`; 0 without one."""
    synchronize()
    return torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0


def parameter_bytes(model: torch.nn.Module) -> int:
    kept = [*model.parameters()]
    for module in model.modules():
        extra = (getattr(module, name, None) for name in ("packed", "scale"))
        kept += [value for value in extra if value is not None]
    return sum(t.numel() * t.element_size() for t in kept)


MEMORY = Subject(add_memory_arguments, run_memory, {"slots": 2})
