"""Where a host may wait for its device in a training step, and why.

In: a Ledger. Out: the waits that nothing allows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from simct_pl.rehearsal.ledger import Place

Per = Literal["step", "forward", "response", "parameter"]


@dataclass(frozen=True)
class Allowed:
    """kind: of a Wait. most: how many of them, for each of `per`. answer: what a read gets, if it is one."""

    kind: str
    most: int
    per: Per
    reason: str
    answer: Any = None


# Function → what it may wait for.
ALLOWED: dict[str, tuple[Allowed, ...]] = {}


def answer_of(place: Place, dtype: torch.dtype) -> Any:
    """What the host reads where nobody knows the value.

    Raises:
        UnknownValue: if nothing says what it shall be.
    """
    for one in ALLOWED.get(place.function, ()):
        if one.answer is not None:
            return one.answer
    return True if dtype == torch.bool else 1
