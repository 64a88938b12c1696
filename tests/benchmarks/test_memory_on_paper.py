"""Predicted memory against what small models and the loss hold, published sizes, and the tables that docs show."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks import layouts, memory_checks, scaling
from benchmarks.architectures import published_configs
from simct_pl.planning.measure import ModelSize, ModelSource, SizedModel, WorkBytes
from simct_pl.planning.memory import PairBytes, Part, distillation_items
from simct_pl.planning.step import StepShape

# As the models' own files list them.
PUBLISHED = {
    "Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen2.5-32B-Instruct": 32_763_876_352,
    "Gemma-2-2B-it": 2_614_341_888,
    "Phi-4-mini-instruct": 3_836_021_760,
    "Llama-3.2-1B": 1_235_814_400,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_the_published_models(name: str) -> None:
    size = SizedModel(ModelSource(published_configs()[name]), torch.bfloat16).size
    assert size.parameters == PUBLISHED[name]
    assert len(size.blocks) == published_configs()[name].num_hidden_layers


@pytest.mark.slow
def test_bodies_take_the_resident_memory_that_is_predicted() -> None:
    """In a fresh process, whose allocator keeps nothing."""
    checks = memory_checks.resident_body_checks(("Llama", "Gemma-3"))
    assert len(checks) == 4
    for check in checks:
        assert check.ratio == pytest.approx(1, abs=0.12), check


@pytest.mark.slow
@pytest.mark.parametrize("ddp", [False, True])
def test_weights_gradients_and_moments_take_what_is_predicted(ddp: bool) -> None:
    check = memory_checks.state_check(ddp=ddp)
    assert check.ratio == pytest.approx(1, abs=0.05), check


@pytest.mark.parametrize(("num_tokens", "chunk_tokens"), [(256, 64), (256, 256)])
def test_tensors_of_the_loss_are_as_many_as_predicted(num_tokens: int, chunk_tokens: int) -> None:
    check = memory_checks.alive_check(num_tokens, chunk_tokens, vocabs=(16_000, 9_500))
    assert check.ratio == pytest.approx(1, abs=0.25), check


# ---- the tables ----


class ByHand(layouts.MeasuredPair):
    """Sizes of a pair that nobody measured."""

    def __init__(self, pair: str) -> None:
        sizes = (
            ModelSize(10**9, (10**8,) * 8, 10**8, 10**3, 10**5),
            ModelSize(10**10, (10**9,) * 9, 10**8, 10**3, 10**5),
        )
        self.found = PairBytes(*sizes, WorkBytes(10**9, 2 * 10**9), 10**9, 10**7)

    def items(self, step: StepShape) -> list[memory_checks.MemoryItem]:
        return distillation_items(self.found, step)


def test_layouts_prints_a_line_for_each(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "MeasuredPair", ByHand)
    layouts.main()
    printed = capsys.readouterr().out
    for num_gpus, named in layouts.LAYOUTS.items():
        for name in named:
            assert printed.count(f"| {num_gpus}: {name} |") == len(layouts.PAIRS)
    # 4 bytes of weights, gradients and buckets, 8 of moments.
    assert "| 8: DDP, teacher whole | 20.0 | 20.0 |" in printed
    assert all(f"| {pair} |" in printed for pair in layouts.PAPER_PAIRS)


def test_a_row_adds_up_to_its_peak() -> None:
    """Where training is the peak: student + teacher + engine's weights + rest."""
    items = ByHand("").items(StepShape())
    student, teacher, engine, rest, peak, fits = layouts.cells(items, 80e9)
    weights = float(engine.split(" + ")[0])
    assert float(student) + float(teacher) + weights + float(rest) == pytest.approx(float(peak), abs=0.2)
    assert fits == "yes"
    assert layouts.cells(items, 10e9)[-1] == "no"


def test_scaling_prints_its_tables(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "MeasuredPair", ByHand)
    monkeypatch.setattr(scaling, "checks", lambda: [memory_checks.Check("kept", "tiny", 2.0**20, 2.0**21)])
    scaling.main()
    printed = capsys.readouterr().out
    assert "no GPU was used" in printed
    assert f"| {Part.KEPT.value} | training | 1.00 |" in printed
    assert "| kept | tiny | 1 | 2 | 0.50 |" in printed


def test_each_micro_batch_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(PairBytes, "measure", lambda *arguments: calls.append(arguments) or ByHand("").found)
    pair = layouts.MeasuredPair(layouts.PAPER_PAIRS[0])
    for step in (StepShape(), StepShape(teacher="sharded"), replace(StepShape(), num_gpus=64)):
        pair.items(step)
    assert len(calls) == 2  # of three responses, and of one
