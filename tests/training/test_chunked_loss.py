"""However a batch is cut — chunks, micro-batches, padding — the loss and its gradients are the same."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from simct_pl.losses.api import distillation_loss
from simct_pl.losses.base import Objective, UnitChunk, UnitLosses
from simct_pl.losses.inputs.unit_rows import build_unit_rows, unit_bounds
from simct_pl.losses.inputs.vocab_tables import PairTables
from simct_pl.losses.shared_vocab import SharedVocabLoss
from simct_pl.losses.simct import SimCTLoss
from simct_pl.losses.token_conditional import TokenConditionalLoss
from simct_pl.losses.token_paths.vocab_links import VocabLinks
from simct_pl.models.lm_head import LMHead, response_states
from simct_pl.training import chunked_loss as chunks
from simct_pl.training.chunked_loss import chunked_loss
from simct_pl.types import UnitAlignment, UnitStats
from tests.reference.bridge import alignment_of, reader_of, shared_vocab_of
from tests.reference.scenes import Scene, random_scene
from tests.reference.vocabulary import greedy_ids

WIDTH = 6


def conditional() -> TokenConditionalLoss:
    """With the links of the batch's vocabularies."""
    scene, objective = random_scene(2), TokenConditionalLoss()
    objective.use(VocabLinks.build(reader_of(scene.student), reader_of(scene.teacher), cached=False))
    return objective


