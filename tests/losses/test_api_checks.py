"""What distillation_loss refuses, and whether the message says what to do instead."""

from __future__ import annotations

import pytest
import torch

from simct_pl.errors import RecipeError, SimctError
from simct_pl.losses.api import distillation_loss
from tests.reference.bridge import scene_inputs
from tests.reference.scenes import random_scene

SCENE = random_scene(0)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"score": "mean_logprobs"}, "mean_logprob"),
        ({"score": "logit"}, "mean_logit"),
        ({"prefix": "marginals"}, "marginal"),
        ({"divergence": "rlk"}, "rkl"),
        ({"divergence": "jds"}, "jsd"),
        ({"objective": "simtc"}, "simct"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(wrong: dict[str, str], named: str) -> None:
    with pytest.raises(RecipeError) as caught:
        distillation_loss(SCENE.student_logits_SV, SCENE.teacher_logits_TV, *scene_inputs(SCENE), **wrong)
    assert next(iter(wrong.values())) in str(caught.value)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rest": True},
        {"rest": True, "score": "sum_logprob"},
        {"rest": True, "score": "mean_logprob", "prefix": "mask"},
        {"rest": True, "score": "mean_logit", "prefix": "marginal"},
        {"divergence": "jsd", "jsd_beta": 0.0},
        {"divergence": "jsd", "jsd_beta": 1.0},
        {"divergence": "skl", "skew": 1.5},
        {"divergence": "srkl", "skew": -0.1},
        {"mass_threshold": 0.0},
    ],
)
def test_a_combination_that_cannot_be_run_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(RecipeError):
        distillation_loss(SCENE.student_logits_SV, SCENE.teacher_logits_TV, *scene_inputs(SCENE), **wrong)


@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("fault", ["missing row", "extra row", "narrow", "flat"])
def test_logits_of_a_wrong_shape_are_refused(side: str, fault: str) -> None:
    logits = {"student": SCENE.student_logits_SV, "teacher": SCENE.teacher_logits_TV}
    right = logits[side]
    logits[side] = {
        "missing row": right[:-1],
        "extra row": torch.cat([right, right[:1]]),
        "narrow": right[:, :5],
        "flat": right[0],
    }[fault]
    with pytest.raises(SimctError, match=side):
        distillation_loss(logits["student"], logits["teacher"], *scene_inputs(SCENE))
