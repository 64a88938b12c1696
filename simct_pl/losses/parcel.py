"""Small arrays of the host, sent to a device in one piece.

A copy for each array would cost a GPU more than what is in it, and a copy from ordinary memory keeps the host waiting.
In: arrays, by name, from whoever needs them there. Out: the same on the device, once the parcel has been sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Received = Callable[[], dict[str, Tensor]]


class Parcel:
    """Arrays of any dtype and one dimension; what comes out are views of one tensor."""

    def __init__(self) -> None:
        self._arrays: list[Tensor] = []
        self._sent: list[Tensor] | None = None

    def add(self, arrays: Mapping[str, Tensor]) -> Received:
        """Put in arrays of the host; call what is returned when they have been sent."""
        assert self._sent is None, "has been sent"
        first = len(self._arrays)
        self._arrays += arrays.values()

        def received() -> dict[str, Tensor]:
            assert self._sent is not None, "has not been sent"
            return dict(zip(arrays, self._sent[first : first + len(arrays)], strict=True))

        return received

    def send(self, device: torch.device) -> None:
        """To the device; what runs there is not waited for. To the host itself nothing is copied."""
        self._sent = self._arrays if device.type == "cpu" else self._on(device)

    def _on(self, device: torch.device) -> list[Tensor]:
        # Wide elements first: each array then begins at a multiple of its elements' size.
        dtypes = sorted({one.dtype for one in self._arrays}, key=lambda dtype: -dtype.itemsize)
        groups = [[i for i, one in enumerate(self._arrays) if one.dtype == dtype] for dtype in dtypes]
        parts = [torch.cat([self._arrays[i] for i in group]).view(torch.uint8) for group in groups]
        whole = torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8)
        sent = (whole.pin_memory() if device.type == "cuda" else whole).to(device, non_blocking=True)
        found: dict[int, Tensor] = {}
        for group, part, dtype in zip(groups, sent.split([len(part) for part in parts]), dtypes, strict=True):
            lengths = [len(self._arrays[i]) for i in group]
            found |= zip(group, part.view(dtype).split(lengths), strict=True)
        return [found[i] for i in range(len(self._arrays))]
