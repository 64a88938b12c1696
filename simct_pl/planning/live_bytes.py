"""The bytes of tensors that are alive while code runs, and at most were; of real tensors, or of tensors without values.

In: any code that computes with torch. Out: LiveBytes.live and .most. Under SizesOnly a model whose weights were made in
its FakeTensorMode computes shapes and dtypes alone, in milliseconds a layer, whatever its size.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from typing_extensions import override

# Elements of a tensor that is still computed: token ids and positions, but no mask of [length x length].
MOST_COMPUTED = 2**20
NEEDS_VALUES = (DataDependentOutputException, DynamicOutputShapeException)
MOST_OPERATORS = 250_000  # a minute or so; 100 layers with their backward have 20,000


class TooManyOperators(Exception):
    """Code that would take minutes to follow; str() is the limit."""


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operators make inside and that are still alive.

    What an operator allocates for itself stays unseen, and so does what an allocator keeps.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.most = 0
        self._known = WeakIdKeyDictionary()

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors((args, kwargs)):  # made before, or seen when they were made
            self._known[tensor.untyped_storage()] = True
        result = self.run(func, args, kwargs or {})
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage not in self._known:
                self._known[storage] = True
                self.live += storage.nbytes()
                self.most = max(self.most, self.live)
                weakref.finalize(storage, self._freed, storage.nbytes())
        return result

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run one operator."""
        return func(*args, **kwargs)

    def forget_peak(self) -> int:
        """Start the peak anew from what is alive now; the peak so far."""
        most, self.most = self.most, self.live
        return most

    def _freed(self, num_bytes: int) -> None:
        self.live -= num_bytes


class SizesOnly(LiveBytes):
    """The same for code whose weights are tensors without values, made under `fake`.

    What such a tensor goes into has no values either. Small tensors that come from the host alone, as token ids,
    positions and lengths do, keep theirs: models decide by them (long-context rotary embeddings, packed rows).
    """

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self.fake = fake
        self.num_operators = 0

    @override
    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Raises TooManyOperators, and NEEDS_VALUES where a number is asked of a tensor that has none."""
        self.num_operators += 1
        if self.num_operators > MOST_OPERATORS:
            raise TooManyOperators(f"{MOST_OPERATORS:,}")
        if any(isinstance(tensor, FakeTensor) for tensor in _tensors((args, kwargs))):
            return _grouped_mm(*args, **kwargs) if func is torch.ops.aten._grouped_mm.default else func(*args, **kwargs)
        try:
            with self.fake:
                sized = func(*args, **kwargs)
        except NEEDS_VALUES:
            return func(*args, **kwargs)
        is_small = all(tensor.numel() <= MOST_COMPUTED for tensor in _tensors(sized))
        return func(*args, **kwargs) if is_small else sized


def _grouped_mm(left: Tensor, right: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The products of a mixture's experts. PyTorch's rule for their shape knows bf16 alone, its kernels the rest."""
    in_bf16 = (side.new_empty_strided(side.shape, side.stride(), dtype=torch.bfloat16) for side in (left, right))
    found = torch.ops.aten._grouped_mm.default(*in_bf16, *args, **kwargs)
    return left.new_empty_strided(found.shape, found.stride())


def _tensors(values: Any) -> Iterator[Tensor]:
    return (value for value in tree_leaves(values) if isinstance(value, Tensor))
