"""Prompts in each model's own chat template, and the tokens that end a turn.

In: messages. Out: prompt ids. A prompt is rendered and tokenised by itself; response ids are appended, and the
boundary is never inferred. A templated text already has its control tokens, so none are added to it (no second BOS).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from simct_pl.errors import PromptDataError, TokenizerError
from simct_pl.tokenization.bytes import as_bytes
from simct_pl.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_QUESTION, _ANSWER = "Question 7481.", "Answer 9265."  # words no template contains


def render_prompt(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message]) -> list[int]:
    """Ids of a prompt, up to where the assistant's words begin.

    Without a chat template the contents are joined by line breaks; the tokenizer's own BOS stays, an EOS does not.

    Raises:
        TokenizerError: if the template refuses the messages, for example a system role, or UTF-8 cannot write them.
        PromptDataError: if nothing is left to condition on, not even a BOS.
    """
    if tokenizer.chat_template is None:
        ids = _plain_prompt(tokenizer, "\n".join(message["content"] for message in messages))
    else:
        text = _render(tokenizer, list(messages), add_generation_prompt=True)
        as_bytes(text)
        ids = tokenizer.encode(text, add_special_tokens=False)
    if not ids:
        raise PromptDataError(f"the messages {list(messages)!r:.80} render to no token; give the prompt some content")
    return ids


def find_stop_ids(tokenizer: PreTrainedTokenizerFast, generation_stop_ids: Sequence[int] = ()) -> tuple[int, ...]:
    """Every id that ends a turn, the primary one first, none twice; empty if there is none.

    The primary is the control token right after an assistant's words in the chat template: `<|im_end|>`,
    `<end_of_turn>` or `<|end|>` is often not the tokenizer's eos. Then come the eos ids of the generation config,
    then the tokenizer's eos.
    """
    found = [*_template_stop(tokenizer), *generation_stop_ids]
    if tokenizer.eos_token_id is not None:
        found.append(tokenizer.eos_token_id)
    # A generation config may name rows of a padded embedding that the tokenizer does not have.
    known = [token_id for token_id in found if tokenizer.backend_tokenizer.id_to_token(token_id) is not None]
    return tuple(dict.fromkeys(known))


def _template_stop(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The added token that the template puts right after the last assistant message, if any."""
    if tokenizer.chat_template is None:
        return []
    turns = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = _render(tokenizer, turns, add_generation_prompt=False)
    except TokenizerError:  # a template that takes other messages only; the other sources remain
        return []
    # Whatever the template writes behind the answer: its first token is the stop, if it is a control token at all.
    _, found, after = text.rpartition(_ANSWER)
    ids = tokenizer.encode(after.lstrip(), add_special_tokens=False) if found else []
    return [token_id for token_id in ids[:1] if token_id in tokenizer.added_tokens_decoder]


def with_system_prompt(messages: Sequence[Message], system_prompt: str | None) -> list[Message]:
    """The messages behind a system prompt, which goes in front of a system message that is already there."""
    messages = list(messages)
    if system_prompt is None:
        return messages
    if messages and messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{system_prompt}\n\n{messages[0]['content']}"}, *messages[1:]]
    return [{"role": "system", "content": system_prompt}, *messages]


def _render(tokenizer: PreTrainedTokenizerFast, messages: list[Message], add_generation_prompt: bool) -> str:
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except (TemplateError, TypeError) as error:  # a template is a program; TypeError is what it raises on None + str
        fix = "Check the roles and their order, or change the model's chat template."
        if any(message["role"] == "system" for message in messages):
            fix = "If it takes no system role, drop the system prompt or put its text into the first user message."
        roles = [message["role"] for message in messages]
        raise TokenizerError(f"the chat template refuses messages with the roles {roles}: {error}. {fix}") from error
    return str(text)


def _plain_prompt(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    as_bytes(text)
    ids = tokenizer.encode(text, add_special_tokens=True)
    if ids and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]
    return ids
