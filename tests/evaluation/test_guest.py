"""The two processes of the sandbox, here in this one: what crosses, whose names are whose, which calls are refused."""

from __future__ import annotations

import json
import struct
from collections import Counter, deque, namedtuple
from collections.abc import Callable
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simct_pl.evaluation.sandbox.guest.confine import ALLOW, CALLS, KILL, NOT_THERE, REFUSE, filter_program
from simct_pl.evaluation.sandbox.guest.suite import free_names
from simct_pl.evaluation.sandbox.guest.test_process import Remote
from simct_pl.evaluation.sandbox.guest.wire import pack, unpack

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.dates()
HASHABLE = st.recursive(SCALARS, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=4)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(HASHABLE, inner, max_size=3) | st.sets(HASHABLE, max_size=3)
    ),
    max_leaves=12,
)


def no_handle(value: Any) -> Any:
    raise AssertionError(f"{value!r} is plain data")


def through_the_pipe(value: Any, as_handle: Callable[[Any], Any] = no_handle) -> Any:
    return unpack(json.loads(json.dumps(pack(value, as_handle))), lambda number: ("handle", number))


@given(VALUES)
def test_plain_values_arrive_as_they_were(value: Any) -> None:
    arrived = through_the_pipe(value)
    assert (arrived, type(arrived)) == (value, type(value))


@pytest.mark.parametrize(
    "value",
    [10**5000, float("inf"), 2 + 3j, deque([1, 2]), range(1, 9, 2), Decimal("1.50"), Fraction(1, 3), "\ud800",
     datetime(2026, 1, 2, 3, 4, 5), date(2026, 1, 2), timedelta(days=1, seconds=2), int, [str, dict]],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_values_of_the_standard_library_do_too(value: Any) -> None:
    import sys

    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)  # as both processes do
    try:
        assert through_the_pipe(value) == value
    finally:
        sys.set_int_max_str_digits(limit)


def test_subclasses_arrive_as_what_they_are_made_of() -> None:
    class Five(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    Point = namedtuple("Point", "x y")
    for value, plain in (
        (Five(5), 5),
        (Point(1, 2), (1, 2)),
        (Counter("aab"), {"a": 2, "b": 1}),
        (bytearray(b"x"), b"x"),
    ):
        arrived = through_the_pipe(value)
        assert type(arrived) is type(plain)
        assert arrived == plain
    assert through_the_pipe(Five(5)) != 6
    assert through_the_pipe([object()], lambda value: {"handle": 3}) == [("handle", 3)]


@pytest.mark.parametrize(
    "wire", [{"call": ["os.system"]}, {"tuple": [], "set": []}, {}, {"decimal": ["x"]}, {"type": ["open"]}]
)
def test_what_pack_never_writes_is_refused(wire: Any) -> None:
    with pytest.raises((KeyError, TypeError, ValueError, ArithmeticError)):
        unpack(wire, lambda number: None)


def test_the_candidate_gets_only_names_that_nobody_else_has() -> None:
    tests = """
import math
root = Node(1)
def check(candidate):
    for n in range(3):
        assert abs(candidate(n)) == helper(root, key=lambda k: k)
check(f)
"""
    assert free_names(tests) == ["Node", "f", "helper"]


def test_a_remote_object_equals_only_itself() -> None:
    asked: list[dict[str, Any]] = []

    class Line:
        def ask(self, **request: Any) -> Any:
            asked.append(request)
            return 7

    one, other = Remote(Line(), 0), Remote(Line(), 1)  # type: ignore[arg-type]
    assert one == one
    assert one != other
    assert one != 7
    assert asked == []
    assert (one(1, key=2), one.name) == (7, 7)
    assert asked == [
        {"do": "call", "on": 0, "arguments": (1,), "named": {"key": 2}},
        {"do": "get", "on": 0, "name": "name"},
    ]


def run_filter(machine: str, architecture: int, call: int, argument: int = 0) -> int:
    """An independent reading of classic BPF: what the kernel would answer to one system call."""
    words = {0: call, 4: architecture, 16: argument}
    program = list(struct.iter_unpack("HBBI", filter_program(machine)))
    value = at = 0
    while True:
        code, true, false, constant = program[at]
        at += 1
        match code:
            case 0x20:
                value = words[constant]
            case 0x06:
                return int(constant)
            case 0x15:
                at += true if value == constant else false
            case 0x35:
                at += true if value >= constant else false
            case 0x45:
                at += true if value & constant else false


# From the kernel's tables: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
NUMBERS = {
    "x86_64": {"read": 0, "mmap": 9, "clone": 56, "fork": 57, "vfork": 58, "execve": 59, "ptrace": 101, "clone3": 435},
    "aarch64": {"read": 63, "mmap": 222, "clone": 220, "execve": 221, "ptrace": 117, "clone3": 435},
}


@pytest.mark.parametrize("machine", NUMBERS)
def test_the_filter_lets_threads_through_and_no_process(machine: str) -> None:
    architecture, number = CALLS[machine][0], NUMBERS[machine]
    ask = {name: run_filter(machine, architecture, call) for name, call in number.items()}
    assert (ask["read"], ask["mmap"]) == (ALLOW, ALLOW)
    assert {ask[name] for name in number if name in ("fork", "vfork", "execve", "ptrace", "clone")} == {REFUSE}
    assert ask["clone3"] == NOT_THERE
    assert run_filter(machine, architecture, number["clone"], argument=0x003D0F00) == ALLOW  # what pthread_create asks
    assert run_filter(machine, architecture, number["clone"], argument=0x01200011) == REFUSE  # what fork asks
    assert run_filter(machine, 0x40000003, number["read"]) == KILL  # 32-bit calls have other numbers


def test_x32_calls_are_refused() -> None:
    assert run_filter("x86_64", CALLS["x86_64"][0], 0x40000000 + 57) == REFUSE
