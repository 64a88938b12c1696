"""Tools through the commands: `data`, `generate`, `select`, fine-tuning and evaluation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from simct_pl.data.build import build_mixture
from simct_pl.data.mixture import MixtureSource
from simct_pl.data.source import PromptSource
from simct_pl.errors import TokenizerError
from simct_pl.evaluation.benchmark import Problem
from simct_pl.evaluation.benchmarks.graded_prompts import GradedPrompts
from simct_pl.evaluation.grader import Grader
from simct_pl.evaluation.runner import Evaluation, Protocol
from simct_pl.files.parquet import read_parquet, schema_of
from simct_pl.rollout.engine import SamplingParams
from simct_pl.tasks.tokenizers import TEACHER_TEMPLATE
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.types import Prompt
from simct_pl.warmup.generate import generate
from simct_pl.warmup.select import select
from simct_pl.warmup.sft import SFTModule
from tests.tiny import ASSETS
from tests.warmup.engines import ScriptedEngine

CALL = {"id": "x", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
ASKED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "x", "name": "add", "content": "3"}
ROWS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "1+2?"}, ASKED, RESULT], "tools": [{"name": "add"}], "gold": 3},
    {"messages": [{"role": "user", "content": "5+6?"}, ASKED], "tools": [{"name": "add"}], "gold": 11},
    {"messages": [{"role": "user", "content": "7+8?"}], "gold": 15},
]
FIRST_ASKED = '[add]<|bos|><|user|>1+2?<|end|><|assistant|>!add{"a": 1}<|end|><|tool|>3<|end|><|assistant|>'
OPTIONAL: dict[str, Any] = {"prompt_field": "messages", "tools_field": "tools", "tools_required": False}
WITH_TOOLS = "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}" + TEACHER_TEMPLATE.replace(
    " + '<|end|>' }}",
    " }}{% for c in message.tool_calls or [] %}!{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}"
    "{{ '<|end|>' }}",
)


class Anything(Grader):
    """Right, whatever is said; remembers of what."""

    def __init__(self) -> None:
        self.seen: list[Prompt] = []

    @override
    def __call__(self, prompt: Prompt, response: str) -> float:
        self.seen.append(prompt)
        return 1.0


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    shutil.copytree(ASSETS / "teacher", tmp_path / "teacher")
    (tmp_path / "teacher/chat_template.jinja").write_text(WITH_TOOLS)
    return str(tmp_path / "teacher")


def source(folder: Path, rows: list[dict[str, Any]], **fields: Any) -> PromptSource:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return PromptSource(str(folder / "rows.jsonl"), **{**OPTIONAL, **fields})


def read(path: Path, **fields: Any) -> list[Prompt]:
    table = PromptSource(str(path), **{**OPTIONAL, **fields, "tools_required": True})
    return [table.prompt(index, row) for index, row in table.rows()]


def test_from_a_mixture_to_examples(tmp_path: Path, teacher: str) -> None:
    rows = source(tmp_path, ROWS, answer_field="gold")
    expected = [rows.prompt(index, row) for index, row in rows.rows()]
    build_mixture({"own": MixtureSource(rows)}, str(tmp_path / "mixture"))
    mixture = read(tmp_path / "mixture/mixture.parquet", answer_field="answer")
    by_question = {prompt.messages[0]["content"]: prompt for prompt in mixture}
    for prompt in expected:
        again = by_question[prompt.messages[0]["content"]]
        assert (again.messages, again.tools, again.reply) == (prompt.messages, prompt.tools, prompt.reply)

    engine = ScriptedEngine(log=str(tmp_path / "asked"))
    generate(
        teacher,
        PromptSource(str(tmp_path / "mixture/mixture.parquet"), answer_field="answer", **OPTIONAL),
        str(tmp_path / "responses"),
        engine=engine,
        sampling=SamplingParams(max_tokens=12),
        num_samples=2,
        dtype="float32",
    )
    tokenizer = ModelTokenizer.from_pretrained(teacher)
    asked = [tokenizer.hf.decode(json.loads(line)[0]) for line in (tmp_path / "asked").read_text().splitlines()]
    assert len(asked) == 6
    assert (
        asked.count('[add]<|bos|><|user|>1+2?<|end|><|assistant|>!add{"a": 1}<|end|><|tool|>3<|end|><|assistant|>') == 2
    )
    assert asked.count("[add]<|bos|><|user|>5+6?<|end|><|assistant|>") == 2
    assert asked.count("<|bos|><|user|>7+8?<|end|><|assistant|>") == 2

    grader = Anything()
    select(str(tmp_path / "responses"), str(tmp_path / "selected"), {"any": grader}, filters=[])
    selected = read(tmp_path / "selected/selected.parquet", response_field="response")
    assert sorted(prompt.messages[0]["content"] for prompt in selected) == ["1+2?", "5+6?", "7+8?"]
    for prompt in selected:
        original = by_question[prompt.messages[0]["content"]]
        assert (prompt.messages, prompt.tools) == (original.messages, original.tools)
        assert prompt.response
    learned = SFTModule(teacher).examples(selected)
    assert {tokenizer.hf.decode(example.prompt_ids) for example in learned} == set(asked)


def test_without_tools_the_files_are_as_they_were(tmp_path: Path) -> None:
    rows = source(tmp_path, ROWS[2:], tools_field=None)
    build_mixture({"own": MixtureSource(rows)}, str(tmp_path / "mixture"))
    assert schema_of(tmp_path / "mixture/mixture.parquet").names == [
        "messages", "answer", "response", "domain", "source", "row", "digest"
    ]  # fmt: skip
    (row,) = read_parquet(tmp_path / "mixture/mixture.parquet")
    assert row["messages"] == [{"role": "user", "content": "7+8?"}]
    options: dict[str, Any] = {"engine": ScriptedEngine(), "sampling": SamplingParams(max_tokens=12)}
    generate(str(ASSETS / "teacher"), rows, str(tmp_path / "out"), num_samples=1, dtype="float32", **options)
    assert "tools" not in schema_of(tmp_path / "out/responses.parquet").names
    select(str(tmp_path / "out"), str(tmp_path / "selected"), {"any": Anything()}, filters=[])
    assert "tools" not in schema_of(tmp_path / "selected/selected.parquet").names


def test_generate_refuses_a_template_without_tools_before_weights_load(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    with pytest.raises(TokenizerError, match=r"Prompt 0: .*leaves out the tools"):
        generate(str(ASSETS / "teacher"), source(tmp_path, ROWS), str(tmp_path / "out"), engine=engine, dtype="float32")
    assert engine.num_refreshed == 0


def test_an_evaluation_asks_conversations_with_their_tools(tmp_path: Path, teacher: str) -> None:
    grader = Anything()
    benchmark = GradedPrompts("own", source(tmp_path, ROWS, answer_field="gold"), grader, max_tokens=12)
    problems = benchmark.problems()
    assert problems[2] == Problem("2", "7+8?", gold="15"), "one question is asked as ever"
    tokenizer, engine = ModelTokenizer.from_pretrained(teacher), ScriptedEngine(log=str(tmp_path / "asked"))
    engine.policy_version = 0
    evaluation = Evaluation({}, tokenizer, 128, engine, Protocol(num_seeds=1), tmp_path / "items")
    evaluation.run(benchmark)
    asked = [tokenizer.hf.decode(json.loads(line)[0]) for line in (tmp_path / "asked").read_text().splitlines()]
    assert asked == [
        FIRST_ASKED,
        "[add]<|bos|><|user|>5+6?<|end|><|assistant|>",
        "<|bos|><|user|>7+8?<|end|><|assistant|>",
    ]
    assert [[m["role"] for m in prompt.messages] for prompt in sorted(grader.seen, key=lambda p: p.answer or "")] == [
        ["user"], ["user"], ["user", "assistant", "tool"]
    ]  # fmt: skip
    plain = ModelTokenizer.from_pretrained(str(ASSETS / "teacher"))
    with pytest.raises(TokenizerError, match=r"own, problem 0: .*leaves out the tools"):
        Evaluation({}, plain, 128, engine, Protocol(num_seeds=1), tmp_path / "other").check(benchmark)
