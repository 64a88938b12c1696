"""Supervised fine-tuning on whole conversations: which tokens are learned, and the loss by an independent formula."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from transformers import AutoTokenizer

from simct_pl.data.prompts import PromptDataModule, PromptSource
from simct_pl.errors import PromptDataError, RecipeError, TokenizerError
from simct_pl.models.cross_entropy import NO_TARGET
from simct_pl.models.packing import PackedRow
from simct_pl.tasks.tokenizers import STUDENT, STUDENT_TEMPLATE
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.tokenization.thinking import Thinking
from simct_pl.types import Message, Prompt
from simct_pl.warmup.examples import examples_of
from simct_pl.warmup.sft import SFTModule
from tests.tokenization import small

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TOOLS = ({"type": "function", "function": {"name": "add"}},)
WITH_TOOLS = "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}" + STUDENT_TEMPLATE.replace(
    " + '</turn>' }}",
    " }}{% for c in message.tool_calls or [] %}!{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}"
    "{{ '</turn>' }}",
)
CONVERSATIONS = Path(__file__).parents[1] / "assets/tool_conversations.jsonl"
SILENT = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def talk(*contents: str) -> tuple[Message, ...]:
    return tuple({"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents))


PROMPTS = [
    Prompt(0, talk("1+2?", "total 3", "4+4?"), response="total 8"),
    Prompt(1, talk("13+25?"), response="total 38", tools=TOOLS),
    Prompt(
        2,
        (
            *talk("1+1?"),
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "2"},
            {"role": "assistant", "content": "total 2"},
            *talk("2+2?"),
        ),
        tools=TOOLS,
        reply={"role": "assistant", "content": "so", "tool_calls": [CALL]},
    ),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    replace(STUDENT, template=WITH_TOOLS).save_untrained(tmp_path / "untrained")
    return tmp_path / "untrained"


def module(folder: Path, **options: Any) -> SFTModule:
    made = SFTModule(str(folder), from_scratch=True, **options)
    made.configure_model()
    return made


def reference_loss(sft: SFTModule, folder: Path, prompts: list[Prompt], which: str) -> float:
    """One conversation at a time, in float64; what is learned is found in the text, by the marks around it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = sft.model.double().eval()
    total, count = 0.0, 0
    for prompt in prompts:
        text = tokenizer.apply_chat_template(
            list(prompt.conversation), tokenize=False, tools=list(prompt.tools) or None
        )
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        begins = [i + len("<assistant>") for i in range(len(text)) if text.startswith("<assistant>", i)]
        spans = [(begin, text.index("</turn>", begin) + len("</turn>")) for begin in begins]
        spans = spans if which == "all" else spans[-1:]
        logp = model(torch.tensor([encoded.input_ids])).logits[0].log_softmax(-1)
        for position, (start, end) in enumerate(encoded.offset_mapping):
            if any(a <= start and end <= b for a, b in spans):
                total -= logp[position - 1, encoded.input_ids[position]].item()
                count += 1
    return total / count


@pytest.mark.parametrize("which", ["last", "all"])
@pytest.mark.parametrize("layout", [None, PackedRow()], ids=["padded", "packed"])
def test_the_loss_is_the_cross_entropy_of_the_turns_and_their_stops(folder: Path, which: Any, layout: Any) -> None:
    sft = module(folder, supervised_turns=which, layout=layout, micro_batch_tokens=100)
    with torch.no_grad():
        for parameter in sft.parameters():  # far from uniform, so that a wrong row or target shows
            parameter.mul_(4)
        sft.model.double()
        found = sft.loss(PROMPTS).item()
        assert found == pytest.approx(reference_loss(sft, folder, PROMPTS, which), rel=1e-7)


def test_the_last_answer_is_the_default_and_what_it_always_was(folder: Path) -> None:
    sft, texts = SFTModule(str(folder), from_scratch=True), PROMPTS[:2]
    stop = sft.tokenizer.stop_ids[0]
    for prompt, example in zip(texts, sft.examples(texts), strict=True):
        ids = sft.tokenizer.encode(prompt.response or "")
        assert example.prompt_ids == sft.tokenizer.render_prompt(prompt.messages, prompt.tools)
        assert example.response_ids == example.target_ids == [*ids, stop]
    both = SFTModule(str(folder), from_scratch=True, supervised_turns="all").examples(PROMPTS)
    last = sft.examples(PROMPTS)
    for prompt, one, other in zip(PROMPTS, last, both, strict=True):
        assert one.prompt_ids + one.response_ids == other.prompt_ids + other.response_ids
        assert one.reference == other.reference, "bits per byte are of the last answer, whatever is learned"
        num_turns = sum(message["role"] == "assistant" for message in prompt.conversation)
        assert other.target_ids.count(stop) == num_turns
    decoded = sft.tokenizer.hf.decode(last[2].response_ids)
    assert decoded == 'so!add{"a": 1}</turn>', "the template writes what calls a tool"


