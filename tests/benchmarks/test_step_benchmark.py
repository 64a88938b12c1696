"""The pair, the clock and both contenders of the step benchmark, at tiny sizes."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.measure import MIB, Peak, in_fresh_process
from benchmarks.pair import make_pair
from benchmarks.step import _bounds, _ratios, _report, run_ours
from benchmarks.stepclock import Measured, StepClock, Work, quietly
from simct_pl import CommonBoundaryAligner
from simct_pl.tokenization.pair import TokenizerPair
from tests import warm

STOP = 9


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    student, teacher = make_pair(tmp_path_factory.mktemp("pair"), student_width=32, teacher_width=32, num_layers=1)
    return Work(student, teacher, batch_size=2, new_tokens=4, warmup=1, steps=1, threads=1)


def test_student_speaks_words_that_the_teacher_cuts_otherwise(work: Work) -> None:
    pair = TokenizerPair.from_pretrained(work.student, work.teacher)
    assert len(pair.student.hf) > 150_000
    assert len(pair.teacher.hf) > 128_000
    model = AutoModelForCausalLM.from_pretrained(work.student)
    prompt_ids = pair.student.render_prompt([{"role": "user", "content": work.questions()[0]}])
    torch.manual_seed(0)
    output_BS = model.generate(torch.tensor([prompt_ids]), do_sample=True, top_k=0, max_new_tokens=100)
    response_ids = output_BS[0, len(prompt_ids) :].tolist()
    assert re.fullmatch(r"( [a-z]+){100}", pair.student.hf.decode(response_ids))
    assert CommonBoundaryAligner().align(pair.tokenize(response_ids, stopped=False)).num_teacher_tokens > 100


def check(measured: Measured, work: Work) -> None:
    assert measured.samples == work.batch_size
    assert 0 < measured.generation_seconds < measured.step_seconds
    num_parameters = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(work.student).parameters())
    assert measured.trained_bytes == 12 * num_parameters
    assert 12 * num_parameters < measured.peak_extra < measured.peak


@pytest.mark.slow  # a process of its own: a heap that others have used before does not grow
def test_ours(work: Work) -> None:
    check(warm.call(quietly, run_ours, work), work)


@pytest.mark.slow  # a process of its own, and TRL's imports
def test_gold(work: Work) -> None:
    pytest.importorskip("trl", reason="the extra `bench` is not installed")
    from benchmarks.gold import run_gold

    check(in_fresh_process(quietly, run_gold, work), work)


class FakeStudent:
    """Generates what it is told to."""

    def __init__(self, response_BS: Tensor) -> None:
        self.response_BS = response_BS

    def generate(self, input_ids: Tensor, as_object: bool) -> Tensor | SimpleNamespace:
        ids_BS = torch.cat([input_ids, self.response_BS], 1)
        return SimpleNamespace(sequences=ids_BS) if as_object else ids_BS

    def parameters(self) -> list[Tensor]:
        return [torch.zeros(5)]


@pytest.mark.parametrize("as_object", [False, True])
def test_clock_refuses_other_work(work: Work, as_object: bool) -> None:
    prompt_BS = torch.full((2, 3), STOP)  # a stop in the prompt is no stop of the response
    student = FakeStudent(torch.ones(2, 4, dtype=torch.int64))
    StepClock(work, student, (STOP,))  # type: ignore[arg-type]
    student.generate(input_ids=prompt_BS, as_object=as_object)
    student.response_BS = torch.ones(2, 3, dtype=torch.int64)
    with pytest.raises(RuntimeError, match=r"returned \(2, 3\) new tokens; expected \(2, 4\)"):
        student.generate(input_ids=prompt_BS, as_object=as_object)
    student.response_BS = torch.tensor([[1, 1, 1, 1], [1, 1, STOP, 1]])
    with pytest.raises(RuntimeError, match="ended before the length limit"):
        student.generate(input_ids=prompt_BS, as_object=as_object)


def test_clock_leaves_the_warm_up_out(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 5.0, 10.0, 10.5, 11.5, 14.0, 15.0, 17.0, 20.0])  # generate's start and end, end of step; thrice
    monkeypatch.setattr("benchmarks.stepclock.time.perf_counter", lambda: next(now))
    student = FakeStudent(torch.ones(2, 4, dtype=torch.int64))
    clock = StepClock(replace(work, steps=2), student, (STOP,))  # type: ignore[arg-type]
    for _ in range(3):
        student.generate(input_ids=torch.ones(2, 3, dtype=torch.int64), as_object=False)
        clock.step_done()
    assert clock.measured(Peak(start=40, most=100)) == Measured(2, 5.0, 1.5, 100, 60, trained_bytes=12 * 5)
    clock.work = replace(work, steps=3)
    with pytest.raises(RuntimeError, match=r"3 steps were run; expected 1 \+ 3"):
        clock.measured(Peak())


def run(step: float, generation: float, peak: int, extra: int) -> Measured:
    return Measured(8, step, generation, peak * MIB, extra * MIB, trained_bytes=100 * MIB)


def test_ratios_and_what_bounds_them() -> None:
    ours, gold = run(10.0, 8.0, peak=300, extra=200), run(12.0, 6.0, peak=600, extra=250)
    assert _ratios("", ours, gold)[1:] == [
        f"**{ratio} ×**" for ratio in ("1.20", "1.20", "0.75", "3.00", "1.25", "2.00")
    ]
    speed, memory = _bounds(32, ours, gold)
    assert "80% of our step and 50% of TRL's" in speed
    assert "1.50 × as fast" in speed
    assert "100 MiB in both, 50% of our peak" in memory
    assert "is 1.50 × ours" in memory


def test_nothing_bounds_a_ratio_above_the_target() -> None:
    ours, gold = run(10.0, 8.0, peak=300, extra=200), run(15.0, 8.0, peak=300, extra=300)
    assert _bounds(32, ours, gold) == []
    assert _report({32: [ours, gold]}).splitlines()[2:4] == [
        "| 32 new tokens, ours | 0.80 | 10.00 | 8.00 | 4.00 | 200 | 300 |",
        "| 32 new tokens, TRL GOLD | 0.53 | 15.00 | 8.00 | 1.14 | 300 | 300 |",
    ]


def test_work_needs_a_warm_up(work: Work) -> None:
    with pytest.raises(ValueError, match="warmup=0, steps=1"):
        replace(work, warmup=0)
