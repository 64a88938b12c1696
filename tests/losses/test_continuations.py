"""Continuations end to end: value and gradient of plain forwards, mass kept, and nothing that batching changes."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from callbacks import ContinuationStats
from callbacks.continuation_stats import continuation_metrics
from simct_pl import ContinuationLoss, DistillModule, SimCTLoss
from simct_pl.errors import RecipeError
from simct_pl.losses.base import UnitChunk, UnitLosses
from simct_pl.losses.mixture import MixtureLoss, Weighted
from simct_pl.parallel import Sharding
from simct_pl.scoring.continued import StudentWithContinuations
from simct_pl.scoring.proposals import Continuations
from simct_pl.scoring.stats import UnitStats
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.types import Rollout
from tests.reference.continuations import Choice, Reader, continuation_losses
from tests.reference.vocabulary import Side
from tests.tiny import data, distill_module, sampled, trainer, unloaded_module

# Everything is a candidate: also continuations of continuations ("to" "t" and "to" "t" "a" for the teacher's "tot..").
CHOICES = {
    "student's": Choice(3, 0, 1e-3),
    "teacher's": Choice(0, 3, 1e-9),
    "both": Choice(4, 3, 1e-9),
}
every_choice = pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)


def module_of(choice: Choice, dtype: torch.dtype = torch.float64, **overrides: Any) -> DistillModule:
    continuations = Continuations(choice.student_k, choice.teacher_k, choice.min_probability)
    module = distill_module(objective=ContinuationLoss(continuations), **overrides)
    return in_float64(module) if dtype == torch.float64 else module


def in_float64(module: DistillModule) -> DistillModule:
    """Both models, norms included: Llama's own work in fp32 whatever their dtype."""
    assert module.teacher is not None
    for model in (module.student, module.teacher.model):
        norms = [(name, norm) for name, norm in model.named_modules() if isinstance(norm, LlamaRMSNorm)]
        assert norms
        for name, norm in norms:
            exact = nn.RMSNorm(len(norm.weight), eps=norm.variance_epsilon)
            exact.weight = norm.weight
            model.set_submodule(name, exact)
        model.double()
    return module


@cache
def rollouts() -> list[Rollout]:
    """Sampled hot, so that the path leaves what both models prefer."""
    return sampled(distill_module())


def reader(model: PreTrainedModel, tokenizer: ModelTokenizer, prompt: list[int]) -> Reader:
    table = tokenizer.table
    tokens = tuple(table[i] if table.is_mapped_V[i] and not table.is_special_V[i] else None for i in range(len(table)))

    def next_logits(ids: list[int]) -> Tensor:
        logits_K: Tensor = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        return logits_K

    return Reader(
        Side(tokens, tokenizer.stop_ids),
        prompt,
        next_logits,
        lambda text: tokenizer.hf.encode(text, add_special_tokens=False),
    )


def reference_losses(module: DistillModule, members: list[Rollout], choice: Choice) -> list[Tensor]:
    aligned, losses = module.align(members), []
    assert module.teacher is not None
    for rollout, alignment, teacher_prompt in zip(members, aligned.alignments, aligned.teacher_prompt_ids, strict=True):
        losses += continuation_losses(
            reader(module.student, module.pair.student, rollout.prompt_ids),
            reader(module.teacher.model, module.pair.teacher, teacher_prompt),
            rollout.response_ids,
            alignment.teacher_ids_T.tolist(),
            choice,
        )
    return losses


