"""The numeral scene: a student that owns `202` as one token, under a teacher that spells it `2`, `0`, `2`.

Partitions into matched and unmatched tokens push such a numeral down, because the teacher has no such token (X-Token,
arXiv 2605.21699). SimCT grades what the teacher thinks of the text. The teacher here likes it: 0.9 for each digit.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from simct_pl import ALMLoss, DPCALoss, GOLDLoss, MixtureLoss, SharedVocabLoss, SimCTLoss, ULDLoss, XTokenHKL, XTokenPKL
from simct_pl.losses.api import distillation_loss
from simct_pl.losses.base import Objective, UnitChunk
from simct_pl.losses.inputs.unit_rows import build_unit_rows
from simct_pl.losses.inputs.vocab_tables import PairTables
from simct_pl.losses.mixture import Weighted
from simct_pl.tokenization.projection import TokenProjection
from tests.reference.bridge import alignment_of, shared_vocab_of
from tests.reference.vocabulary import Side, greedy_ids

LETTERS = (b"0", b"1", b"2", b"a", b" ")
STUDENT = Side((*LETTERS, b"202", b"10", None), stop_ids=(7,))
TEACHER = Side((*LETTERS, None), stop_ids=(5,))
NUMERAL, FIRST_DIGIT = 5, 2


def peaked(num_tokens: int, favourites: dict[int, float]) -> Tensor:
    """Log-probabilities: the favourites as given, what is left spread evenly over the others."""
    left = (1 - sum(favourites.values())) / max(num_tokens - len(favourites), 1)
    probs = torch.full((num_tokens,), left, dtype=torch.float64)
    for token_id, prob in favourites.items():
        probs[token_id] = prob
    return probs.log()


def probabilities_after_a_step(favourites: dict[int, float], **variant: str) -> tuple[Tensor, Tensor]:
    """The student's distribution at the numeral, before and after one small gradient step."""
    student = peaked(8, favourites)[None].requires_grad_()
    teacher = torch.stack([peaked(6, {digit: 0.9}) for digit in (2, 0, 2)])
    loss = distillation_loss(
        student,
        teacher,
        alignment_of(STUDENT, TEACHER, [NUMERAL], [2, 0, 2]),
        shared_vocab_of(STUDENT, TEACHER),
        **variant,
    )
    loss.backward()
    after = student.detach() - 0.1 * student.grad
    return student.detach().softmax(-1)[0], after.softmax(-1)[0]


UNSURE = {NUMERAL: 0.2, FIRST_DIGIT: 0.1}
VARIANTS = [
    {"score": "mean_logprob", "prefix": "keep"},
    {"score": "mean_logit", "prefix": "keep"},
    {"score": "mean_logprob", "prefix": "mask"},
    {"score": "sum_logprob", "prefix": "mask"},
    {"score": "sum_logprob", "prefix": "subtract"},
    {"score": "sum_logprob", "prefix": "marginal"},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(v.values()))
def test_a_numeral_that_the_teacher_likes_is_pushed_up(variant: dict[str, str]) -> None:
    before, after = probabilities_after_a_step(UNSURE, **variant)
    assert after[NUMERAL] > before[NUMERAL] * 1.005


AGREEING = {NUMERAL: 0.9**3, FIRST_DIGIT: 0.9 - 0.9**3, 0: 0.02, 3: 0.02, 4: 0.02, 7: 0.02}


@pytest.mark.parametrize("score", ["mean_logprob", "mean_logit", "sum_logprob"])
def test_keep_teaches_a_student_that_already_agrees_to_spell_digit_by_digit(score: str) -> None:
    """This student gives every text the teacher's probability: `202` 0.729, `2` and then no `02` 0.171.

    `keep` counts the teacher's 0.9 for `2` once as `2` and once inside `202`, asks the student for both alike, and so
    pulls it to a spelling that its own tokenizer never makes.
    """
    before, after = probabilities_after_a_step(AGREEING, score=score, prefix="keep")
    assert after[FIRST_DIGIT] > before[FIRST_DIGIT] * 1.02
    assert after[NUMERAL] < before[NUMERAL]


