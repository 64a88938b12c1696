"""Published sizes, and the tables of layouts and rehearsals that docs show."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import layouts, rehearse
from benchmarks.architectures import published_configs
from simct_pl.planning.memory import MemoryItem, Moment, Part
from simct_pl.planning.step import StepShape
from simct_pl.rehearsal.models import ModelSource, size_of

# As the models' own files list them.
PUBLISHED = {
    "Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen2.5-32B-Instruct": 32_763_876_352,
    "Gemma-2-2B-it": 2_614_341_888,
    "Phi-4-mini-instruct": 3_836_021_760,
    "Llama-3.2-1B": 1_235_814_400,
    "Qwen3-1.7B": 1_720_574_976,
    "Qwen3-8B": 8_190_735_360,
    "Gemma-3-1B-it": 999_885_952,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_the_published_models(name: str) -> None:
    size = size_of(ModelSource(published_configs()[name]))
    assert size.parameters == PUBLISHED[name]
    assert len(size.blocks) == published_configs()[name].num_hidden_layers


# ---- the tables ----

ITEMS = [
    MemoryItem(Part.WEIGHTS, 4e9),
    MemoryItem(Part.GRADIENTS, 4e9, Moment.TRAINING),
    MemoryItem(Part.MOMENTS, 8e9),
    MemoryItem(Part.BUCKETS, 4e9),
    MemoryItem(Part.TEACHER_WEIGHTS, 20e9),
    MemoryItem(Part.AT_WORK, 3e9, Moment.LOSS),
    MemoryItem(Part.AT_WORK, 2e9, Moment.TEACHER),
    MemoryItem(Part.ENGINE_WEIGHTS, 2e9),
    MemoryItem(Part.ENGINE_CACHE, 1e9, Moment.GENERATING),
]


class ByHand(layouts.RehearsedPair):
    """A pair that nobody rehearsed."""

    def items(self, step: StepShape) -> list[MemoryItem]:
        return ITEMS


def test_layouts_prints_a_line_for_each(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "RehearsedPair", ByHand)
    layouts.main()
    printed = capsys.readouterr().out
    assert layouts.LAYOUTS.keys() == layouts.PAIRS.keys()
    for name in {name for named in layouts.LAYOUTS.values() for name in named}:
        assert printed.count(f"| {name} |") == sum(name in named for named in layouts.LAYOUTS.values())
    assert "| DDP, teacher whole | 20.0 | 20.0 | 2.0 + 1.0 | 3.0 | 45.0 | yes |" in printed
    assert layouts.cells(ITEMS, 10e9)[-1] == "no"


@pytest.mark.slow
def test_a_layout_is_rehearsed_rank_by_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first layer of either model: sharded among 8, or whole."""
    configs = published_configs()
    for config in configs.values():
        config.num_hidden_layers = 1
        config.layer_types = None if getattr(config, "layer_types", None) is None else config.layer_types[:1]
    monkeypatch.setattr(layouts, "published_configs", lambda: configs)
    pair = layouts.RehearsedPair(next(iter(layouts.PAIRS)))
    base = StepShape(num_prompts=8, response_tokens=512, teacher_response_tokens=512)
    sharded, whole = (
        {item.part: item.bytes for item in pair.items(step)} for step in (base, replace(base, **layouts.DDP))
    )
    assert 8 * sharded[Part.MOMENTS] == pytest.approx(whole[Part.MOMENTS], rel=0.01)
    assert sharded[Part.TEACHER_WEIGHTS] == whole[Part.TEACHER_WEIGHTS]
    assert sharded[Part.ENGINE_CACHE] == whole[Part.ENGINE_CACHE] > 0
    assert Part.BUCKETS in whole.keys() - sharded.keys()


def test_a_rehearsal_prints_what_it_counted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    phases = dict.fromkeys(rehearse.SHOWN, 1)
    found = rehearse.Figures(
        kernels=phases | {"loss": 2940},
        bytes=dict.fromkeys(phases, 2 * 10**9),
        most=3 * 10**9,
        waits={"a.py:1: item": 1},
        uploads={"b.py:2": 16},
        forbidden=[],
        products={phase: ["torch.bfloat16"] for phase in phases},
        lines={"c.py:3": 7},
        at_most={"d.py:4": 10**9},
    )
    monkeypatch.setattr(rehearse.fake_cuda, "is_possible", lambda: True)
    monkeypatch.setattr(rehearse.fake_cuda, "call", lambda *_, **__: vars(found))
    rehearse.main(case=rehearse.Case("student", "teacher"))
    printed = capsys.readouterr().out
    named = "| student ◄ teacher | TokenConditionalLoss | 1 GPU, autocast |"
    assert f"{named} 1 | 1 | 2,940 | 1 | 1 |" in printed
    assert f"{named} 2.0 | 2.0 | 2.0 | 2.0 | 2.0 | **3.0** |" in printed
    assert f"{named} 1 | none | 16 | bfloat16 / bfloat16 / bfloat16 |" in printed
    assert "| c.py:3 | 7 |" in printed
