"""A package laid out like NVIDIA's fork of moshi, by its public signatures, that notes its calls.

It computes nothing. What it is given wrongly it refuses as the fork does: `LMGen` without a device,
tensors of another name or shape, user codes of another shape, one stream too many.
"""

import json
from pathlib import Path

LOADERS = """
from .compression import MimiModel

_seanet_kwargs = {"n_filters": 64}
_quantizer_kwargs = {"n_q": 32}
_transformer_kwargs = {"d_model": 512}
_lm_kwargs = {"dep_q": 8}

def get_mimi(filename, device="cpu"):
    return MimiModel(_seanet_kwargs, _quantizer_kwargs, _transformer_kwargs)
"""
COMPRESSION = """
import torch
from ..streaming import StreamingModule, note

class MimiModel(StreamingModule):
    made = 0

    def __init__(self, seanet, quantizer, transformer):
        super().__init__()
        self.number = MimiModel.made
        MimiModel.made += 1
        note("codec", seanet["n_filters"], quantizer["n_q"], transformer["d_model"])

    def encode(self, x):
        assert x.shape == (1, 1, 1920), x.shape
        note("encode", self.number)
        return torch.zeros(1, 8, 1, dtype=torch.long)

    def decode(self, codes):
        assert codes.shape == (1, 8, 1), codes.shape
        note("decode", self.number)
        return torch.zeros(1, 1, 1920)
"""
STREAMING = """
import contextlib, json
from types import SimpleNamespace
import torch

def note(*what):
    with open(PATH, "a") as file:
        print(json.dumps(what), file=file)

class StreamingModule(torch.nn.Module):
    _streaming_state = None

    @contextlib.contextmanager
    def streaming(self, batch_size):
        assert batch_size == 1, batch_size
        self._streaming_state = SimpleNamespace(offset=0)
        yield
        self._streaming_state = None
"""
LM = """
import sphn
import torch
from ..streaming import StreamingModule, note

class Attention(StreamingModule):
    def __init__(self):
        super().__init__()
        ring = torch.zeros(2, 1, 1, 10, 4)
        end = torch.zeros(1, dtype=torch.long)
        self._streaming_state = type("S", (), {})()
        self._streaming_state.kv_cache = type("R", (), {"cache": ring, "end_offset": end})()
        self._streaming_state.offset, self._streaming_state.offset_cpu = end.clone(), 0

class LMModel(torch.nn.Module):
    def __init__(self, delays=[0], n_q=8, dep_q=8, card=1024, text_card=32000, dim=128,
                 device=None, dtype=None, **kwargs):
        super().__init__()
        self.dep_q, self.card, self.attention = dep_q, card, Attention()
        self.steps = [
            f"{name}.{k}.weight" for name in ("depformer_in", "linears") for k in range(dep_q)
        ] + [f"depformer_emb.{k}.weight" for k in range(dep_q - 1)]
        note("lm", n_q, dep_q, dim)

    def load_state_dict(self, state_dict, strict=True, assign=False):
        missing = [name for name in self.steps if name not in state_dict]
        extra = [name for name in state_dict if name.startswith(("depformer_in", "linears"))]
        assert not missing, missing
        assert len(extra) == 2 * self.dep_q, extra

class LMGen(StreamingModule):
    def __init__(self, lm_model, device, use_sampling=True, temp=0.8, temp_text=0.7, top_k=250,
                 top_k_text=25, check=False, report_loss=False, return_logits=False,
                 audio_silence_frame_cnt=1, text_prompt_tokens=None,
                 save_voice_prompt_embeddings=False, sample_rate=32000, frame_rate=12.5):
        assert not lm_model.training
        super().__init__()
        self.lm_model, self.calls = lm_model, 0
        note("gen", str(device), sample_rate, frame_rate, audio_silence_frame_cnt)

    def step(self, input_tokens=None, moshi_tokens=None, text_token=None, return_embeddings=False):
        assert input_tokens.shape == (1, 8, 1), input_tokens.shape
        note("step")
        self.calls += 1
        if self.calls == 1:
            return None
        return torch.zeros(1, 1 + self.lm_model.dep_q, 1, dtype=torch.long)
"""


def write_fork(folder: Path) -> Path:
    """A checkout at `folder`; the file where every call is noted, one json list a line."""
    package, notes = folder / "moshi" / "moshi", folder / "notes.jsonl"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "streaming.py").write_text(f"PATH = {str(notes)!r}\n{STREAMING}")
    models = {
        "__init__": "from .lm import LMModel, LMGen\nfrom .loaders import get_mimi\n",
        "lm": LM, "loaders": LOADERS, "compression": COMPRESSION,
    }  # fmt: skip
    for name, text in models.items():
        (package / "models" / f"{name}.py").write_text(text)
    return notes


def read_notes(notes: Path) -> list[list]:
    return [json.loads(line) for line in notes.read_text().splitlines()]
