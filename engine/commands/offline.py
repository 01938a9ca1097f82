"""`python -m engine offline`: a wav in, what the agent answers out, frame by frame, no server.

The options are those of the reference's offline tool beside ours.
"""

import argparse
import json
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.commands.outputs import SOUND_ENDINGS, check_output, write_output, write_sound
from engine.config import (
    EPAD,
    FRAME_SAMPLES,
    PAD,
    SAMPLE_RATE,
    VOICE_NAMES,
    SamplingConfig,
    ServerConfig,
)
from engine.dialogue.director import Director
from engine.dialogue.events import Say
from engine.dialogue.floor import WordReader, seconds
from engine.dialogue.persona import load_personas, prompt_ids
from engine.dialogue.speech import prepare_command
from engine.errors import ConfigError
from engine.lookup.handover import PieceDecoder
from engine.runtime.backend import Backend, Heard, HeardRow, Opening, Spoken
from engine.runtime.choose import choose_model, load_backend
from engine.runtime.scheduler import heard_row
from engine.weights import hub
from engine.weights.voices import Voices, find_voice, open_voices
from engine.wire.client import read_wav

Direct = Callable[[int, HeardRow, float, float], tuple[int, bool]]
# (sampled token, recogniser's row, peak of the user's frame, peak of the agent's last frame)
# -> (token to feed, whether the frame it belongs to is silenced)


@dataclass(frozen=True, slots=True)
class DrivenFrame:
    """80 ms of a conversation."""

    user_codes: np.ndarray | None  # [8] int64
    sampled_text: int  # what the model picked for this frame
    text: int  # what it was fed
    agent_codes: np.ndarray | None  # [8] int64, delays undone
    pcm: np.ndarray  # [1920] float32
    heard: HeardRow  # the recogniser's step that read the user's part


def undirected(sampled: int, heard: HeardRow, peak_in: float, peak_out: float) -> tuple[int, bool]:
    """The model says what it likes."""
    return sampled, False


def drive_conversation(
    backend: Backend,
    opening: Opening,
    user: Iterable[np.ndarray],
    direct: Direct = undirected,
    slot: int = 0,
    flushed: list[HeardRow] | None = None,
) -> Iterator[DrivenFrame]:
    """Run a slot over frames [1920]; `flushed` gets what the recogniser writes after the last."""
    try:
        for _ in backend.open(slot, opening):
            pass
        silence = np.zeros(FRAME_SAMPLES, np.float32)
        _, _, chosen = drive_tick(backend, slot, silence, direct, peak_out=0.0)  # the bootstrap
        peak_out = 0.0
        for pcm in user:
            held = chosen
            heard, spoken, chosen = drive_tick(backend, slot, pcm, direct, peak_out)
            peak_out = float(np.abs(spoken.pcm[slot]).max())
            yield DrivenFrame(
                user_codes=None if heard.user_codes is None else heard.user_codes[slot],
                sampled_text=held[0],
                text=held[1],
                agent_codes=None if spoken.codes is None else spoken.codes[slot],
                pcm=spoken.pcm[slot].copy(),
                heard=heard_row(heard, slot),
            )
        if opening.transcribe and flushed is not None:
            for _ in range(backend.transcription.flush_steps):
                flushed += backend.flush([slot]).values()
    finally:
        backend.close(slot)


def drive_tick(
    backend: Backend, slot: int, pcm: np.ndarray, direct: Direct, peak_out: float
) -> tuple[Heard, Spoken, tuple[int, int]]:
    """One step of one slot, pcm [1920]; the last part is (sampled, fed) text of the next frame."""
    batch = np.zeros((backend.slots, FRAME_SAMPLES), np.float32)
    active, hush = np.zeros(backend.slots, bool), np.zeros(backend.slots, bool)
    batch[slot], active[slot] = pcm, True
    heard = backend.listen(batch, active)
    sampled = int(heard.text[slot])
    text = np.full(backend.slots, PAD, np.int64)
    peak_in = float(np.abs(pcm).max())
    text[slot], hush[slot] = direct(sampled, heard_row(heard, slot), peak_in, peak_out)
    return heard, backend.speak(text, hush), (sampled, int(text[slot]))


def split_frames(pcm: np.ndarray) -> np.ndarray:
    """Audio [samples] as whole frames [T, 1920], the last one filled with zeros."""
    return np.pad(pcm, (0, -len(pcm) % FRAME_SAMPLES)).reshape(-1, FRAME_SAMPLES)


