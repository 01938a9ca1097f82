"""Compiles the kernels for a GPU that is not here, and prints what each would take there.

A script of its own, because the tests' process has imported them for triton's interpreter.
One json line a kernel: its name, the GPU, its shared memory, and the digest of its PTX (two
versions of a kernel that differ in words only have the same one with TRITON_DISABLE_LINE_INFO=1).
"""

import argparse
import hashlib
import json

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from engine.model.config import ModelConfig
from engine.model.gpu import fused
from engine.model.gpu.kernels import add_norm, embed, matmul, pick, pick_text
from engine.model.gpu.kernels_attention import Decode, PromptPiece, attend_few
from engine.model.gpu.kernels_codec import Filter, Moment, convolve, nearest, sum_entries, upsample
from engine.model.loop import PIECES
from engine.model.mimi import Mimi
from engine.model.transformer import Active, Rings, Rotation

CPU, SLOTS = torch.device("cpu"), 4
BF16 = torch.bfloat16


class Absent:
    """As much of a driver as compiling asks for."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> int:
        return self._target.arch  # triton keeps what it has compiled by device

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self._target


def assemble_once() -> None:
    """Assemble one version of each kernel for each GPU: all of them take a third of the time."""
    assemble, assembled = CUDABackend.make_cubin, set()

    def make_cubin(self, ptx, metadata, options, capability) -> bytes:
        of = metadata["name"], capability
        if of in assembled:
            return b""  # nobody runs it
        assembled.add(of)
        return assemble(self, ptx, metadata, options, capability)

    CUDABackend.make_cubin = make_cubin


def compile_only() -> None:
    """Every launch compiles, tells, and does nothing else."""
    launch, told = JITFunction.run, set()

    def run(self, *args, grid, warmup, **more):
        kernel = launch(self, *args, grid=grid, warmup=True, **more)
        target = kernel.metadata.target.arch
        digest = hashlib.sha256(kernel.asm["ptx"].split(".debug", 1)[0].encode()).hexdigest()
        if (self.__name__, target, digest) not in told:
            told.add((self.__name__, target, digest))
            row = {"kernel": self.__name__, "capability": target}
            print(json.dumps(row | {"shared": kernel.metadata.shared, "ptx": digest[:16]}))
        return kernel

    JITFunction.run = run


def numbers(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.empty(*shape, dtype=dtype)  # nobody reads them


def layer(rows: int, dtype: torch.dtype) -> Rings:
    """What every row of a layer goes through, at the sizes of the public model; empty rings."""
    lm = ModelConfig().lm
    wide, scale = lm.dim, numbers(8 * lm.dim, dtype=torch.float32)
    given = scale if dtype == torch.int8 else None
    x = numbers(rows, wide)
    matmul(x, numbers(3 * wide, wide, dtype=dtype), given)
    matmul(x, numbers(wide, wide, dtype=dtype), given, partial=True)
    matmul(x, numbers(2 * lm.hidden, wide, dtype=dtype), given, gated=True)
    matmul(numbers(rows, lm.hidden), numbers(wide, lm.hidden, dtype=dtype), given, partial=True)
    add_norm(x, numbers(4, rows, wide, dtype=torch.float32), numbers(wide), 1e-8)
    rotation = Rotation(wide // lm.num_heads, lm.max_period, CPU)
    return Rings(1, SLOTS, lm.num_heads, rotation, 600, dtype)


def projected(rows: int) -> Tensor:
    """Query, key and value of some rows."""
    lm = ModelConfig().lm
    return numbers(rows, 1, 3, lm.num_heads, lm.dim // lm.num_heads)


def tick(dtype: torch.dtype) -> None:
    Decode(layer(SLOTS, dtype), Active.of([0], SLOTS, CPU)).attend(0, projected(SLOTS))


def codec_tick() -> None:
    """Two columns, float32, and a ring that one program reads."""
    mimi = ModelConfig().mimi
    sizes, columns = mimi.transformer, mimi.columns
    width = sizes.d_model // sizes.num_heads
    rotation = Rotation(width, sizes.max_period, CPU)
    rings = Rings(1, SLOTS, sizes.num_heads, rotation, sizes.context - 1, torch.float32)
    decode = Decode(rings, Active.of([0], SLOTS, CPU), columns)
    assert decode.splits == 1
    decode.attend(0, numbers(SLOTS, columns, 3, sizes.num_heads, width, dtype=torch.float32))


def depth(dtype: torch.dtype) -> None:
    """The depformer's products."""
    lm = ModelConfig().lm
    dim, wide = lm.depformer_dim, lm.depth_hidden
    given = numbers(8 * dim, dtype=torch.float32) if dtype == torch.int8 else None
    matmul(numbers(SLOTS, lm.dim), numbers(lm.codebooks * dim, lm.dim, dtype=dtype), given)
    x = numbers(SLOTS, dim)
    matmul(x, numbers(3 * dim, dim, dtype=dtype), given)
    matmul(x, numbers(dim, dim, dtype=dtype), given, partial=True)
    matmul(x, numbers(2 * wide, dim, dtype=dtype), given, gated=True)
    matmul(numbers(SLOTS, wide), numbers(dim, wide, dtype=dtype), given, partial=True)
    matmul(x, numbers(lm.card, dim, dtype=dtype), given)


