"""Tools, calls and results reach the chat template, and one that drops any of them is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from simct_pl.data.source import PromptSource
from simct_pl.errors import TokenizerError
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.types import Prompt
from tests.tokenization import small
from tests.tokenization.real import real_tokenizer

CONVERSATIONS = Path(__file__).parents[1] / "assets/tool_conversations.jsonl"
SOURCE = PromptSource(str(CONVERSATIONS), prompt_field="messages", tools_field="tools")
PROMPTS = [SOURCE.prompt(index, row) for index, row in SOURCE.rows()]
WEATHER, TWO_CALLS, _, PLAIN = PROMPTS
CALLS = "<call>{{ call.function.name }} {{ call.function.arguments | tojson }}</call>"
TOOLS = small.CHATML_TOOLS[: -len(small.CHATML_TOOLS.partition("{% for m in")[2]) - len("{% for m in")]


def tokenizer(template: str | None) -> ModelTokenizer:
    return ModelTokenizer(small.byte_level(chat_template=template), name="mine")


def changed(old: str, new: str) -> ModelTokenizer:
    assert old in small.CHATML_TOOLS
    return tokenizer(small.CHATML_TOOLS.replace(old, new))


def test_tools_calls_and_results_are_in_the_prompt() -> None:
    mine = tokenizer(small.CHATML_TOOLS)
    text = mine.hf.decode(mine.render(WEATHER))
    assert text == (
        '<|im_start|>tools\n{"type": "function", "function": {"name": "get_weather", "description": "The weather of a '
        'city.", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}\n'
        "<|im_end|>\n<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWeather in Paris?<|im_end|>\n"
        '<|im_start|>assistant\n<call>get_weather {"city": "Paris"}</call><|im_end|>\n'
        '<|im_start|>tool\n{"degrees": 21}<|im_end|>\n<|im_start|>assistant\n'
    )
    for prompt in PROMPTS:
        assert mine.render(prompt) == mine.render_prompt(prompt.messages, prompt.tools)
    assert mine.render(PLAIN) == tokenizer(small.CHATML).render(PLAIN), "without tools nothing changes"


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        (TOOLS, "", r"Prompt 0: .*of mine leaves out the tools: .*Leave tools_field"),
        ("{{ tool | tojson }}", "{{ 'some tools' }}", "leaves out the tool 'get_weather'"),
        (CALLS, "", "leaves out tool_calls: 'get_weather' is called 1 times, and in the prompt it is 0"),
        (CALLS, "<call>{{ call.function.name }}</call>", "leaves out the arguments of tool_calls"),
        (
            "{{ m.content }}",
            "{{ m.content if m.role != 'tool' else '' }}",
            r"leaves out the result of a tool \(role tool\), '{\"degrees\": 21}'",
        ),
        (
            "{% for m in messages %}",
            "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('Unknown role') }}{% endif %}",
            r"Prompt 0: .*refuses messages with the roles \['system', .*'tool'\], and 1 tools: Unknown.*no results",
        ),
    ],
    ids=["tools", "names", "calls", "arguments", "results", "refusal"],
)
def test_a_template_that_drops_a_part_is_refused(old: str, new: str, match: str) -> None:
    with pytest.raises(TokenizerError, match=match):
        changed(old, new).render(WEATHER)


def test_every_call_and_the_words_beside_it_must_be_there() -> None:
    loop = "{% for call in m.tool_calls or [] %}"
    with pytest.raises(TokenizerError, match=r"Prompt 1: .*'get_weather' is called 1 times, and in the prompt it is 0"):
        changed(loop, "{% for call in (m.tool_calls or [])[:1] %}").render(TWO_CALLS)
    with pytest.raises(
        TokenizerError, match=r"what an assistant says beside its tool_calls, 'Two things to look up\.'"
    ):
        changed("{{ m.content }}", "{{ m.content if not m.tool_calls else '' }}").render(TWO_CALLS)
    # Llama-3.1's refuses a second call by itself.
    alone = "{% if (m.tool_calls or []) | length > 1 %}{{ raise_exception('one call') }}{% endif %}" + loop
    with pytest.raises(TokenizerError, match=r"one call\. .*leave such rows out"):
        changed(loop, alone).render(TWO_CALLS)


def test_results_may_be_written_anew_and_thinking_in_front_of_a_call_be_left_out() -> None:
    """Llama-3.1's template quotes results as JSON; Qwen3's drops earlier thinking."""
    quoted = changed("{{ m.content }}", "{{ m.content | tojson if m.role == 'tool' else m.content }}")
    assert r"{\"degrees\": 21}" in quoted.hf.decode(quoted.render(WEATHER))
    upper = changed("{{ m.content }}", "{{ m.content | replace('{', '<') if m.role == 'tool' else m.content }}")
    assert '<"degrees": 21}' in upper.hf.decode(upper.render(WEATHER))
    thinks = replace(
        TWO_CALLS,
        messages=tuple(
            {**m, "content": f"<think>hm</think>\n{m['content']}"} if m["role"] == "assistant" else m
            for m in TWO_CALLS.messages
        ),
    )
    short = changed("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}")
    assert "Two things" in short.hf.decode(short.render(thinks))
    assert "hm" not in short.hf.decode(short.render(thinks))


def test_a_template_that_does_not_do_without_calls_reads_them() -> None:
    needs = changed(
        "{% for m in messages %}",
        "{% for m in messages %}{% if m.role == 'tool' and not messages[loop.index0 - 1].tool_calls %}"
        "{{ raise_exception('a result of no call') }}{% endif %}",
    )
    assert needs.render(WEATHER)


@pytest.mark.parametrize("prompt", [WEATHER, replace(WEATHER, tools=())], ids=["tools", "calls alone"])
def test_without_a_template_there_are_no_tools(prompt: Prompt) -> None:
    with pytest.raises(TokenizerError, match=r"Prompt 0: mine has no chat template.*neither tools nor calls"):
        tokenizer(None).render(prompt)
    assert tokenizer(None).render(PLAIN)


def test_tools_of_the_rows_and_of_the_template_arguments_are_one_too_many() -> None:
    hf = small.byte_level(chat_template=small.CHATML_TOOLS)
    mine = ModelTokenizer(hf, name="mine", template={"tools": list(WEATHER.tools)})
    assert mine.render(PLAIN)
    with pytest.raises(TokenizerError, match="tools are a template argument of mine, and the rows have theirs"):
        mine.render(WEATHER)


def test_a_real_template_that_takes_no_tools() -> None:
    smollm2 = real_tokenizer("smollm2")
    with pytest.raises(TokenizerError, match=r"of smollm2 leaves out the tools"):
        smollm2.render(WEATHER)
    with pytest.raises(TokenizerError, match=r"of smollm2 leaves out tool_calls: 'get_weather'"):
        smollm2.render(replace(WEATHER, tools=()))
    assert smollm2.render(PLAIN)
