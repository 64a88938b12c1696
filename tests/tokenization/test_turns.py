"""An assistant's turns in a whole conversation: found exactly, against the text they were written as, or refused."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from simct_pl.data.source import PromptSource
from simct_pl.errors import PromptDataError, TokenizerError
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.tokenization.turns import assistant_turns
from simct_pl.types import Message
from tests.tokenization import small
from tests.tokenization.real import real_tokenizer

CONVERSATIONS = Path(__file__).parents[1] / "assets/tool_conversations.jsonl"
SOURCE = PromptSource(str(CONVERSATIONS), prompt_field="messages", tools_field="tools")
PROMPTS = [SOURCE.prompt(index, row) for index, row in SOURCE.rows()]
LLAMA2 = (  # as Llama-2's and Mistral's: no header in front of an answer, and a space before its end
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
CALL = '<call>multiply {"a": 12, "b": 3}</call><call>get_weather {"city": "Łódź"}</call>'
STRIPS = small.CHATML.replace(  # as Qwen3's: earlier thinking is left out, the last answer's is kept
    "{{ m.content }}", "{{ m.content if loop.last else m.content.split('</think>')[-1] }}"
)


def tokenizer(template: str | None) -> ModelTokenizer:
    return ModelTokenizer(small.byte_level(chat_template=template), name="mine")


def talk(*contents: str) -> list[Message]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, ['<call>get_weather {"city": "Paris"}</call>', "21 degrees, the sun is out."]),
        (1, ["Two things to look up." + CALL]),
        (2, ["hello world", '<call>multiply {"a": 12, "b": 12}</call>']),
        (3, ["world", "the 123 🙂"]),
    ],
)
def test_the_turns_are_what_the_assistant_wrote_with_its_stops(number: int, expected: list[str]) -> None:
    mine, prompt = tokenizer(small.CHATML_TOOLS), PROMPTS[number]
    found = assistant_turns(mine, prompt.conversation, prompt.tools)
    assert [mine.hf.decode(found.ids[a:b]) for a, b in found.spans] == [f"{text}<|im_end|>" for text in expected]
    # What is read in front of each is the prompt that a rollout would begin with.
    places = [i for i, message in enumerate(prompt.conversation) if message["role"] == "assistant"]
    for place, (start, _) in zip(places, found.spans, strict=True):
        assert found.ids[:start] == mine.render_prompt(prompt.conversation[:place], prompt.tools)
    last = assistant_turns(mine, prompt.conversation, prompt.tools, "last")
    assert (last.ids, last.spans) == (found.ids, found.spans[-1:])


@pytest.mark.parametrize("name", ["byte level", "sentencepiece", "smollm2"])
def test_random_conversations(name: str) -> None:
    """Against a plain search for the marks around a turn, in texts that do not hold them."""
    if name == "smollm2":
        mine, begin, end = real_tokenizer("smollm2"), "<|im_start|>assistant\n", "<|im_end|>"
    elif name == "sentencepiece":
        hf = small.sentencepiece_bpe(added=("[INST]", "[/INST]"), style="none")
        hf.chat_template = LLAMA2
        mine, begin, end = ModelTokenizer(hf), "[/INST]", "</s>"
    else:
        mine, begin, end = tokenizer(small.CHATML), "<|im_start|>assistant\n", "<|im_end|>"
    draw = random.Random(0)
    for _ in range(40):
        words = [
            " ".join(draw.choices(["hello", "the", "123", "é", "🙂", "a\nb"], k=draw.randint(1, 6))) for _ in range(6)
        ]
        turns = talk(*words[: draw.choice([2, 3, 4, 5, 6])])
        found = assistant_turns(mine, turns)
        for number, (start, _) in enumerate(found.spans):
            assert found.ids[:start] == mine.render_prompt(turns[: 2 * number + 1]), "the prompt of a rollout"
        whole = mine.hf.decode(found.ids)
        parts = [part.split(end)[0] + end for part in whole.split(begin)[1:]]
        assert [mine.hf.decode(found.ids[a:b]).strip() for a, b in found.spans] == [part.strip() for part in parts]
        assert all(found.ids[b - 1] in mine.stop_ids for _, b in found.spans)
        assert len(found.ids) == found.spans[-1][1], "what comes behind the last turn is left out"


def test_marks_of_what_is_generated_change_nothing() -> None:
    """Templates for training have them, as TRL's."""
    marked = small.CHATML.replace(
        "{{ m.content }}<|im_end|>\n",
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>\n{% endgeneration %}"
        "{% else %}{{ m.content }}<|im_end|>\n{% endif %}",
    )
    turns = talk("hello", "the", "12", "world")
    assert assistant_turns(tokenizer(marked), turns) == assistant_turns(tokenizer(small.CHATML), turns)