def run(module: DistillModule, groups: list[list[Rollout]]) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses of all units in order, and gradients of their sum, accumulated over groups."""
    module.student.zero_grad()
    parts = []
    for members in groups:
        loss, stats = module.loss_sum(members, module.align(members))
        loss.backward()
        parts.append(stats.loss_U)
    gradients = {n: p.grad.clone() for n, p in module.student.named_parameters() if p.grad is not None}
    return torch.cat(parts), gradients


@every_choice
def test_value_and_gradient_are_those_of_plain_forwards(choice: Choice) -> None:
    module, members = module_of(choice), rollouts()[:2]
    loss_U, gradients = run(module, [members])
    module.student.zero_grad()
    expected = torch.stack(reference_losses(module, members, choice))
    torch.testing.assert_close(loss_U, expected.detach(), rtol=1e-9, atol=1e-12)
    expected.sum().backward()
    assert len(gradients) > 10
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, module.student.get_parameter(name).grad, rtol=1e-8, atol=1e-11)
    graded = module.graded
    assert isinstance(graded, StudentWithContinuations)
    proposed = {side: graded.counts[f"{side}_proposed"] for side in ("student", "teacher")}
    assert (proposed["student"] > 10) is (choice.student_k > 0)
    assert (proposed["teacher"] > 10) is (choice.teacher_k > 0)
    assert (graded.counts["student_nodes"] > 10) is (choice.teacher_k > 0)


def test_candidates_hold_all_probability_of_tokens_with_a_bucket() -> None:
    """Both vocabularies hold every byte, so every text token has a bucket: only control tokens are outside."""
    module, members = module_of(CHOICES["both"]), rollouts()[:3]
    _, stats = module.loss_sum(members, module.align(members))
    plain = in_float64(distill_module(objective=SimCTLoss("sum_logprob", "marginal")))
    _, plain_stats = plain.loss_sum(members, plain.align(members))
    for name in ("student_logmass_U", "teacher_logmass_U"):
        mass_U = getattr(stats, name).exp()
        torch.testing.assert_close(mass_U, getattr(plain_stats, name).exp(), rtol=1e-9, atol=1e-12)
        assert float(mass_U.max()) <= 1 + 1e-12
        assert float(mass_U.min()) > 0.9


def test_finer_candidates_see_a_larger_divergence() -> None:
    """The continuations split buckets of the coarser distribution; reverse KL cannot fall when an event is split."""
    members = rollouts()[:3]
    plain, _ = run(module_of(Choice(0, 0, 1e-3)), [members])
    finer, _ = run(module_of(CHOICES["both"]), [members])
    assert (finer >= plain - 1e-12).all()
    assert float(finer.sum()) > 1.01 * float(plain.sum())


@pytest.mark.parametrize("groups", [[[0], [1], [2], [3]], [[3, 1], [0, 2]]], ids=["one by one", "mixed"])
def test_neither_micro_batches_nor_padding_change_anything(groups: list[list[int]]) -> None:
    module = module_of(Choice(4, 3, 1e-4))
    members = rollouts()[:4]
    whole_U, whole = run(module, [members])
    sizes = [int(a.supervised_U.sum()) for a in module.align(members).alignments]
    cut_U, cut = run(module, [[members[i] for i in group] for group in groups])
    order = [i for group in groups for i in group]
    whole_parts = whole_U.split(sizes)
    torch.testing.assert_close(cut_U, torch.cat([whole_parts[i] for i in order]), rtol=1e-9, atol=1e-12)
    for name, gradient in whole.items():
        torch.testing.assert_close(cut[name], gradient, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("chunk_tokens", [1, 7])
def test_chunks_change_nothing(chunk_tokens: int) -> None:
    choice, members = Choice(4, 3, 1e-4), rollouts()[:2]
    whole_U, whole = run(module_of(choice), [members])
    cut_U, cut = run(module_of(choice, chunk_tokens=chunk_tokens), [members])
    torch.testing.assert_close(cut_U, whole_U, rtol=1e-9, atol=1e-12)
    for name, gradient in whole.items():
        torch.testing.assert_close(cut[name], gradient, rtol=1e-8, atol=1e-10)


def test_without_any_it_is_todays_loss_to_the_bit() -> None:
    members = rollouts()[:3]
    loss_U, gradients = run(module_of(Choice(0, 0, 1e-3), torch.float32), [members])
    plain_U, plain = run(distill_module(objective=SimCTLoss("sum_logprob", "marginal")), [members])
    assert torch.equal(loss_U, plain_U)
    assert gradients.keys() == plain.keys()
    assert all(torch.equal(gradient, plain[name]) for name, gradient in gradients.items())


def test_units_without_candidates_grade_as_without_continuations() -> None:
    """So probable must a token be that none is: only the carving's own arithmetic is left."""
    members = rollouts()[:3]
    loss_U, _ = run(module_of(Choice(2, 2, 1 - 1e-9)), [members])
    plain_U, _ = run(module_of(Choice(0, 0, 1e-3)), [members])
    torch.testing.assert_close(loss_U, plain_U, rtol=1e-9, atol=1e-12)


