"""`python -m engine offline`: a wav in, what the agent answers out, frame by frame, no server.

The options are those of the reference's offline tool (model.md 9) beside ours.
"""

import argparse
import json
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import soundfile

from engine.config import EPAD, PAD, SAMPLE_RATE, SamplingConfig, ServerConfig
from engine.dialogue.director import Director
from engine.dialogue.events import Say
from engine.dialogue.floor import WordReader, seconds
from engine.dialogue.persona import load_personas, prompt_ids
from engine.dialogue.speech import prepare_command
from engine.errors import ConfigError
from engine.lookup.handover import PieceDecoder
from engine.runtime.backend import Backend, HeardRow, Opening
from engine.runtime.choose import choose_model, load_backend
from engine.runtime.drive import DrivenFrame, drive_conversation, split_frames
from engine.weights.voices import Voices
from engine.wire.client import read_wav

INT16_MAX = 32767


def make_opening(backend: Backend, args: argparse.Namespace) -> Opening:
    """The conversation that the options describe. Raises ConfigError."""
    voice = Path(args.voice_prompt).stem if args.voice_prompt else backend.voices[0]
    if voice not in backend.voices:
        names = ", ".join(backend.voices)
        raise ConfigError(f"voice {args.voice_prompt!r} not found; use one of {names}")
    persona = load_personas()[0].text if args.text_prompt is None else args.text_prompt
    return Opening(
        voice=voice,
        text_ids=prompt_ids(persona, backend.tokenizer),
        sampling=make_sampling(args),
        seed=args.seed if args.seed >= 0 else secrets.randbits(62),
        transcribe=backend.transcribes,
    )


def make_sampling(args: argparse.Namespace) -> SamplingConfig:
    """The sampling that the options ask for. Raises ConfigError for what is out of range."""
    return SamplingConfig(
        text_temperature=0 if args.greedy else args.temp_text,
        audio_temperature=0 if args.greedy else args.temp_audio,
        text_top_k=args.topk_text,
        audio_top_k=args.topk_audio,
    )


class Speaker:
    """A director that says texts at given frames, for `--say FRAME:TEXT`."""

    def __init__(self, backend: Backend, say: list[tuple[int, str]]) -> None:
        self.director = Director(backend.tokenizer)
        self._tokenizer = backend.tokenizer
        self._say = sorted(say)
        self._frame = 0  # whose text is chosen next
        self._ids = 0

    def __call__(self, sampled: int, heard, peak_in: float, peak_out: float) -> tuple[int, bool]:
        while self._say and self._say[0][0] <= self._frame:
            self._ids += 1
            said = Say(self._ids, self._say.pop(0)[1])
            self.director.take(prepare_command(said, self._tokenizer))
        self._frame += 1
        choice = self.director.step(sampled, heard, peak_in, peak_out)
        self.director.events()  # taken, so that they do not pile up
        return choice


def parse_say(text: str) -> tuple[int, str]:
    """`12:Hello.` as (12, `Hello.`)."""
    frame, colon, said = text.partition(":")
    if not colon or not frame.isdigit() or not said.strip():
        raise argparse.ArgumentTypeError(f"{text!r}; use FRAME:TEXT, for example 25:Hello.")
    return int(frame), said


@contextmanager
def assemble_model(args: argparse.Namespace) -> Iterator[str]:
    """The model to load; a folder of links if options replace single files of it."""
    from engine.weights import hub

    source = choose_model(args.hf_repo or args.model)[0]
    replaced = {
        hub.TEXT_FILE: args.tokenizer,
        hub.LM_FILE: args.moshi_weight,
        hub.MIMI_FILE: args.mimi_weight,
        "voices": args.voice_prompt_dir,
    }
    given = {name: Path(path).resolve() for name, path in replaced.items() if path}
    with ExitStack() as stack:
        if given and source != "embedded":
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            original = hub.find(source, None, lambda phase, percent: None)
            files = {path.name: path.resolve() for path in original.iterdir()} | given
            for name, path in files.items():
                if not path.exists():
                    raise ConfigError(f"{path} does not exist; give a file of the checkpoint")
                (folder / name).symlink_to(path)
            source = str(folder)
        yield source