def test_a_greeting_that_answers_nothing_is_read_alone() -> None:
    mine = tokenizer(small.CHATML)
    greeting: Message = {"role": "assistant", "content": "hello"}
    found = assistant_turns(mine, [greeting, *talk("the", "world")])
    assert [mine.hf.decode(found.ids[a:b]) for a, b in found.spans] == ["world<|im_end|>"]
    with pytest.raises(PromptDataError, match="no assistant's turn"):
        assistant_turns(mine, [greeting, *talk("the")])


def test_a_template_that_strips_earlier_thinking_is_refused_and_one_turn_of_it_is_not() -> None:
    mine = tokenizer(STRIPS)
    turns = talk("1+2?", "<think>easy</think>3", "2+2?", "<think>hm</think>4")
    with pytest.raises(
        TokenizerError, match=r"message 2 of 4 is: it is written otherwise once messages follow.*thinking"
    ):
        assistant_turns(mine, turns)
    last = assistant_turns(mine, turns, which="last")
    assert [mine.hf.decode(last.ids[a:b]) for a, b in last.spans] == ["<think>hm</think>4<|im_end|>"]
    assert "easy" not in mine.hf.decode(last.ids)
    assert len(assistant_turns(mine, talk("1+2?", "3", "2+2?", "4")).spans) == 2, "without thinking it strips nothing"


@pytest.mark.parametrize(
    ("template", "match"),
    [
        (None, "mine has no chat template, so nothing tells one turn from the next"),
        (
            small.CHATML.replace("assistant\n{% endif", "assistant\n<think></think>{% endif"),
            "its prompt is not how the",
        ),
        (small.CHATML.replace("{{ m.content }}", "{{ m.content.split('the')[-1] }}"), "leaves out the user message"),
        (
            small.CHATML.replace("{{ m.content }}", "{{ m.content[:3] if m.role == 'assistant' else m.content }}"),
            "not all its words are in there, 'world the'",
        ),
        (small.CHATML.replace("<|im_end|>", ""), "no stop ends it"),
        (
            "{% for m in messages %}{{ m.role[:3] + 'hel' if m.role == 'user' else '' }}{{ m.content }}{{ eos_token "
            "if m.role == 'assistant' else '' }}{% endfor %}",
            "a token reaches over its beginning",
        ),
    ],
    ids=["no template", "prompt", "user words", "words", "no stop", "edge"],
)
def test_what_cannot_be_found_exactly_is_refused(template: str | None, match: str) -> None:
    contents = ("the 12", "3 world") if match.startswith("a token") else ("the hello", "world the")
    with pytest.raises(TokenizerError, match=match):
        assistant_turns(tokenizer(template), talk(*contents))


def test_a_stop_among_the_words_is_refused() -> None:
    with pytest.raises(PromptDataError, match=r"message 2 of 2 has a stop among its words, 'the<\|im_end\|>world'"):
        assistant_turns(tokenizer(small.CHATML), talk("hello", "the<|im_end|>world"))
