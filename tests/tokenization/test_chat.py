"""Prompts in each model's own template, and the tokens that end its turn."""

from __future__ import annotations

import pytest
from tokenizers.processors import TemplateProcessing

from simct_pl.errors import TokenizerError
from simct_pl.tokenization.chat import find_stop_ids, render_prompt, with_system_prompt
from tests.tokenization import small
from tests.tokenization.real import real_tokenizer

QUESTION = [{"role": "user", "content": "hello"}]
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + (
    small.CHATML
)


def _with_bos(hf, eos: bool = False):
    """Make encoding add `<|im_start|>` in front, as Gemma's and Llama's add their BOS, and perhaps an end."""
    specials = [(token, hf.convert_tokens_to_ids(token)) for token in ("<|im_start|>", "<|endoftext|>")]
    single = "<|im_start|> $A" + (" <|endoftext|>" if eos else "")
    hf.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=specials)
    return hf


def test_the_models_own_template_is_used() -> None:
    hf = small.byte_level(chat_template=small.CHATML)
    ids = render_prompt(hf, QUESTION)
    assert hf.decode(ids) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert ids[0] == hf.convert_tokens_to_ids("<|im_start|>"), "control tokens are tokens, not text"


def test_a_templated_prompt_has_one_bos() -> None:
    hf = _with_bos(small.byte_level(chat_template=small.CHATML))
    ids = render_prompt(hf, QUESTION)
    assert ids == render_prompt(small.byte_level(chat_template=small.CHATML), QUESTION)


def test_without_a_template_the_bos_stays_and_the_eos_goes() -> None:
    hf = _with_bos(small.byte_level(), eos=True)
    ids = render_prompt(hf, [*QUESTION, {"role": "user", "content": "world"}])
    assert hf.convert_ids_to_tokens(ids[:1]) == ["<|im_start|>"]
    assert hf.decode(ids[1:]) == "hello\nworld"


def test_system_prompt_goes_in_front() -> None:
    hf = small.byte_level(chat_template=small.CHATML)
    text = hf.decode(render_prompt(hf, with_system_prompt(QUESTION, "Be brief.")))
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhello")
    merged = hf.decode(
        render_prompt(hf, with_system_prompt([{"role": "system", "content": "Add."}, *QUESTION], "Be brief."))
    )
    assert merged.startswith("<|im_start|>system\nBe brief.\n\nAdd.<|im_end|>")
    assert merged.count("system") == 1
    assert hf.decode(render_prompt(small.byte_level(), with_system_prompt(QUESTION, "Be brief."))) == "Be brief.\nhello"


def test_messages_are_not_changed() -> None:
    messages = [{"role": "system", "content": "Add."}]
    render_prompt(small.byte_level(chat_template=small.CHATML), with_system_prompt(messages, "Be brief."))
    assert messages == [{"role": "system", "content": "Add."}]


def test_a_template_that_refuses_the_system_role() -> None:
    hf = small.byte_level(chat_template=NO_SYSTEM)
    assert render_prompt(hf, QUESTION)
    with pytest.raises(TokenizerError, match=r"System role not supported.*drop the system prompt"):
        render_prompt(hf, with_system_prompt(QUESTION, "Be brief."))


def test_a_template_with_a_mistake() -> None:
    with pytest.raises(TokenizerError, match="refuses messages with the roles"):
        render_prompt(small.byte_level(chat_template="{% for"), QUESTION)


def test_the_turn_end_comes_before_eos() -> None:
    hf = small.byte_level(chat_template=small.CHATML)
    end, eos = (hf.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>"))
    assert find_stop_ids(hf) == (end, eos)
    assert find_stop_ids(hf, [7, eos]) == (end, 7, eos), "then the generation config, none twice"


@pytest.mark.parametrize("gap", ["", " ", "\n"])
def test_space_before_the_turn_end(gap: str) -> None:
    """Llama-2 and Mistral write a space between the answer and its end."""
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}" + gap + "{{ eos_token }}{% endfor %}"
    hf = small.sentencepiece_bpe()
    hf.chat_template = template
    assert find_stop_ids(hf) == (hf.eos_token_id,)


def test_a_template_that_ends_in_text_names_no_stop() -> None:
    hf = small.byte_level(chat_template="{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    assert find_stop_ids(hf) == (hf.eos_token_id,)
    assert find_stop_ids(small.byte_level(eos=None)) == ()


def test_a_template_that_takes_no_answer_leaves_the_other_sources() -> None:
    hf = small.byte_level(chat_template="{{ raise_exception('one user message only') }}")
    assert find_stop_ids(hf) == (hf.eos_token_id,)


def test_an_ordinary_added_token_can_end_a_turn() -> None:
    template = small.CHATML.replace("<|im_end|>", "</turn>")
    hf = small.byte_level(added=("</turn>",), chat_template=template)
    assert find_stop_ids(hf)[0] == hf.convert_tokens_to_ids("</turn>")


def test_real_template() -> None:
    smollm2 = real_tokenizer("smollm2")
    assert smollm2.hf.convert_ids_to_tokens(list(smollm2.stop_ids)) == ["<|im_end|>"]
    prompt = smollm2.hf.decode(smollm2.render_prompt(QUESTION))
    assert prompt.endswith("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n")
    assert prompt.count("<|im_start|>") == 3, "its template writes a system message of its own"
