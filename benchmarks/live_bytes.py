"""The bytes of real tensors that are alive while code runs, and at most were: what a rehearsal is compared with.

In: any code that computes with torch. Out: LiveBytes.live and .most.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from typing_extensions import override


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
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage not in self._known:
                self._known[storage] = True
                self.live += storage.nbytes()
                self.most = max(self.most, self.live)
                weakref.finalize(storage, self._freed, storage.nbytes())
        return result

    def forget_peak(self) -> int:
        """Start the peak anew from what is alive now; the peak so far."""
        most, self.most = self.most, self.live
        return most

    def _freed(self, num_bytes: int) -> None:
        self.live -= num_bytes


def _tensors(values: Any) -> Iterator[Tensor]:
    return (value for value in tree_leaves(values) if isinstance(value, Tensor))
