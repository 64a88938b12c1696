"""Aggregates over the held-out prompts of one validation run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torchmetrics import MeanMetric, Metric

from simct_pl.evaluation.grader import Grader
from simct_pl.training.graded_batch import GradedBatch
from simct_pl.training.text_kl import NUM_SUMS, TextKL, TextKLMetric, text_kl_sums
from simct_pl.types import Rollout, StepRecord, UnitAlignment, UnitStats

NUM_SAMPLES = 4


@dataclass(frozen=True)
class HeldOutSample:
    """A held-out prompt, the student's response, and the grader's score if there is a grader."""

    prompt: str
    response: str
    score: float | None


@dataclass(frozen=True)
class HeldOutResult:
    """One validation run: after how many optimizer steps, its metrics, and its first samples."""

    step: int
    metrics: dict[str, float]
    samples: list[HeldOutSample]


class HeldOutMetrics(nn.Module):
    """Means over ranks and batches; only what was updated is reported.

    prefix: of the names, "eval" here:
    eval/loss: divergence per response token. eval/accuracy: the grader's mean. eval/bits_per_byte: of the reference
    responses under the student. eval/response_tokens, eval/truncation_rate, eval/coverage: of the sampled responses.
    eval/text_kl, eval/text_kl_error, eval/text_kl_coverage: see TextKL.
    """

    def __init__(self, prefix: str = "eval") -> None:
        super().__init__()
        self.prefix = prefix
        names = ("loss", "accuracy", "response_tokens", "truncation_rate", "coverage", "bits_per_byte")
        self.samples: list[HeldOutSample] = []
        self.means = nn.ModuleDict({name: MeanMetric(nan_strategy="warn") for name in names})
        self.text_kl = TextKLMetric()

    def _mean(self, name: str) -> Metric:
        metric = self.means[name]
        assert isinstance(metric, Metric)
        return metric

    def update_loss(self, loss_sum: float, num_tokens: int) -> None:
        self._mean("loss").update(loss_sum / max(num_tokens, 1), weight=num_tokens)

    def update_text_kl(self, alignments: list[UnitAlignment], stats: list[UnitStats]) -> None:
        self.text_kl.update(text_kl_sums(alignments, stats))

    def update_response(self, rollout: Rollout, alignment: UnitAlignment, score: float | None) -> None:
        """score: the grader's, if there is one."""
        self._mean("response_tokens").update(len(rollout.response_ids))
        self._mean("truncation_rate").update(float(not rollout.stopped))
        self.update_grading(alignment, score)
        if len(self.samples) < NUM_SAMPLES:
            response = alignment.text.decode(errors="replace")
            self.samples.append(HeldOutSample(rollout.prompt.messages[-1]["content"], response, score))

    def update_grading(self, alignment: UnitAlignment, score: float | None) -> None:
        """What depends on who grades a response."""
        self._mean("coverage").update(alignment.coverage)
        if score is not None:
            self._mean("accuracy").update(score)

    def update_bits(self, bits: float, num_bytes: int) -> None:
        self._mean("bits_per_byte").update(bits / num_bytes, weight=num_bytes)

    @property
    def in_use(self) -> list[bool]:
        """Which metrics were updated, in the order of `means`, and text KL."""
        return [*(self._mean(name).update_called for name in self.means), self.text_kl.update_called]

    def use(self, wanted: list[bool]) -> None:
        """Report what another rank has updated: to compute a mean is collective."""
        *means_wanted, text_kl_wanted = wanted
        for name, is_wanted in zip(self.means, means_wanted, strict=True):
            if is_wanted:
                self._mean(name).update(0.0, weight=0.0)
        if text_kl_wanted:
            self.text_kl.update(torch.zeros(NUM_SUMS))

    def compute(self) -> dict[str, float]:
        used = [name for name in self.means if self._mean(name).update_called]
        found = {f"{self.prefix}/{name}": float(self._mean(name).compute()) for name in used}
        if self.text_kl.update_called:
            found |= TextKL.of(self.text_kl.compute()).metrics(f"{self.prefix}/text_kl")
        return found

    @torch.inference_mode(False)  # `validate` has it on, and a fit that follows adds to the new sums without it
    def reset(self) -> None:
        self.samples = []
        for name in self.means:
            self._mean(name).reset()
        self.text_kl.reset()


class HeldOutByTeacher(nn.Module):
    """HeldOutMetrics of all responses, and, of several teachers, some of those that each one grades: eval/NAME/loss,
    coverage, accuracy and text_kl.

    A response that several teachers grade counts once among all. eval/loss is weighted as the loss of training is;
    eval/NAME/loss is that teacher's own. eval/text_kl is over all gradings.
    """

    def __init__(self, teachers: Sequence[str]) -> None:
        super().__init__()
        several = teachers if len(teachers) > 1 else ()
        self.parts = nn.ModuleList([HeldOutMetrics(), *(HeldOutMetrics(f"eval/{name}") for name in several)])
        self._places = {name: i + 1 for i, name in enumerate(several)}

    def update_responses(self, record: StepRecord, grader: Grader | None) -> None:
        """Of graded responses, in the order of their rollouts."""
        last, score = None, None
        for rollout, alignment, teacher in zip(record.rollouts, record.alignments, record.teachers, strict=True):
            if rollout is not last:
                text = alignment.text.decode(errors="replace")
                score = None if grader is None else grader(rollout.prompt, text)
                self.all.update_response(rollout, alignment, score)
            if (own := self._of(teacher)) is not None:
                own.update_grading(alignment, score)
            last = rollout

    def update_losses(self, rollouts: Sequence[Rollout], graded: GradedBatch, loss: float, stats: UnitStats) -> None:
        """Of a micro-batch whose loss sum has been computed."""
        parts = graded.split(stats)
        self.all.update_loss(loss, sum(rollout.num_targets for rollout in rollouts))
        self.all.update_text_kl(graded.alignments, parts)
        graders = zip(graded.members, graded.teachers, graded.alignments, parts, strict=True)
        for member, teacher, alignment, part in graders:
            if (own := self._of(teacher)) is not None:
                own.update_loss(float(part.loss_U.double().sum()), rollouts[member].num_targets)
                own.update_text_kl([alignment], [part])

    def update_bits(self, bits: float, num_bytes: int) -> None:
        """Of reference responses, which are nobody's."""
        self.all.update_bits(bits, num_bytes)

    @property
    def in_use(self) -> list[bool]:
        """See HeldOutMetrics.in_use; of all parts."""
        return [used for part in self._all_parts for used in part.in_use]

    def use(self, wanted: list[bool]) -> None:
        """See HeldOutMetrics.use."""
        size = len(self.all.in_use)
        for i, part in enumerate(self._all_parts):
            part.use(wanted[i * size : (i + 1) * size])

    def compute(self) -> dict[str, float]:
        return {name: value for part in self._all_parts for name, value in part.compute().items()}

    def reset(self) -> None:
        for part in self._all_parts:
            part.reset()

    @property
    def all(self) -> HeldOutMetrics:
        """Of everybody."""
        return self._all_parts[0]

    @property
    def _all_parts(self) -> list[HeldOutMetrics]:
        return [part for part in self.parts if isinstance(part, HeldOutMetrics)]

    def _of(self, teacher: str) -> HeldOutMetrics | None:
        """Of one of several teachers."""
        place = self._places.get(teacher)
        return None if place is None else self._all_parts[place]