@pytest.mark.parametrize(
    ("thinking", "learned", "whole"),
    [
        ("supervised", ["<think>a</think>the</e>", "<think>b</think>world</e>"], True),
        ("skipped", ["the</e>", "world</e>"], True),
        ("left_out", ["the</e>", "world</e>"], False),
    ],
)
def test_thinking_of_every_turn(thinking: Thinking, learned: list[str], whole: bool) -> None:
    mine = ModelTokenizer(small.byte_level(chat_template=small.CHATML))
    prompt = Prompt(0, talk("hello", "<think>a</think>the", "12"), response="<think>b</think>world")
    (example,) = examples_of([prompt], mine, thinking, "all")
    ids = ["|" if token == NO_TARGET else mine.hf.decode([token]) for token in example.target_ids]
    assert [part for part in "".join(ids).replace("<|im_end|>", "</e>").split("|") if part] == learned
    assert ("<think>a" in mine.hf.decode(example.prompt_ids + example.response_ids)) == whole


def test_a_conversation_that_ends_with_a_question_is_learned_up_to_there(folder: Path) -> None:
    sft = SFTModule(str(folder), from_scratch=True, supervised_turns="all")
    (example,) = sft.examples([Prompt(0, talk("1+2?", "total 3", "and?"))])
    assert sft.tokenizer.hf.decode(example.response_ids) == "total 3</turn>"


ENDLESS = Prompt(7, talk("x", "<think>a", "y"), response="z")
STRIPS = small.CHATML.replace(
    "{{ m.content }}", "{{ m.content if loop.last else m.content.split('</think>')[-1] }}"
)  # as Qwen3's


@pytest.mark.parametrize(
    ("prompt", "template", "thinking", "error", "match"),
    [
        (Prompt(7, talk("x")), small.CHATML, "supervised", PromptDataError, "no assistant's turn to learn from"),
        (
            Prompt(7, talk("x"), response="y", unsupervised_spans=((0, 1),)),
            small.CHATML,
            "supervised",
            PromptDataError,
            "unsupervised_spans.*Take supervised_turns: last",
        ),
        (
            Prompt(7, talk("x", "<think>a</think>b", "y"), response="z"),
            STRIPS,
            "supervised",
            TokenizerError,
            "message 2 of 4.*earlier thinking.*Take supervised_turns: last",
        ),
        (Prompt(7, talk("x", "<think>a", "y"), response="z"), small.CHATML, "skipped", PromptDataError, "all thinking"),
        (
            Prompt(7, talk("x", "<think>a", "y"), response="z"),
            small.CHATML,
            "left_out",
            PromptDataError,
            "all thinking",
        ),
        (Prompt(7, talk("x"), response="y"), None, "supervised", TokenizerError, "no chat template"),
    ],
    ids=["nothing to learn", "spans", "strips", "skipped", "left out", "no template"],
)
def test_what_cannot_be_learned_is_refused_by_its_row(
    prompt: Prompt, template: str | None, thinking: Thinking, error: type[Exception], match: str
) -> None:
    mine = ModelTokenizer(small.byte_level(chat_template=template), name="mine")
    with pytest.raises(error, match=f"rompt 7.*{match}"):
        examples_of([prompt], mine, thinking, "all")


def test_thinking_that_is_left_out_makes_room_for_a_template_that_strips_it() -> None:
    mine = ModelTokenizer(small.byte_level(chat_template=STRIPS))
    prompt = Prompt(7, talk("x", "<think>a</think>b", "y"), response="<think>c</think>z")
    (example,) = examples_of([prompt], mine, "left_out", "all")
    assert mine.hf.decode([token for token in example.target_ids if token != NO_TARGET]) == "b<|im_end|>z<|im_end|>"


def test_another_name_is_refused(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"supervised_turns is 'al'; expected one of last, all. Did you mean 'all'"):
        SFTModule(str(folder), supervised_turns="al")  # type: ignore[arg-type]


def test_a_fit_and_its_held_out_figures(folder: Path, tmp_path: Path) -> None:
    """Through a data module; bits per byte are those of the last answers, as without the choice."""
    rows = [{"messages": list(PROMPTS[0].conversation), "tools": []}, {"messages": list(PROMPTS[2].conversation)}]
    rows[1]["tools"] = list(TOOLS)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows * 2))
    source = PromptSource(str(path), prompt_field="messages", tools_field="tools")
    data = PromptDataModule(source, source, batch_size=2, val_batch_size=3)
    found = {}
    for which in ("last", "all"):
        sft = SFTModule(str(folder), from_scratch=True, supervised_turns=which)  # type: ignore[arg-type]
        run = L.Trainer(max_steps=2, default_root_dir=tmp_path, num_sanity_val_steps=0, **SILENT)
        (found[which],) = run.validate(sft, data, verbose=False)
        run.fit(sft, datamodule=data)
        assert run.callback_metrics["loss/train"] > 0
    assert found["all"]["eval/bits_per_byte"] == pytest.approx(found["last"]["eval/bits_per_byte"], rel=1e-4)
    assert found["all"]["eval/loss"] != pytest.approx(found["last"]["eval/loss"], rel=1e-4)


def test_a_template_that_cannot_tell_turns_is_refused_before_weights_load(folder: Path, tmp_path: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("message['content']", "(message['content'] if loop.last else '…')"))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": list(talk("a", "b", "c", "d"))}) + "\n")
    source = PromptSource(str(tmp_path / "rows.jsonl"), prompt_field="messages")
    sft = SFTModule(str(folder), from_scratch=True, supervised_turns="all")
    with pytest.raises(TokenizerError, match=r"Prompt 0: .*untrained"):
        L.Trainer(max_steps=1, **SILENT).fit(sft, datamodule=PromptDataModule(source, batch_size=1))
    assert sft.supervised is None
