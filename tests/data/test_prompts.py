"""Prompt sources: formats, fields, order, and errors that name the row."""

from __future__ import annotations

import gzip
import json
import os
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest

from simct_pl.data.prompts import PromptDataModule, PromptSource, PromptStream
from simct_pl.errors import MissingFileError, PromptDataError, RecipeError, SimctError
from simct_pl.files.fingerprint import WatchedFile
from tests.tiny import distill_module, trainer


def jsonl(path: Path, rows: list[dict[str, object]]) -> str:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return str(path)


def numbered(path: Path, count: int) -> str:
    return jsonl(path, [{"prompt": f"question {i} 🙂", "answer": f"steps\n#### {i},000"} for i in range(count)])


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_files_are_streamed_in_order(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"prompt": [f"question {i} 🙂" for i in range(5)]}), path)
    else:
        numbered(path, 5)
    prompts = list(PromptStream(PromptSource(str(path))))
    assert [p.index for p in prompts] == list(range(5))
    assert prompts[3].messages == ({"role": "user", "content": "question 3 🙂"},)


def test_answers_are_cut_out_by_their_pattern_and_messages_pass_through(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    path = jsonl(tmp_path / "a.jsonl", [{"chat": messages, "gold": "so\n#### 1,234", "text": "r"}])
    source = PromptSource(
        path, prompt_field="chat", answer_field="gold", answer_pattern=r"####\s*(.+)", response_field="text"
    )
    (prompt,) = PromptStream(source)
    assert (prompt.messages, prompt.answer, prompt.response) == (tuple(messages), "1,234", "r")


def test_system_prompts_of_both_models(tmp_path: Path) -> None:
    source = PromptSource(jsonl(tmp_path / "a.jsonl", [{"prompt": "u"}]))
    (prompt,) = PromptStream(source, system_prompt="both", teacher_system_prompt="teacher only")
    assert [m["content"] for m in prompt.messages] == ["both", "u"]
    assert prompt.teacher_messages is not None
    assert [m["content"] for m in prompt.teacher_messages] == ["teacher only", "u"]


HINT = "Carry the 7."
TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": HINT}]
SHOWN = [
    (HINT, ["teacher only\n\nCarry the 7.\n\nrow", "u"], "system"),
    (TURNS, ["teacher only\n\nrow", "q", HINT, "u"], "assistant"),
    (
        [{"from": "system", "value": HINT}, {"from": "human", "value": "q"}],
        ["teacher only\n\nCarry the 7.\n\nrow", "q", "u"],
        "system",
    ),
]


@pytest.mark.parametrize(("shown", "expected", "role"), SHOWN, ids=["text", "messages", "a system message first"])
def test_what_a_row_shows_the_teacher_alone(tmp_path: Path, shown: object, expected: list[str], role: str) -> None:
    chat = [{"role": "system", "content": "row"}, {"role": "user", "content": "u"}]
    source = PromptSource(jsonl(tmp_path / "a.jsonl", [{"prompt": chat, "hint": shown}]), teacher_field="hint")
    (prompt,) = PromptStream(source, system_prompt="both", teacher_system_prompt="teacher only")
    assert [m["content"] for m in prompt.messages] == ["both\n\nrow", "u"]
    assert prompt.teacher_messages is not None
    assert [m["content"] for m in prompt.teacher_messages] == expected
    assert [m["role"] for m in prompt.teacher_messages if HINT in m["content"]] == [role]
    (alone,) = PromptStream(source)
    assert alone.messages == tuple(chat)
    assert any(HINT in m["content"] for m in alone.teacher_messages or ())


def test_the_teachers_ids_hold_the_hint_and_the_students_do_not(tmp_path: Path) -> None:
    """Through a data module and a fit, to what the two models are given."""
    rows = [{"prompt": f"1{i}+2?", "hint": f"is 1{i + 2}"} for i in range(4)]
    source = PromptSource(jsonl(tmp_path / "a.jsonl", rows), teacher_field="hint")
    module, seen = distill_module(), []

    class Keep(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):  # type: ignore[no-untyped-def]
            seen.extend(batch.rollouts)

    trainer(tmp_path, Keep(), max_steps=1).fit(module, datamodule=PromptDataModule(source, batch_size=4))
    assert len(seen) == 4
    for rollout, teacher_ids in zip(seen, module.align(seen).only.teacher_prompt_ids, strict=True):
        hint = str(rows[rollout.prompt.index]["hint"])
        assert hint not in module.pair.student.hf.decode(rollout.prompt_ids)
        read = module.pair.teacher.hf.decode(teacher_ids)
        assert read.index(hint) < read.index(str(rows[rollout.prompt.index]["prompt"]))


@pytest.mark.parametrize("empty", [{}, {"hint": None}, {"hint": ""}], ids=["no field", "null", "empty"])
def test_a_row_that_shows_nothing_is_refused_or_counted(tmp_path: Path, empty: dict[str, object]) -> None:
    rows: list[dict[str, object]] = [{"prompt": "a", "hint": "h"}, {"prompt": "b", **empty}, {"prompt": "c", **empty}]
    path = jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(PromptDataError, match=r"Row 1 .* has no 'hint'; .*teacher_required to false"):
        list(PromptStream(PromptSource(path, teacher_field="hint")))
    stream = PromptStream(PromptSource(path, teacher_field="hint", teacher_required=False))
    for _ in range(2):  # passes
        with pytest.warns(UserWarning, match=r"row 1 has no 'hint'") if stream.epoch == 0 else nullcontext():
            prompts = list(stream)
        assert [prompt.teacher_messages is None for prompt in prompts] == [False, True, True]
        assert stream.num_unshown == 2


@pytest.mark.parametrize("shown", [3, [{"role": "robot", "content": "x"}], [{"role": "user", "content": " "}]])
def test_what_cannot_be_shown_is_named(tmp_path: Path, shown: object) -> None:
    source = PromptSource(jsonl(tmp_path / "a.jsonl", [{"prompt": "u", "hint": shown}]), teacher_field="hint")
    with pytest.raises(PromptDataError, match=r"Row 0 of .*'hint'.*Correct prompt_field \(teacher_field\)"):
        list(PromptStream(source))


def test_skip_limit_and_length(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": "x" * (i + 1)} for i in range(10)])
    stream = PromptStream(PromptSource(path, skip=2, limit=5, max_prompt_chars=4))
    assert [p.index for p in stream] == [2, 3]
    assert stream.num_too_long == 3


def test_each_pass_is_shuffled_anew_and_the_same_in_every_run(tmp_path: Path) -> None:
    source = PromptSource(numbered(tmp_path / "a.jsonl", 50))
    stream, again = (PromptStream(source, shuffle_buffer=50, seed=1) for _ in range(2))
    first, second = ([p.index for p in stream] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert first == [p.index for p in again]


def test_ranks_share_the_prompts(tmp_path: Path) -> None:
    source = PromptSource(numbered(tmp_path / "a.jsonl", 10))
    parts = [[p.index for p in PromptStream(source, rank=rank, world_size=2)] for rank in range(2)]
    assert sorted(parts[0] + parts[1]) == list(range(10))
    assert len(parts[0]) == len(parts[1]) == 5


def test_batches(tmp_path: Path) -> None:
    data = PromptDataModule(PromptSource(numbered(tmp_path / "a.jsonl", 10)), batch_size=4)
    data.setup("fit")
    assert [len(batch) for batch in data.train_dataloader()] == [4, 4, 2]
    assert data.val_dataloader() == []


@pytest.mark.parametrize(
    ("rows", "source", "match"),
    [
        ([{"text": "x"}], {}, "Row 0 .* has no 'prompt'; its fields are text"),
        ([{"prompt": "x"}, {"prompt": ""}], {}, "Row 1 .* has no 'prompt'"),
        ([{"prompt": 3}], {}, "expected a text, or a list of messages"),
        ([{"prompt": [{"content": "x"}]}], {}, "expected a text, or a list of messages"),
        ([{"prompt": "x", "r": 3}], {"response_field": "r"}, "'r' is 3; expected a text"),
        ([{"prompt": "x", "a": "no mark"}], {"answer_field": "a", "answer_pattern": "#### (.+)"}, "answer_pattern"),
    ],
    ids=["no field", "empty", "wrong type", "no role", "no text", "no answer"],
)  # fmt: skip
def test_bad_rows_are_named(tmp_path: Path, rows: list[dict[str, object]], source: dict[str, str], match: str) -> None:
    stream = PromptStream(PromptSource(jsonl(tmp_path / "a.jsonl", rows), **source))  # type: ignore[arg-type]
    with pytest.raises(PromptDataError, match=match):
        list(stream)


@pytest.mark.parametrize(
    ("content", "name", "error"),
    [
        (None, "a.jsonl", MissingFileError),
        (b"", "a.jsonl", PromptDataError),
        (b"\n", "a.jsonl", PromptDataError),
        (b"{not json\n", "a.jsonl", PromptDataError),
        (b"PAR1 nonsense", "a.parquet", PromptDataError),
        (None, "./nowhere", MissingFileError),
    ],
    ids=["missing", "empty", "blank", "not json", "not parquet", "missing folder"],
)
def test_unfit_files_are_refused_at_setup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, name: str, error: type[SimctError]
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(name).write_bytes(content)
    with pytest.raises(error, match=name):
        PromptDataModule(PromptSource(name)).setup("fit")


@pytest.mark.parametrize("values", [{"skip": -1}, {"limit": -1}, {"limit": 0}, {"max_prompt_chars": 0}])
def test_counts_that_leave_no_row_are_refused_at_once(values: dict[str, int]) -> None:
    [(name, value)] = values.items()
    with pytest.raises(RecipeError, match=f"{name} of 'a.jsonl' is {value}; expected at least"):
        PromptSource("a.jsonl", **values)


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    numbered(tmp_path / "a.jsonl", 3)
    assert len(list(PromptSource("~/a.jsonl").rows())) == 3
    assert len(PromptSource("~/a.jsonl").sha256() or "") == 64


@pytest.mark.parametrize("pattern", ["(open", "no group"])
def test_answer_patterns_are_checked_at_once(pattern: str) -> None:
    with pytest.raises(RecipeError, match="answer_pattern"):
        PromptSource("a.jsonl", answer_pattern=pattern)


def test_a_stream_continues_in_the_middle_of_any_pass(tmp_path: Path) -> None:
    source = PromptSource(numbered(tmp_path / "a.jsonl", 20), max_prompt_chars=12)  # leaves some out
    for rank in range(2):
        options = {"shuffle_buffer": 6, "seed": 3, "rank": rank, "world_size": 2}
        stream = PromptStream(source, **options)  # type: ignore[arg-type]
        passes = [[p.index for p in stream] for _ in range(3)]
        continued = PromptStream(source, **options, epoch=1, num_done=2)  # type: ignore[arg-type]
        assert [[p.index for p in continued] for _ in range(2)] == [passes[1][2:], passes[2]]


def test_a_file_that_changes_while_it_is_read_stops_the_run(tmp_path: Path) -> None:
    path = Path(numbered(tmp_path / "a.jsonl", 50))
    stream = PromptStream(PromptSource(str(path)), file=WatchedFile(str(path)))
    reading = iter(stream)
    next(reading)
    content = path.read_bytes()
    os.utime(path, (1, 1))  # only touched
    next(reading)
    path.write_bytes(content.replace(b"question 9", b"question 8"))
    with pytest.raises(PromptDataError, match=r"a\.jsonl.* changed while the run reads it"):
        next(reading)
    path.write_bytes(content)
    assert len(list(stream)) == 50  # put back
    reading = iter(stream)
    next(reading)
    path.unlink()
    with pytest.raises(PromptDataError, match="changed while the run reads it"):
        list(reading)


def test_ranks_get_equally_many_prompts_whichever_are_left_out(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": "x" * (9 if i % 2 else 1)} for i in range(20)])
    source = PromptSource(path, max_prompt_chars=4)
    parts = [[p.index for p in PromptStream(source, rank=rank, world_size=2)] for rank in range(2)]
    assert [len(part) for part in parts] == [5, 5]
    assert sorted(parts[0] + parts[1]) == list(range(0, 20, 2))


class Steps(L.LightningModule):
    """Counts its batches, and remembers how many the trainer expected."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.seen: list[int] = []
        self.expected: float = 0

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.seen += [prompt.index for prompt in batch.prompts]

    def configure_optimizers(self) -> None:
        self.expected = self.trainer.estimated_stepping_batches


def steps_of(data: PromptDataModule, folder: Path, **options: Any) -> Steps:
    module = Steps()
    trainer(folder, callbacks=[], **options).fit(module, datamodule=data)
    return module


@pytest.mark.parametrize(
    ("values", "seen"),
    [
        ({"limit": 4}, [0, 1, 2, 3]),
        ({"limit": 40}, list(range(10))),
        ({"skip": 7, "limit": 40}, [7, 8, 9]),
        ({}, list(range(10))),
        ({"limit": 9, "max_prompt_chars": 4}, [0, 1, 2, 3]),
    ],
    ids=["limit", "fewer rows", "skip", "a whole file", "long ones left out"],
)
@pytest.mark.filterwarnings("ignore:.*has `__len__` defined.*")
def test_a_run_of_epochs_knows_its_steps(tmp_path: Path, values: dict[str, int], seen: list[int]) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": "x" * (i + 1)} for i in range(10)])
    data = PromptDataModule(PromptSource(path, **values), batch_size=2, shuffle_buffer=0)
    module = steps_of(data, tmp_path, max_steps=-1, max_epochs=2)
    assert module.seen == 2 * seen
    assert module.expected == 2 * ((len(seen) + 1) // 2)


def test_with_max_steps_a_pass_has_no_length_that_would_bind_validation_to_it(tmp_path: Path) -> None:
    data = PromptDataModule(PromptSource(numbered(tmp_path / "a.jsonl", 5), limit=4), batch_size=2, shuffle_buffer=0)
    assert len(steps_of(data, tmp_path, max_steps=5, max_epochs=2, val_check_interval=5).seen) == 8
    with pytest.raises(TypeError):
        len(data.train_dataloader())


def test_rows_that_do_not_reach_every_rank_are_refused(tmp_path: Path) -> None:
    data = PromptDataModule(PromptSource(numbered(tmp_path / "a.jsonl", 3), limit=1))
    data.trainer = SimpleNamespace(world_size=2, global_rank=0, max_steps=-1)  # type: ignore[assignment]
    with pytest.raises(PromptDataError, match="hold 1 usable rows; 2 ranks need one each"):
        data.train_dataloader()
    data.trainer = SimpleNamespace(world_size=2, global_rank=0, max_steps=-1)  # type: ignore[assignment]
    data.train = PromptSource(data.train.path)
    assert len(data.train_dataloader().dataset) == 1  # type: ignore[arg-type]
