"""What a row holds as a conversation: a text, chat messages or ShareGPT turns in; messages out, texts with a role each.

The answer that a conversation ends with is no part of the prompt: it comes apart, as a reference response. What else a
message may hold (calls of tools, and whose result it is) is kept; what would change it and is not read is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from simct_pl.data.tools import read_tool_calls, said_in
from simct_pl.errors import PromptDataError, TokenizerError
from simct_pl.tokenization.bytes import as_bytes
from simct_pl.types import Message

ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", **{role: role for role in ROLES}}
CALLS = "tool_calls"
OF_RESULTS = ("tool_call_id", "name")  # of the role tool
# What would be part of an assistant's turn, and how it is written instead.
UNREAD = {
    "function_call": "tool_calls: [{function: {name, arguments}}]",
    "reasoning_content": "<think> … </think> in front of the content",
}
TEXT = "text"  # the type of a content's part that is read
FIX = "Correct prompt_field (teacher_field), or convert or leave out such rows."


def read_messages(place: str, value: Any) -> list[Message]:
    """A field's value as messages, never none.

    value: a text; a list of {"role", "content"}, whose content is a text or a list of {"type": "text", "text"} parts,
    which are put together; or a list of ShareGPT's {"from", "value"}. An assistant's message may have tool_calls, and
    then no content. place: what errors call the field.

    Raises:
        PromptDataError: for anything else, and for contents that say nothing.
    """
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value or not all(isinstance(message, Mapping) for message in value):
        raise PromptDataError(
            f"{place} is {value!r:.80}; expected a text, or a list of messages with 'role' and 'content' (or 'from' "
            f"and 'value'). {FIX}"
        )
    # One way of writing for the whole conversation: in a mix, one half's keys would be left out unseen.
    is_sharegpt = [_has(message, "from") and not _has(message, "role") for message in value]
    if any(is_sharegpt) and not all(is_sharegpt):
        raise PromptDataError(f"{place} mixes messages with 'role' and with 'from'; write all of them one way. {FIX}")
    messages = [_message(place, message, *_keys(is_sharegpt[0])) for message in value]
    if not any(said_in(message).strip() for message in messages):
        raise PromptDataError(f"{place} is {value!r:.80}, which says nothing; expected some text. {FIX}")
    return messages


def split_answer(messages: Sequence[Message]) -> tuple[list[Message], Message | None]:
    """(what is asked, the assistant's message if the conversation ends with one)."""
    if messages[-1]["role"] != "assistant":
        return list(messages), None
    return list(messages[:-1]), messages[-1]


def check_text(place: str, text: str) -> None:
    """Refuse a text that is none.

    Raises:
        PromptDataError: for half a character, which JSON can write and no tokenizer reads.
    """
    try:
        as_bytes(text)
    except TokenizerError as error:
        raise PromptDataError(f"{place}: {error} Or leave out such rows.") from error


def _keys(is_sharegpt: bool) -> tuple[str, str, Mapping[str, str]]:
    """(name of the role, name of the content, what the roles mean)."""
    return ("from", "value", SHAREGPT_ROLES) if is_sharegpt else ("role", "content", {role: role for role in ROLES})


def _has(message: Mapping[str, Any], key: str) -> bool:
    """Whether a key is set: tables fill up what only some of their rows have."""
    return message.get(key) is not None


def _message(
    place: str, message: Mapping[str, Any], role_key: str, content_key: str, roles: Mapping[str, str]
) -> Message:
    for key, fix in UNREAD.items():
        if message.get(key):
            raise PromptDataError(f"{place} has a message with {key!r}, which is not read; write it as {fix}. {FIX}")
    calls = message.get(CALLS)
    for key in (role_key, content_key):
        # Whoever calls a tool need not say anything.
        if not _has(message, key) and not (key == content_key and calls and message[role_key] == "assistant"):
            raise PromptDataError(
                f"{place} has a message without {key!r} ({dict(message)!r:.80}); expected a text, or a list of "
                f"messages with {role_key!r} and {content_key!r}. {FIX}"
            )
    role = message[role_key]
    if not isinstance(role, str) or role not in roles:
        raise PromptDataError(f"{place} has the role {role!r:.40}; expected one of {', '.join(sorted(roles))}. {FIX}")
    content = message.get(content_key)
    found: Message = {"role": roles[role], "content": _content_text(place, "" if content is None else content)}
    if calls:
        if found["role"] != "assistant":
            raise PromptDataError(f"{place} has {CALLS} in a message of the role {role!r}; an assistant calls. {FIX}")
        found[CALLS] = read_tool_calls(place, calls)
    if found["role"] == "tool":
        found |= {key: str(message[key]) for key in OF_RESULTS if _has(message, key)}
    check_text(place, said_in(found))
    return found


def _content_text(place: str, content: Any) -> str:
    """A message's content, its parts put together as chat templates do: with nothing between them."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise PromptDataError(
            f"{place} has the content {content!r:.80}; expected a text, or a list of text parts. {FIX}"
        )
    # A picture that is left out would change what the rest asks: refused, not skipped.
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("text") if isinstance(part, Mapping) else None
        if kind != TEXT or not isinstance(text, str):
            found = f"a part of type {kind!r}" if kind not in (None, TEXT) else f"the part {part!r:.80}"
            raise PromptDataError(
                f'{place} has {found}; only {{"type": "text", "text": …}} is read: models get texts. {FIX}'
            )
        texts.append(text)
    return "".join(texts)
