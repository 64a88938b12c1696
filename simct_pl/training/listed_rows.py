"""A teacher's rows of which only some log-probabilities are known: the likeliest tokens', and the sum of the others'.

In: for each position a list of ids with log-probabilities. Out: rows that travel as hidden states do, and a head that
makes log-probabilities over the whole vocabulary of them, a chunk at a time.

What a row does not list has the mass that is left, in equal parts. So no event's probability, a category's say, is off
by more than that mass, whose mean over a step's rows is logged as `teacher/unlisted_mass`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init
from typing_extensions import override

from simct_pl.models.lm_head import LMHead

SMALLEST_MASS = 1e-9  # of all that a row does not list: logarithms stay finite
LARGEST_ID = 2**24  # ids travel as fp32, which holds whole numbers up to here


class Listed(NamedTuple):
    """Tokens with their log-probabilities, each once; what a server says of one position."""

    ids: Sequence[int]
    logprobs: Sequence[float]


def unlisted_mass(row: Listed) -> float:
    """Probability of all that a row does not list."""
    return max(1.0 - math.fsum(map(math.exp, row.logprobs)), 0.0)


def pack_rows(rows: Sequence[Listed], vocab_size: int) -> Tensor:
    """fp32 [rows, 1 + 2 k]: the log-probability of each token that is not listed, then k log-probabilities, then k ids.

    k: of the longest list. Shorter ones repeat their first token, so that every place writes what belongs there.
    """
    most = max((len(row.ids) for row in rows), default=0)
    packed_RX = np.zeros((len(rows), 1 + 2 * most), np.float32)
    for packed_X, row in zip(packed_RX, rows, strict=True):
        num_others = max(vocab_size - len(row.ids), 1)
        packed_X[0] = math.log(max(unlisted_mass(row), SMALLEST_MASS) / num_others)
        missing = most - len(row.ids)
        packed_X[1 : 1 + most] = [*row.logprobs, *[row.logprobs[0]] * missing]
        packed_X[1 + most :] = [*row.ids, *[row.ids[0]] * missing]
    return torch.from_numpy(packed_RX)


@dataclass(frozen=True)
class ListedHead(LMHead):
    """Packed rows [R, 1 + 2 k] → log-probabilities [R, vocabulary], with a scatter where a head has a product.

    projection: nothing is multiplied with it; it has the vocabulary's length.
    """

    @classmethod
    def over(cls, vocab_size: int, device: torch.device) -> ListedHead:
        """A head over a vocabulary of so many ids."""
        assert vocab_size <= LARGEST_ID
        return cls(skip_init(nn.Linear, 1, vocab_size, bias=False, device=device).requires_grad_(False))

    @override
    def project(self, states: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
        """See LMHead."""
        most = states.shape[1] // 2
        fill_R1, logprob_RK, id_RK = states.split([1, most, most], 1)
        return out.copy_(fill_R1.expand_as(out)).scatter_(1, id_RK.long(), logprob_RK)
