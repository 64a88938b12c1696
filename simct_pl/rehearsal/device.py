"""A device whose tensors have sizes and no values, beside a host whose tensors are real.

In: any code that computes with torch. Out: a Ledger. Tensors of the device are FakeTensors: operators on them compute
shapes and dtypes alone, refuse tensors of another device as a GPU would, and take milliseconds a layer whatever its
size. Small tensors that the host made and sent keep their values (values.py), so that what is sized by them has its
true size.

The device is "cuda" (fake_cuda.py), or the host's own "cpu", where no tensor moves but bytes are counted all the same:
then what is small and real stays real, and sizes are those of PyTorch's CPU operators.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, UnsupportedOperatorException
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten
from typing_extensions import override

from simct_pl.errors import UnsupportedModelError, first_line
from simct_pl.rehearsal import values
from simct_pl.rehearsal.ledger import Ledger, Place, Wait
from simct_pl.rehearsal.waits import answer_of

aten = torch.ops.aten
MOST_OPERATORS = 250_000  # a minute or two; 100 layers with their backward have 20,000
# What the host knows the size of only when the device has computed it.
SIZED_BY_VALUES = {
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.repeat_interleave.Tensor,
    aten.bincount.default,
}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
NO_KERNEL = {
    aten.detach.default,
    aten.alias.default,
    aten.empty.memory_format,
    aten.empty_strided.default,
    aten.empty_like.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
    aten._reshape_alias.default,
    aten.lift_fresh.default,
    aten.set_.source_Storage,
    aten.resize_.default,
    aten.is_pinned.default,
    aten.is_same_size.default,
    aten.record_stream.default,
}


# Which argument is the left one of a product of matrices.
PRODUCTS = {
    aten.mm.default: 0,
    aten.mm.out: 0,
    aten.bmm.default: 0,
    aten.linear.default: 0,
    aten.matmul.default: 0,
    aten.addmm.default: 1,
    aten.addmm.out: 1,
    aten.addmm_.default: 1,
    aten.baddbmm.default: 1,
}


class FakeDevice(TorchDispatchMode):
    """Inside, tensors of `device` have no values.

    Args:
        device: "cuda" in a process that fake_cuda has prepared, or "cpu". ledger: what is written to.

    Raises, at its end:
        UnsupportedModelError: if the code inside cannot be followed: it asks for a number that only the device knows,
            or runs very many operators.
    """

    def __init__(self, device: str, ledger: Ledger | None = None) -> None:
        super().__init__()
        self.device = torch.device(device)
        self.ledger = ledger or Ledger()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.num_operators = self._depth = 0
        self._pinned = values.TensorSet()
        self._resize = torch.UntypedStorage.resize_

    @property
    def on_host(self) -> bool:
        """Whether the device is the host."""
        return self.device.type == "cpu"

    @contextmanager
    def making(self, name: str) -> Iterator[None]:
        """Tensors that are made inside are the device's, also those that name none; bytes count under the name."""
        inside = self.fake if self.on_host else self  # on the host small ones would be real
        with self.ledger.named(name), inside, self.device:
            yield

    @override
    def __enter__(self) -> FakeDevice:
        self._depth += 1
        super().__enter__()
        if self._depth > 1:
            return self
        # torch.tensor(…, device="cuda") is made on the host and then sent.
        torch._C._set_only_lift_cpu_tensors(True)
        whole, ledger = self._resize, self.ledger

        def resize(storage: torch.UntypedStorage, num_bytes: int) -> torch.UntypedStorage:
            ledger.resize(storage, num_bytes)
            return whole(storage, num_bytes)

        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign, assignment]
        return self

    @override
    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)
        self._depth -= 1
        if self._depth > 0:
            return
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        torch._C._set_only_lift_cpu_tensors(False)
        if isinstance(error, values.TooManyOperators):
            raise UnsupportedModelError(
                f"The step runs {error}, as models that read token by token do: following it would take too long."
            ) from error
        if isinstance(error, (values.UnknownValue, UnsupportedOperatorException, *values.NEEDS_VALUES)):
            raise UnsupportedModelError(
                f"The step decides by values what it computes ({first_line(error)}), so that nothing can be told of it "
                "without running it."
            ) from error

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(one, DTensor) for one in types):
            return NotImplemented  # what it does to its parts comes back here
        self.num_operators += 1
        if self.num_operators > MOST_OPERATORS:
            raise values.TooManyOperators(f"more than {MOST_OPERATORS:,} operators")
        kwargs = kwargs or {}
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        has_fake = any(isinstance(one, FakeTensor) for one in tensors)
        if self.on_host:
            for one in tensors:
                self.ledger.know(one)
        if not has_fake and not self._is_sent_to(kwargs):
            return self._of_host(func, args, kwargs)
        place = self.ledger.here()
        result, is_copy = self._of_device(func, args, kwargs, place)
        self._count(func, args, result, place, is_copy=is_copy)
        return result

    def _is_sent_to(self, kwargs: dict[str, Any]) -> bool:
        device = kwargs.get("device")
        return not self.on_host and device is not None and torch.device(device).type == self.device.type

    # ---- the host ----

    def _of_host(self, func: Any, args: Any, kwargs: Any) -> Any:
        if not self.on_host:
            if func is aten._pin_memory.default:
                return self._pinned.add(args[0].clone())
            return func(*args, **kwargs)
        result = values.if_small(self.fake, func, args, kwargs)
        if not func.is_view:
            self._count(func, args, result, self.ledger.here())
        return result

    # ---- the device ----

    def _of_device(self, func: Any, args: Any, kwargs: Any, place: Place) -> tuple[Any, bool]:
        """(the result, whether it is but a copy of the host's)."""
        if func is aten._local_scalar_dense.default:
            return self._read(args[0], place), False
        if func is aten.equal.default:
            self._wait(place, "equal")
            return True, False
        if not self.on_host:
            if func is aten._to_copy.default and args[0].device.type != self.device.type:
                self._upload(args[0], place, asynchronous=bool(kwargs.get("non_blocking")))
                return self._computed(func, args, kwargs), True
            if func is aten._to_copy.default and torch.device(kwargs.get("device") or self.device).type == "cpu":
                self._wait(place, "download")
                return values.on_host(args[0], kwargs.get("dtype")), True
            if func is aten.copy_.default and args[0].device.type != args[1].device.type:
                return self._copied(func, args, kwargs, place), True
        if func in INDEXED:
            args = self._with_places(args, place)
        if func in SIZED_BY_VALUES and kwargs.get("output_size") is None:
            self._wait(place, func.__name__.split(".")[0])
            return values.sized(self.fake, self.device, func, args, kwargs), False
        return self._computed(func, args, kwargs), False

    def _computed(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Sizes, and values where the host knows them."""
        flat, spec = tree_flatten((args, kwargs))
        fakes = [self._as_fake(one) if isinstance(one, Tensor) else one for one in flat]
        fake_args, fake_kwargs = tree_unflatten(fakes, spec)
        if func is aten._grouped_mm.default:
            return _grouped_mm(self.fake, *fake_args, **fake_kwargs)
        with self.fake:
            result = func(*fake_args, **fake_kwargs)
        values.follow(func, flat, spec, result)
        return result

    def _as_fake(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, FakeTensor):
            return tensor
        fake = self.fake.from_tensor(tensor if isinstance(tensor, torch.nn.Parameter) else tensor.detach())
        values.give(fake, tensor.detach())
        return fake

    def _copied(self, func: Any, args: Any, kwargs: Any, place: Place) -> Tensor:
        target, source = args[:2]
        asynchronous = bool(kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
        if target.device.type == "cpu":
            self._wait(place, "download")
            assert isinstance(target, Tensor)
            return target
        self._upload(source, place, asynchronous=asynchronous)
        result: Tensor = self._computed(func, args, kwargs)
        return result

    def _with_places(self, args: Any, place: Place) -> Any:
        """An index whose masks are the places that they stand for: how many only their values say."""
        found: list[Tensor | None] = []
        for one in args[1]:
            if one is not None and not self.on_host and one.device.type == "cpu" and one.dim():
                self._wait(place, "upload of an index")
            if one is None or one.dtype not in (torch.bool, torch.uint8):
                found.append(one)
                continue
            self._wait(place, "boolean index")
            found += values.sized(self.fake, self.device, aten.nonzero.default, (one,), {}).unbind(1)
        return (args[0], found, *args[2:])

    # ---- what it counts ----

    def _wait(self, place: Place, kind: str) -> None:
        self.ledger.waits[Wait(place, kind)] += 1

    def _read(self, tensor: Tensor, place: Place) -> Any:
        self._wait(place, "item")
        known = values.known(tensor)
        return answer_of(place) if known is None else known.item()

    def _upload(self, source: Tensor, place: Place, *, asynchronous: bool) -> None:
        """Of pinned memory alone is nobody kept waiting."""
        if asynchronous and source in self._pinned:
            self.ledger.uploads[place] += 1
        else:
            self._wait(place, "upload")

    def _count(self, func: Any, args: Any, result: Any, place: Place, *, is_copy: bool = False) -> None:
        made = [one for one in tree_leaves(result) if isinstance(one, Tensor) and one.device.type == self.device.type]
        if not made:
            return
        if not (is_copy or func in NO_KERNEL or func.is_view or torch.Tag.inplace_view in func.tags):
            self.ledger.kernel(str(func), place)
        if func in PRODUCTS:
            self.ledger.products[self.ledger.phase, made[0].dtype] += made[0].numel() * args[PRODUCTS[func]].shape[-1]
        for one in made:
            self.ledger.hold(one, place)


def _grouped_mm(fake: FakeTensorMode, left: Tensor, right: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The products of a mixture's experts. PyTorch's rule for their shape knows bf16 alone, its kernels the rest."""
    with fake:
        in_bf16 = (side.new_empty_strided(side.shape, side.stride(), dtype=torch.bfloat16) for side in (left, right))
        found = aten._grouped_mm.default(*in_bf16, *args, **kwargs)
        return left.new_empty_strided(found.shape, found.stride())
