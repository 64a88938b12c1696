"""What can go wrong quietly, as metrics of every step: alignment, candidate mass, length, entropy, stopping."""

from __future__ import annotations

import math
from collections import Counter

import lightning as L
import numpy as np
import torch
from typing_extensions import override

from callbacks.distilled import distilled
from simct_pl.errors import RecipeError
from simct_pl.training.collectives import gather_scalars
from simct_pl.training.module import DistillModule
from simct_pl.training.text_kl import TextKL, text_kl_sums
from simct_pl.types import (
    STUDENT_END,
    STUDENT_START,
    TEACHER_END,
    TEACHER_START,
    LostReason,
    PromptBatch,
    StepRecord,
    UnitAlignment,
)

_STARTS, _ENDS = [STUDENT_START, TEACHER_START], [STUDENT_END, TEACHER_END]

# Classes of unit lengths: name, from, to. A sweep's report draws them.
LENGTHS = (("1", 1, 1), ("2", 2, 2), ("3", 3, 3), ("4_7", 4, 7), ("8_up", 8, math.inf))


class AlignmentStats(L.Callback):
    """Logs `align/`, `loss/`, `policy/` and `rollout/` groups from the step's record.

    align/coverage: student tokens in a unit. align/supervised_tokens: student tokens in a unit that the objective
        supervised.
    align/tokens_outside_1_1: student tokens that are no 1:1 unit, those in no unit among them.
    align/multi_token_units: units that are not 1:1. align/units_1_1, units_1_n, units_n_1, units_n_m: share of the
        units with so many student and teacher tokens. align/length_1, length_2, length_3, length_4_7, length_8_up: the
        same by tokens on the longer side. align/lost_bytes, align/lost_<reason>: bytes and stretches without a unit.
    align/student_candidate_mass, align/teacher_candidate_mass: probability held by the candidates.
    loss/shared_units, loss/span_units: the loss per response token from either kind of unit.
    With an anchor: loss/anchor, its part of the loss per response token; policy/anchor_kl, KL(student || starting
        student) per student token in a supervised unit, nats.
    policy/entropy: of the student at unit starts, nats. policy/stop_probability, policy/teacher_stop_probability.
    The following are of the responses that the student itself has sampled, and left out in a step without any:
    policy/text_kl, policy/text_kl_error, policy/text_kl_coverage: of the whole batch, over all ranks; see TextKL.
    align/non_canonical: those that the student's own tokenizer would have spelt with other ids.
    rollout/response_tokens, rollout/truncation_rate.
    Of several teachers, over all ranks: teacher/NAME/loss, per response token that it grades, teacher/NAME/text_kl, and
        teacher/NAME/share of the step's gradings; left out for one that grades nothing in a step.
    rollout/accuracy: the module's grader's mean, at the responses' own temperature.

    Args:
        grade_responses: log rollout/accuracy. A grader that runs code would slow every step.
    """

    only_reports = True

    def __init__(self, grade_responses: bool = False) -> None:
        self.grade_responses = grade_responses

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.grade_responses and distilled(self, pl_module).grader is None:
            raise RecipeError(
                "grade_responses of AlignmentStats is true, and the module has no grader. Set model.init_args.grader, "
                "or leave grade_responses out."
            )

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: PromptBatch, batch_idx: int
    ) -> None:
        module = distilled(self, pl_module)
        assert batch.record is not None
        record = batch.record
        metrics = {**alignment_metrics(record.alignments), **unit_metrics(record)}
        if module.anchor_weight > 0:
            metrics |= anchor_metrics(record, module.anchor_weight)
        pl_module.log_dict(metrics, batch_size=len(record.rollouts), sync_dist=True)
        own = self._own_metrics(module, record.own)
        pl_module.log_dict(own, batch_size=max(len(record.own.rollouts), 1))
        if len(module.lessons) > 1:
            pl_module.log_dict(teacher_metrics(module, record), batch_size=1)

    def _own_metrics(self, module: DistillModule, own: StepRecord) -> dict[str, float]:
        """Of the student's own responses, over all ranks: of one rank's prompts the teacher may answer all."""
        sums = {
            "align/non_canonical": _num_non_canonical(module, own),
            "rollout/response_tokens": sum(len(r.response_ids) for r in own.rollouts),
            "rollout/truncation_rate": sum(not r.stopped for r in own.rollouts),
        }
        if self.grade_responses:
            sums["rollout/accuracy"] = _sum_of_grades(module, own)
        text_kl = text_kl_sums(own.alignments, own.stats).tolist()
        gathered = gather_scalars(module, [float(len(own.rollouts)), *sums.values(), *text_kl]).sum(0)
        number, *totals = gathered[: len(sums) + 1].tolist()
        if number == 0:
            return {}
        means = {name: total / number for name, total in zip(sums, totals, strict=True)}
        return means | TextKL.of(gathered[len(sums) + 1 :]).metrics("policy/text_kl")


def teacher_metrics(module: DistillModule, record: StepRecord) -> dict[str, float]:
    """Of each teacher that has graded something, over all ranks."""
    values: list[float] = []
    for name in module.lessons:
        part = record.part([i for i, teacher in enumerate(record.teachers) if teacher == name])
        loss = sum(float(stats.loss_U.double().sum()) for stats in part.stats)
        tokens = sum(rollout.num_targets for rollout in part.rollouts)
        values += [len(part.rollouts), loss, tokens, *text_kl_sums(part.alignments, part.stats).tolist()]
    sums = gather_scalars(module, values).sum(0).view(len(module.lessons), -1)
    total, found = float(sums[:, 0].sum()), dict[str, float]()
    for name, of_one in zip(module.lessons, sums, strict=True):
        number, loss, tokens = of_one[:3].tolist()
        if number > 0:
            found |= {f"teacher/{name}/loss": loss / max(tokens, 1), f"teacher/{name}/share": number / total}
            found[f"teacher/{name}/text_kl"] = TextKL.of(of_one[3:]).nats_per_byte
    return found


