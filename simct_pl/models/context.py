"""How long a sequence a model was made for, and whether a prompt leaves room for its response.

In: a model folder or hub name, of which the configuration alone is read. Out: tokens, or what to tell the user.
"""

from __future__ import annotations

from simct_pl.models.loading import load_config

SHORTEN_PROMPTS = "Lower max_tokens, or leave long prompts out (max_prompt_chars)."


def context_length(role: str, path: str, trust_remote_code: bool = False) -> int | None:
    """Longest prompt + response, in the model's tokens; None when its configuration does not say.

    Raises:
        SimctError: see load_config.
    """
    config = load_config(role, path, trust_remote_code)
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def no_room(
    prompt: str,
    num_tokens: int,
    max_tokens: int,
    context: int | None,
    *,
    model: str = "student",
    fix: str = SHORTEN_PROMPTS,
) -> str | None:
    """Why a prompt cannot be answered with max_tokens tokens, in words; None if it can, or nobody knows the context.

    prompt, model: as the sentence names them. num_tokens: of the prompt. fix: what the user can do.
    """
    if context is None or num_tokens + max_tokens <= context:
        return None
    return (
        f"{prompt} has {num_tokens} tokens, and max_tokens={max_tokens}; together they exceed the {model}'s context of "
        f"{context}. {fix}"
    )
