"""Frames of a conversation: what belongs together leaves together."""

import numpy as np

from engine.commands.offline import drive_conversation, split_frames
from engine.config import FRAME_SAMPLES, GREEDY
from engine.runtime.backend import Opening
from engine.runtime.personaplex import PersonaPlexBackend
from tests.runtime.playing import audio


def test_the_text_of_a_frame_is_the_one_fed_a_tick_earlier(thin):
    fed = []

    def direct(sampled, heard, peak_in, peak_out):
        fed.append((sampled, 40 + len(fed)))
        return fed[-1][1], False

    backend = PersonaPlexBackend(thin, slots=1)
    frames = list(drive_conversation(backend, Opening("TINYF0", (), GREEDY), audio(1, 5), direct))
    assert [(f.sampled_text, f.text) for f in frames] == fed[:5]
    assert len(fed) == 6  # the last one belongs to a frame that never came


def test_a_director_hears_how_loud_both_sides_are(thin):
    heard = []

    def direct(sampled, row, peak_in, peak_out):
        heard.append((peak_in, peak_out))
        return sampled, False

    backend, user = PersonaPlexBackend(thin, slots=1), audio(1, 4)
    frames = list(drive_conversation(backend, Opening("TINYF0", (), GREEDY), user, direct))
    loud_in = [0.0, *np.abs(user).max(1).tolist()]
    loud_out = [0.0, 0.0, *(float(np.abs(f.pcm).max()) for f in frames[:-1])]
    assert heard == list(zip(loud_in, loud_out, strict=True))


def test_audio_is_cut_into_whole_frames_filled_with_zeros():
    frames = split_frames(np.ones(FRAME_SAMPLES + 1, np.float32))
    assert frames.shape == (2, FRAME_SAMPLES)
    assert frames[1].sum() == 1
    assert split_frames(np.ones(FRAME_SAMPLES, np.float32)).shape == (1, FRAME_SAMPLES)