OBJECTIVES: dict[str, Objective] = {
    "simct": SimCTLoss(),
    "marginal": SimCTLoss("sum_logprob", "marginal", rest=True),
    "masked": SimCTLoss("mean_logit", "mask", divergence="jsd", mass_threshold=2.5),
    "exact": SharedVocabLoss(),
    "conditional": conditional(),
}
every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Three responses of one pair, and random states and heads for them."""

    scene: Scene
    alignments: list[UnitAlignment]
    student_hidden_NH: Tensor
    teacher_hidden_MH: Tensor
    student_head: nn.Linear
    teacher_head: nn.Linear


@cache
def batch() -> Batch:
    torch.manual_seed(0)
    scene = random_scene(2)
    texts = [b"202 ab", "a😀b20".encode(), b"0"]
    ids = [(scene.student_ids, scene.teacher_ids)] + [
        (greedy_ids(scene.student, text), greedy_ids(scene.teacher, text)) for text in texts
    ]
    alignments = [alignment_of(scene.student, scene.teacher, *pair) for pair in ids]
    num_student, num_teacher = (sum(len(pair[side]) for pair in ids) for side in (0, 1))
    return Batch(
        scene,
        alignments,
        torch.randn(num_student, WIDTH, dtype=torch.float64),
        torch.randn(num_teacher, WIDTH, dtype=torch.float64),
        nn.Linear(WIDTH, len(scene.student.tokens) + 2, dtype=torch.float64),
        nn.Linear(WIDTH, len(scene.teacher.tokens), dtype=torch.float64),
    )


def run(
    objective: Objective, chunk_tokens: int, alignments: list[UnitAlignment] | None = None
) -> tuple[Tensor, UnitStats, dict[str, Tensor | None]]:
    """Loss, statistics, and every gradient there could be."""
    given = batch()
    shared_vocab = shared_vocab_of(given.scene.student, given.scene.teacher)
    student_hidden_NH, teacher_hidden_MH = (
        hidden.clone().requires_grad_() for hidden in (given.student_hidden_NH, given.teacher_hidden_MH)
    )
    for head in (given.student_head, given.teacher_head):
        head.zero_grad()
    loss, stats = chunked_loss(
        student_hidden_NH,
        teacher_hidden_MH,
        build_unit_rows(
            given.alignments if alignments is None else alignments, shared_vocab, path_builder=objective.path_builder
        ),
        student_head=LMHead(given.student_head),
        teacher_head=LMHead(given.teacher_head),
        objective=objective,
        tables=PairTables.build(shared_vocab),
        chunk_tokens=chunk_tokens,
    )
    loss.backward()
    return (
        loss.detach(),
        stats,
        {
            "student states": student_hidden_NH.grad,
            "student head": given.student_head.weight.grad,
            "teacher states": teacher_hidden_MH.grad,
            "teacher head": given.teacher_head.weight.grad,
        },
    )


@every_objective
@pytest.mark.parametrize("chunk_tokens", [1, 2, 3, 5, 8, 1000])
def test_every_chunk_size_gives_the_loss_of_whole_responses(objective: Objective, chunk_tokens: int) -> None:
    loss, stats, gradients = run(objective, chunk_tokens)
    whole_loss, whole_stats, whole_gradients = run(objective, 10**9)
    torch.testing.assert_close(loss, whole_loss, rtol=1e-10, atol=0)
    for name in ("student states", "student head"):
        torch.testing.assert_close(gradients[name], whole_gradients[name], rtol=1e-9, atol=1e-12)
    assert gradients["teacher states"] is None
    assert gradients["teacher head"] is None
    for field in dataclasses.fields(UnitStats):
        torch.testing.assert_close(getattr(stats, field.name), getattr(whole_stats, field.name))


def test_the_chunked_loss_is_the_sum_of_distillation_loss_over_responses() -> None:
    given = batch()
    shared_vocab = shared_vocab_of(given.scene.student, given.scene.teacher)
    total, student_row, teacher_row = 0.0, 0, 0
    with torch.no_grad():
        student_logits = given.student_head(given.student_hidden_NH)
        teacher_logits = given.teacher_head(given.teacher_hidden_MH)
        for alignment in given.alignments:
            student_end = student_row + alignment.num_student_tokens
            teacher_end = teacher_row + alignment.num_teacher_tokens
            loss = distillation_loss(
                student_logits[student_row:student_end],
                teacher_logits[teacher_row:teacher_end],
                alignment,
                shared_vocab,
            )
            total += float(loss)
            student_row, teacher_row = student_end, teacher_end
    assert float(run(SimCTLoss(), 4)[0]) == pytest.approx(total, rel=1e-10)


@pytest.mark.parametrize("chunk_tokens", [1, 3, 7, 1000])
def test_bounds_tile_the_units_within_the_budget(chunk_tokens: int) -> None:
    given = batch()
    rows = build_unit_rows(given.alignments, shared_vocab_of(given.scene.student, given.scene.teacher))
    bounds = list(unit_bounds(rows, chunk_tokens))
    assert [start for start, _ in bounds] == [0, *(end for _, end in bounds[:-1])]
    assert bounds[-1][1] == rows.num_units
    for start, end in bounds:
        part = rows.slice(start, end)
        assert end - start == 1 or max(len(part.student_ids_N), len(part.teacher_ids_M)) <= chunk_tokens


def test_an_objective_never_sees_more_rows_than_the_budget() -> None:
    """Memory stays flat in the length of the response: the largest logits are those of one chunk."""
    seen = []

    class Spy(SharedVocabLoss):
        def __call__(self, chunk: UnitChunk) -> UnitLosses:
            seen.append(max(len(chunk.student_logits_NK), len(chunk.teacher_logits_MK)))
            return super().__call__(chunk)

    run(Spy(), 8)
    assert max(seen) <= 8


def dense_gradients(objective: Objective, student_head: LMHead, teacher_head: LMHead) -> dict[str, Tensor]:
    """The objective on all logits at once, in float64, differentiated by autograd alone."""
    given = batch()
    shared_vocab = shared_vocab_of(given.scene.student, given.scene.teacher)
    rows = build_unit_rows(given.alignments, shared_vocab, path_builder=objective.path_builder)
    hidden_NH = given.student_hidden_NH.clone().requires_grad_()
    chunk = UnitChunk.read(
        student_head(hidden_NH[rows.student_rows_N]),
        teacher_head(given.teacher_hidden_MH[rows.read_rows_X]),
        rows.read_rows_X,
        rows,
        PairTables.build(shared_vocab),
    )
    projection = student_head.projection
    leaves = (hidden_NH, projection.weight, projection.bias)
    names = ("hidden", "weight", "bias")
    return dict(zip(names, torch.autograd.grad(objective(chunk).loss_U.sum(), leaves), strict=True))


def heads_in(dtype: torch.dtype, softcap: float | None = 1.5) -> tuple[LMHead, LMHead]:
    """The batch's heads with everything a head may have, in a dtype."""
    given = batch()
    heads = []
    for projection in (given.student_head, given.teacher_head):
        copy = nn.Linear(WIDTH, projection.out_features, dtype=dtype)
        copy.load_state_dict(projection.state_dict())
        heads.append(LMHead(copy, scale=1.3, softcap=softcap))
    return heads[0], heads[1]


