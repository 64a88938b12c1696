"""Whole conversations with tools through a run: a data module, rollouts, both models' prompts, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from simct_pl.data.prompts import PromptDataModule, PromptSource
from simct_pl.errors import TokenizerError
from simct_pl.training.module import DistillModule
from tests.tiny import ASSETS, trainer, unloaded_module

CALL = {"name": "add", "arguments": '{"a": 1}'}
ROWS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": f"{i}+1?"},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "x", "type": "function", "function": CALL}]},
            {"role": "tool", "tool_call_id": "x", "content": f"is {i + 1}"},
            {"role": "assistant", "content": f"total {i + 1}"},
        ],
        "tools": json.dumps([{"type": "function", "function": {"name": "add"}}]),
    }
    for i in range(4)
]
WITH_TOOLS = "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}"
WITH_CALLS = (
    "{% for c in message.tool_calls or [] %}!{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}"
)


def side(folder: Path, role: str, before: str = WITH_TOOLS, calls: str = WITH_CALLS) -> str:
    """The embedded model with tools in its chat template, each side's in its own marks."""
    shutil.copytree(ASSETS / role, folder / role)
    file = folder / role / "chat_template.jinja"
    template = file.read_text()
    end = "'<|end|>'" if role == "teacher" else "'</turn>'"
    written = template.replace(f" + {end} }}}}", " }}" + calls + f"{{{{ {end} }}}}")
    assert written != template
    file.write_text(before + written)
    return str(folder / role)


def source(folder: Path) -> PromptSource:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return PromptSource(str(folder / "rows.jsonl"), prompt_field="messages", tools_field="tools")


def test_the_student_answers_the_result_of_a_tool_and_the_teacher_reads_the_same(tmp_path: Path) -> None:
    module: DistillModule = unloaded_module(student=side(tmp_path, "student"), teacher=side(tmp_path, "teacher"))
    seen = []

    class Keep(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):  # type: ignore[no-untyped-def]
            seen.extend(batch.rollouts)

    data = PromptDataModule(source(tmp_path), source(tmp_path), batch_size=4, val_batch_size=4)
    run = trainer(tmp_path, Keep(), max_steps=1, val_check_interval=1)
    run.fit(module, datamodule=data)
    assert len(seen) == 4
    for rollout, teacher_ids in zip(seen, module.align(seen).only.teacher_prompt_ids, strict=True):
        i = rollout.prompt.index
        assert module.pair.student.hf.decode(rollout.prompt_ids) == (
            f'[add]<user>{i}+1?</turn><assistant>!add{{"a": 1}}</turn><tool>is {i + 1}</turn><assistant>'
        )
        assert module.pair.teacher.hf.decode(teacher_ids) == (
            f'[add]<|bos|><|user|>{i}+1?<|end|><|assistant|>!add{{"a": 1}}<|end|><|tool|>is {i + 1}<|end|><|assistant|>'
        )
        assert rollout.prompt.response == f"total {i + 1}", "the data's own turn is the reference"
    assert run.callback_metrics["eval/bits_per_byte"] > 0


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize(
    ("left_out", "match"),
    [
        ({"before": ""}, r"Prompt \d: .*leaves out the tools"),
        ({"calls": ""}, r"Prompt \d: .*leaves out tool_calls: 'add'"),
    ],
    ids=["tools", "calls"],
)
def test_a_side_whose_template_drops_them_is_refused_before_weights_load(
    tmp_path: Path, role: str, left_out: dict[str, str], match: str
) -> None:
    paths = {name: side(tmp_path, name, **(left_out if name == role else {})) for name in ("student", "teacher")}
    module = unloaded_module(**paths)
    with pytest.raises(TokenizerError, match=f"{match}.*") as refusal:
        trainer(tmp_path, max_steps=1).fit(module, datamodule=PromptDataModule(source(tmp_path), batch_size=4))
    assert paths[role] in str(refusal.value)
    assert module.teacher is None
