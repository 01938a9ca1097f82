"""What was said in a conversation, both sides, as far as the text model may be told.

The agent's side is what was really spoken: it is fed from the words begun, not from the texts
that were planned.
"""

from collections import deque
from dataclasses import dataclass

MAX_TURNS = 20  # kept
SENT_TURNS = 8
SENT_CHARS = 1500


@dataclass(slots=True)
class Turn:
    """One side's words until the other spoke."""

    role: str  # `user` or `assistant`, as the API calls them
    text: str


class History:
    """The last turns of both sides."""

    def __init__(self) -> None:
        self._turns: deque[Turn] = deque(maxlen=MAX_TURNS)

    def user(self, text: str) -> None:
        """A whole turn of the user."""
        self._turns.append(Turn("user", text.strip()))

    def agent(self, text: str) -> None:
        """A piece of what the agent says."""
        if not self._turns or self._turns[-1].role != "assistant":
            self._turns.append(Turn("assistant", ""))
        self._turns[-1].text += text

    def forget(self) -> None:
        self._turns.clear()

    def messages(self) -> list[dict[str, str]]:
        """The last turns, the oldest first, in the form of the chat API."""
        messages, chars = [], 0
        for turn in list(self._turns)[-SENT_TURNS:][::-1]:
            text = " ".join(turn.text.split())
            chars += len(text)
            if chars > SENT_CHARS:
                break
            if text:
                messages.append({"role": turn.role, "content": text})
        return messages[::-1]
