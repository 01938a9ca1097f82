"""`python -m engine bench peer`: an installed peer beside us on the same weights, in turns.

Ours, the peer, ours again, for every number of streams. Both read one generated checkpoint, sample
by the same settings and are given the same past. `step` is the language model alone, `frame` has
the codec around it: once for moshi, twice for NVIDIA's server, which runs each frame through a
second codec. Times are by the wall clock, from what the host has to what the host gets.

Nothing of theirs is kept here: --moshi and --reference say where it lies. It runs in a process of
its own, which is this file too: `PeerProcess` asks, `Worker` answers, one json object a line.
"""

import argparse
import contextlib
import gc
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from engine.bench.device import add_model_arguments, make_loop, pick_device, release_memory
from engine.bench.process import find_ourselves
from engine.bench.report import positive, save, table, write_generated
from engine.bench.tick import measure
from engine.config import FRAME_SAMPLES, GREEDY, SamplingConfig
from engine.errors import ConfigError, ModelError
from engine.model.config import LMConfig, MimiConfig, ModelConfig
from engine.model.gpu.graphs import ACTIVE, Ticks
from engine.model.loop import Loop
from engine.model.prompt import Voice, build_prompt
from engine.weights.generated import SMALL, write_checkpoint
from engine.weights.hub import CONFIG, LM_FILE, MIMI_FILE
from engine.weights.loading import Checkpoint, load_checkpoint

