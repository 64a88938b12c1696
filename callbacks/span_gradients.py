"""Do other units pull the student where the 1:1 units pull it? Their two gradients, compared now and then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import lightning as L
import torch
from torch import Tensor
from typing_extensions import override

from callbacks.distilled import distilled
from simct_pl.errors import RecipeError
from simct_pl.losses.base import Objective, UnitChunk, UnitLosses
from simct_pl.models.microbatch import pack_by_length
from simct_pl.rollout.engine import RolloutProvider
from simct_pl.training.checks import rollouts_of
from simct_pl.training.module import DistillModule
from simct_pl.types import PromptBatch, Rollout


class SpanGradients(L.Callback):
    """Logs the `span/` group every so many steps, before the step and with its weights.

    span/cosine: of the student's gradients of the objective at 1:1 units and at all others. span/norm_ratio: the norm
        of the others' by that of the 1:1 units'. Over all ranks; left out where either has no gradient at all.

    A sampled step reads its responses two more times, forward and backward, and holds two more gradients of the
    student in fp32; the other steps cost nothing. An anchor is left out of both gradients.

    Args:
        every_n_steps: from the first step on. num_responses: of each rank, so many at most.

    Raises:
        RecipeError: for a number below 1.
    """

    only_reports = True

    def __init__(self, every_n_steps: int = 50, num_responses: int = 16) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("num_responses", num_responses)):
            if value < 1:
                raise RecipeError(
                    f"{name} of SpanGradients is {value}; expected at least 1, or leave the callback out."
                )
        self.every_n_steps, self.num_responses = every_n_steps, num_responses

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        module = distilled(self, pl_module)
        if module.sharding is not None:
            raise RecipeError(
                "SpanGradients compares whole gradients, and with model.init_args.sharding each rank has a part. "
                "Leave the callback out, or train with trainer.strategy=ddp."
            )
        if not isinstance(module.objective, Objective):
            raise RecipeError(
                f"SpanGradients takes a loss apart by units; {type(module.objective).__name__} compares hidden states "
                "too. Leave the callback out."
            )
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if any(isinstance(one, RolloutProvider) for one in callbacks[callbacks.index(self) :]):
            raise RecipeError("SpanGradients reads the step's responses: list it behind the rollout callback.")

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: PromptBatch, batch_idx: int
    ) -> None:
        if trainer.global_step % self.every_n_steps != 0:
            return
        module = distilled(self, pl_module)
        rollouts = module.chat.supervised_part(module.pair, rollouts_of(batch)[: self.num_responses])
        # What it draws (dropout) must not move the run's own draws.
        devices = [module.device] if module.device.type == "cuda" else []
        with torch.random.fork_rng(devices), trainer.precision_plugin.train_step_context():
            shared, others = gradients_by_kind(module, rollouts)
        for gradient in (*shared, *others):
            gradient.copy_(trainer.strategy.reduce(gradient, reduce_op="sum"))
        metrics = compare(shared, others)
        pl_module.log_dict({f"span/{name}": value for name, value in metrics.items()}, batch_size=1)


def gradients_by_kind(module: DistillModule, rollouts: Sequence[Rollout]) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of the objective's sum over 1:1 units, and over all others: a tensor for each of the student's
    trainable parameters, at least fp32. They add up to the whole gradient; `.grad` is left alone.
    """
    lengths = [len(one.prompt_ids) + len(one.response_ids) for one in rollouts]
    parts = [[rollouts[i] for i in group] for group in pack_by_length(lengths, module.micro_batch_tokens)]
    parameters = [parameter for parameter in module.student.parameters() if parameter.requires_grad]
    kinds = []
    for one_to_one in (True, False):
        sums = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in parameters]
        with _only_units(module, one_to_one):
            for part in parts:
                loss, _ = module.loss_sum(part, module.align(part))
                # Not backward: neither .grad nor what ranks exchange through it is touched.
                for total, found in zip(sums, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
                    if found is not None:
                        total += found
        kinds.append(sums)
    return kinds[0], kinds[1]


def compare(shared: Sequence[Tensor], others: Sequence[Tensor]) -> dict[str, float]:
    """cosine and norm_ratio; empty if one of both is zero everywhere."""
    pairs = [(one.double().flatten(), other.double().flatten()) for one, other in zip(shared, others, strict=True)]
    norms = [sum(float(pair[side] @ pair[side]) for pair in pairs) ** 0.5 for side in (0, 1)]
    if min(norms) == 0:
        return {}
    product = sum(float(one @ other) for one, other in pairs)
    return {"cosine": product / (norms[0] * norms[1]), "norm_ratio": norms[1] / norms[0]}


class _OneKind(Objective):
    """An objective at the 1:1 units alone, or at all others alone."""

    def __init__(self, objective: Objective, one_to_one: bool) -> None:
        self.objective, self.one_to_one = objective, one_to_one

    def __call__(self, chunk: UnitChunk) -> UnitLosses:
        losses = self.objective(chunk)
        kept_U = chunk.rows.one_to_one_U == self.one_to_one
        return replace(losses, loss_U=losses.loss_U.where(kept_U, 0.0))

    def describe(self) -> dict[str, object]:
        return self.objective.describe()


@contextmanager
def _only_units(module: DistillModule, one_to_one: bool) -> Iterator[None]:
    """Inside, the module's loss is that of one kind of units, without an anchor."""
    whole = module.student_with_loss
    losses, anchor = [*whole.by_teacher.values()], whole.anchor
    objectives = [loss.objective for loss in losses]
    whole.anchor = None
    for loss, objective in zip(losses, objectives, strict=True):
        assert isinstance(objective, Objective)
        loss.objective = _OneKind(objective, one_to_one)
    try:
        yield
    finally:
        whole.anchor = anchor
        for loss, objective in zip(losses, objectives, strict=True):
            loss.objective = objective