# -- the command -----------------------------------------------------------------------------------

INT16_MAX = 32767


def make_opening(backend: Backend, args: argparse.Namespace) -> Opening:
    """The conversation that the options describe. Raises ConfigError."""
    voice = resolve_voice(args.voice_prompt, backend.voices)
    persona = load_personas()[0].text if args.text_prompt is None else args.text_prompt
    return Opening(
        voice=voice,
        text_ids=prompt_ids(persona, backend.tokenizer),
        sampling=SamplingConfig(
            text_temperature=0 if args.greedy else args.temp_text,
            audio_temperature=0 if args.greedy else args.temp_audio,
            text_top_k=args.topk_text,
            audio_top_k=args.topk_audio,
        ),
        seed=args.seed if args.seed >= 0 else secrets.randbits(62),
        transcribe=backend.transcribes,
    )


def resolve_voice(wanted: str | None, names: tuple[str, ...]) -> str:
    """The voice that an option means, a path of one too. Raises ConfigError."""
    if not wanted:
        return names[0]
    name = find_voice(Path(wanted).name, names)
    if name is None:
        raise ConfigError(f"voice {wanted!r} not found; use one of {', '.join(names)}")
    return name


def check_voice(args: argparse.Namespace) -> None:
    """Find a wrong --voice before the model is loaded, or fetched. Raises ConfigError."""
    source = choose_model(args.hf_repo or args.model)[0]
    if not args.voice_prompt or args.voice_prompt_dir:
        return
    if source == "embedded":
        resolve_voice(args.voice_prompt, VOICE_NAMES)
    elif folder := hub.find_folder(source, "model", hub.DEFAULT_REPOSITORY):
        resolve_voice(args.voice_prompt, Voices(folder).names)
    else:
        resolve_voice(args.voice_prompt, open_voices(source, None, lambda *_: None).names)


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


def load_model(args: argparse.Namespace, progress: hub.Progress) -> Backend:
    """The model of the options, with one slot, from a folder of links if they replace files."""
    source = choose_model(args.hf_repo or args.model)[0]
    replaced = {
        hub.TEXT_FILE: args.tokenizer,
        hub.LM_FILE: args.moshi_weight,
        hub.MIMI_FILE: args.mimi_weight,
        "voices": args.voice_prompt_dir,
    }
    given = {name: Path(path).resolve() for name, path in replaced.items() if path}
    with tempfile.TemporaryDirectory() as folder:
        if given and source != "embedded":
            original = hub.find(source, None, lambda phase, percent: None)
            files = {path.name: path.resolve() for path in original.iterdir()} | given
            for name, path in files.items():
                if not path.exists():
                    raise ConfigError(f"{path} does not exist; give a file of the checkpoint")
                Path(folder, name).symlink_to(path)
            source = folder
        config = ServerConfig(
            model=source, device=args.device, slots=1, transcribe=args.transcribe, renewal_frames=0
        )
        return load_backend(config, progress)


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
    check_output("--output", args.output_wav, SOUND_ENDINGS)
    check_output("--output-text", args.output_text, ("", ".json", ".txt"))
    user = read_wav(args.input_wav)
    check_voice(args)
    backend = load_model(args, lambda phase, percent: None)
    speaker = Speaker(backend, args.say)
    start, flushed = make_opening(backend, args), []
    frames = list(drive_conversation(backend, start, split_frames(user), speaker, flushed=flushed))
    pcm = np.concatenate([frame.pcm for frame in frames])[: len(user)]
    sound = (np.clip(pcm, -1, 1) * INT16_MAX).astype(np.int16)  # rounded as the reference does
    write_sound("--output", args.output_wav, sound)
    decoder, names = PieceDecoder(), {PAD: "PAD", EPAD: "EPAD"}
    said = [  # one string a frame
        names.get(frame.text) or decoder.feed(backend.tokenizer.piece(frame.text))
        for frame in frames
    ]
    if backend.transcribes:
        said = {"text": said, "words": collect_words(frames, flushed, backend)}
    text = json.dumps(said, ensure_ascii=False)
    write_output(
        "--output-text", args.output_text, lambda file: file.write_text(text + "\n", "utf-8")
    )
    print(f"{len(frames)} frames, {len(pcm) / SAMPLE_RATE:.1f} s -> {args.output_wav}")
    return 0
