"""Continuations off the sampled path, on the embedded pair: against plain forwards, and against loops over dicts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from simct_pl import ContinuationLoss, DistillModule, SimCTLoss
from simct_pl.errors import RecipeError
from simct_pl.losses.base import UnitChunk
from simct_pl.losses.continuations import student_scores, teacher_scores
from simct_pl.scoring.aligned import AlignedBatch
from simct_pl.scoring.continuations import NO_PARENT, ContinuationPlan, ContinuationRows
from simct_pl.scoring.heads import LMHead, response_states
from simct_pl.types import Rollout
from tests.tiny import distill_module, sampled

K, LEAST = 3, 1e-4


@pytest.fixture(scope="module")
def module() -> DistillModule:
    module = distill_module(objective=ContinuationLoss(K, LEAST), chunk_tokens=16)
    module.objective.prepare(module.pair)
    return module


@pytest.fixture(scope="module")
def rollouts(module: DistillModule) -> list[Rollout]:
    return sampled(module)


@pytest.fixture(scope="module")
def aligned(module: DistillModule, rollouts: list[Rollout]) -> AlignedBatch:
    return module.align(rollouts)


def student_hidden(module: DistillModule, rollouts: list[Rollout]) -> Tensor:
    return response_states(
        module.student, [r.prompt_ids for r in rollouts], [r.response_ids for r in rollouts]
    ).hidden_NH


def planned(module: DistillModule, rollouts: list[Rollout], aligned: AlignedBatch) -> ContinuationPlan:
    proposer = module.objective.proposer
    assert proposer is not None
    lengths = [len(ids) for ids in aligned.teacher_response_ids]
    hidden_NH = student_hidden(module, rollouts)
    return proposer.plan(hidden_NH, LMHead.of(module.student), aligned.rows, lengths, 16)


def rows_of(module: DistillModule, rollouts: list[Rollout], aligned: AlignedBatch) -> ContinuationRows:
    plan = planned(module, rollouts, aligned)
    assert module.teacher is not None
    found = module.teacher.tree_states(aligned.teacher_prompt_ids, aligned.teacher_response_ids, plan.branches)
    return plan.score(module.teacher.head, found.branch_hidden_XH, 16)


def chunk_of(module: DistillModule, rollouts: list[Rollout], aligned: AlignedBatch) -> UnitChunk:
    """All units at once, in float64 logits."""
    assert module.teacher is not None
    teacher = module.teacher.states(aligned.teacher_prompt_ids, aligned.teacher_response_ids).hidden_NH
    student_NK = LMHead.of(module.student)(student_hidden(module, rollouts))[aligned.rows.student_rows_N].double()
    teacher_MK = module.teacher.head(teacher)[aligned.rows.teacher_rows_M].double()
    continuations = rows_of(module, rollouts, aligned)
    return UnitChunk(student_NK, teacher_MK, aligned.rows, module.tables, continuations)


def test_what_is_proposed_is_likely_unshared_and_not_the_unit(
    module: DistillModule, rollouts: list[Rollout], aligned: AlignedBatch
) -> None:
    plan, rows = planned(module, rollouts, aligned), aligned.rows
    logits_NK = LMHead.of(module.student)(student_hidden(module, rollouts))[rows.student_rows_N]
    probs_UK = logits_NK[rows.student_first_U].softmax(-1)
    columns = module.pair.shared_vocab.student_columns
    table = module.pair.student.table
    expected = []
    for unit in range(rows.num_units):
        first = int(rows.student_ids_N[rows.student_first_U[unit]])
        wanted = [
            (-float(probs_UK[unit, token]), token)
            for token in range(len(table))
            if columns[token] < 0 and not table.is_special_V[token] and token != first
        ]
        likely = [(unit, token) for negative, token in sorted(wanted)[:K] if -negative >= LEAST]
        expected += likely
    assert len(expected) > 20
    assert sorted(zip(plan.unit_E.tolist(), plan.student_id_E.tolist(), strict=True)) == sorted(expected)
    for token, spelling in zip(plan.student_id_E.tolist(), plan.spellings, strict=True):
        assert module.pair.teacher.table.join(spelling) == table[token]


def test_the_teachers_opinion_is_that_of_plain_forwards(
    module: DistillModule, rollouts: list[Rollout], aligned: AlignedBatch
) -> None:
    plan, found, rows = planned(module, rollouts, aligned), rows_of(module, rollouts, aligned), aligned.rows
    assert module.teacher is not None
    starts = [0]
    for ids in aligned.teacher_response_ids:
        starts.append(starts[-1] + len(ids))
    for e, (unit, spelling) in enumerate(zip(plan.unit_E.tolist(), plan.spellings, strict=True)):
        row = int(rows.teacher_rows_M[rows.teacher_first_U[unit]])
        response = max(i for i, start in enumerate(starts) if start <= row and i < len(rollouts))
        before = aligned.teacher_prompt_ids[response] + aligned.teacher_response_ids[response][: row - starts[response]]
        with torch.no_grad():
            logits = module.teacher.model(input_ids=torch.tensor([before + list(spelling)])).logits[0].log_softmax(-1)
        rest = sum(float(logits[len(before) + j - 1, spelling[j]]) for j in range(1, len(spelling)))
        assert float(found.teacher_rest_E[e]) == pytest.approx(rest, abs=2e-4)
        assert int(found.teacher_first_E[e]) == spelling[0]


def test_masses_are_those_of_a_tree_of_events(
    module: DistillModule, rollouts: list[Rollout], aligned: AlignedBatch
) -> None:
    """Each event keeps what no longer event of its unit has; each bucket what no event has that begins in it."""
    chunk = chunk_of(module, rollouts, aligned)
    plan, rows = planned(module, rollouts, aligned), aligned.rows
    assert chunk.continuations is not None
    with torch.no_grad():
        scores = {"student": student_scores(chunk), "teacher": teacher_scores(chunk)}
    for name, side in (("student", chunk.student), ("teacher", chunk.teacher)):
        buckets = getattr(chunk.tables, name).bucket_K.tolist()
        for unit in range(0, rows.num_units, 3):
            first = side.first_logp_UK[unit].exp().tolist()
            events: dict[tuple[int, ...], tuple[float, int]] = {}
            own = (side.unit_N == unit).nonzero().flatten().tolist()
            if int(rows.column_U[unit]) < 0:
                events[tuple(side.ids_N[own].tolist())] = (float(side.unit_logp_U[unit].exp()), -1)
            for e in (plan.unit_E == unit).nonzero()[0].tolist():
                ids = (int(plan.student_id_E[e]),) if name == "student" else plan.spellings[e]
                rest = 0.0 if name == "student" else float(chunk.continuations.teacher_rest_E[e])
                events[ids] = (first[ids[0]] * math.exp(rest), int(chunk.continuations.slot_E[e]))
            left = {ids: mass for ids, (mass, _) in events.items()}
            mass_K = list(first)
            for ids, (mass, _) in events.items():
                beginnings = [other for other in events if len(other) < len(ids) and ids[: len(other)] == other]
                if beginnings:
                    left[max(beginnings, key=len)] -= mass
                else:
                    mass_K[ids[0]] -= mass
            expected = [0.0] * scores[name].shape[1]
            num_columns = len(chunk.tables.student.ids_V)
            for token, bucket in enumerate(buckets):
                if bucket < num_columns:
                    expected[bucket] += mass_K[token]
            for ids, (_, slot) in events.items():
                expected[num_columns + 1 + slot] = left[ids]
            torch.testing.assert_close(
                scores[name][unit].exp(), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-9
            )


def test_no_mass_is_lost_and_none_counted_twice(
    module: DistillModule, rollouts: list[Rollout], aligned: AlignedBatch
) -> None:
    chunk = chunk_of(module, rollouts, aligned)
    marginal = SimCTLoss("sum_logprob", "marginal")(chunk)
    with torch.no_grad():
        for scores_UC, logmass_U in (
            (student_scores(chunk), marginal.student_logmass_U),
            (teacher_scores(chunk), marginal.teacher_logmass_U),
        ):
            torch.testing.assert_close(scores_UC.logsumexp(-1), logmass_U, rtol=0, atol=1e-9)


def test_finer_candidates_see_more_of_the_divergence(
    module: DistillModule, rollouts: list[Rollout], aligned: AlignedBatch
) -> None:
    """Splitting a bucket never lowers a KL divergence (Proposition 1), and without proposals nothing changes."""
    chunk = chunk_of(module, rollouts, aligned)
    coarse_U = SimCTLoss("sum_logprob", "marginal")(chunk).loss_U
    fine_U = module.objective(chunk).loss_U
    assert (fine_U >= coarse_U - 1e-9).all()
    assert (fine_U > coarse_U + 1e-6).any()
    bare = UnitChunk(chunk.student_logits_NK, chunk.teacher_logits_MK, chunk.rows, chunk.tables)
    torch.testing.assert_close(module.objective(bare).loss_U, coarse_U)


def test_the_loss_of_a_batch_is_that_of_its_parts(
    module: DistillModule, rollouts: list[Rollout], aligned: AlignedBatch
) -> None:
    whole, _ = module.loss_sum(rollouts, aligned)
    parts = [module.loss_sum([rollout], module.align([rollout]))[0] for rollout in rollouts]
    assert float(whole) == pytest.approx(sum(map(float, parts)), rel=1e-5)
    dense = module.objective(chunk_of(module, rollouts, aligned)).loss_U.sum()
    assert float(whole) == pytest.approx(float(dense), rel=1e-5)


def test_gradients_are_those_of_the_dense_loss(
    module: DistillModule, rollouts: list[Rollout], aligned: AlignedBatch
) -> None:
    found = {}
    for name, loss in (
        ("chunked", module.loss_sum(rollouts, aligned)[0]),
        ("dense", module.objective(chunk_of(module, rollouts, aligned)).loss_U.sum()),
    ):
        module.student.zero_grad()
        loss.backward()
        found[name] = [p.grad.clone() for p in module.student.parameters() if p.grad is not None]
    module.student.zero_grad()
    scale = max(float(g.abs().max()) for g in found["dense"])
    for ours, theirs in zip(found["chunked"], found["dense"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5 * scale)


def test_spellings_that_begin_one_another_know_their_parents(module: DistillModule) -> None:
    """`2`·`0` begins `2`·`0`·`2`, which begins nothing."""
    rows = module.align(sampled(module, num=1)).rows
    unit = int((rows.column_U < 0).nonzero()[0])
    start = int(rows.teacher_first_U[unit])
    own = tuple(rows.teacher_ids_M[start : start + 2].tolist())
    spellings = [(2, 0), (2, 0, 2), (3, 3), (*own, 7)]
    plan = ContinuationPlan(np.full(4, unit), np.arange(4), spellings, [], rows)
    parent_E, unit_parent_U = plan._parents()
    assert parent_E.tolist() == [NO_PARENT, 0, NO_PARENT, -2]
    assert unit_parent_U[unit] == NO_PARENT


@pytest.mark.parametrize(("k", "least", "message"), [(0, 0.1, "k is 0"), (2, 0.0, "min_probability is 0")])
def test_numbers_that_mean_nothing_are_refused(k: int, least: float, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        ContinuationLoss(k, least)
