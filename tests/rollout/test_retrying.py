"""An engine that breaks: asked again with the same seeds, and given up with an error that names the step."""

from __future__ import annotations

import pytest
from transformers import PreTrainedModel

from simct_pl.errors import RecipeError, RolloutError
from simct_pl.rollout.engine import Generation, RolloutEngine, SamplingParams
from simct_pl.rollout.hf import HFEngine
from simct_pl.rollout.retrying import RetryingEngine
from tests.tiny import distill_module


class Breaking(RolloutEngine):
    """An HFEngine that breaks at the given calls; after that it needs new weights."""

    def __init__(self, *calls: int, error: Exception | None = None) -> None:
        self.inner, self.calls, self.num_calls = HFEngine(), calls, 0
        self.error = error or RuntimeError("device lost")

    def refresh(self, model: PreTrainedModel, policy_version: int) -> None:
        self.inner.refresh(model, policy_version)
        self.policy_version = policy_version

    def generate(
        self, prompts_ids: list[list[int]], seeds: list[int], sampling: SamplingParams, stop_ids: tuple[int, ...]
    ) -> list[Generation]:
        self.num_calls += 1
        if self.num_calls in self.calls:
            self.inner = HFEngine()
            raise self.error
        return self.inner.generate(prompts_ids, seeds, sampling, stop_ids)


def generate(engine: RolloutEngine) -> list[Generation]:
    module = distill_module()
    engine.refresh(module.student, 7)
    ids = [module.pair.student.render_prompt([{"role": "user", "content": text}]) for text in ("1+2+3?", "9+9+9?")]
    return engine.generate(ids, [1, 2], SamplingParams(max_tokens=12), module.pair.student.stop_ids)


def test_a_second_attempt_gives_what_the_first_would_have() -> None:
    engine = RetryingEngine(Breaking(1))
    with pytest.warns(UserWarning, match="step 7 .device lost.; attempt 1 of 2"):
        found = generate(engine)
    assert found == generate(HFEngine())
    assert (engine.num_failures, engine.policy_version) == (1, 7)


def test_it_gives_up_and_names_the_step() -> None:
    with (
        pytest.warns(UserWarning, match="attempt 2 of 2"),
        pytest.raises(RolloutError, match="2 times at step 7: device lost"),
    ):
        generate(RetryingEngine(Breaking(1, 2)))


def test_a_plan_sees_the_engine_inside() -> None:
    inside = Breaking()
    inside.placement, inside.reserved_share = "server", 0.3
    engine = RetryingEngine(inside)
    assert (engine.placement, engine.reserved_share) == ("server", 0.3)


def test_an_engine_that_has_finished_may_have_no_weights_any_more() -> None:
    class Sleeping(Breaking):
        def finish(self) -> None:
            self.policy_version = None

    engine = RetryingEngine(Sleeping())
    generate(engine)
    assert engine.policy_version == 7
    engine.finish()
    assert engine.policy_version is None


def test_what_the_user_got_wrong_is_not_tried_again() -> None:
    broken = Breaking(1, error=RolloutError("no"))
    with pytest.raises(RolloutError, match=r"^no$"):
        generate(RetryingEngine(broken))
    assert broken.num_calls == 1
    with pytest.raises(RecipeError, match="max_retries is 0"):
        RetryingEngine(broken, 0)
