"""SimCT's loss and its variants in float64, one unit and one candidate at a time.

Written from the equations (arXiv 2605.07711, Eq. 6-9): candidates C(h) = shared tokens and the unit itself, a score
for each on either side, a softmax over the candidates, a divergence. Nothing here is fast and nothing is shared with
simct_pl. Logits are numpy [tokens, vocabulary]; row i predicts response token i.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tests.reference.divergences import divergence, log_sum
from tests.reference.vocabulary import (
    Candidate,
    Side,
    Unit,
    bucket_of,
    candidate_ids,
    partition,
    shared_candidates,
)

UNIT = "unit"
REST = "rest"


@dataclass(frozen=True)
class Variant:
    """One choice of everything that has a name."""

    score: str = "mean_logprob"
    prefix: str = "keep"
    rest: bool = False
    divergence: str = "rkl"
    jsd_beta: float = 0.5
    skew: float = 0.1
    mass_threshold: float | None = None
    objective: str = "simct"


@dataclass(frozen=True)
class Reading:
    """One model's reading of one unit: its vocabulary, its ids, and its logits at their positions [k, vocabulary]."""

    side: Side
    ids: tuple[int, ...]
    logits: np.ndarray

    def log_normalizer(self, position: int) -> float:
        return log_sum([float(value) for value in self.logits[position]])

    def logprob(self, position: int, token_id: int) -> float:
        return float(self.logits[position, token_id]) - self.log_normalizer(position)

    def unit_logprob(self) -> float:
        """log of the unit's true probability: the product over its tokens."""
        return math.fsum(self.logprob(position, token_id) for position, token_id in enumerate(self.ids))


def is_one_shared_token(unit: Unit, shared: tuple[Candidate, ...]) -> bool:
    return unit.is_stop or unit.text in shared


def log_minus(log_whole: float, log_part: float) -> float:
    """log(whole - part); -inf when nothing is left."""
    return -math.inf if log_part >= log_whole else log_whole + math.log1p(-math.exp(log_part - log_whole))


def column_logprobs(reading: Reading, unit: Unit, shared: tuple[Candidate, ...], prefix: str) -> dict[Candidate, float]:
    """log of the probability that each shared token stands for at the unit's first position."""
    vocabulary = range(len(reading.side.tokens))
    members = {candidate: candidate_ids(reading.side, candidate) for candidate in shared}
    if prefix == "marginal":
        buckets = [bucket_of(reading.side, token_id, shared) for token_id in vocabulary]
        members = {candidate: [i for i in vocabulary if buckets[i] == candidate] for candidate in shared}
    columns = {
        candidate: log_sum([reading.logprob(0, token_id) for token_id in ids]) for candidate, ids in members.items()
    }
    if is_one_shared_token(unit, shared):
        return columns
    if prefix == "mask":
        return {candidate: log for candidate, log in columns.items() if not _is_proper_prefix(candidate, unit.text)}
    own = next((candidate for candidate, ids in members.items() if reading.ids[0] in ids), None)
    if prefix in ("subtract", "marginal") and own is not None:
        columns[own] = log_minus(columns[own], reading.unit_logprob())
    return columns


def _is_proper_prefix(candidate: Candidate, text: bytes) -> bool:
    return isinstance(candidate, bytes) and len(candidate) < len(text) and text.startswith(candidate)


def true_logprobs(
    reading: Reading, unit: Unit, shared: tuple[Candidate, ...], variant: Variant
) -> dict[Candidate, float]:
    """log of the probability that each candidate stands for: columns, the unit, the rest."""
    logs = column_logprobs(reading, unit, shared, variant.prefix)
    if not is_one_shared_token(unit, shared):
        logs[UNIT] = reading.unit_logprob()
    if variant.rest:
        held = math.fsum(math.exp(log) for log in logs.values())
        logs[REST] = math.log1p(-held) if held < 1 else -math.inf
    return logs


