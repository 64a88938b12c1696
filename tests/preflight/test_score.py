"""Bits per byte of both models: the arithmetic by hand, and the models against a plain forward."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from simct_pl.planning.samples import Sample, read_samples
from simct_pl.preflight.findings import Severity
from simct_pl.preflight.score import ScoreReport, score, why_not_by_itself
from simct_pl.types import Prompt
from tests.tiny import ASSETS, data, unloaded_module


def test_a_report_is_paired_and_weighs_bytes() -> None:
    report = ScoreReport.of([10.0, 30.0, 8.0], [5.0, 20.0, 9.0], [10, 20, 4])
    assert (report.student, report.teacher) == (48 / 34, 34 / 34)
    gains = [0.5, 0.5, -0.25]
    mean = sum(gains) / 3
    assert report.gain == pytest.approx(mean)
    deviation = math.sqrt(sum((gain - mean) ** 2 for gain in gains) / 2)
    assert report.standard_error == pytest.approx(deviation / math.sqrt(3))
    assert report.num_better == 2


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        ([20.0, 21.0, 22.0], [10.0, 10.0, 10.0], []),
        ([10.0, 10.0, 10.0], [20.0, 21.0, 22.0], [Severity.STOP]),
        ([10.0, 20.0, 10.0], [20.0, 10.0, 11.0], [Severity.CARE]),
        ([20.0], [10.0], [Severity.CARE]),  # one response is no evidence
    ],
)
def test_the_verdict_is_by_two_standard_errors(
    student: list[float], teacher: list[float], expected: list[Severity]
) -> None:
    report = ScoreReport.of(student, teacher, [10] * len(student))
    assert [finding.severity for finding in report.findings()] == expected


def test_both_models_are_scored_as_a_plain_forward_would() -> None:
    module = unloaded_module()
    assert why_not_by_itself(module, module.first_lesson) is None
    samples = read_samples(data(), 3)
    expected = []
    for role, tokenizer in (("student", module.pair.student), ("teacher", module.pair.teacher)):
        model = AutoModelForCausalLM.from_pretrained(ASSETS / role, dtype=torch.float64).eval()
        bits, size = 0.0, 0
        for sample in samples:
            text = sample.prompt.response or ""
            prompt, response = tokenizer.render_prompt(sample.prompt.messages), tokenizer.encode(text)
            with torch.no_grad():
                logprobs = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
            rows = range(len(prompt) - 1, len(prompt) + len(response) - 1)
            bits -= sum(logprobs[row, token].item() for row, token in zip(rows, response, strict=True)) / math.log(2)
            size += len(text.encode())
        expected.append(bits / size)
    report = score(module, module.first_lesson, samples)
    assert report is not None
    assert [report.student, report.teacher] == pytest.approx(expected, rel=1e-4)


def test_without_references_there_is_no_score() -> None:
    module = unloaded_module()
    assert score(module, module.first_lesson, [Sample(Prompt(0, ({"role": "user", "content": "1+1?"},)))]) is None


def test_large_or_distant_weights_are_not_loaded_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    far, module = unloaded_module(teacher="org/model"), unloaded_module()
    assert "not in local folders" in (why_not_by_itself(far, far.first_lesson) or "")
    monkeypatch.setattr("simct_pl.preflight.score.PATIENCE_BYTES", 1000)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "weights are much" in (why_not_by_itself(module, module.first_lesson) or "")