def test_an_empty_micro_batch_runs_backward() -> None:
    module = module_of(CHOICES["both"])
    loss, _ = module.loss_sum([], module.align([]))
    loss.backward()
    assert loss.item() == 0


def test_other_objectives_carry_no_paths() -> None:
    seen: list[UnitChunk] = []

    class Spy(SimCTLoss):
        def __call__(self, chunk: UnitChunk) -> UnitLosses:
            seen.append(chunk)
            return super().__call__(chunk)

    module = distill_module(objective=Spy("sum_logprob", "marginal"))
    module.loss_sum(rollouts()[:1], module.align(rollouts()[:1]))
    assert all(chunk.later is None and chunk.rows.paths is None for chunk in seen)
    assert not isinstance(module.graded, StudentWithContinuations)


def test_what_a_step_graded_and_left_out_is_logged(tmp_path: Path) -> None:
    logged: list[dict[str, float]] = []

    class Reader(ContinuationStats):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            super().on_train_batch_end(trainer, pl_module, *args)
            logged.append(continuation_metrics(pl_module.graded))

    module = unloaded_module(objective=ContinuationLoss(Continuations(2, 2, 1e-6, units_per_response=3)))
    trainer(tmp_path, Reader()).fit(module, datamodule=data())
    assert len(logged) == 2
    for metrics in logged:
        assert 0 < metrics["align/student_continuations"] < 2
        assert 0 < metrics["align/student_unshared_mass"] < 1
        assert metrics["align/student_left_out_unit_limit"] > 0
        assert metrics["align/student_nodes"] > 0


def test_statistics_of_an_objective_without_continuations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="it has no continuations"):
        trainer(tmp_path, ContinuationStats()).fit(unloaded_module(), datamodule=data())


def test_a_mixture_grades_the_continuations_of_its_part() -> None:
    continuations, members = Continuations(2, 2, 1e-3), rollouts()[:2]
    parts = [Weighted(ContinuationLoss(continuations), 0.5), Weighted(SimCTLoss("sum_logprob", "marginal"), 0.25)]
    both, _ = run(in_float64(distill_module(objective=MixtureLoss(parts))), [members])
    fine, _ = run(module_of(Choice(2, 2, 1e-3)), [members])
    plain, _ = run(module_of(Choice(0, 0, 1e-3)), [members])
    torch.testing.assert_close(both, 0.5 * fine + 0.25 * plain, rtol=1e-9, atol=1e-12)
    with pytest.raises(RecipeError, match="different continuations"):
        MixtureLoss([Weighted(ContinuationLoss(Continuations(k))) for k in (1, 2)])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [({"sharding": Sharding()}, "model.init_args.sharding"), ({"gradient_checkpointing": True}, "teacher_k=1")],
)
def test_what_cannot_run_is_refused_before_weights_load(overrides: dict[str, Any], message: str) -> None:
    module = unloaded_module(objective=ContinuationLoss(Continuations(1, 1)), **overrides)
    with pytest.raises(RecipeError, match=message):
        module.check_models()


def test_statistics_keep_their_shape() -> None:
    module, members = module_of(Choice(2, 1, 1e-3)), rollouts()[:2]
    aligned = module.align(members)
    _, stats = module.loss_sum(members, aligned)
    parts: list[UnitStats] = aligned.split(stats)
    assert [len(part.loss_U) for part in parts] == [int(a.supervised_U.sum()) for a in aligned.alignments]
