"""The conversation that precisions are compared in: a real opening, and exactly what was said."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from engine.bench import drift
from engine.bench.drift import (
    TURN_FRAMES,
    ForcedConversation,
    force_columns,
    hold_conversation,
    make_user_frames,
)
from engine.config import GREEDY
from engine.weights.loading import load_checkpoint

TINY = Path(__file__).parents[1] / "golden" / "tiny"


@pytest.fixture(scope="module")
def checkpoint():
    torch.set_num_threads(1)
    return load_checkpoint(str(TINY))


@pytest.mark.parametrize("voice", ["TINYF0", "TINYM0"])
def test_what_a_greedy_agent_said_is_the_first_choice_of_the_model_that_is_forced(
    checkpoint, monkeypatch, voice
):
    """Only where it meets exactly what the agent met: prompt, user, delays, and all before."""
    shelf = SimpleNamespace(
        names=(voice,), path=checkpoint.voices.path, audio=checkpoint.voices.audio
    )
    talked = hold_conversation(replace(checkpoint, voices=shelf), 60, GREEDY)
    columns = talked.columns
    forced = force_columns(checkpoint.lm, columns, None, talked.before)
    assert torch.equal(forced.text.argmax(-1)[:-1], columns[1:, 0])
    assert torch.equal(forced.audio.argmax(-1), columns[1:, 1:9])
    assert columns[:, 0].unique().numel() > 5
    assert len(talked.before) > 80


def test_every_frame_meets_the_whole_conversation_before_it(checkpoint):
    talked = hold_conversation(checkpoint, 20, GREEDY)
    logits = force_columns(checkpoint.lm, talked.columns, None, talked.before).text
    without_prompt = force_columns(checkpoint.lm, talked.columns).text
    alone = force_columns(checkpoint.lm, talked.columns[-1:]).text
    assert not torch.allclose(logits, without_prompt, atol=1e-3)
    assert not torch.allclose(without_prompt[-1:], alone, atol=1e-3)


def test_the_user_asks_and_waits_two_turns_in_each_block_of_a_verdict():
    assert drift.LEAST_FRAMES == 2 * drift.BLOCKS * TURN_FRAMES
    frames = make_user_frames(drift.LEAST_FRAMES)
    assert frames.shape == (3000, 1920)
    loud = (np.abs(frames).max(1) > 0.01).reshape(-1, TURN_FRAMES)
    assert loud[:, :20].mean() > 0.8
    assert not loud[:, -75:].any()
    assert make_user_frames(12).shape == (12, 1920)


def test_padding_and_its_end_are_no_text():
    columns = torch.tensor([[3, 9], [0, 9], [7, 9], [3, 9]])
    assert ForcedConversation(torch.empty(0), columns, torch.empty(0)).spoken == 0.25