def chunked_gradients(
    objective: Objective, heads: tuple[LMHead, LMHead], dtype: torch.dtype, chunk_tokens: int
) -> dict[str, Tensor]:
    given = batch()
    shared_vocab = shared_vocab_of(given.scene.student, given.scene.teacher)
    hidden_NH = given.student_hidden_NH.to(dtype).clone().requires_grad_()
    loss, _ = chunked_loss(
        hidden_NH,
        given.teacher_hidden_MH.to(dtype),
        build_unit_rows(given.alignments, shared_vocab, path_builder=objective.path_builder),
        student_head=heads[0],
        teacher_head=heads[1],
        objective=objective,
        tables=PairTables.build(shared_vocab),
        chunk_tokens=chunk_tokens,
    )
    (3 * loss).backward()
    projection = heads[0].projection
    return {"hidden": hidden_NH.grad / 3, "weight": projection.weight.grad / 3, "bias": projection.bias.grad / 3}


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@every_objective
@pytest.mark.parametrize("chunk_tokens", [1, 4, 1000])
@pytest.mark.parametrize("strip_bytes", [1, 2**20])
def test_single_precision_gradients_are_those_of_dense_double_precision(
    objective: Objective, chunk_tokens: int, strip_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Head with scale, soft-cap and bias; chunks from one unit to all, the objective unit by unit or chunk by chunk."""
    monkeypatch.setattr(chunks, "CPU_STRIP_BYTES", strip_bytes)
    expected = dense_gradients(objective, *heads_in(torch.float64))
    found = chunked_gradients(objective, heads_in(torch.float32), torch.float32, chunk_tokens)
    for name, gradient in expected.items():
        assert relative_error(found[name], gradient) < 1e-5, name


@every_objective
def test_half_precision_gradients_are_close_and_add_up_in_single_precision(objective: Objective) -> None:
    expected = dense_gradients(objective, *heads_in(torch.float64))
    found = chunked_gradients(objective, heads_in(torch.bfloat16), torch.bfloat16, 3)
    for name, gradient in expected.items():
        assert found[name].dtype == torch.bfloat16
        assert relative_error(found[name], gradient) < 0.05, name


def test_autocast_runs_the_products_in_its_dtype_and_hands_back_the_weights_dtype() -> None:
    expected = dense_gradients(SimCTLoss(), *heads_in(torch.float64))
    with torch.autocast("cpu", torch.bfloat16):
        found = chunked_gradients(SimCTLoss(), heads_in(torch.float32), torch.float32, 3)
    errors = [relative_error(found[name], gradient) for name, gradient in expected.items()]
    assert all(found[name].dtype == torch.float32 for name in found)
    assert 1e-5 < max(errors) < 0.05


def test_a_frozen_head_gets_no_gradient_and_a_second_backward_is_refused() -> None:
    given = batch()
    shared_vocab = shared_vocab_of(given.scene.student, given.scene.teacher)
    student_head, teacher_head = heads_in(torch.float64)
    student_head.projection.requires_grad_(False)
    hidden_NH = given.student_hidden_NH.clone().requires_grad_()
    loss, _ = chunked_loss(
        hidden_NH,
        given.teacher_hidden_MH,
        build_unit_rows(given.alignments, shared_vocab),
        student_head=student_head,
        teacher_head=teacher_head,
        objective=SimCTLoss(),
        tables=PairTables.build(shared_vocab),
    )
    loss.backward(retain_graph=True)
    assert student_head.projection.weight.grad is None
    assert hidden_NH.grad.any()
    with pytest.raises(RuntimeError, match="run backward before"):
        loss.backward()


class NoGradients(SimCTLoss):
    """Refuses logits that have gradients."""

    def __call__(self, chunk: UnitChunk) -> UnitLosses:
        assert not chunk.student_logits_NK.requires_grad
        return super().__call__(chunk)


@pytest.mark.parametrize("without_gradients", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_loss_is_the_same_and_none_are_taken(without_gradients: type) -> None:
    """As in validation, where the head's weight requires them all the same."""
    loss, stats, _ = run(SimCTLoss(), 4)
    with without_gradients():
        given = batch()
        shared_vocab = shared_vocab_of(given.scene.student, given.scene.teacher)
        evaluated, evaluated_stats = chunked_loss(
            given.student_hidden_NH,
            given.teacher_hidden_MH,
            build_unit_rows(given.alignments, shared_vocab),
            student_head=LMHead(given.student_head),
            teacher_head=LMHead(given.teacher_head),
            objective=NoGradients(),
            tables=PairTables.build(shared_vocab),
            chunk_tokens=4,
        )
    assert float(evaluated) == float(loss)
    torch.testing.assert_close(evaluated_stats.student_entropy_U, stats.student_entropy_U)


def test_nothing_aligned_is_a_zero_that_runs_backward_through_the_student() -> None:
    empty = [
        dataclasses.replace(
            alignment, units_U6=np.zeros((0, 6), np.int64), supervised_U=np.zeros(0, bool), has_stop=False
        )
        for alignment in batch().alignments
    ]
    loss, stats, gradients = run(SimCTLoss(), 8, empty)
    assert float(loss) == 0
    assert gradients["student states"] is not None
    assert not gradients["student states"].any()
    assert len(stats.loss_U) == len(stats.token_logprobs_N) == 0


def test_half_precision_states_that_sum_beyond_its_range_stay_finite() -> None:
    """What ties the loss to the student is zero for any states: 65504 is soon passed by a sum of float16 values."""
    given = batch()
    shared_vocab = shared_vocab_of(given.scene.student, given.scene.teacher)
    states = torch.full_like(given.student_hidden_NH, 1000.0).half().requires_grad_()
    loss, _ = chunked_loss(
        states,
        given.teacher_hidden_MH,
        build_unit_rows(given.alignments, shared_vocab),
        student_head=LMHead(given.student_head, scale=1e-3),
        teacher_head=LMHead(given.teacher_head),
        objective=SimCTLoss(),
        tables=PairTables.build(shared_vocab),
    )
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(states.grad).all()


def test_statistics_mean_what_they_say() -> None:
    given = batch()
    loss, stats, _ = run(SimCTLoss("sum_logprob", "keep"), 5)
    assert float(stats.loss_U.sum()) == pytest.approx(float(loss))
    assert stats.supervised_U.all()
    assert not stats.loss_U.requires_grad
    logp = given.student_head(given.student_hidden_NH).log_softmax(-1).detach()
    ids = torch.from_numpy(np.concatenate([alignment.student_ids_S for alignment in given.alignments]))
    torch.testing.assert_close(stats.token_logprobs_N, logp.gather(-1, ids[:, None])[:, 0])
    teacher_logp = given.teacher_head(given.teacher_hidden_MH).log_softmax(-1).detach()
    units, start = [], 0
    for alignment in given.alignments:
        rows = teacher_logp[start : start + alignment.num_teacher_tokens]
        chosen = [rows[i, int(token_id)] for i, token_id in enumerate(alignment.teacher_ids_T)]
        units += [sum(chosen[first:last]) for first, last in alignment.units_U6[:, 2:4].tolist()]
        start += alignment.num_teacher_tokens
    torch.testing.assert_close(stats.teacher_logprobs_U, torch.stack(units))
    teacher_p = given.teacher_head(given.teacher_hidden_MH).softmax(-1).detach()
    first_M = np.concatenate(
        [
            alignment.units_U6[:, 2] + offset
            for alignment, offset in zip(
                given.alignments, np.cumsum([0, *(a.num_teacher_tokens for a in given.alignments)])[:-1], strict=True
            )
        ]
    )
    torch.testing.assert_close(stats.teacher_stop_U, teacher_p[first_M][:, list(given.scene.teacher.stop_ids)].sum(-1))


@cache
def models() -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    torch.manual_seed(1)
    scene = batch().scene

    def tiny(num_tokens: int) -> LlamaForCausalLM:
        config = LlamaConfig(
            vocab_size=num_tokens,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            initializer_range=0.6,
        )
        return LlamaForCausalLM(config).double().eval()

    return tiny(len(scene.student.tokens)), tiny(len(scene.teacher.tokens))


def gradients_of(objective: Objective, micro_batches: list[list[int]]) -> tuple[float, dict[str, Tensor]]:
    """Run the responses in the given groups through real models; prompts differ in length."""
    given, (student, teacher) = batch(), models()
    shared_vocab = shared_vocab_of(given.scene.student, given.scene.teacher)
    student.zero_grad()
    total = 0.0
    for group in micro_batches:
        alignments = [given.alignments[index] for index in group]
        prompts = [[1, 2, 3, 4, 5][: 2 + index] for index in group]
        states = response_states(student, prompts, [alignment.student_ids_S.tolist() for alignment in alignments])
        with torch.no_grad():
            read = response_states(teacher, prompts, [alignment.teacher_ids_T.tolist() for alignment in alignments])
        loss, _ = chunked_loss(
            states.hidden_NH,
            read.hidden_NH,
            build_unit_rows(alignments, shared_vocab, path_builder=objective.path_builder),
            student_head=LMHead.of(student),
            teacher_head=LMHead.of(teacher),
            objective=objective,
            tables=PairTables.build(shared_vocab),
            chunk_tokens=6,
        )
        loss.backward()
        total += float(loss.detach())
    return total, {name: parameter.grad.clone() for name, parameter in student.named_parameters()}


@pytest.mark.parametrize("name", ["marginal", "conditional"])
@pytest.mark.parametrize("micro_batches", [[[0], [1], [2], [3]], [[3, 1], [0, 2]], [[2], [3, 0, 1]]])
def test_micro_batches_and_their_padding_change_nothing(micro_batches: list[list[int]], name: str) -> None:
    loss, gradients = gradients_of(OBJECTIVES[name], micro_batches)
    whole_loss, whole_gradients = gradients_of(OBJECTIVES[name], [[0, 1, 2, 3]])
    assert loss == pytest.approx(whole_loss, rel=1e-10)
    assert whole_loss > 0
    for name, gradient in whole_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-8, atol=1e-10, msg=name)