def alignment_metrics(alignments: list[UnitAlignment]) -> dict[str, float]:
    """Coverage, unit shapes and losses by reason over a batch."""
    num_tokens = sum(a.num_student_tokens for a in alignments)
    num_units = max(sum(a.num_units for a in alignments), 1)
    num_multi = sum(int((_lengths(a) != 1).any(1).sum()) for a in alignments)
    lost = sum((a.lost_counts for a in alignments), Counter[str]())
    metrics = {
        "align/coverage": sum(a.coverage * a.num_student_tokens for a in alignments) / max(num_tokens, 1),
        "align/tokens_outside_1_1": 1 - (sum(a.num_units for a in alignments) - num_multi) / max(num_tokens, 1),
        "align/multi_token_units": num_multi / num_units,
        **_shape_shares(alignments),
        "align/lost_bytes": float(sum(span.byte_end - span.byte_start for a in alignments for span in a.lost)),
    }
    # Every reason on every rank, also at zero: ranks that log other names would wait for each other for ever.
    return metrics | {f"align/lost_{reason}": float(lost[reason]) for reason in LostReason}


def _shape_shares(alignments: list[UnitAlignment]) -> dict[str, float]:
    """Share of the units by one or several tokens on either side, and by tokens on the longer side."""
    # (False, True) is one student token and several teacher tokens; each unit has exactly one shape, and one length
    # class.
    lengths_U2 = np.concatenate([_lengths(a) for a in alignments]) if alignments else np.zeros((0, 2), np.int64)
    several_U2 = lengths_U2 > 1
    shapes = {"1_1": (False, False), "1_n": (False, True), "n_1": (True, False), "n_m": (True, True)}
    count = max(len(several_U2), 1)
    shares = {f"align/units_{name}": float((several_U2 == shape).all(1).sum()) for name, shape in shapes.items()}
    longer_U = lengths_U2.max(1, initial=0)
    shares |= {
        f"align/length_{name}": float(((longer_U >= low) & (longer_U <= high)).sum()) for name, low, high in LENGTHS
    }
    return {name: number / count for name, number in shares.items()}


def unit_metrics(record: StepRecord) -> dict[str, float]:
    """Means over all units of the batch; zeros when nothing aligned, never fewer names (see alignment_metrics)."""
    columns = {name: torch.cat([getattr(s, name) for s in record.stats]).float() for name in vars(record.stats[0])}
    means = {name: column.sum().item() / max(len(column), 1) for name, column in columns.items()}
    mass = {side: columns[f"{side}_logmass_U"].exp().sum().item() for side in ("student", "teacher")}
    num_units = max(len(columns["loss_U"]), 1)
    # Statistics have supervised units only, so the alignments' lengths are cut to those.
    multi_U = torch.cat([torch.from_numpy((_lengths(a) != 1).any(1)[a.supervised_U]) for a in record.alignments])
    supervised_tokens = sum(
        float(torch.from_numpy(_lengths(a)[a.supervised_U, 0])[s.supervised_U].sum())
        for a, s in zip(record.alignments, record.stats, strict=True)
    )
    num_tokens = max(sum(a.num_student_tokens for a in record.alignments), 1)
    return {
        "align/supervised_tokens": supervised_tokens / num_tokens,
        "align/student_candidate_mass": mass["student"] / num_units,
        "align/teacher_candidate_mass": mass["teacher"] / num_units,
        "loss/shared_units": columns["loss_U"][~multi_U].sum().item() / num_tokens,
        "loss/span_units": columns["loss_U"][multi_U].sum().item() / num_tokens,
        "policy/entropy": means["student_entropy_U"],
        "policy/stop_probability": means["student_stop_U"],
        "policy/teacher_stop_probability": means["teacher_stop_U"],
    }


def anchor_metrics(record: StepRecord, weight: float) -> dict[str, float]:
    """What the anchor adds to the loss, and the divergence that it is made of."""
    total = sum(float(stats.anchor_U.double().sum()) for stats in record.stats)
    num_tokens = sum(a.num_student_tokens for a in record.alignments)
    num_read = sum(a.num_supervised_student_tokens for a in record.alignments)
    return {"loss/anchor": total / max(num_tokens, 1), "policy/anchor_kl": total / weight / max(num_read, 1)}


def _lengths(alignment: UnitAlignment) -> np.ndarray:
    """Tokens a unit, [U, 2] (student, teacher)."""
    ends_U2, starts_U2 = (alignment.units_U6[:, columns] for columns in (_ENDS, _STARTS))
    lengths_U2: np.ndarray = ends_U2 - starts_U2
    return lengths_U2


def _num_non_canonical(module: DistillModule, record: StepRecord) -> float:
    """Responses whose text the student's tokenizer would spell with other ids than those sampled."""
    tokenizer, number = module.pair.student, 0
    for rollout, alignment in zip(record.rollouts, record.alignments, strict=True):
        ids = rollout.response_ids[: len(rollout.response_ids) - rollout.stopped]
        number += not tokenizer.is_canonical(alignment.text.decode(errors="replace"), ids)
    return float(number)


def _sum_of_grades(module: DistillModule, record: StepRecord) -> float:
    assert module.grader is not None
    texts = [alignment.text.decode(errors="replace") for alignment in record.alignments]
    return float(sum(module.grader(r.prompt, text) for r, text in zip(record.rollouts, texts, strict=True)))
