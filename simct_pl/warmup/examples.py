"""Prompts with the data's answers in; token ids, and which of them are to be learned, out.

The answer that a conversation ends with is tokenised by itself behind its prompt, as it will be sampled. Of whole
conversations (supervised_turns: all), and of answers that call tools, which only a chat template can write, the turns
are found in the rendered whole (tokenization/turns.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from simct_pl.errors import PromptDataError, TokenizerError
from simct_pl.models.cross_entropy import NO_TARGET
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.tokenization.thinking import CLOSE, Thinking, answer_start, num_thinking_tokens, opens_thinking
from simct_pl.tokenization.turns import SupervisedTurns, assistant_turns
from simct_pl.types import Message, Prompt
from simct_pl.warmup.supervised import Example, targets, with_thinking


def examples_of(
    prompts: Sequence[Prompt],
    tokenizer: ModelTokenizer,
    thinking: Thinking = "supervised",
    supervised_turns: SupervisedTurns = "last",
) -> list[Example]:
    """Prompts in the model's own template, with what is to be learned of them and the stop that ends each turn.

    supervised_turns: the last answer alone is learned, or every turn of the assistant's.

    Raises:
        PromptDataError: naming a prompt that has no answer. TokenizerError: naming one whose template refuses it.
    """
    if supervised_turns == "all":
        return [_of_conversation(prompt, tokenizer, thinking, "all") for prompt in prompts]
    plain = iter(_of_responses([prompt for prompt in prompts if prompt.reply is None], tokenizer, thinking))
    return [
        next(plain) if prompt.reply is None else _of_conversation(prompt, tokenizer, thinking, "last")
        for prompt in prompts
    ]


def _of_responses(prompts: Sequence[Prompt], tokenizer: ModelTokenizer, thinking: Thinking) -> list[Example]:
    prompts_ids = [tokenizer.render(prompt) for prompt in prompts]
    prompts = [
        with_thinking(prompt, thinking, opens_thinking(tokenizer.table, prompt_ids))
        for prompt, prompt_ids in zip(prompts, prompts_ids, strict=True)
    ]
    # The response is tokenised by itself, as it will be sampled, and the stop is one of its tokens to learn.
    responses_ids = tokenizer.encode_batch([prompt.response or "" for prompt in prompts])
    stop = tokenizer.stop_ids[0]
    return [
        Example(prompt_ids, [*ids, stop], targets(prompt, ids, tokenizer))
        for prompt, prompt_ids, ids in zip(prompts, prompts_ids, responses_ids, strict=True)
    ]


def _of_conversation(prompt: Prompt, tokenizer: ModelTokenizer, thinking: Thinking, which: SupervisedTurns) -> Example:
    """From the first turn that is learned to the end of the last; what lies between turns is read, not predicted."""
    if prompt.unsupervised_spans:
        raise PromptDataError(
            f"Prompt {prompt.index} has unsupervised_spans, bytes of its response, which cannot be told in a rendered "
            "conversation. Take supervised_turns: last, and responses that are texts."
        )
    try:
        messages = list(prompt.conversation)
        if thinking == "left_out":
            messages = _without_thinking(messages, opens_thinking(tokenizer.table, tokenizer.render(prompt)))
        found = assistant_turns(tokenizer, messages, prompt.tools, which)
    except (PromptDataError, TokenizerError) as error:
        raise type(error)(f"Prompt {prompt.index}: {error}") from error
    first = found.spans[0][0]
    target_ids = [NO_TARGET] * (len(found.ids) - first)
    for start, end in found.spans:
        if thinking == "skipped":
            start += _thinking(prompt, tokenizer, found.ids[:start], found.ids[start : end - 1])
        target_ids[start - first : end - first] = found.ids[start:end]
    return Example(found.ids[:first], found.ids[first:], target_ids, num_read=found.spans[-1][0] - first)


def _thinking(prompt: Prompt, tokenizer: ModelTokenizer, before_ids: list[int], turn_ids: list[int]) -> int:
    """Tokens of a turn before its answer."""
    num = num_thinking_tokens(tokenizer.table, before_ids, turn_ids)
    if 0 < num == len(turn_ids):
        raise PromptDataError(
            f"A turn of prompt {prompt.index} is all thinking; with thinking=skipped nothing of it would be learned. "
            "Leave such rows out, or supervise the thinking."
        )
    return num


def _without_thinking(messages: Sequence[Message], is_open: bool) -> list[Message]:
    """The assistant's messages as they answer. is_open: prompts end with the opening mark."""
    found = []
    for message in messages:
        content = message["content"].encode()
        if message["role"] != "assistant" or not content:
            found.append(message)
            continue
        answer = content[answer_start(content, is_open and CLOSE in content) :].decode()
        if not answer and not message.get("tool_calls"):
            raise PromptDataError(
                f"the assistant's turn {message['content']!r:.60} is all thinking; with thinking=left_out nothing "
                "of it would be learned. Leave such rows out, or supervise the thinking."
            )
        found.append({**message, "content": answer})
    return found