HOW = (
    "get one with `pip install --no-deps --target PATH moshi==0.2.13 einops` (--moshi PATH), or "
    "check NVIDIA's PersonaPlex repository out (--reference PATH)"
)
DEPTH_STEPS = {"moshi": 8, "reference": 16}
SMALL_OPTIONS = {"context": [100], "slots": [1, 2], "ticks": 3}
PEER_WARM_UPS = 10  # steps: its compiler works in them
UNSTEADY = 0.10  # of their mean: a row whose two own times differ by more is marked
COMPARED_FRAMES = 30
ENDING_SECONDS = 30
Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--moshi", metavar="PATH", help="where moshi is installed (pip --target)")
    parser.add_argument("--reference", metavar="PATH", help="checkout of NVIDIA's PersonaPlex")
    parser.add_argument("--folder", help="where the generated checkpoint is, or is put and kept")
    parser.add_argument("--kind", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--slots", type=positive, nargs="+", default=[1, 8, 16])
    parser.add_argument("--context", type=positive, nargs="+", default=[2999])
    parser.add_argument("--ticks", type=positive, default=100, help="timed steps of every turn")
    parser.add_argument("--no-compile", action="store_true", help="NO_TORCH_COMPILE=1 for the peer")


@torch.inference_mode()
def run(args: argparse.Namespace) -> int:
    given = {"moshi": args.moshi, "reference": args.reference}
    packages = {name: find_package(f"--{name}", path) for name, path in given.items() if path}
    if not packages:
        raise ConfigError(f"bench peer needs a peer: {HOW}")
    result: Row = {"device": pick_device(args), "threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory(prefix="bench-peer-") as scratch:
        folder = write_generated(Path(args.folder or scratch), args)
        checkpoint = load_checkpoint(folder, device=result["device"])
        most = checkpoint.lm.config.context - 1
        args.context = sorted({min(columns, most) for columns in args.context})
        for name, package in packages.items():
            result[name] = compare(name, package, folder, checkpoint, args)
            print(table([{"peer": name} | row for row in result[name]["rows"]]), flush=True)
            save("peer", result, args.json)
    return int(any("error" in result[name] for name in packages))


def find_package(option: str, path: str) -> Path:
    """The folder to import `moshi` from: PATH or PATH/moshi. Raises ConfigError."""
    places = [Path(path), Path(path) / "moshi"]
    for place in places:
        if (place / "moshi" / "__init__.py").is_file():
            return place.resolve()
    looked = " and ".join(str(place / "moshi" / "__init__.py") for place in places)
    raise ConfigError(f"{option} {path} holds no package moshi (looked for {looked}); {HOW}")


def compare(
    name: str, package: Path, folder: str, checkpoint: Checkpoint, args: argparse.Namespace
) -> Row:
    """Everything about one peer. An error of its process ends its rows, not the bench."""
    result: Row = {"rows": []}
    device, reference = pick_device(args), name == "reference"
    try:
        if not reference:  # the fork gives the same tokens one call later, of 16 steps
            result["tokens"] = compare_tokens(package)
            print("tokens equal: {equal} of {frames}".format(**result["tokens"]), flush=True)
            if result["tokens"]["equal"] < result["tokens"]["frames"]:
                raise ModelError("its tokens are not ours: its times would not compare")
        with PeerProcess(package, device == "cuda" and not args.no_compile) as peer:
            result |= peer.ask(
                "load", folder=folder, device=device, reference=reference,
                dtype="bfloat16" if device == "cuda" else "float32", codec="frame" in args.kind,
            )  # fmt: skip
            slots = [1] if reference else args.slots  # its server holds one conversation
            for each in product(slots, args.kind, args.context):
                row = time_row(peer, checkpoint, *each, args.ticks)
                result["rows"].append(row)
                print("{B} {kind} {context}: {peer/ours:.2f} {mark}".format(**row), flush=True)
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        result["error"] = str(error)
    return result


def time_row(
    peer: "PeerProcess", checkpoint: Checkpoint, slots: int, kind: str, context: int, times: int
) -> Row:
    """One line of the table; context 0 if the peer's memory is of a make that is not known."""
    before = time_own(checkpoint, kind, slots, context, times)
    told = peer.ask("time", streams=slots, context=context, times=times, kind=kind)
    theirs, rings = told.pop("ms"), told.pop("rings")
    after = time_own(checkpoint, kind, slots, context, times)
    head = {"B": slots, "kind": kind, "context": context if rings else 0}
    return head | describe_turns(before, theirs, after) | told


def describe_turns(before: Sequence[float], theirs: Sequence[float], after: Sequence[float]) -> Row:
    """Medians of the three turns [ms], the ratio to the mean of our two, and their spread."""
    (first, first_p99), (other, other_p99), (second, second_p99) = (
        np.percentile(turn, (50, 99)).tolist() for turn in (before, theirs, after)
    )
    mean = (first + second) / 2
    spread = abs(first - second) / mean
    return {
        "ours_before_ms": first, "peer_ms": other, "ours_after_ms": second,
        "peer/ours": other / mean, "spread": spread,
        "ours_p99_ms": max(first_p99, second_p99), "peer_p99_ms": other_p99,
        "mark": "unsteady" if spread > UNSTEADY else "",
    }  # fmt: skip


# -- our side --------------------------------------------------------------------------------------


class Steps(Ticks):
    """Ticks without the codec: the user's codes come in where the samples would.

    As in a whole tick, the picked text stops at the host between the two halves.
    """

    def _listen(self, size: int) -> Tensor:
        heard = self.up.device[:size, : self.loop.codebooks].long()
        text = self.loops[size].step_temporal(heard, self._select(size, ACTIVE))
        return torch.cat([text[:, None], heard], 1).float()

    def _speak(self, size: int) -> Tensor:
        text, hush = self.up_text.device[:size].unbind(1)
        codes = self.loops[size].step_depth(text, hush != 0, self._select(size, ACTIVE))
        silent = torch.zeros(size, FRAME_SAMPLES, device=codes.device)
        return torch.cat([silent, codes.float()], 1)


KINDS = {"step": Steps, "frame": Ticks}


def time_own(
    checkpoint: Checkpoint, kind: str, slots: int, context: int, times: int
) -> list[float]:
    """Milliseconds of each step of all slots; the loop is made anew, its memory given back."""
    release_memory()
    ticks = KINDS[kind](make_loop(checkpoint.lm, checkpoint.mimi, slots, "bf16"))
    return measure(ticks, context, times).tolist()


def compare_tokens(package: Path) -> Row:
    """Frames of a small model in float32 on the CPU, greedy, that are the same on both sides."""
    with tempfile.TemporaryDirectory() as folder, PeerProcess(package, compiled=False) as peer:
        write_checkpoint(Path(folder), SMALL)
        checkpoint = load_checkpoint(folder, dtype=torch.float32)
        size, draw = (COMPARED_FRAMES + 1, SMALL.lm.codebooks), torch.Generator().manual_seed(2)
        codes = torch.randint(0, SMALL.lm.card, size, generator=draw).tolist()
        peer.ask("load", folder=folder, device="cpu", dtype="float32", reference=False, codec=False)
        theirs = np.array(peer.ask("tokens", codes=codes)[1:])  # the first call has no answer
        own = own_tokens(checkpoint, codes)[1:]
    return {
        "equal": int((own == theirs).all(1).sum()), "frames": len(own),
        "different_tokens": len(np.unique(own)),
    }  # fmt: skip


def own_tokens(checkpoint: Checkpoint, codes: list[list[int]]) -> np.ndarray:
    """Greedy answers of one slot to user codes [T, Q]: its text and codes [T, 1 + Q].

    Without a prompt, from the initial column, as a peer begins: the first user frame is lost.
    """
    config, loop = checkpoint.lm.config, Loop(checkpoint.lm, checkpoint.mimi, 1)
    nothing = torch.zeros(1, config.n_q + 1, dtype=torch.int64)  # the frame that is lost
    loop.start(0, loop.save_prompt(0, build_prompt(config, Voice(), nothing)))
    loop.sampler.tune(0, GREEDY)
    steps, pcm, rows = Steps(loop, graphs=False), np.zeros((1, FRAME_SAMPLES), np.float32), []
    for heard in [loop.user_now[0].tolist(), *codes[1:]]:
        text_now = loop.agent[0, 0].item()
        pcm[0, : config.codebooks] = heard
        text, *_ = steps.listen(pcm, np.ones(1, bool))
        _, spoken = steps.speak(text, np.zeros(1, bool))
        rows.append([text_now, *spoken[0]])
    return np.array(rows)


class PeerProcess:
    """A peer that answers one json line to each; a context manager. Raises ModelError."""

    def __init__(self, package: Path, compiled: bool) -> None:
        self.package, self.compiled = package, compiled
        self.environ = find_ourselves() | ({} if compiled else {"NO_TORCH_COMPILE": "1"})

    def __enter__(self) -> "PeerProcess":
        command, pipe = [sys.executable, "-m", __spec__.name, str(self.package)], subprocess.PIPE
        self._process = subprocess.Popen(
            command, env=self.environ, stdin=pipe, stdout=pipe, text=True
        )
        return self

    def __exit__(self, *_exc: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # it ended on its own
            self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def ask(self, verb: str, **values: Any) -> Any:
        """One request, one answer."""
        line = ""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": verb} | values) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            code = self._process.wait(ENDING_SECONDS)
            hint = "; without a C compiler use --no-compile" if self.compiled else ""
            raise ModelError(
                f"the peer at {self.package} ended with code {code} when asked to {verb}; "
                f"its own words are above{hint}"
            )
        return json.loads(line)


# -- a file's weights and sizes, as the package takes them -----------------------------------------
#
# The names are those of the public files already (engine/weights/names.py reads them the other
# way). What differs is the number of depth steps.

STACKED = re.compile(r"depformer\.layers\.\d+\.self_attn\.(in_proj_weight|out_proj\.weight)")
NUMBERED = re.compile(
    r"(depformer_in|linears|depformer\.layers\.\d+\.gating|depformer_emb)\.(\d+)\.(.*)"
)


def fit_steps(name: str, value: Tensor, have: int, want: int) -> Iterator[tuple[str, Tensor]]:
    """One tensor of a file of `have` depth steps as a model of `want` steps names it.

    Steps that the file lacks are repeated from its own: good for timing only.
    """
    if STACKED.fullmatch(name):
        steps = value.view(have, -1, value.shape[-1])
        yield name, steps[[k % have for k in range(want)]].flatten(0, 1)
    elif match := NUMBERED.fullmatch(name):
        prefix, number, rest = match[1], int(match[2]), match[3]
        told = prefix == "depformer_emb"  # emb.k is what step k + 1 is told: one fewer
        places = set(range(number, want - told, have))
        if told and number == 0 and want > have:
            places.add(have - 1)  # which no step of the file has
        yield from ((f"{prefix}.{k}.{rest}", value) for k in sorted(places))
    elif name.endswith(".alpha"):
        yield name, value.view(1, 1, -1)  # files have either shape
    else:
        yield name, value


def read_lm(path: Path, want: int, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The language model's tensors for `want` depth steps, each straight to the device."""
    tensors: dict[str, Tensor] = {}
    with safe_open(path, framework="pt", device=device) as file:
        names = list(file.keys())
        have = sum(re.fullmatch(r"linears\.\d+\.weight", name) is not None for name in names)
        for name in names:
            tensors.update(fit_steps(name, file.get_tensor(name).to(dtype), have, want))
    return tensors


def lm_arguments(config: LMConfig, steps: int) -> Row:
    """What `LMModel` of either package is made with."""
    return {
        "dim": config.dim, "num_heads": config.num_heads, "num_layers": config.num_layers,
        "hidden_scale": config.hidden_scale, "context": config.context,
        "max_period": config.max_period, "n_q": config.n_q, "dep_q": steps, "card": config.card,
        "text_card": config.text_card, "existing_text_padding_id": config.text_padding_id,
        "delays": list(config.delays), "causal": True, "layer_scale": None, "gating": "silu",
        "norm": "rms_norm_f32", "positional_embedding": "rope",
        "depformer_dim": config.depformer_dim,
        "depformer_dim_feedforward": config.depformer_dim_feedforward,
        "depformer_num_heads": config.depformer_num_heads,
        "depformer_num_layers": config.depformer_num_layers, "depformer_layer_scale": None,
        "depformer_multi_linear": True, "depformer_context": steps,
        "depformer_max_period": config.max_period, "depformer_gating": "silu",
        "depformer_pos_emb": "none", "depformer_weights_per_step": True,
    }  # fmt: skip


def codec_arguments(config: MimiConfig) -> dict[str, Row]:
    """Sizes of a codec's three parts, as either package names them."""
    width, transformer, quantizer = config.dimension, config.transformer, config.quantizer
    return {
        "seanet": {
            "channels": 1, "dimension": width, "causal": True, "n_filters": config.n_filters,
            "n_residual_layers": config.n_residual_layers, "activation": "ELU",
            "compress": config.compress, "dilation_base": 2, "disable_norm_outer_blocks": 0,
            "kernel_size": config.kernel_size, "residual_kernel_size": config.residual_kernel_size,
            "last_kernel_size": config.last_kernel_size, "norm": "none", "pad_mode": "constant",
            "ratios": list(config.ratios), "true_skip": True,
        },
        "quantizer": {
            "dimension": quantizer.dimension, "n_q": quantizer.n_q, "bins": quantizer.bins,
            "input_dimension": width, "output_dimension": width,
        },
        "transformer": {
            "d_model": transformer.d_model, "num_heads": transformer.num_heads,
            "num_layers": transformer.num_layers, "causal": True, "layer_scale": 0.01,
            "context": transformer.context, "conv_layout": True,
            "max_period": transformer.max_period, "gating": "none", "norm": "layer_norm",
            "positional_embedding": "rope", "dim_feedforward": transformer.dim_feedforward,
            "input_dimension": width, "output_dimensions": [width],
        },
    }  # fmt: skip


# -- the peer's side, in a process of its own ------------------------------------------------------
#
# The package is used as its own server uses it. Only the past of its streams is written into their
# state. Sources: kyutai-labs/moshi 0.2.13, server.py and run_inference.py; NVIDIA/personaplex,
# server.py (`ServerState`, `opus_loop`) and models/loaders.py.


class Worker:
    """What the lines of the protocol ask for; every method takes and gives json values."""

    def __init__(self, package: str) -> None:
        sys.path.insert(0, package)
        add_missing_packages()
        self.models = importlib.import_module("moshi.models")
        self.loaders = importlib.import_module("moshi.models.loaders")
        self.compiled, self.streams = not os.environ.get("NO_TORCH_COMPILE"), 0

    def load(self, folder: str, device: str, dtype: str, reference: bool, codec: bool) -> Row:
        """Build and fill the models from the files of a checkpoint's folder."""
        self.device, self.reference, where = torch.device(device), reference, Path(folder)
        self.config = ModelConfig.from_json(json.loads((where / CONFIG).read_text()))
        steps, kind = DEPTH_STEPS["reference" if reference else "moshi"], getattr(torch, dtype)
        arguments = lm_arguments(self.config.lm, steps)
        self.lm = self.models.LMModel(device="meta", dtype=kind, **arguments)
        self.lm.load_state_dict(read_lm(where / LM_FILE, steps, device, kind), assign=True)
        self.lm.eval()
        count = (2 if reference else 1) if codec else 0
        self.codecs = [self.load_codec(where / MIMI_FILE) for _ in range(count)]
        return {
            "version": getattr(sys.modules["moshi"], "__version__", "unknown"),
            "torch": torch.__version__, "depth_steps": steps, "codecs": count,
            "compiled": self.compiled,
        }  # fmt: skip

    def load_codec(self, path: Path) -> torch.nn.Module:
        """Its codec; the fork's loader has the sizes in its module, not as an argument."""
        sizes = codec_arguments(self.config.mimi)
        if self.reference:
            for part, values in sizes.items():
                getattr(self.loaders, f"_{part}_kwargs").update(values)
            return self.loaders.get_mimi(path, self.device)
        rates = {"sample_rate": self.config.mimi.sample_rate, "channels": 1}
        rates["frame_rate"] = self.config.mimi.frame_rate
        codebooks = self.config.lm.codebooks
        return self.loaders.get_mimi(path, rates | sizes, self.device, num_codebooks=codebooks)

    def make_gen(self, sampling: SamplingConfig | None) -> torch.nn.Module:
        """Its frame loop, greedy without settings."""
        settings, mimi = sampling or SamplingConfig(), self.config.mimi
        own = {  # as the fork's server makes it
            "device": self.device, "sample_rate": mimi.sample_rate, "frame_rate": mimi.frame_rate,
            "audio_silence_frame_cnt": int(0.5 * mimi.frame_rate),
        } if self.reference else {}  # fmt: skip
        return self.models.LMGen(
            self.lm, use_sampling=sampling is not None, temp=settings.audio_temperature,
            temp_text=settings.text_temperature, top_k=settings.audio_top_k,
            top_k_text=settings.text_top_k, **own,
        )  # fmt: skip

    @torch.no_grad()
    def time(self, streams: int, context: int, times: int, kind: str) -> Row:
        """Milliseconds of steps whose streams have so long a past, tokens on the host at the end.

        kind `step`: the language model; `frame`: the codecs' encoding and decoding around it.
        """
        if self.compiled and streams != self.streams:
            torch.compiler.reset()  # compiled as a server of that many streams would have it
        self.streams, gen = streams, self.make_gen(SamplingConfig())
        codes = torch.randint(0, self.config.lm.card, (streams, self.config.lm.codebooks, 1))
        pcm = torch.randn(streams, 1, FRAME_SAMPLES) * 0.1
        with contextlib.ExitStack() as stack:
            for module in [gen, *self.codecs]:
                stack.enter_context(module.streaming(streams))
            rings, taken = fill_past(gen, context), []
            for _ in range(PEER_WARM_UPS + times):
                start = time.perf_counter()
                self.frame(gen, pcm) if kind == "frame" else self.step(gen, codes)
                taken.append(time.perf_counter() - start)
            main = getattr(gen._streaming_state, "graphed_main", None)
            graphs = getattr(main, "_graph", None) is not None
        del gen
        gc.collect()
        torch.cuda.empty_cache()  # nothing where there is no GPU
        own = [1e3 * seconds for seconds in taken[PEER_WARM_UPS:]]
        return {"ms": own, "rings": rings, "cuda_graphs": graphs}

    def step(self, gen: torch.nn.Module, codes: Tensor) -> Tensor | None:
        """User codes [B, Q, 1] on the host -> the agent's tokens [B, 1 + Q, 1] on the host."""
        out = gen.step(codes.to(self.device))
        return None if out is None else out.cpu()

    def frame(self, gen: torch.nn.Module, pcm: Tensor) -> None:
        """A user's frame [B, 1, 1920] on the host -> the agent's text and sound, on the host.

        The first codec counts. What the second one makes is thrown away, as that server does.
        """
        heard, *_ = [codec.encode(pcm.to(self.device)) for codec in self.codecs]
        out = gen.step(heard)
        if out is not None:
            spoken = out[:, 1 : 1 + self.config.lm.codebooks]
            sound, *_ = [codec.decode(spoken) for codec in self.codecs]
            sound.cpu()
            out[:, 0].tolist()

    @torch.no_grad()
    def tokens(self, codes: list[list[int]]) -> list[list[int] | None]:
        """Greedy answers of one stream to user codes [T, Q]: text and agent codes of each call."""
        gen, rows = self.make_gen(None), []
        with gen.streaming(1):
            for frame in codes:
                out = self.step(gen, torch.tensor(frame)[None, :, None])
                rows.append(None if out is None else out[0, : 1 + len(frame), 0].tolist())
        return rows


def fill_past(gen: torch.nn.Module, columns: int) -> int:
    """Give every stream a past of that many columns; how many KV rings were found and filled."""
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


def add_missing_packages() -> None:
    """Let the package be imported where what it downloads or reads files with is not installed."""
    needed = {
        "huggingface_hub": {"hf_hub_download": None},
        "huggingface_hub.errors": {"EntryNotFoundError": LookupError},
        "sphn": {},
    }
    for name, contents in needed.items():
        top = name.partition(".")[0]
        if top in sys.modules or not importlib.util.find_spec(top):
            module = types.ModuleType(name)
            vars(module).update(contents)
            sys.modules.setdefault(name, module)


def answer_lines(worker: Worker, requests: TextIO, answers: TextIO) -> None:
    """Answer lines until their end; an error ends the process with its traceback."""
    for line in requests:
        request = json.loads(line)
        verb = request.pop("do")
        print(json.dumps(getattr(worker, verb)(**request)), file=answers, flush=True)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what others print must not come between the answers
    torch.manual_seed(0)
    answer_lines(Worker(sys.argv[1]), sys.stdin, answers)


if __name__ == "__main__":
    main()
