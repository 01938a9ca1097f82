"""The peer's side of `bench peer`: somebody else's `moshi` package in a process of its own.

Requests and answers are one json object a line on stdin and stdout (`load`, `time`, `tokens`)
until stdin ends; whatever the package prints goes to stderr. The package is used as it documents
(`LMModel`, `LMGen.step`, `get_mimi`) with its own settings; only the past of its streams is written
into their state. Run with moshi 0.2.13 (8 depth steps). NVIDIA's fork (16 depth steps, one stream)
takes the same way and **was never run**: nobody here has it.
"""

import gc
import importlib
import importlib.util
import json
import os
import sys
import time
import types
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from engine.bench.peers.weights import codec_arguments, lm_arguments, read_lm
from engine.config import FRAME_SAMPLES, SamplingConfig
from engine.model.config import ModelConfig
from engine.weights.hub import CONFIG, LM_FILE, MIMI_FILE


def fill(gen: torch.nn.Module, columns: int) -> int:
    """Give every stream a past of so many columns; how many KV rings were found and filled."""
    rings = 0
    for module in gen.modules():
        state = getattr(module, "_streaming_state", None)
        ring = getattr(state, "kv_cache", None)
        if ring is not None:
            ring.cache.normal_()
            ring.end_offset.fill_(columns)
            rings += 1
        for name in ("offset", "offsets"):
            if isinstance(position := getattr(state, name, None), Tensor):
                position.fill_(columns)
    if isinstance(tokens := getattr(gen._streaming_state, "cache", None), Tensor):
        tokens.zero_()  # else they say "not generated yet" where a past is claimed
    return rings


def graphed(gen: torch.nn.Module) -> bool:
    """Whether the package runs its step from CUDA graphs of its own by now."""
    main = getattr(gen._streaming_state, "graphed_main", None)
    return getattr(main, "_graph", None) is not None


class Worker:
    """What the lines of the protocol ask for; every method takes and gives json values."""

    def __init__(self, package: str) -> None:
        sys.path.insert(0, package)
        if not importlib.util.find_spec("huggingface_hub"):
            _without_downloads()
        self.moshi, self.streams = importlib.import_module("moshi.models"), 0
        self.compiled = not os.environ.get("NO_TORCH_COMPILE")

    def load(self, folder: str, device: str, dtype: str, steps: int, codec: bool) -> dict[str, Any]:
        """Build and fill the models from the files of a checkpoint's folder."""
        self.device, self.mimi, where = device, None, Path(folder)
        self.config = ModelConfig.from_json(json.loads((where / CONFIG).read_text()))
        kind = getattr(torch, dtype)
        arguments = lm_arguments(self.config.lm, steps)
        self.lm = self.moshi.LMModel(device="meta", dtype=kind, **arguments)
        self.lm.load_state_dict(read_lm(where / LM_FILE, steps, device, kind), assign=True)
        self.lm.eval()
        if codec:
            sizes = codec_arguments(self.config.mimi)
            self.mimi = self.moshi.get_mimi(
                where / MIMI_FILE, sizes, device, num_codebooks=self.config.lm.codebooks
            )
        package = sys.modules["moshi"]
        return {
            "version": getattr(package, "__version__", "unknown"), "torch": torch.__version__,
            "depth_steps": steps, "compiled": self.compiled,
        }  # fmt: skip

    def gen(self, sampling: SamplingConfig | None) -> torch.nn.Module:
        """Its frame loop, greedy without settings."""
        settings = sampling or SamplingConfig()
        return self.moshi.LMGen(
            self.lm, use_sampling=sampling is not None, temp=settings.audio_temperature,
            temp_text=settings.text_temperature, top_k=settings.audio_top_k,
            top_k_text=settings.text_top_k,
        )  # fmt: skip

    @torch.no_grad()
    def time(self, streams: int, context: int, warm: int, times: int, kind: str) -> dict[str, Any]:
        """Milliseconds of steps whose streams have so long a past, tokens on the host at the end.

        kind `step`: the language model; `frame`: the codec's encoding and decoding around it.
        """
        if self.compiled and streams != self.streams:
            torch.compiler.reset()  # compiled as a server of that many streams would have it
        self.streams, q, gen = streams, self.config.lm.codebooks, self.gen(SamplingConfig())
        codes = torch.randint(0, self.config.lm.card, (streams, q, 1))
        pcm = torch.randn(streams, 1, FRAME_SAMPLES) * 0.1
        with ExitStack() as stack:
            for module in (gen, self.mimi)[: 1 + (kind == "frame")]:
                stack.enter_context(module.streaming(streams))
            rings, taken = fill(gen, context), []
            for _ in range(warm + times):
                start = time.perf_counter()
                self._frame(gen, pcm) if kind == "frame" else self._step(gen, codes)
                taken.append(time.perf_counter() - start)
            graphs = graphed(gen)
        del gen
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
        return {"ms": [1e3 * t for t in taken[warm:]], "rings": rings, "cuda_graphs": graphs}

    def _step(self, gen: torch.nn.Module, codes: Tensor) -> Tensor | None:
        """User codes [B, Q, 1] on the host -> the agent's tokens [B, 1 + Q, 1] on the host."""
        out = gen.step(codes.to(self.device))
        return None if out is None else out.cpu()

    def _frame(self, gen: torch.nn.Module, pcm: Tensor) -> None:
        """A user's frame [B, 1, 1920] on the host -> the agent's, on the host."""
        out = gen.step(self.mimi.encode(pcm.to(self.device)))
        if out is not None:
            self.mimi.decode(out[:, 1 : 1 + self.config.lm.codebooks].clamp(min=0)).cpu()

    @torch.no_grad()
    def tokens(self, codes: list[list[int]]) -> list[list[int] | None]:
        """Greedy answers of one stream to user codes [T, Q]: text and agent codes of each call."""
        gen, rows = self.gen(None), []
        with gen.streaming(1):
            for frame in codes:
                out = self._step(gen, torch.tensor(frame)[None, :, None])
                rows.append(None if out is None else out[0, : 1 + len(frame), 0].tolist())
        return rows


def _without_downloads() -> None:
    """Let the package be imported where huggingface_hub is not installed: nothing is fetched."""
    hub, errors = types.ModuleType("huggingface_hub"), types.ModuleType("huggingface_hub.errors")
    hub.hf_hub_download, errors.EntryNotFoundError = None, LookupError
    sys.modules.update({"huggingface_hub": hub, "huggingface_hub.errors": errors})


def serve(worker: Any, requests: TextIO, answers: TextIO) -> None:
    """Answer lines until their end; an error ends the process with its traceback."""
    for line in requests:
        request = json.loads(line)
        verb = request.pop("do")
        print(json.dumps(getattr(worker, verb)(**request)), file=answers, flush=True)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what others print must not come between the answers
    torch.manual_seed(0)
    serve(Worker(sys.argv[1]), sys.stdin, answers)


if __name__ == "__main__":
    main()
