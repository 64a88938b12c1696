"""Values between the two processes, as JSON. What arrives is built from its plain content: a list is a list, and
nothing that the sender defined (an `__eq__` that always agrees, say) comes along. Everything else travels as a handle.

A message is one line. What the other side sends may be made to take long to read: its length is bounded, and so is
that of its decimal numbers, whose reading takes time that grows with the square; large ones travel as hexadecimal.
"""

from __future__ import annotations

import builtins
import itertools
import json
import sys
from collections import deque
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, BinaryIO

Wire = Any  # what json.dumps takes
MAX_ITEMS = 1_000_000  # of an iterator: it may have no end
MAX_MESSAGE_BYTES = 32 * 2**20
MAX_DIGITS = 4300  # of a decimal number; Python's own default
MAX_DECIMAL_BITS = 4096  # an integer of more bits travels as hexadecimal


def send(message: Wire, to: BinaryIO) -> None:
    """Write a message.

    Raises:
        OSError: if nobody reads it.
    """
    to.write(json.dumps(message).encode() + b"\n")
    to.flush()


def receive(source: BinaryIO) -> Wire:
    """Read a message.

    Raises:
        EOFError: if there is no more, or no end within the bound. ValueError, RecursionError: if it is no JSON.
    """
    line = source.readline(MAX_MESSAGE_BYTES)
    if not line.endswith(b"\n"):
        raise EOFError
    sys.set_int_max_str_digits(MAX_DIGITS)
    try:
        return json.loads(line)
    finally:
        sys.set_int_max_str_digits(0)  # the code and the tests may print numbers of any length


def pack(value: Any, as_handle: Callable[[Any], Wire]) -> Wire:
    """A value as JSON; as_handle: packs what is no plain data."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        plain = int(value)
        return plain if plain.bit_length() <= MAX_DECIMAL_BITS else {"int": [hex(plain)]}
    if isinstance(value, str):
        return "".join(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, type) and vars(builtins).get(name := value.__name__) is value:
        return {"type": [name]}
    if isinstance(value, list):
        return [pack(item, as_handle) for item in value]
    for name, kind, parts_of in CONTAINERS:
        if isinstance(value, kind):
            return {name: [pack(part, as_handle) for part in parts_of(value)]}
    return as_handle(value)


def unpack(wire: Wire, handle: Callable[[Wire], Any]) -> Any:
    """The value again; handle: of what was packed as one.

    Raises:
        KeyError, TypeError, ValueError: for what pack() never writes.
    """
    if isinstance(wire, list):
        return [unpack(item, handle) for item in wire]
    if not isinstance(wire, dict):
        return wire
    ((name, parts),) = wire.items()
    if name == "handle":
        return handle(parts)
    return BUILDERS[name](*[unpack(part, handle) for part in parts])


def items_of(iterable: Iterable[Any]) -> list[Any]:
    """The items, up to a number that no test needs."""
    return list(itertools.islice(iterable, MAX_ITEMS))


def _type(name: str) -> type:
    found = vars(builtins)[name]
    if not isinstance(found, type):
        raise TypeError(f"{name} is no type")
    return found


def _pairs(value: dict[Any, Any]) -> list[Any]:
    return [part for pair in value.items() for part in pair]


def _dict(*parts: Any) -> dict[Any, Any]:
    return dict(zip(parts[::2], parts[1::2], strict=True))


# name → (kind, its parts); the first that fits, so datetime stands before date. The parts rebuild the value.
CONTAINERS: list[tuple[str, Any, Callable[[Any], Any]]] = [
    ("tuple", tuple, list),
    ("dict", dict, _pairs),
    ("set", set, list),
    ("frozenset", frozenset, list),
    ("deque", deque, list),
    ("range", range, lambda r: (r.start, r.stop, r.step)),
    ("bytes", (bytes, bytearray), lambda b: list(bytes(b))),
    ("complex", complex, lambda c: (c.real, c.imag)),
    ("decimal", Decimal, lambda d: (str(d),)),
    ("fraction", Fraction, lambda f: (f.numerator, f.denominator)),
    ("datetime", datetime, lambda d: (d.isoformat(),)),
    ("date", date, lambda d: (d.isoformat(),)),
    ("time", time, lambda t: (t.isoformat(),)),
    ("timedelta", timedelta, lambda t: (t.days, t.seconds, t.microseconds)),
]
BUILDERS: dict[str, Callable[..., Any]] = {
    "int": lambda text: int(text, 16),
    "tuple": lambda *parts: parts,
    "dict": _dict,
    "set": lambda *parts: set(parts),
    "frozenset": lambda *parts: frozenset(parts),
    "deque": lambda *parts: deque(parts),
    "range": range,
    "bytes": lambda *parts: bytes(parts),
    "complex": complex,
    "decimal": Decimal,
    "fraction": Fraction,
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "timedelta": timedelta,
    "type": _type,
}
