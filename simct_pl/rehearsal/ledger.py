"""What a rehearsal counts: kernels, waits of the host, uploads, and bytes alive, each by the line that caused it.

A line is that of the innermost frame of this repository; what transformers and torch do further in counts for it.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

ROOT = str(Path(__file__).resolve().parents[2])
HERE = str(Path(__file__).resolve().parent)
BACKWARD = "backward"  # autograd's own thread has no frame of ours


@dataclass(frozen=True)
class Place:
    """Where something was asked for. line: "file:number". function: "file:qualified name", which outlives edits."""

    line: str
    function: str


@dataclass(frozen=True)
class Wait:
    """The host waited for the device, or would have. kind: item, nonzero, download, upload …"""

    place: Place
    kind: str


@dataclass
class _Held:
    """A storage that is alive."""

    line: str
    num_bytes: int = 0


class Ledger:
    """Counts of one rehearsal; `forget` starts them anew while bytes stay alive.

    kernels, operators: by phase and line, and by phase and name: operators that compute something on the device; some
        start several kernels. products: multiplications in products of matrices, by phase and dtype.
    waits: of the host for the device. uploads: that nobody waits for.
    live, most: bytes. at_rest, at_most: by line, at the last `forget`, and when `most` was reached. most_in: the most
        in each phase.
    """

    def __init__(self) -> None:
        self.phase = "other"
        self.kernels: Counter[tuple[str, str]] = Counter()
        self.operators: Counter[tuple[str, str]] = Counter()
        self.products: Counter[tuple[str, torch.dtype]] = Counter()
        self.waits: Counter[Wait] = Counter()
        self.uploads: Counter[Place] = Counter()
        self.most_in: dict[str, int] = {}
        self.live = self.most = 0
        self.at_most: Counter[str] = Counter()
        self.at_rest: Counter[str] = Counter()
        self._by_line: Counter[str] = Counter()
        self._name: str | None = None
        self._held: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def forget(self) -> int:
        """Start counting anew; the most bytes so far."""
        for counts in (self.kernels, self.operators, self.products, self.waits, self.uploads, self.most_in):
            counts.clear()
        most, self.most = self.most, self.live
        self.at_most = self.at_rest = self._by_line.copy()
        return most

    @contextmanager
    def phase_of(self, name: str) -> Iterator[None]:
        """What happens inside counts for this phase."""
        before, self.phase = self.phase, name
        self.most_in[name] = max(self.most_in.get(name, 0), self.live)
        try:
            yield
        finally:
            self.phase = before

    def kernels_in(self, phase: str) -> int:
        return sum(count for (of, _), count in self.kernels.items() if of == phase)

    @contextmanager
    def named(self, name: str) -> Iterator[None]:
        """What happens inside counts for this name instead of for a line."""
        before, self._name = self._name, name
        try:
            yield
        finally:
            self._name = before

    # ---- written by the device ----

    def here(self) -> Place:
        """The innermost frame of this repository outside of this room."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            file = frame.f_code.co_filename
            if file.startswith(ROOT) and not file.startswith(HERE) and "site-packages" not in file:
                name = file[len(ROOT) + 1 :]
                return Place(self._name or f"{name}:{frame.f_lineno}", f"{name}:{frame.f_code.co_qualname}")
            frame = frame.f_back
        return Place(self._name or BACKWARD, BACKWARD)

    def kernel(self, operator: str, place: Place) -> None:
        self.kernels[self.phase, place.line] += 1
        self.operators[self.phase, operator] += 1

    def know(self, tensor: Tensor) -> None:
        """A storage that was there before, and is nobody's here."""
        storage = tensor.untyped_storage()
        if storage not in self._held:
            self._held[storage] = _Held("before")

    def hold(self, tensor: Tensor, place: Place) -> None:
        """Count a storage that is new."""
        storage = tensor.untyped_storage()
        if storage in self._held:
            return
        held = _Held(place.line)
        self._held[storage] = held
        weakref.finalize(storage, self._resized, held, 0).atexit = False
        self._resized(held, storage.nbytes())

    def rename(self, tensor: Tensor, name: str) -> None:
        """Count a storage that is alive for another name."""
        held = self._held[tensor.untyped_storage()]
        self._by_line[held.line] -= held.num_bytes
        held.line = name
        self._by_line[name] += held.num_bytes

    def resize(self, storage: torch.UntypedStorage, num_bytes: int) -> None:
        """FSDP2 frees what it has gathered, and takes it again, by resizing."""
        if storage in self._held:
            self._resized(self._held[storage], num_bytes)

    def _resized(self, held: _Held, num_bytes: int) -> None:
        more, held.num_bytes = num_bytes - held.num_bytes, num_bytes
        self.live += more
        self._by_line[held.line] += more
        self.most_in[self.phase] = max(self.most_in.get(self.phase, 0), self.live)
        if self.live > self.most:
            self.most, self.at_most = self.live, self._by_line.copy()
