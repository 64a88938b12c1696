"""Two eyes on every operator that runs: the bytes it moves, and the bytes of tensors that are alive."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from typing_extensions import override

PRODUCTS = ("mm", "addmm", "addmm_", "bmm")
ALLOCATIONS = ("empty", "empty_like", "new_empty", "empty_strided", "resize_")
READ_A_PART = ("gather", "index_select", "index")  # of their first argument: as much as they return
WRITE_A_PART = ("index_copy_", "index_add_")  # as much as their last argument holds


class TrafficCounter(TorchDispatchMode):
    """Sums up the bytes that operators read and write, products apart; what stays within a cache counts too."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.is_view or name in PRODUCTS + ALLOCATIONS:
            return result
        if name in READ_A_PART:
            touched = [result, result]
        elif name in WRITE_A_PART:
            touched = [args[-1], args[-1]]
        else:
            touched = [args[1:] if name == "copy_" else args, kwargs, result]
        self.bytes += sum(tensor.nbytes for tensor in _tensors(touched))
        return result


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that were made inside and are still alive, and the most of them at a time.

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

    def _freed(self, num_bytes: int) -> None:
        self.live -= num_bytes


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]