def decode_pieces(frames: list[DrivenFrame], backend: Backend) -> list[str]:
    """One string a frame: the text of its piece, `PAD` or `EPAD` (model.md 9)."""
    decoder = PieceDecoder()
    names = {PAD: "PAD", EPAD: "EPAD"}
    return [
        names.get(frame.text) or decoder.feed(backend.tokenizer.piece(frame.text))
        for frame in frames
    ]


def collect_words(
    frames: list[DrivenFrame], flushed: list[HeardRow], backend: Backend
) -> list[dict[str, str | float | None]]:
    """What the user said: words with start and end in seconds; None for an end that is open."""
    reader, found = WordReader(backend.transcription), []
    tokens = [row.stt_text for row in (*(frame.heard for frame in frames), *flushed)]
    reader.read(PAD, position=1)  # the step of the bootstrap, which is not read
    for step, token in enumerate(tokens, start=1):
        word = reader.read(token, position=step + 1)
        if word and word not in found[-1:]:
            found.append(word)
    return [
        {
            "text": word.text,
            "start": seconds(word.start),
            "end": None if word.end is None else seconds(word.end),
        }
        for word in found
        if word.written
    ]


def write_wav(path: str, pcm: np.ndarray) -> None:
    """Write 16-bit mono, 24 kHz, rounded as the reference does."""
    soundfile.write(path, (np.clip(pcm, -1, 1) * INT16_MAX).astype(np.int16), SAMPLE_RATE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input-wav", "--input", required=True, metavar="WAV")
    parser.add_argument("--output-wav", "--output", required=True, metavar="WAV")
    parser.add_argument("--output-text", required=True, metavar="JSON")
    add_model_arguments(parser)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that `offline` and `trace` share: model, voice, sampling."""
    parser.add_argument("--model", default="auto", help="auto, embedded, a directory or repository")
    parser.add_argument("--hf-repo", help="the same as --model")
    parser.add_argument(
        "--transcribe", default="", metavar="DIR", help="write down the user: a recogniser, or 1"
    )
    parser.add_argument("--tokenizer", metavar="FILE", help="instead of the checkpoint's")
    parser.add_argument("--moshi-weight", metavar="FILE", help="instead of the checkpoint's")
    parser.add_argument("--mimi-weight", metavar="FILE", help="instead of the checkpoint's")
    parser.add_argument("--voice-prompt-dir", metavar="DIR", help="voices from here")
    parser.add_argument(
        "--voice-prompt", "--voice", metavar="NAME", help="with or without .pt, .wav"
    )
    parser.add_argument("--text-prompt", help="who the agent is; empty: nobody in particular")
    parser.add_argument("--say", type=parse_say, action="append", default=[], metavar="FRAME:TEXT")
    parser.add_argument("--temp-text", type=float, default=0.7)
    parser.add_argument("--temp-audio", type=float, default=0.8)
    parser.add_argument("--topk-text", type=int, default=25)
    parser.add_argument("--topk-audio", type=int, default=250)
    parser.add_argument("--greedy", action="store_true")
    parser.add_argument("--seed", type=int, default=-1, help="-1: random")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))


def run(args: argparse.Namespace) -> int:
    with assemble_model(args) as source:
        config = ServerConfig(
            model=source, device=args.device, slots=1, transcribe=args.transcribe, renewal_frames=0
        )
        backend = load_backend(config, lambda phase, percent: None, Voices)
    user = read_wav(args.input_wav)
    speaker = Speaker(backend, args.say)
    start, flushed = make_opening(backend, args), []
    frames = list(drive_conversation(backend, start, split_frames(user), speaker, flushed=flushed))
    pcm = np.concatenate([frame.pcm for frame in frames])[: len(user)]
    write_wav(args.output_wav, pcm)
    said = decode_pieces(frames, backend)
    if backend.transcribes:
        said = {"text": said, "words": collect_words(frames, flushed, backend)}
    text = json.dumps(said, ensure_ascii=False)
    Path(args.output_text).write_text(text + "\n", encoding="utf-8")
    print(f"{len(frames)} frames, {len(pcm) / SAMPLE_RATE:.1f} s -> {args.output_wav}")
    return 0
