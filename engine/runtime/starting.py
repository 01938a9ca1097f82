"""From a source to a backend that fits this machine: precision, then memory, then time.

`weights/sizing.py` counts what fits, `weights/verdict.py` says where int8 is good enough. Here both
are obeyed, and the log says what came of it.
"""

import gc
import logging
from pathlib import Path

import torch

from engine.config import ServerConfig
from engine.errors import ModelError
from engine.runtime.load import TickTable
from engine.runtime.personaplex import CACHE_MB, CPU_SLOTS, MEGABYTE, PersonaPlexBackend
from engine.weights.hub import Progress, find
from engine.weights.loading import (
    Checkpoint,
    LoadedRecogniser,
    load_checkpoint,
    load_recogniser,
    report_nothing,
)
from engine.weights.sizing import PRECISIONS, Memory, Precision, free_bytes
from engine.weights.verdict import choose_precision, choose_recogniser_precision

logger = logging.getLogger(__name__)

SPARE_SHARE = 0.75  # of what is left, for renewals; the rest keeps prompts
ONE_THREAD_WEIGHTS = 2_000_000  # numbers in the text embeddings: below it a model is tiny
LIMITS = {  # what made the number of slots -> how the log says it
    "asked": "as asked",
    "cpu": "not measured on a CPU",
    "memory": "limited by memory",
    "most": "the most there are",
    "time": "limited by time",
}


def load_personaplex(
    config: ServerConfig, progress: Progress = report_nothing, recogniser: Path | None = None
) -> PersonaPlexBackend:
    """The model of a configuration, on its device, as a backend; with a recogniser's folder.

    Raises ModelError.
    """
    source, device, revision = config.model, config.device, config.revision or None
    folder = find(source, revision, progress)
    mode = Precision(*choose_precision((config.weights, config.kv), folder, device))
    try:
        checkpoint = load_checkpoint(
            source, device=device, int8=mode.weights == "int8", revision=revision, progress=progress
        )
        if device == "cpu" and checkpoint.lm.embedding.table.numel() < ONE_THREAD_WEIGHTS:
            torch.set_num_threads(1)  # of the whole process: threads would only wait for each other
        loaded = None
        if recogniser:
            where = checkpoint.lm.embedding.table.device
            weights = choose_recogniser_precision(config.weights, folder, recogniser, str(where))
            loaded = load_recogniser(
                str(recogniser), checkpoint.mimi,
                device=where, int8=weights == "int8", progress=progress,
            )  # fmt: skip
        return fit_backend(
            checkpoint, loaded, mode, config.slots,
            graphs=not config.eager, renewal_frames=config.renewal_frames,
        )  # fmt: skip
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{device} ran out of memory ({mode}): {str(error).splitlines()[0]}; end what else "
            "uses it, take fewer --slots, --weights int8 --kv int8, or a larger GPU"
        ) from None


def fit_backend(
    checkpoint: Checkpoint,
    recogniser: LoadedRecogniser | None,
    mode: Precision,
    asked: int = 0,
    *,
    graphs: bool = True,
    renewal_frames: int = 0,
) -> PersonaPlexBackend:
    """As many slots as memory and time allow, or exactly those asked for. Raises ModelError."""
    if renewal_frames >= checkpoint.lm.window:
        logger.info(
            "calls are not renewed: %d frames are to be kept, a ring holds %d columns",
            renewal_frames, checkpoint.lm.window,
        )  # fmt: skip
        renewal_frames = 0
    free = free_bytes(checkpoint.lm.embedding.table.device)
    memory = None if free is None else Memory(checkpoint, recogniser, mode, free)

    def build(slots: int) -> PersonaPlexBackend:
        columns, cache_mb = _room_beside(memory, slots, renewal_frames)
        renewal = renewal_frames if columns or memory is None else 0
        return PersonaPlexBackend(
            checkpoint, slots, cache_mb, recogniser, graphs=graphs,
            kv_dtype=mode.kv_dtype, renewal_frames=renewal, spare_columns=columns,
        )  # fmt: skip

    slots, limit = (asked, "asked") if asked else (CPU_SLOTS, "cpu")
    if memory:
        memory.check(asked)
    if memory and not asked:
        slots, one_more = memory.slots(), memory.slots() + 1
        limit = "most" if memory.slots(most=one_more) == one_more else "memory"
    backend = build(slots)
    backend.measure()
    in_time = backend.ticks.slots_in_time() if backend.ticks else slots
    if in_time < slots and asked:
        logger.warning("a tick of %d slots takes too long here: %d are in time", slots, in_time)
    elif in_time < slots:
        slots, limit, ticks = max(1, in_time), "time", backend.ticks
        del backend
        gc.collect()  # its graphs and rings, before others take their place
        backend = build(slots)
        seconds = {size: taken for size, taken in ticks.seconds.items() if size <= slots}
        backend.set_ticks(TickTable(seconds, ticks.pieces))
    backend.limited_by = limit
    logger.info("%s", describe_slots(memory, mode, slots, limit))
    if memory and renewal_frames and not backend.renewal:
        logger.warning(
            "calls are not renewed past the context: %.2f GB are free for it, too little; "
            "use %s or --weights int8 --kv int8",
            memory.left(slots) / 1e9, f"--slots {slots - 1}" if slots > 1 else "a larger GPU",
        )  # fmt: skip
    elif memory and backend.renewal and backend.renewal.spare.capacity < checkpoint.lm.window:
        logger.info("renewed calls keep what %d columns hold", backend.renewal.spare.capacity)
    return backend


def _room_beside(memory: Memory | None, slots: int, renewal_frames: int) -> tuple[int, float]:
    """(columns for renewals, 0: none or not counted; MB for kept prompts) beside `slots`."""
    if memory is None:
        return 0, CACHE_MB
    left, columns, spare = memory.left(slots), 0, 0
    if renewal_frames:
        columns, spare = memory.spare(max(SPARE_SHARE * left, left - CACHE_MB * MEGABYTE))
    return columns, min(CACHE_MB, (left - spare) / MEGABYTE)


def describe_slots(memory: Memory | None, mode: Precision, slots: int, limit: str) -> str:
    """The start log's line: slots here, and what bf16 and int8 throughout would hold."""
    here = f"slots: {slots} here ({mode}, {LIMITS[limit]})"
    if memory is None:
        return here
    others = [
        f"{memory.slots(other)} with {other.weights} weights and KV (by memory, projected)"
        for other in (PRECISIONS[0], PRECISIONS[-1])
        if other != mode
    ]
    return "; ".join([here, *others])