def test_the_state_of_a_row_predicts_its_token() -> None:
    """Row i of a response is what the model's own forward puts in front of token i; no shift to get wrong."""
    _, teacher = models()
    prompts, responses = [[1, 2], [3, 4, 5]], [[6, 7, 8], [9]]
    states = response_states(teacher, prompts, responses)
    logits = LMHead.of(teacher)(states.hidden_NH)
    for prompt, response, offset in zip(prompts, responses, states.offsets, strict=True):
        own = teacher(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
        torch.testing.assert_close(logits[offset : offset + len(response)], own)


class ReadsLogitsAlone(Objective):
    """Asks neither side for log-probabilities, which the statistics then have to make themselves."""

    def __call__(self, chunk: UnitChunk) -> UnitLosses:
        square_N = chunk.student_logits_NK.square().sum(-1)
        loss_U = chunk.student.sum_by_unit(square_N)
        return UnitLosses.over_everything(loss_U, torch.ones_like(loss_U, dtype=torch.bool))

    def describe(self) -> dict[str, object]:
        return {}


def test_statistics_are_of_the_logits_and_not_of_what_replaces_them() -> None:
    stats = run(ReadsLogitsAlone(), 4)[1]
    given = batch()
    logp_NK = given.student_head(given.student_hidden_NH).log_softmax(-1)
    ids_N = torch.cat([torch.from_numpy(alignment.student_ids_S) for alignment in given.alignments])
    expected_N = logp_NK.gather(-1, ids_N[:, None]).squeeze(-1)
    torch.testing.assert_close(stats.token_logprobs_N, expected_N.detach())