def scores(reading: Reading, unit: Unit, shared: tuple[Candidate, ...], variant: Variant) -> dict[Candidate, float]:
    """The score of each candidate before the softmax (Eq. 7, or its variants).

    mean_logit keeps raw logits: a candidate's log-probability plus the first position's normaliser is its raw logit.
    """
    logs = true_logprobs(reading, unit, shared, variant)
    if variant.score == "sum_logprob":
        return logs
    shift = reading.log_normalizer(0) if variant.score == "mean_logit" else 0.0
    result = {candidate: log + shift for candidate, log in logs.items()}
    if UNIT in logs:
        own = [
            float(reading.logits[position, token_id])
            if variant.score == "mean_logit"
            else reading.logprob(position, token_id)
            for position, token_id in enumerate(reading.ids)
        ]
        result[UNIT] = math.fsum(own) / len(own)
    return result


def unit_loss(student: Reading, teacher: Reading, unit: Unit, shared: tuple[Candidate, ...], variant: Variant) -> float:
    """D(q_S, q_T) at one unit."""
    student_logq, teacher_logq = (normalize(scores(side, unit, shared, variant)) for side in (student, teacher))
    kept = [c for c in student_logq if not student_logq[c] == teacher_logq[c] == -math.inf]
    return divergence(
        variant.divergence,
        [student_logq[candidate] for candidate in kept],
        [teacher_logq[candidate] for candidate in kept],
        jsd_beta=variant.jsd_beta,
        skew=variant.skew,
    )


def normalize(logs: dict[Candidate, float]) -> dict[Candidate, float]:
    total = log_sum(list(logs.values()))
    return {candidate: log - total for candidate, log in logs.items()}


def teacher_candidate_mass(teacher: Reading, unit: Unit, shared: tuple[Candidate, ...], variant: Variant) -> float:
    """Sum of the true probabilities of all candidates of a row."""
    return math.fsum(math.exp(log) for log in true_logprobs(teacher, unit, shared, variant).values())


def is_graded(teacher: Reading, unit: Unit, shared: tuple[Candidate, ...], variant: Variant) -> bool:
    """Whether a unit has a row: `exact` grades one shared token on each side, and the mass threshold drops rows."""
    is_one_to_one = len(unit.student_ids) == len(unit.teacher_ids) == 1
    if variant.objective == "exact" and not (is_one_to_one and is_one_shared_token(unit, shared)):
        return False
    if variant.mass_threshold is None:
        return True
    return teacher_candidate_mass(teacher, unit, shared, variant) >= 1 / variant.mass_threshold


def readings(
    student: Side, teacher: Side, unit: Unit, student_logits_SV: np.ndarray, teacher_logits_TV: np.ndarray
) -> tuple[Reading, Reading]:
    """Both models' readings of a unit, with their rows cut out of the response's logits."""
    student_rows = student_logits_SV[unit.student_start : unit.student_start + len(unit.student_ids)]
    teacher_rows = teacher_logits_TV[unit.teacher_start : unit.teacher_start + len(unit.teacher_ids)]
    return Reading(student, unit.student_ids, student_rows), Reading(teacher, unit.teacher_ids, teacher_rows)


def unit_losses(
    student: Side,
    teacher: Side,
    units: list[Unit],
    student_logits_SV: np.ndarray,
    teacher_logits_TV: np.ndarray,
    variant: Variant,
) -> list[float]:
    """The loss of every unit that has a row, in order."""
    shared = shared_candidates(student, teacher)
    losses = []
    for unit in units:
        student_reading, teacher_reading = readings(student, teacher, unit, student_logits_SV, teacher_logits_TV)
        if is_graded(teacher_reading, unit, shared, variant):
            losses.append(unit_loss(student_reading, teacher_reading, unit, shared, variant))
    return losses


def response_loss(
    student: Side,
    teacher: Side,
    student_ids: list[int],
    teacher_ids: list[int],
    student_logits_SV: np.ndarray,
    teacher_logits_TV: np.ndarray,
    variant: Variant,
) -> float:
    """The loss of one response: the sum over its minimal units."""
    units = partition(student, teacher, student_ids, teacher_ids)
    return math.fsum(unit_losses(student, teacher, units, student_logits_SV, teacher_logits_TV, variant))
