"""Where thinking ends: in texts, and in sampled ids of several tokenizers."""

from __future__ import annotations

import pytest

from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.tokenization.thinking import answer_start, num_thinking_tokens
from tests.tokenization import small

MODELS = {
    "an added token": small.byte_level(added=("<think>", "</think>")),
    "a control token": small.byte_level(special=("<think>", "</think>"), added=(), eos=None),
    "letters": small.byte_level(added=()),
    "a dummy prefix": small.sentencepiece_bpe(),
}


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<think>the</think>hello", "hello"),
        ("\n<think>\nthe\n</think>\n\nhello </think> world", "hello </think> world"),
        ("hello", "hello"),
        ("hello <think>the</think>world", "hello <think>the</think>world"),
        ("</think>hello", "</think>hello"),
        ("<think>the", ""),
        ("<think>the</think>\n", ""),
        ("", ""),
    ],
)
def test_the_answer_begins_behind_the_closing_mark(response: str, answer: str) -> None:
    assert response.encode()[answer_start(response.encode()) :] == answer.encode()


@pytest.mark.parametrize("hf", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("text", ["<think>the 12</think>", "<think></think>\n\n", "<think>é\n</think> "])
def test_in_tokens(hf, text: str) -> None:  # type: ignore[no-untyped-def]
    tokenizer = ModelTokenizer(hf)
    thought, answer = (hf.encode(part, add_special_tokens=False) for part in (text, "hello"))
    if tokenizer.table.dummy_prefix:
        answer = answer[1:]
    ids = [*thought, *answer]
    num = num_thinking_tokens(tokenizer.table, [], ids)
    assert tokenizer.table.join(ids[num:]).lstrip() == b"hello"
    assert tokenizer.table.join(ids[:num]).strip().endswith(b"</think>")
    assert num_thinking_tokens(tokenizer.table, [], answer) == 0
    cut = hf.encode("<think>the", add_special_tokens=False)
    assert num_thinking_tokens(tokenizer.table, [], cut) == len(cut), "cut in the middle"


@pytest.mark.parametrize("hf", MODELS.values(), ids=MODELS)
def test_the_prompt_may_have_opened_it(hf) -> None:  # type: ignore[no-untyped-def]
    tokenizer = ModelTokenizer(hf)
    opened, closed = (hf.encode(f"hello{end}\n", add_special_tokens=False) for end in ("<think>", "<think></think>"))
    ids = hf.encode("the</think>hello", add_special_tokens=False)
    num = num_thinking_tokens(tokenizer.table, opened, ids)
    assert tokenizer.table.join(ids[num:]).lstrip() == b"hello"
    assert num_thinking_tokens(tokenizer.table, closed, ids) == 0


def test_a_token_across_the_end_is_thinking_and_ids_without_bytes_do_not_shift_it() -> None:
    hf = small.byte_level(words=("hello", ">h", "ello"), added=())
    tokenizer = ModelTokenizer(hf)
    across = [*tokenizer.encode("<think></think"), hf.convert_tokens_to_ids(">h"), *tokenizer.encode("ello")]
    assert num_thinking_tokens(tokenizer.table, [], across) == len(across) - 1
    padded = [len(tokenizer.table) + 7, *across]
    assert num_thinking_tokens(tokenizer.table, [], padded) == len(across)
