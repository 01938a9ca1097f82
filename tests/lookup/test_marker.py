"""The `!!!` marker over sampled tokens: any split, any padding, and what is shown of it."""

import itertools
from pathlib import Path

import pytest

from engine.config import EPAD, PAD
from engine.lookup.handover import BangTidier, MarkerDetector, bang_table
from engine.runtime.embedded import ByteTokenizer

TINY = Path(__file__).parents[1] / "golden" / "tiny" / "tokenizer_spm_32k_3.model"


class Pieces:
    """A tokenizer of a few pieces; ids start behind PAD."""

    def __init__(self, *pieces: str) -> None:
        self._pieces = ("<unk>", "<s>", "</s>", "<pad>", *pieces)

    def __len__(self) -> int:
        return len(self._pieces)

    def piece(self, token: int) -> str:
        return self._pieces[token]

    def encode(self, text: str) -> list[int]:
        return [self._pieces.index(part) for part in text.split()]


SPLITS = ["! ! !", "!! !", "! !!", "!!!", "▁! ! !", "▁!! !", "▁! !!", "▁!!!", "<0x21> ! !", "!!!!"]
TOKENIZER = Pieces(
    "!", "!!", "!!!", "!!!!", "▁!", "▁!!", "▁!!!", "<0x21>", "?!", "▁Wow!", "▁yes", "▁so!!!"
)


def text(tokens: tuple[int, ...]) -> str:
    pieces = (TOKENIZER.piece(token) for token in tokens if token > PAD)
    return "".join(pieces).replace("▁", " ").replace("<0x21>", "!")


def run(
    detector: MarkerDetector, tokens: list[int], armed: bool = True
) -> tuple[list[int], str, int]:
    """(fed, shown, how often it fired) of a run of tokens."""
    fed, shown, fired, tidier = [], "", 0, BangTidier()
    for token in tokens:
        seen = detector.detect(token, armed)
        fed.append(seen.fed)
        fired += seen.fired
        shown += tidier.tidy(text(seen.due))
    return fed, shown + tidier.tidy(text(detector.finish())), fired


def test_the_table_holds_every_piece_that_ends_in_an_exclamation_mark():
    table = bang_table(TOKENIZER)
    found = {TOKENIZER.piece(token): (bang.count, bang.pure) for token, bang in table.items()}
    assert found["▁!!"] == (2, True)
    assert found["<0x21>"] == (1, True)
    assert found["?!"] == (1, False)
    assert found["▁so!!!"] == (3, False)
    assert "▁yes" not in found


def test_the_embedded_tokenizers_own_pieces_are_in_its_table():
    tokenizer = ByteTokenizer()
    table = bang_table(tokenizer)
    for text in ("!", "!!", "!!!", "Wow!!"):
        assert tokenizer.encode(text)[-1] in table


def test_equal_tokenizers_share_one_table():
    assert bang_table(ByteTokenizer()) is bang_table(ByteTokenizer())


def test_the_table_of_a_real_sentencepiece_model_holds_its_bang_and_its_byte():
    from engine.weights.loading import SentencePieceTokenizer

    tokenizer = SentencePieceTokenizer(TINY)
    assert {tokenizer.piece(token) for token in bang_table(tokenizer)} == {"!", "<0x21>"}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("gap", range(7))
@pytest.mark.parametrize("padding", [PAD, EPAD])
def test_every_split_fires_once_with_up_to_six_frames_of_padding_between(split, gap, padding):
    tokens = []
    for token in TOKENIZER.encode(split):
        tokens += [token, *[padding] * gap]
    fed, shown, fired = run(MarkerDetector(TOKENIZER, 3), tokens)
    assert fired == 1
    assert shown.strip("! ") == ""
    assert "!!" not in shown
    assert (
        sum(TOKENIZER.piece(token).count("!") for token in fed) <= 1
    )  # a first single one at most


def test_seven_frames_of_padding_end_a_marker():
    bang = TOKENIZER.encode("!")
    tokens = [*bang, *[PAD] * 7, *bang, *[PAD] * 7, *bang]
    fed, shown, fired = run(MarkerDetector(TOKENIZER, 3), tokens)
    assert (fired, fed) == (0, tokens)
    assert shown == "!"


def test_two_exclamation_marks_pass_as_one():
    fed, shown, fired = run(MarkerDetector(TOKENIZER, 3), TOKENIZER.encode("▁Wow! ! ▁yes"))
    assert (shown, fired) == (" Wow! yes", 0)
    assert fed[1] == PAD


def test_two_are_enough_with_a_threshold_of_two():
    assert run(MarkerDetector(TOKENIZER, 2), TOKENIZER.encode("! !"))[2] == 1


def test_a_mixed_piece_counts_its_own_marks_first():
    assert run(MarkerDetector(TOKENIZER, 3), TOKENIZER.encode("?! !!"))[2] == 1


def test_a_whole_marker_at_the_end_of_a_piece_fires_and_is_not_fed():
    fed, shown, fired = run(MarkerDetector(TOKENIZER, 3), TOKENIZER.encode("▁yes ▁so!!!"))
    assert (fed[1], shown, fired) == (PAD, " yes", 1)


def test_words_between_the_marks_start_the_count_again():
    assert run(MarkerDetector(TOKENIZER, 3), TOKENIZER.encode("! ▁yes ! ▁yes !"))[2] == 0


def test_an_unarmed_marker_passes_as_one_mark_and_is_reported():
    detector = MarkerDetector(TOKENIZER, 3)
    seen = [detector.detect(token, armed=False) for token in TOKENIZER.encode("! ! !")]
    assert [one.fed == PAD for one in seen] == [False, True, True]
    assert [one.swallowed for one in seen] == [False, False, True]
    assert not any(one.fired for one in seen)


def test_an_unarmed_marker_behind_a_text_is_text():
    tokens = TOKENIZER.encode("▁yes ▁so!!!")
    fed, shown, fired = run(MarkerDetector(TOKENIZER, 3), tokens, armed=False)
    assert (fed, shown, fired) == (tokens, " yes so!", 0)


def test_two_markers_in_a_row_fire_twice_if_both_are_armed():
    assert run(MarkerDetector(TOKENIZER, 3), TOKENIZER.encode("!!! ▁yes ! ! !"))[2] == 2


@pytest.mark.parametrize("armed", [True, False])
def test_the_display_never_shows_two_marks_in_a_row(armed):
    pieces = TOKENIZER.encode("! !! ▁! ?! ▁Wow! ▁yes")
    for tokens in itertools.product([*pieces, PAD], repeat=4):
        _, shown, _ = run(MarkerDetector(TOKENIZER, 3), list(tokens), armed)
        assert "!!" not in shown
        assert "! !" not in shown