def piece(rows: int, dtype: torch.dtype) -> None:
    """Of a prompt."""
    one = torch.zeros(1, dtype=torch.int64)
    PromptPiece(layer(rows, dtype), one, one, rows).attend(0, projected(rows))


def picks_and_depth() -> None:
    lm, whole = ModelConfig().lm, torch.zeros(SLOTS, dtype=torch.int64)
    heads, steps = lm.depformer_num_heads, lm.codebooks
    width = lm.depformer_dim // heads
    attend_few(numbers(SLOTS, 3, heads, width), numbers(2, SLOTS, heads, steps, width), 3)
    embed(
        torch.zeros(SLOTS, 17, dtype=torch.int64),
        torch.zeros(17, dtype=torch.int64),
        numbers(9, lm.dim),
    )
    noise, one = numbers(SLOTS, lm.text_card, dtype=torch.float32), torch.ones(SLOTS)
    pick(numbers(SLOTS, lm.card), noise, one, whole, whole)
    for text in (noise[:, : lm.card].contiguous(), noise):  # the small one is quick to assemble
        pick_text(text, text, one, whole, one, 256)


def codec() -> None:
    """One convolution of each kind at its public size, and what lies between the transformers."""
    with torch.device("meta"):
        mimi = Mimi(ModelConfig().mimi)
    mimi, whole = mimi.to_empty(device="cpu"), torch.zeros(SLOTS, dtype=torch.int64)
    mimi.prepare()
    encoder, decoder, layer = mimi.encoder, mimi.decoder, mimi.decoder_transformer.layers[0]
    layer.linear2.weight = torch.nn.Parameter(numbers(512, 2048, dtype=torch.float32))
    now = Moment(whole, 2, whole > 0)
    for module, by, columns in (
        (encoder.model[0], fused._conv, 1920),  # samples
        (encoder.model[3], fused._conv, 1920),  # with a stride
        (encoder.model[12], fused._conv, 16),  # few columns, many inputs
        (mimi.downsample, fused._conv, 2),
        (decoder.model[2], fused._transposed, 2),
        (layer.linear2, lambda linear: Filter(linear.weight), 2),
    ):
        filter = by(module)
        past = torch.zeros(2, SLOTS, filter.inputs, filter.past) if filter.past else None
        convolve(torch.zeros(SLOTS, filter.inputs, columns), filter, now, past, elu=True)
    tables, codes = torch.zeros(8, 2048, 256), torch.zeros(SLOTS, 8, dtype=torch.int64)
    nearest(torch.zeros(SLOTS, 256), tables, torch.zeros(8, 2048), codes)
    sum_entries(codes, tables)
    width = mimi.upsample.convtr.in_channels
    x = torch.zeros(SLOTS, width)
    upsample(x, x, mimi.upsample.convtr.weight, now.active)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "capabilities",
        type=int,
        nargs="+",
        help="86 is an A10G, 90 an H100 or H200; for all but the first only what needs most",
    )
    capabilities = parser.parse_args().capabilities
    compile_only()
    assemble_once()
    for capability in capabilities:
        driver.set_active(Absent(capability))
        piece(max(PIECES), BF16)
        tick(torch.int8)
        if capability == capabilities[0]:
            for rows in (max(PIECES), 80):  # fewer, and bf16's 80, take smaller tiles than these
                piece(rows, torch.int8)
            tick(BF16)
            codec_tick()
            depth(torch.int8)
            picks_and_depth()
            codec()


if __name__ == "__main__":
    main()
