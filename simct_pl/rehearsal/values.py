"""What the host knows of tensors that have no values: ids, positions, masks and counts that it has sent itself.

In: a FakeTensor, and what was made of others. Out: its values as a tensor of the host, kept with it; None if nobody
knows them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._pytree import tree_leaves, tree_map_only, tree_unflatten
from torch.utils.weak import WeakIdKeyDictionary

aten = torch.ops.aten
NEEDS_VALUES = (DataDependentOutputException, DynamicOutputShapeException)
# Elements of a tensor that is still computed: ids and positions, lists of them, but no mask of [length x length].
MOST_COMPUTED = 2**21
# Of numbers with a fraction only constants are followed.
CONSTANT = {aten._to_copy.default, aten.zeros.default, aten.ones.default, aten.scalar_tensor.default}

COLLECTIVES = ("c10d", "_c10d_functional")


class UnknownValue(Exception):
    """The host reads what it cannot know; str() says where."""


class TooManyOperators(Exception):
    """Code that would take minutes to follow; str() says how many."""


class TensorSet:
    """Tensors by identity, as long as they live."""

    def __init__(self) -> None:
        self._members = WeakIdKeyDictionary()

    def add(self, tensor: Tensor) -> Tensor:
        self._members[tensor.untyped_storage()] = True
        return tensor

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage() in self._members


def known(tensor: Tensor) -> Tensor | None:
    """Values of a tensor; a real one has its own."""
    if not isinstance(tensor, FakeTensor):
        return tensor
    found: Tensor | None = getattr(tensor, "known_values", None)
    return found


def give(fake: Tensor, real: Tensor) -> None:
    """Keep values with a tensor."""
    fake.known_values = real  # type: ignore[attr-defined]


def on_host(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A copy for the host: zeros where nobody knows the values."""
    values = known(tensor)
    if values is None:
        return torch.zeros(tensor.shape, dtype=dtype or tensor.dtype)
    return values.to(dtype or tensor.dtype, copy=True)


def follow(func: Any, flat: list[Any], spec: Any, result: Any) -> None:
    """Compute the values of results too, if those of all that they were made of are known."""
    if func.namespace in COLLECTIVES:  # nobody is there to be asked
        return
    made = [one for one in tree_leaves(result) if isinstance(one, FakeTensor)]
    given = [one for one in flat if isinstance(one, Tensor)]
    is_followed = all(one.numel() <= MOST_COMPUTED for one in made) and (
        func in CONSTANT or not any(one.is_floating_point() for one in made)
    )
    if is_followed and all(known(one) is not None for one in given):
        args, kwargs = tree_unflatten([known(one) if isinstance(one, Tensor) else _for_host(one) for one in flat], spec)
        try:
            values = tree_leaves(func(*args, **kwargs))
        except (RuntimeError, NotImplementedError):  # no kernel on the host
            values = []
        for one, value in zip(made, values, strict=False):
            give(one, value)
        if values:
            return
    for one in made if func._schema.is_mutable else ():  # what was known has been written over
        vars(one).pop("known_values", None)


def sized(fake: FakeTensorMode, device: torch.device, func: Any, args: Any, kwargs: Any) -> Any:
    """A result whose size its arguments' values say.

    Raises:
        UnknownValue: if nobody knows them.
    """
    if any(known(one) is None for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)):
        raise UnknownValue(f"{func} is sized by values that nobody knows on the host")
    values = tree_map_only(Tensor, known, (args, kwargs))
    real = func(*values[0], **values[1])

    def sent(value: Tensor) -> Tensor:
        with fake:
            found = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
        give(found, value)
        return found

    return tree_map_only(Tensor, sent, real)


def if_small(fake: FakeTensorMode, func: Any, args: Any, kwargs: Any) -> Any:
    """Of real tensors on the host: really computed if the result is small, else its sizes."""
    if func._schema.is_mutable:  # what is written to is real
        return func(*args, **kwargs)
    try:
        with fake:
            sizes = func(*args, **kwargs)
    except NEEDS_VALUES:
        return func(*args, **kwargs)
    is_small = all(one.numel() <= MOST_COMPUTED for one in tree_leaves(sizes) if isinstance(one, Tensor))
    return func(*args, **kwargs) if is_small else sizes


def _for_host(argument: Any) -> Any:
    return torch.device("cpu") if isinstance(argument, torch.device) else argument
