"""What is a candidate, and how much probability it holds: the corners that the random scenes do not reach."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from simct_pl.losses.api import distillation_loss
from simct_pl.losses.base import UnitChunk
from simct_pl.losses.inputs.unit_rows import build_unit_rows
from simct_pl.losses.inputs.vocab_tables import PairTables
from simct_pl.losses.simct import SimCTLoss
from simct_pl.tokenization.bytes import TokenBytes
from simct_pl.tokenization.shared_vocab import SharedVocab
from tests.reference.bridge import alignment_of, shared_vocab_of
from tests.reference.simct import Variant, response_loss
from tests.reference.vocabulary import Side

PREFIXES = ("keep", "mask", "subtract", "marginal")
every_prefix = pytest.mark.parametrize("prefix", PREFIXES)
LETTERS = [bytes([byte]) for byte in range(256)]


def random_logits(num_rows: int, num_ids: int, seed: int) -> Tensor:
    return torch.randn(num_rows, num_ids, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def both(
    student: Side, teacher: Side, student_ids: list[int], teacher_ids: list[int], variant: Variant
) -> tuple[float, float]:
    """The project's loss and the reference's, on the same random logits."""
    logits = (
        random_logits(len(student_ids), len(student.tokens), 1),
        random_logits(len(teacher_ids), len(teacher.tokens), 2),
    )
    loss = distillation_loss(
        *logits,
        alignment_of(student, teacher, student_ids, teacher_ids),
        shared_vocab_of(student, teacher),
        **dataclasses.asdict(variant),
    )
    arrays = [logits_NV.numpy() for logits_NV in logits]
    return float(loss), response_loss(student, teacher, student_ids, teacher_ids, *arrays, variant)


@every_prefix
@pytest.mark.parametrize("score", ["mean_logprob", "mean_logit", "sum_logprob"])
def test_a_shared_token_sampled_in_pieces_gets_no_second_column(score: str, prefix: str) -> None:
    """A student may sample `2`, `0` where both vocabularies own `20`: by its bytes the unit is a candidate already."""
    student = Side((b"2", b"0", b"20", b"a"))
    teacher = Side((b"20", b"0", b"2", b"b"))
    in_pieces, reference = both(student, teacher, [0, 1], [0], Variant(score, prefix))
    assert in_pieces == pytest.approx(reference, rel=1e-9)
    as_one = distillation_loss(
        random_logits(2, 4, 1)[:1],
        random_logits(1, 4, 2),
        alignment_of(student, teacher, [2], [0]),
        shared_vocab_of(student, teacher),
        score=score,
        prefix=prefix,
    )
    assert in_pieces == pytest.approx(float(as_one), rel=1e-9)


def test_exact_leaves_a_shared_token_sampled_in_pieces_out() -> None:
    """`exact` grades one shared token on each side; here only the `a` that follows is one."""
    student = Side((b"2", b"0", b"20", b"a"))
    teacher = Side((b"20", b"0", b"a", b"b"))
    loss, reference = both(student, teacher, [0, 1, 3], [0, 2], Variant(objective="exact"))
    assert loss == pytest.approx(reference, rel=1e-9)
    last_row = distillation_loss(
        random_logits(3, 4, 1)[2:],
        random_logits(2, 4, 2)[1:],
        alignment_of(student, teacher, [3], [2]),
        shared_vocab_of(student, teacher),
    )
    assert loss == pytest.approx(float(last_row), rel=1e-9)


@every_prefix
def test_a_byte_fallback_twin_is_the_same_candidate(prefix: str) -> None:
    """`<0x61>` sampled for `a`: the row of `a`, without a column for the unit."""
    student = Side((b"a", b"b", b"a", b"ab"), fallback_ids=(2,))
    teacher = Side((b"b", b"a", b"ba"))
    losses = [both(student, teacher, [token_id], [1], Variant(prefix=prefix)) for token_id in (0, 2)]
    assert losses[0][0] == losses[1][0]
    assert losses[1][0] == pytest.approx(losses[1][1], rel=1e-9)


def test_control_tokens_are_text_of_nobody() -> None:
    """`<|end|>` shares no bytes with `<`: it joins no bucket, whatever its name looks like."""
    names: list[bytes | None] = [b"<", b"a", b"<|end|>", b"<|user|>"]
    teacher = TokenBytes.from_list([b"a", b"<", b"<a"])
    alignment = alignment_of(Side((b"<", b"a", None, None)), Side((b"a", b"<", b"<a")), [0, 1], [2])
    losses = []
    for tokens in (names, [*names[:2], None, None]):
        shared_vocab = SharedVocab.build(TokenBytes.from_list(tokens, special_ids=(2, 3)), teacher)
        logits = random_logits(2, 4, 3), random_logits(1, 3, 4)
        losses.append(distillation_loss(*logits, alignment, shared_vocab, score="sum_logprob", prefix="marginal"))
    assert losses[0] == losses[1]


def full_byte_pair() -> tuple[Side, Side, list[int], list[int]]:
    """All 256 bytes shared, merges on both sides, two stops against one: nothing is outside the buckets."""
    student = Side((*LETTERS, b"20", b"202", b"ab", None), stop_ids=(259,))
    teacher = Side((*LETTERS, b"02", b"abb", None, None), stop_ids=(258, 259))
    return student, teacher, [257, 258, 98, 97, 259], [50, 256, 257, 97, 258]


def marginal_masses(variant: Variant) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and log candidate mass of both sides, a unit each."""
    student, teacher, student_ids, teacher_ids = full_byte_pair()
    shared_vocab = shared_vocab_of(student, teacher)
    rows = build_unit_rows([alignment_of(student, teacher, student_ids, teacher_ids)], shared_vocab)
    logits = random_logits(5, 260, 5)[rows.student_rows_N], random_logits(5, 260, 6)[rows.teacher_rows_M]
    objective = SimCTLoss(variant.score, variant.prefix, variant.rest)
    losses = objective(UnitChunk(*logits, rows, PairTables.build(shared_vocab)))
    return losses.loss_U, losses.student_logmass_U, losses.teacher_logmass_U


def test_marginal_candidates_hold_all_probability_once() -> None:
    """Before any normalisation they sum to 1 on every row, so that a rest has nothing to hold."""
    loss_U, *logmasses = marginal_masses(Variant("sum_logprob", "marginal"))
    for logmass_U in logmasses:
        np.testing.assert_allclose(logmass_U.numpy(), 0, atol=1e-12)
    with_rest_U, *_ = marginal_masses(Variant("sum_logprob", "marginal", rest=True))
    np.testing.assert_allclose(with_rest_U.numpy(), loss_U.numpy(), rtol=1e-9)


def test_keep_counts_a_unit_twice_and_subtract_once() -> None:
    teacher_ids = full_byte_pair()[3]
    masses = {prefix: marginal_masses(Variant("sum_logprob", prefix))[2].exp() for prefix in PREFIXES}
    logp = random_logits(5, 260, 6).log_softmax(-1)
    numeral = float(logp[range(2), teacher_ids[:2]].sum().exp())  # the teacher's 2·02
    assert float(masses["keep"][0] - masses["subtract"][0]) == pytest.approx(numeral, rel=1e-6)
    assert float(masses["mask"][0]) == pytest.approx(
        float(masses["keep"][0] - logp[0, 50].exp()), rel=1e-9
    )  # `20` is no token of the teacher, so `2` is the only shared prefix
    for prefix, unit in itertools.product(PREFIXES[:3], (2, 3)):
        assert float(masses[prefix][unit]) == pytest.approx(float(masses["keep"][unit]), rel=1e-12)
