"""Prompts in each model's own chat template, and the tokens that end a turn.

In: messages, tools, and arguments of the template (`enable_thinking`). Out: prompt ids. A prompt is rendered and
tokenised by itself; response ids are appended, and the boundary is never inferred. A templated text already has its
control tokens, so none are added to it (no second BOS).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, TemplateError, meta

from simct_pl.errors import PromptDataError, TokenizerError
from simct_pl.tokenization.bytes import as_bytes
from simct_pl.tokenization.completeness import check_complete
from simct_pl.types import Message, Tool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NO_ARGUMENTS: Mapping[str, Any] = {}
# Variables that every rendering sets itself.
_OURS = {"messages", "add_generation_prompt", "continue_final_message"}
_QUESTION, _ANSWER = "Question 7481.", "Answer 9265."  # words no template contains


def render_prompt(
    tokenizer: PreTrainedTokenizerFast,
    messages: Sequence[Message],
    arguments: Mapping[str, Any] = NO_ARGUMENTS,
    name: str = "the tokenizer",
    tools: Sequence[Tool] = (),
) -> list[int]:
    """Ids of a prompt, up to where the assistant's words begin.

    Without a chat template the contents are joined by line breaks; the tokenizer's own BOS stays, an EOS does not.

    Args:
        arguments: of the template, beside the messages. name: how errors call the tokenizer. tools: that the model may
            call.

    Raises:
        TokenizerError: if the template refuses the messages, for example a system role, or leaves one of them out, a
            call in it or the tools, or UTF-8 cannot write them.
        PromptDataError: if nothing is left to condition on, not even a BOS.
    """
    if tokenizer.chat_template is None:
        _check_plain(messages, tools, name)
        ids = _plain_prompt(tokenizer, "\n".join(message["content"] for message in messages))
    else:
        text = render_text(tokenizer, messages, arguments, name, tools, add_generation_prompt=True)

        def rendered(messages: Sequence[Message], tools: Sequence[Tool]) -> str:
            return render_text(tokenizer, messages, arguments, name, tools, add_generation_prompt=True)

        check_complete(rendered, text, messages, tools, name)
        as_bytes(text)
        ids = tokenizer.encode(text, add_special_tokens=False)
    if not ids:
        raise PromptDataError(f"the messages {list(messages)!r:.80} render to no token; give the prompt some content")
    return ids


def check_arguments(tokenizer: PreTrainedTokenizerFast, arguments: Mapping[str, Any], name: str) -> None:
    """Refuse arguments that the tokenizer's chat template does not use: they would change nothing, unseen.

    Raises:
        TokenizerError: naming the tokenizer and the argument, with the arguments that its template has.
    """
    if not arguments:
        return
    if tokenizer.chat_template is None:
        raise TokenizerError(
            f"{name} has no chat template, so the template arguments {', '.join(sorted(arguments))} change nothing. "
            "Drop them, or give the model a chat_template.jinja."
        )
    variables = _template_variables(tokenizer, name)
    for argument in arguments:
        if argument in _OURS:
            raise TokenizerError(f"The template argument {argument!r} of {name} is set by each rendering; drop it.")
        if argument not in variables:
            near = difflib.get_close_matches(argument, variables, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise TokenizerError(
                f"The chat template of {name} does not use the argument {argument!r}; it has "
                f"{', '.join(sorted(variables)) or 'none'}.{hint} Correct or drop it, or change the chat template."
            )


def _template_variables(tokenizer: PreTrainedTokenizerFast, name: str) -> set[str]:
    """What a template reads and does not make itself, without what is always there: messages, special tokens, range."""
    environment = Environment(extensions=["jinja2.ext.loopcontrols"])  # parses alone; nothing is rendered by it
    source = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", str(tokenizer.get_chat_template()))
    try:
        found = meta.find_undeclared_variables(environment.parse(source))
    except TemplateError as error:
        raise TokenizerError(f"The chat template of {name} cannot be read: {error}. Correct it.") from error
    always = {*_OURS, *environment.globals, *tokenizer.special_tokens_map, "raise_exception", "strftime_now"}
    return {variable for variable in found - always if not variable.endswith("_token")}


def find_stop_ids(
    tokenizer: PreTrainedTokenizerFast,
    generation_stop_ids: Sequence[int] = (),
    arguments: Mapping[str, Any] = NO_ARGUMENTS,
) -> tuple[int, ...]:
    """Every id that ends a turn, the primary one first, none twice; empty if there is none.

    The primary is the control token right after an assistant's words in the chat template: `<|im_end|>`,
    `<end_of_turn>` or `<|end|>` is often not the tokenizer's eos. Then come the eos ids of the generation config,
    then the tokenizer's eos.
    """
    found = [*_template_stop(tokenizer, arguments), *generation_stop_ids]
    if tokenizer.eos_token_id is not None:
        found.append(tokenizer.eos_token_id)
    # A generation config may name rows of a padded embedding that the tokenizer does not have.
    known = [token_id for token_id in found if tokenizer.backend_tokenizer.id_to_token(token_id) is not None]
    return tuple(dict.fromkeys(known))


def _template_stop(tokenizer: PreTrainedTokenizerFast, arguments: Mapping[str, Any]) -> list[int]:
    """The added token that the template puts right after the last assistant message, if any."""
    if tokenizer.chat_template is None:
        return []
    turns = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = render_text(tokenizer, turns, arguments, "the tokenizer", add_generation_prompt=False)
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


def with_shown_messages(messages: Sequence[Message], shown: Sequence[Message]) -> list[Message]:
    """The messages behind others: a system message joins in front of the one that is there, the rest comes after it."""
    num_system = int(bool(messages) and messages[0]["role"] == "system")
    instructions = shown[0]["content"] if shown and shown[0]["role"] == "system" else None
    rest = shown if instructions is None else shown[1:]
    return with_system_prompt([*messages[:num_system], *rest, *messages[num_system:]], instructions)


def render_text(
    tokenizer: PreTrainedTokenizerFast,
    messages: Sequence[Message],
    arguments: Mapping[str, Any],
    name: str,
    tools: Sequence[Tool] = (),
    *,
    add_generation_prompt: bool,
) -> str:
    """Messages and tools as the chat template writes them.

    Raises:
        TokenizerError: if it refuses them.
    """
    if tools and "tools" in arguments:
        raise TokenizerError(f"tools are a template argument of {name}, and the rows have theirs; drop one.")
    options: dict[str, Any] = {**arguments, "tools": list(tools)} if tools else dict(arguments)
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt, **options
        )
    # A template is a program; TypeError is what it raises on None + str, ValueError on tools that are none.
    except (TemplateError, TypeError, ValueError) as error:
        fix = "Check the roles and their order, or change the model's chat template."
        if any(message["role"] == "system" for message in messages):
            fix = "If it takes no system role, drop the system prompt or put its text into the first user message."
        roles = [message["role"] for message in messages]
        if tools or "tool" in roles or any(message.get("tool_calls") for message in messages):
            fix += " If it takes no tools, no calls of them or no results, leave such rows out or change the template."
        given = "".join(f", {argument}={value!r:.40}" for argument, value in arguments.items())
        given += f", and {len(tools)} tools" if tools else ""
        raise TokenizerError(
            f"The chat template of {name} refuses messages with the roles {roles}{given}: {error}. {fix}"
        ) from error
    return str(text)


def _check_plain(messages: Sequence[Message], tools: Sequence[Tool], name: str) -> None:
    """Contents alone can say nothing of tools."""
    if tools or any(message.get("tool_calls") for message in messages):
        raise TokenizerError(
            f"{name} has no chat template, and a prompt without one can hold neither tools nor calls of them. Give the "
            "model a chat_template.jinja that takes tools, or leave such rows out."
        )


def _plain_prompt(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    as_bytes(text)
    ids = tokenizer.encode(text, add_special_tokens=True)
    if ids and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]
    return ids
