"""Text KL: how far the student's texts are from the teacher's, from what the student said, whatever is minimised.

In: the alignments and statistics of some responses. Out: nats a byte, with a standard error. The log-probability of a
response is summed over its units for each model, the student's in the sampled tokens, the teacher's in its own tokens
of the same text. Over the student's own samples the mean difference is KL(student || teacher) between their texts; a
model that writes in spellings which its tokenizer never makes counts as one that writes something else. It needs no
grader and no reference, and means the same for every objective.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric

from simct_pl.types import BYTE_END, BYTE_START, UnitAlignment, UnitStats

NUM_SUMS = 7


@dataclass(frozen=True)
class TextKL:
    """An estimate.

    nats_per_byte: the sum of log p_student - log p_teacher over what was counted, by its bytes; it may be below 0.
    error: standard error of it over responses (of a ratio of two sums); not a number for fewer than two.
    coverage: share of the responses' bytes that were counted. Left out are stretches that one side cannot read, units
        that cannot be supervised, and what the aligner leaves out on purpose.
    """

    nats_per_byte: float
    error: float
    coverage: float

    @classmethod
    def of(cls, sums: Tensor) -> TextKL:
        """From the sums of text_kl_sums, added up over batches and ranks; zeros where nothing was counted."""
        num, gap, counted, gap_gap, gap_counted, counted_counted, total = sums.double().tolist()
        if counted == 0:
            return cls(0.0, math.nan, 0.0)
        # The error of a ratio of sums: residuals g - ratio * b of each response, whose squares add up to this.
        ratio = gap / counted
        squares = gap_gap - 2 * ratio * gap_counted + ratio**2 * counted_counted
        error = math.sqrt(max(squares, 0.0) * num / (num - 1)) / counted if num > 1 else math.nan
        return cls(ratio, error, counted / total)

    def metrics(self, prefix: str) -> dict[str, float]:
        """Under names that begin with the prefix, for example `policy/text_kl`."""
        return {prefix: self.nats_per_byte, f"{prefix}_error": self.error, f"{prefix}_coverage": self.coverage}


def text_kl_sums(alignments: Sequence[UnitAlignment], stats: Sequence[UnitStats]) -> Tensor:
    """What TextKL is made of, float64 [7]: the number of responses, and over them the sums of g, b, g², gb, b² and of
    all bytes, where g is the difference of the two log-probabilities and b the bytes of the units that it is made of.

    A response without any unit counts with its bytes alone.
    """
    sums = torch.zeros(NUM_SUMS, dtype=torch.float64)
    for alignment, one in zip(alignments, stats, strict=True):
        units_U6 = alignment.units_U6[alignment.supervised_U]
        gap = float(one.token_logprobs_N.double().sum() - one.teacher_logprobs_U.double().sum())
        counted = float((units_U6[:, BYTE_END] - units_U6[:, BYTE_START]).sum())
        parts = (1.0, gap, counted, gap**2, gap * counted, counted**2) if len(units_U6) else (0.0,) * 6
        sums += torch.tensor([*parts, float(len(alignment.text))], dtype=torch.float64)
    return sums


class TextKLMetric(Metric):
    """The sums over batches and ranks."""

    sums: Tensor
    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(NUM_SUMS, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, sums: Tensor) -> None:
        """sums: of text_kl_sums."""
        self.sums = self.sums + sums.to(self.sums.device)

    def compute(self) -> Tensor:
        """The sums so far, for TextKL.of."""
        return self.sums
