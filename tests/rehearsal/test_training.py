"""What a rehearsal says a step holds, against the same step with its numbers."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.architectures import tiny_configs
from benchmarks.live_bytes import LiveBytes
from benchmarks.memory_checks import rehearse_body, resident_checks, states_of
from simct_pl import SimCTLoss, TokenConditionalLoss
from simct_pl.losses.base import Objective
from simct_pl.losses.inputs.vocab_tables import PairTables
from simct_pl.models.sharding import Sharding
from simct_pl.planning.rehearsing import rehearse_recipe, student_source, teacher_source
from simct_pl.planning.samples import Lengths
from simct_pl.planning.step import StepShape
from simct_pl.rehearsal.ledger import Ledger
from simct_pl.rehearsal.pair import Distillation, MicroBatch, rehearse_distillation
from simct_pl.rehearsal.training import GRADIENTS, MOMENTS, TEACHER, TRAINED, Training
from simct_pl.training.module import DistillModule
from simct_pl.training.step_timer import PhaseTimer
from tests.tiny import distill_module, regraded, sampled, unloaded_module

CONFIGS = tiny_configs()
PHASES = ("student_forward", "teacher", "loss", "student_backward")


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_body_holds_what_it_holds_with_weights(name: str, checkpointing: bool) -> None:
    ledger = rehearse_body(CONFIGS[name], checkpointing, 2, 100)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with LiveBytes() as alive:
        loss = states_of(model, 2, 100).sum()
        forward = alive.most
        loss.backward()
    rest = sum(ledger.at_rest.values())
    assert ledger.most_in["student_forward"] - rest == pytest.approx(forward, rel=0.03)
    found = max(ledger.most_in[phase] for phase in ("student_forward", "student_backward")) - rest
    assert found == pytest.approx(alive.most, rel=0.03)


class Watched(PhaseTimer):
    """Most bytes alive in each phase."""

    def __init__(self, alive: LiveBytes) -> None:
        super().__init__()
        self.alive, self.most_in = alive, dict[str, int]()

    def __call__(self, phase: str) -> object:  # type: ignore[override]
        return self.watching(phase)

    def watching(self, phase: str) -> object:
        from contextlib import contextmanager

        @contextmanager
        def inside() -> object:  # type: ignore[misc]
            self.alive.forget_peak()
            yield
            self.most_in[phase] = self.alive.most

        return inside()


def real_phases(module: DistillModule, batch: MicroBatch) -> dict[str, int]:
    for parameter in module.student_with_loss.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with LiveBytes() as alive:
        watched = Watched(alive)
        module.student_with_loss.phases = module.student_with_loss.loss_of("teacher").phases = watched
        graded = regraded(module.align(batch.rollouts), **vars(batch.aligned))
        loss, _ = module.student_with_loss(batch.rollouts, lambda: graded, {"teacher": batch.tables})
        with watched("student_backward"):
            (loss * 0.5).backward()
    return watched.most_in


@pytest.mark.parametrize("objective", [SimCTLoss("sum_logprob", "marginal"), TokenConditionalLoss()])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_phase_holds_what_it_holds_with_weights(objective: Objective, checkpointing: bool) -> None:
    module = distill_module(objective=objective, gradient_checkpointing=checkpointing, chunk_tokens=64)
    objective.prepare(module.pair)
    rollouts = sampled(module)
    batch = MicroBatch(rollouts, module.align(rollouts).only, PairTables.build(module.pair.shared_vocab))
    ledger = rehearsed(module, batch, Training(student_source(module), gradient_checkpointing=checkpointing))
    real = real_phases(module, batch)
    rest = sum(ledger.at_rest.values())
    for phase in PHASES:
        assert ledger.most_in[phase] - rest == pytest.approx(real[phase], rel=0.05), phase


def rehearsed(module: DistillModule, batch: MicroBatch, training: Training) -> Ledger:
    distillation = Distillation(
        teacher_source(module.first_lesson), module.objective, batch, module.pair, torch.float32, module.chunk_tokens
    )
    return rehearse_distillation(training, distillation, "cpu")


def test_ranks_share_what_they_share() -> None:
    module = unloaded_module()
    lengths = Lengths(20, 20, None, 1.0, ("1+2= 3, 3+3= 6, total 6",))
    whole = StepShape(num_prompts=8, num_gpus=1, response_tokens=64, student="replicated", param_dtype=torch.float32)
    alone = rehearse_recipe(module, module.first_lesson, whole, lengths, lambda _: None)
    module = unloaded_module(sharding=Sharding(shard_teacher=True))
    step = StepShape(num_prompts=64, response_tokens=64, teacher="sharded", micro_batch_tokens=400)
    shared = rehearse_recipe(module, module.first_lesson, step, lengths, lambda _: None)
    for name in (TRAINED, MOMENTS):
        assert shared.at_rest[name] == pytest.approx(alone.at_rest[name] / 8, rel=0.05), name
    assert GRADIENTS not in +alone.at_rest  # one micro-batch
    assert shared.at_rest[GRADIENTS] == pytest.approx(shared.at_rest[TRAINED], rel=0.01)  # buffers
    assert alone.at_rest[TEACHER] / 8 < shared.at_rest[TEACHER] < alone.at_rest[TEACHER] / 2
    assert not torch.distributed.is_initialized()


@pytest.mark.slow
def test_bodies_take_the_resident_memory_that_is_rehearsed() -> None:
    """In a fresh process, whose allocator keeps nothing."""
    checks = resident_checks(("Llama", "Gemma-3"))
    assert len(checks) == 4
    for check in checks:
        assert check.ratio == pytest.approx(1, abs=0.12), check
