"""Aggregates over the held-out prompts of one validation run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torchmetrics import MeanMetric, Metric

from simct_pl.evaluation.grader import Grader
from simct_pl.training.text_kl import NUM_SUMS, TextKL, TextKLMetric, text_kl_sums
from simct_pl.types import Rollout, UnitAlignment, UnitStats

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

    eval/loss: divergence per response token. eval/accuracy: the grader's mean. eval/bits_per_byte: of the reference
    responses under the student. eval/response_tokens, eval/truncation_rate, eval/coverage: of the sampled responses.
    eval/text_kl, eval/text_kl_error, eval/text_kl_coverage: see TextKL.
    """

    def __init__(self) -> None:
        super().__init__()
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

    def update_response(self, rollout: Rollout, alignment: UnitAlignment, grader: Grader | None) -> None:
        self._mean("response_tokens").update(len(rollout.response_ids))
        self._mean("truncation_rate").update(float(not rollout.stopped))
        self._mean("coverage").update(alignment.coverage)
        response = alignment.text.decode(errors="replace")
        score = grader(rollout.prompt, response) if grader is not None else None
        if score is not None:
            self._mean("accuracy").update(score)
        if len(self.samples) < NUM_SAMPLES:
            self.samples.append(HeldOutSample(rollout.prompt.messages[-1]["content"], response, score))

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
        found = {f"eval/{name}": float(self._mean(name).compute()) for name in used}
        if self.text_kl.update_called:
            found |= TextKL.of(self.text_kl.compute()).metrics("eval/text_kl")
        return found

    def reset(self) -> None:
        self.samples = []
        for name in self.means:
            self._mean(name).reset()
        self.text_kl.reset()
