"""What the host makes of rollouts: nothing is graded where the teacher's context is over."""

from __future__ import annotations

import torch

from simct_pl.types import TEACHER_END
from tests.tiny import distill_module, sampled


def test_units_beyond_the_teachers_context_are_not_graded() -> None:
    """The loss is that of the units before; they are still units, and rows keep their places."""
    module = distill_module()
    rollouts = sampled(module)
    whole = module.align(rollouts)
    _, stats = module.loss_sum(rollouts, whole)
    losses, context = whole.split(stats), max(map(len, whole.only.teacher_prompt_ids)) + 6
    module.first_lesson.__dict__["context"] = context
    short = module.align(rollouts)
    loss, _ = module.loss_sum(rollouts, short)
    expected = torch.zeros(())
    for prompt_ids, before, after, own in zip(
        whole.only.teacher_prompt_ids, whole.alignments, short.alignments, losses, strict=True
    ):
        inside_U = before.units_U6[:, TEACHER_END] + len(prompt_ids) <= context
        assert 0 < inside_U.sum() < before.num_units
        assert (after.units_U6 == before.units_U6).all()
        assert (after.supervised_U == before.supervised_U & inside_U).all()
        expected += own.loss_U[torch.from_numpy(inside_U[before.supervised_U])].sum()
    torch.testing.assert_close(loss.detach(), expected)
