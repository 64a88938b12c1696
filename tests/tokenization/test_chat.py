"""Prompts in each model's own template, and the tokens that end its turn."""

from __future__ import annotations

import re

import pytest
from tokenizers.processors import TemplateProcessing

from simct_pl.errors import TokenizerError
from simct_pl.tokenization.chat import check_arguments, find_stop_ids, render_prompt, with_system_prompt
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from tests.architecture.sources import modules, name_of
from tests.tokenization import small
from tests.tokenization.real import real_tokenizer

QUESTION = [{"role": "user", "content": "hello"}]
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + (
    small.CHATML
)

# As Qwen3's: the prompt closes the thinking unless it is wanted; a default is set on the way.
THINKS = "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}" + small.CHATML.replace(
    "<|im_start|>assistant\n{% endif",
    "<|im_start|>assistant\n{% if not enable_thinking %}<think></think>{% endif %}{% endif",
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


def test_arguments_reach_the_template_and_the_default_changes_nothing() -> None:
    hf = small.byte_level(chat_template=THINKS)
    plain, off = ModelTokenizer(hf), ModelTokenizer(hf, template={"enable_thinking": False})
    assert plain.render_prompt(QUESTION) == render_prompt(hf, QUESTION)
    assert hf.decode(off.render_prompt(QUESTION)).endswith("assistant\n<think></think>")
    assert plain.fingerprint == ModelTokenizer(hf, template={}).fingerprint
    assert plain.fingerprint != off.fingerprint, "a folder of other prompts is another one"


@pytest.mark.parametrize(
    ("argument", "match"),
    [
        (
            "enable_thinkin",
            r"of mine does not use the argument 'enable_thinkin'; it has enable_thinking\. Did you mean",
        ),
        ("messages", r"'messages' of mine is set by each rendering"),
        ("add_generation_prompt", r"is set by each rendering"),
    ],
)
def test_an_argument_that_the_template_does_not_use_is_refused(argument: str, match: str) -> None:
    with pytest.raises(TokenizerError, match=match):
        ModelTokenizer(small.byte_level(chat_template=THINKS), name="mine", template={argument: False})


def test_arguments_without_a_template_are_refused() -> None:
    with pytest.raises(TokenizerError, match=r"mine has no chat template.*Drop them"):
        check_arguments(small.byte_level(), {"enable_thinking": False}, "mine")


def test_variables_of_templates_as_they_are() -> None:
    """Tags of transformers, loops that break, what a macro or a branch reads; nothing that is made inside."""
    template = "{%- macro f(a) %}{{ style }}{{ a }}{% endmacro %}{% set inner = 1 %}" + (
        "{% for m in messages %}{% generation %}{{ m }}{% endgeneration %}{% break %}{% endfor %}"
        "{{ f(inner) }}{{ bos_token }}{{ strftime_now() }}{% if tools %}{{ raise_exception('x') }}{% endif %}"
    )
    hf = small.byte_level(chat_template=template)
    for name in ("style", "tools"):
        check_arguments(hf, {name: None}, "mine")
    with pytest.raises(TokenizerError, match="it has style, tools"):
        check_arguments(hf, {"inner": 2}, "mine")


def test_one_function_renders_every_prompt() -> None:
    """Rollouts, evaluation, fine-tuning and preflight read a prompt alike, and no engine renders one itself."""
    calls = {
        name_of(path)
        for path in modules("simct_pl", "callbacks")
        if "apply_chat_template" in path.read_text(encoding="utf-8")
    }
    assert calls == {"simct_pl/tokenization/chat.py"}
    importers = {
        name_of(path)
        for path in modules("simct_pl", "callbacks")
        if re.search(r"import .*\brender_prompt\b", path.read_text(encoding="utf-8"))
    }
    assert importers == {"simct_pl/tokenization/model_tokenizer.py"}, "behind it stand a model's template arguments"


def test_a_refusal_names_the_tokenizer_and_the_arguments() -> None:
    template = "{% if kind == 'no' %}{{ raise_exception('kind must be yes') }}{% endif %}" + small.CHATML
    mine = ModelTokenizer(small.byte_level(chat_template=template), name="mine", template={"kind": "no"})
    with pytest.raises(TokenizerError, match=r"of mine refuses .*\['user'\], kind='no': kind must be yes"):
        mine.render_prompt(QUESTION)


def test_a_template_that_skips_a_message_is_refused() -> None:
    """Neither an error of the template nor a prompt without its instructions."""
    template = "{% for m in messages if m.role == 'user' %}{{ m.content | trim }}\n{% endfor %}"
    hf = small.byte_level(chat_template=template)
    assert hf.decode(render_prompt(hf, [{"role": "user", "content": " hello\n"}])) == "hello\n"
    with pytest.raises(TokenizerError, match=r"leaves out the system message 'Be brief\.'.*drop the system prompt"):
        render_prompt(hf, with_system_prompt(QUESTION, "Be brief."))


def test_an_earlier_answer_may_be_shortened() -> None:
    """Qwen3's template drops the thinking of earlier turns."""
    template = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}\n{% endfor %}"
    hf = small.byte_level(chat_template=template)
    turns = [*QUESTION, {"role": "assistant", "content": "<think>the</think>world"}, *QUESTION]
    assert hf.decode(render_prompt(hf, turns)) == "hello\nworld\nhello\n"
