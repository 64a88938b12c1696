"""What the ranks of a run tell each other: values, and that one of them has failed.

In: a value, or work that may fail on one rank alone. Out: everybody's value; the same kind of error on every rank, so
that none is left waiting for one that has gone. Without a process group there is one rank, and nothing is exchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from simct_pl.errors import RolloutError, SimctError, first_line

GO_ON = " With callbacks.Checkpoint in the recipe, the run can be continued with --resume."


def num_ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if num_ranks() > 1 else 0


def objects_of_ranks(value: Any, group: Any = None) -> list[Any]:
    """The value of every rank of a group, by default of all, on each of them; collective."""
    if num_ranks() == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


@contextmanager
def failing_together(work: str, kind: type[SimctError] = RolloutError) -> Iterator[None]:
    """Work of every rank, such as "load the student": where it fails on one, it fails on all. Collective at its end.

    Raises:
        SimctError: on a rank that raised one, as it is; on all others, and for any other error, of this kind, naming
            the ranks that failed.
    """
    if num_ranks() == 1:
        yield
        return
    failure: Exception | None = None
    try:
        yield
    except Exception as error:  # of whatever kind: the others are already on their way to the exchange below
        failure = error
    raise_together(work, failure, kind=kind)


def raise_together(
    work: str, failure: Exception | None, told: Any = None, kind: type[SimctError] = RolloutError
) -> list[Any]:
    """Exchange a failure of some work, None where there is none; what every rank `told`, where nobody has failed.

    Raises:
        As failing_together.
    """
    own = None if failure is None else f"{type(failure).__name__}: {first_line(failure)}"
    values: list[Any] = []
    try:
        found = objects_of_ranks((own, told))
    except RuntimeError as error:  # a rank that has ended does not take part
        named = own or f"another rank has ended, whose last words say why ({first_line(error)})"
    else:
        named = "; ".join(f"rank {rank}: {text}" for rank, (text, _) in enumerate(found) if text is not None)
        values = [value for _, value in found]
    if isinstance(failure, SimctError):
        raise failure
    if named:
        raise kind(f"Could not {work}: {named}.{GO_ON if kind is RolloutError else ''}") from failure
    return values