@pytest.mark.parametrize("prefix", ["mask", "subtract", "marginal"])
def test_counting_the_digit_once_leaves_a_student_that_agrees_alone(prefix: str) -> None:
    before, after = probabilities_after_a_step(AGREEING, score="sum_logprob", prefix=prefix)
    torch.testing.assert_close(after, before, rtol=0.002, atol=1e-6)


def spelt_by_the_teacher(texts: list[str]) -> list[list[int]]:
    return [greedy_ids(TEACHER, text.encode()) for text in texts]


def gradient_of(objective: Objective, favourites: dict[int, float]) -> Tensor:
    """d loss / d logits of the student at the numeral, [8]."""
    shared_vocab = shared_vocab_of(STUDENT, TEACHER)
    if isinstance(objective, XTokenPKL | XTokenHKL):
        objective.use(TokenProjection.build(shared_vocab, spelt_by_the_teacher, objective.decay))
    rows = build_unit_rows([alignment_of(STUDENT, TEACHER, [NUMERAL], [2, 0, 2])], shared_vocab)
    logits_1K = peaked(8, favourites)[None].requires_grad_()
    teacher_3K = torch.stack([peaked(6, {digit: 0.9}) for digit in (2, 0, 2)])
    losses = objective(UnitChunk(logits_1K, teacher_3K, rows, PairTables.build(shared_vocab)))
    (gradient_1K,) = torch.autograd.grad(losses.loss_U.sum(), logits_1K)
    return gradient_1K[0]


UP: dict[str, Objective] = {
    "simct": SimCTLoss(),
    "simct-marginal": SimCTLoss("sum_logprob", "marginal"),
    "gold-first": GOLDLoss("first", 1.0),
    "alm-100": ALMLoss("kl", 100.0),
    "alm-limit": ALMLoss("kl", None),
    "alm-tvd": ALMLoss("tvd", None),
    "dpca": DPCALoss(),
    "xtoken-pkl": XTokenPKL(),
    "mixture": MixtureLoss([Weighted(SimCTLoss("sum_logprob", "marginal")), Weighted(DPCALoss(), 0.1)]),
}


def growth(objective: Objective, favourites: dict[int, float]) -> Tensor:
    """d log p of each token along the descent, [8]: the change of its logit less that of the normaliser."""
    step = -gradient_of(objective, favourites)
    return step - (step * peaked(8, favourites).exp()).sum()


@pytest.mark.parametrize("name", UP)
def test_methods_that_read_the_whole_unit_push_the_numeral_up(name: str) -> None:
    assert growth(UP[name], UNSURE)[NUMERAL] > 1e-3


@pytest.mark.parametrize("objective", [SharedVocabLoss(), ULDLoss()], ids=["exact", "uld"])
def test_methods_of_one_to_one_units_do_not_see_it(objective: Objective) -> None:
    assert not gradient_of(objective, UNSURE).any()


def test_a_partition_that_matches_the_numeral_with_nothing_pushes_it_down() -> None:
    """What X-Token reports of partitions: `202` has no partner of its own, so its mass goes to what has."""
    found = growth(XTokenHKL(), UNSURE)
    assert found[NUMERAL] < -1e-3
    assert found[FIRST_DIGIT] > 1e-3


@pytest.mark.parametrize("name", ["simct-marginal", "alm-100", "alm-limit", "dpca", "mixture"])
def test_methods_that_weigh_the_unit_by_its_probability_leave_a_student_that_agrees_alone(name: str) -> None:
    assert float(gradient_of(UP[name], AGREEING).abs().max()) < 1e-9
    assert float(gradient_of(UP[name], UNSURE).abs().max()) > 1e-4


def test_gold_moves_a_student_that_agrees() -> None:
    """It compares the distribution at one position, in which the student's numeral has no name."""
    found = growth(UP["gold-first"], AGREEING)
    assert found[NUMERAL] < -1e-4
    assert found[FIRST_DIGIT] > 1e-4
