"""Where an assistant's turns lie in a whole conversation, in tokens: what supervised fine-tuning learns of it.

In: messages and tools. Out: the ids of all of it, and the span of each turn, its stop last. A turn is found without
looking for words: the conversation in front of it, rendered as a prompt, and the conversation up to its end, rendered
by itself, must both be beginnings of the whole, in text and in tokens. So what is learned is exactly what the model is
asked for, and what it reads before. A template that writes a turn otherwise once others follow (Qwen3's leaves out
earlier thinking) has no such whole, and is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

from simct_pl.errors import PromptDataError, TokenizerError
from simct_pl.tokenization.bytes import as_bytes
from simct_pl.tokenization.chat import render_text
from simct_pl.tokenization.completeness import check_complete, says
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.types import Message, Tool

SupervisedTurns = Literal["last", "all"]
TURNS: tuple[SupervisedTurns, ...] = ("last", "all")
FIX = (
    "Take supervised_turns: last, with a row for each turn that is to be learned, or give the model a chat template "
    "that writes a turn the same way wherever it stands."
)


@dataclass(frozen=True)
class AssistantTurns:
    """ids: of the conversation, up to the end of the last turn. spans: [start, end) of each turn; its stop is last."""

    ids: list[int]
    spans: tuple[tuple[int, int], ...]


def assistant_turns(
    tokenizer: ModelTokenizer, messages: Sequence[Message], tools: Sequence[Tool] = (), which: SupervisedTurns = "all"
) -> AssistantTurns:
    """The turns of an assistant, in order; what follows the last of them is left out.

    which: of all of them, or of the last. A message that the conversation begins with answers nothing, and is no turn.

    Raises:
        TokenizerError: if the chat template refuses the messages, leaves something out, or has no whole that the turns
            can be found in exactly; it says which turn, and why.
        PromptDataError: for messages without an assistant's turn, or with a stop inside one.
    """
    if tokenizer.hf.chat_template is None:
        raise TokenizerError(
            f"{tokenizer.name} has no chat template, so nothing tells one turn from the next. Take supervised_turns: "
            "last, or give the model a chat_template.jinja."
        )
    places = [place for place, message in enumerate(messages) if place and message["role"] == "assistant"]
    if not places:
        raise PromptDataError("the conversation has no assistant's turn to learn from; leave such rows out.")
    rendering = _Rendering(tokenizer, list(messages[: places[-1] + 1]), tools)
    spans = [rendering.span(place) for place in (places if which == "all" else places[-1:])]
    return AssistantTurns(rendering.ids[: spans[-1][1]], tuple(spans))


class _Rendering:
    """A conversation that ends with an assistant's turn, rendered as a whole."""

    def __init__(self, tokenizer: ModelTokenizer, messages: list[Message], tools: Sequence[Tool]) -> None:
        self.tokenizer, self.messages, self.tools = tokenizer, messages, tools
        self.text = self._text(messages, tools)
        check_complete(self._text, self.text, messages, tools, tokenizer.name)
        self.ids = self._encode(self.text)
        self.found = (0, 0)  # characters and tokens up to the end of the last turn that was found

    def span(self, place: int) -> tuple[int, int]:
        """[start, end) of the turn that is the message at this place, its stop last."""
        message, turn = self.messages[place], f"the assistant's turn in message {place + 1} of {len(self.messages)}"
        before = self._text(self.messages[:place], self.tools, add_generation_prompt=True)
        after = self._text(self.messages[: place + 1], self.tools).rstrip()  # what a template writes behind the stop
        if not self.text.startswith(before):
            self._refuse(turn, "its prompt is not how the whole begins: something in front of it is written otherwise")
        if not self.text.startswith(after):
            self._refuse(turn, "it is written otherwise once messages follow, as where earlier thinking is left out")
        if not says(after[len(before) :], message["content"]):
            self._refuse(turn, f"not all its words are in there, {message['content']!r:.60}")
        # Tokens, too: a token that reaches over an edge would be half prompt, half answer.
        start, end = self._tokens(before), self._tokens(after)
        if start is None or end is None:
            self._refuse(turn, "a token reaches over its beginning or its end")
        stops = set(self.tokenizer.stop_ids)
        if self.ids[end - 1] not in stops:
            self._refuse(turn, "no stop ends it")
        if stops.intersection(self.ids[start : end - 1]):
            raise PromptDataError(
                f"{turn} has a stop among its words, {message['content']!r:.60}; the model would be cut there. Leave "
                "such rows out."
            )
        self.found = len(after), end
        return start, end

    def _tokens(self, beginning: str) -> int | None:
        """How many tokens a beginning of the text has; None if they are not how the whole begins."""
        # What is behind a stop does not depend on what is in front of it, so that long conversations need not be read
        # again and again. A few tokenizers differ there (they begin with a space): then all of it is read.
        for num_chars, num_tokens in (self.found, (0, 0)):
            ids = self._encode(beginning[num_chars:])
            if self.ids[num_tokens : num_tokens + len(ids)] == ids:
                return num_tokens + len(ids)
        return None

    def _text(self, messages: Sequence[Message], tools: Sequence[Tool], add_generation_prompt: bool = False) -> str:
        of = self.tokenizer
        return render_text(of.hf, messages, of.template, of.name, tools, add_generation_prompt=add_generation_prompt)

    def _encode(self, text: str) -> list[int]:
        as_bytes(text)
        ids: list[int] = self.tokenizer.hf.encode(text, add_special_tokens=False)
        return ids

    def _refuse(self, turn: str, why: str) -> NoReturn:
        raise TokenizerError(
            f"The chat template of {self.tokenizer.name} does not say exactly where {turn} is: {why}. {FIX}"
        )
