"""The depformer's frame as one persistent launch (depth.cu), where the device can hold it.

It needs the public model's sizes, bf16 activations, and as many multiprocessors as it has blocks;
elsewhere fused.py launches product by product, which is its oracle too.
"""

import torch
from torch import Tensor

from engine.model.gpu.cuda import launch
from engine.model.gpu.kernels import matmul
from engine.model.lm import Depformer
from engine.model.sampling import Sampler

BLOCKS, THREADS = 128, 512  # of depth.cu, as all that follows
SIZES = (1024, 2816, 6, 8, 2048, 16)  # dim, hidden, layers, steps, card, heads
MOST_SLOTS = 16
SHARED_BYTES = 56 << 10  # of its `Shared`, rounded up


class WholeDepth:
    """One depformer's weights as addresses, which must not move from now on."""

    def __init__(self, depformer: Depformer) -> None:
        self.input = depformer.input
        layers, steps = depformer.layers, range(depformer.steps)
        products = [
            linear
            for step in steps
            for layer in layers
            for linear in (
                layer.in_proj[step],
                layer.out_proj[step],
                layer.gating[step].linear_in,
                layer.gating[step].linear_out,
            )
        ]
        products += depformer.linears
        self.int8 = products[0].scale is not None
        tables = [depformer.text_emb.weight, *(table.weight for table in depformer.emb)]
        norms = [norm.alpha for layer in layers for norm in (layer.norm1, layer.norm2)]
        scales = [linear.scale if self.int8 else linear.weight for linear in products]
        kept = [*(linear.weight for linear in products), *scales, *tables, *norms]
        device = tables[0].device
        self.addresses = torch.tensor([tensor.data_ptr() for tensor in kept], device=device)
        self.arrivals = torch.zeros(2, dtype=torch.int32, device=device)

    @staticmethod
    def fits(depformer: Depformer, slots: int) -> bool:
        """Whether this depformer, where its weights lie, can run so for a server's slots."""
        linear = depformer.linears[0]
        layer, device = depformer.layers[0], linear.weight.device
        if device.type != "cuda" or depformer.text_emb.weight.dtype != torch.bfloat16:
            return False
        dim, hidden = linear.weight.shape[1], layer.gating[0].linear_out.weight.shape[1]
        card, heads = linear.weight.shape[0], layer.heads
        sizes = dim, hidden, len(depformer.layers), depformer.steps, card, heads
        blocks = torch.cuda.get_device_properties(device).multi_processor_count
        return sizes == SIZES and slots <= MOST_SLOTS and blocks >= BLOCKS

    def run(self, hidden: Tensor, text: Tensor, sampler: Sampler, given: Tensor) -> Tensor:
        """hidden [S, dim] bf16, text [S], given [S, Q] (-1: picked) -> codes [S, Q]; S <= 16."""
        audio, noise = sampler.audio, sampler.audio_noise  # [S, Q, card]
        inputs = matmul(hidden, self.input.weight, self.input.scale)  # [S, Q * dim]
        slots, (dim, hidden_dim, layers, steps, card, _) = len(hidden), SIZES
        device = hidden.device

        def scratch(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
            return torch.empty(*shape, dtype=dtype, device=device)

        codes = scratch(slots, steps, dtype=torch.int64)
        launch(
            "depth", "depth_int8" if self.int8 else "depth_bf16", (BLOCKS, 1, 1), THREADS,
            self.addresses, inputs, text, noise, audio.temperature, audio.width,
            given.contiguous(), scratch(slots, dim), scratch(layers, steps, slots, 3 * dim),
            scratch(slots, dim), scratch(slots, hidden_dim),
            scratch(slots, card, dtype=torch.int32), scratch(BLOCKS, dtype=torch.int64), codes,
            self.arrivals, slots, text.stride(0), noise.stride(0), noise.stride(1),
            shared=SHARED_BYTES, cooperative=True,
        )  # fmt: skip
        return codes
