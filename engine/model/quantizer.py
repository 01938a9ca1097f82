"""The split residual quantizer: one semantic level, and beside it the acoustic ones."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.model.config import MimiConfig
from engine.model.linear import Linear

MIN_USAGE = 1e-5  # of an entry, in the average that the codebook is


class Codebook(nn.Module):
    """One level. The entries are averages, kept as sums and counts in the checkpoint."""

    def __init__(self, bins: int, dim: int) -> None:
        super().__init__()
        self.embedding_sum = nn.Parameter(torch.empty(bins, dim), requires_grad=False)
        self.cluster_usage = nn.Parameter(torch.empty(bins), requires_grad=False)
        self._initialized = nn.Parameter(torch.empty(1), requires_grad=False)  # not used here
        self.entries: Tensor | None = None  # [bins, dim]
        self.match: Linear | None = None

    def prepare(self, entries: Tensor, half_norm: Tensor) -> None:
        """Once, when the weights are in place: derive what is kept in the tensors given."""
        usage = self.cluster_usage.clamp(min=MIN_USAGE)[:, None]
        self.entries = torch.div(self.embedding_sum.detach(), usage, out=entries)
        self.half_norm = half_norm.copy_(self.entries.square().sum(1) / 2)  # [bins]
        self.match = Linear(self.entries.shape[1], 0)
        self.match.weight = nn.Parameter(self.entries, requires_grad=False)
        self.match.pack()

    def encode(self, x: Tensor) -> Tensor:
        """x [S, dim] -> index of the nearest entry [S], the first of equals."""
        return (self.half_norm - self.match(x)).argmin(-1)  # (|x - e|^2 - |x|^2) / 2


class Residuals(nn.Module):
    """Levels that each code what the ones before left over."""

    def __init__(self, config: MimiConfig, levels: int) -> None:
        super().__init__()
        inner, dim, bins = config.quantizer.dimension, config.dimension, config.quantizer.bins
        self.input_proj, self.output_proj = Linear(dim, inner), Linear(inner, dim)
        self.vq = nn.Module()
        self.vq.layers = nn.ModuleList(Codebook(bins, inner) for _ in range(levels))

    def prepare(self) -> None:
        """Once: the entries of all levels, side by side [L, bins, inner] and [L, bins]."""
        usages = [book.cluster_usage for book in self.vq.layers]
        shape = (len(usages), *self.vq.layers[0].embedding_sum.shape)
        self.tables = torch.empty(shape, device=usages[0].device)
        self.half_norms = torch.empty(shape[:2], device=usages[0].device)
        for book, *kept in zip(self.vq.layers, self.tables, self.half_norms, strict=True):
            book.prepare(*kept)

    def encode(self, latent: Tensor, levels: int) -> list[Tensor]:
        """latent [S, dim] -> `levels` code columns [S]."""
        rest, codes = self.input_proj(latent), []
        for book in self.vq.layers[:levels]:
            codes.append(book.encode(rest))
            rest = rest - F.embedding(codes[-1], book.entries)
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        """codes [S, levels] -> [S, dim]."""
        parts = zip(codes.unbind(1), self.vq.layers, strict=False)
        total = sum(F.embedding(code, book.entries) for code, book in parts)  # [S, inner]
        return self.output_proj(total)


class Quantizer(nn.Module):
    """Both quantizers over the same latent; codes are the semantic level, then the acoustic."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.rvq_first = Residuals(config, 1)
        self.rvq_rest = Residuals(config, config.quantizer.n_q - 1)

    def prepare(self) -> None:
        self.rvq_first.prepare()
        self.rvq_rest.prepare()

    def encode(self, latent: Tensor, codebooks: int) -> Tensor:
        """latent [S, dim] -> codes [S, codebooks]."""
        first = self.rvq_first.encode(latent, 1)
        return torch.stack([*first, *self.rvq_rest.encode(latent, codebooks - 1)], 1)

    def decode(self, codes: Tensor) -> Tensor:
        """codes [S, levels] -> latent [S, dim]."""
        latent = self.rvq_first.decode(codes[:, :1])
        return latent + self.rvq_rest.decode(codes[:, 1:]) if codes.shape[1] > 1 else latent
