"""Messages that the code under test forges to cost time: the verdict comes in time, and is none in its favour."""

from __future__ import annotations

import io
import json
import sys
import time

import pytest

from simct_pl.evaluation.sandbox.guest import wire
from simct_pl.evaluation.sandbox.guest.wire import receive, send
from simct_pl.evaluation.sandbox.sandbox import Sandbox
from tests.evaluation.machine import bubblewrap_works

SANDBOX = Sandbox(time_limit=2.0)
# The limit and a second, and what interpreters may take to start here. Eight tests would be given 20 seconds in all.
SECONDS = SANDBOX.time_limit + 1.0 + 5.0
TESTS = ["assert f(2) == 4"] * 8

needs_bubblewrap = pytest.mark.skipif(not bubblewrap_works(), reason="no bubblewrap that works on this machine")

SAY = """
import os
def say(text):
    for fd in range(3, 64):
        try:
            if not os.readlink(f'/proc/self/fd/{fd}').startswith('pipe'): continue
            left = memoryview(text.encode())
            while left: left = left[os.write(fd, left):]
        except OSError:
            pass
"""
FORGED = {
    "a long number": "say('{\"value\": ' + '9' * 2**23 + '}\\n')",
    "many numbers": "say('{\"value\": [' + '1,' * 2**22 + '1]}\\n')",
    "many long numbers": "say('{\"value\": [' + ','.join(['9' * 4000] * 2000) + ']}\\n')",
    "a set whose items collide": (
        "say('{\"value\": {\"set\": [' + ','.join(str(i * (2**61 - 1)) for i in range(300_000)) + ']}}\\n')"
    ),
    "a dict whose keys collide": (
        "say('{\"value\": {\"dict\": [' + ','.join(f'{i * (2**61 - 1)},0' for i in range(200_000)) + ']}}\\n')"
    ),
    "no bottom": "say('{\"value\": ' + '[' * 2**23 + '\\n')",
    "a bottom far below": "say('{\"value\": ' + '[' * 10**5 + ']' * 10**5 + '}\\n')",
    "a long text": "say('{\"value\": \"' + 'x' * 2**24 + '\"}\\n')",
    "a long decimal": "say('{\"value\": {\"decimal\": [\"' + '9' * 2**24 + '\"]}}\\n')",
    "a long fraction": (
        "parts = ['{\"int\": [\"0x' + digit * 2**22 + '\"]}' for digit in '97']\n    "
        "say('{\"value\": {\"fraction\": [' + ','.join(parts) + ']}}\\n')"
    ),
    "a line without end": "while True: say('9' * 2**20)",
    "many lines": "while True: say('{\"value\": 5}\\n' * 2**10)",
    "a long error": "say('{\"error\": [\"ValueError\", \"' + 'x' * 2**24 + '\"]}\\n')",
    "an error that is none": "say('{\"error\": 5}\\n')",
    "division by nothing": 'say(\'{"value": {"fraction": [1, 0]}}\\n\')',
    "a range without end": 'say(\'{"value": {"range": [0, 1000000000000000000, 1]}}\\n\')',
}


@needs_bubblewrap
@pytest.mark.parametrize("name", FORGED)
def test_a_forged_message_takes_no_longer_than_a_test_may(name: str) -> None:
    began = time.monotonic()
    verdict = SANDBOX.run_tests(f"{SAY}\ndef f(x):\n    {FORGED[name]}\n    return 5", TESTS)
    assert not verdict.passed
    assert verdict.reason in {"wrong", "died", "timeout"}
    assert time.monotonic() - began < SECONDS


@needs_bubblewrap
def test_a_call_that_no_signal_can_interrupt_is_a_timeout_of_its_test() -> None:
    began = time.monotonic()
    verdict = SANDBOX.run_tests("def f(x): return range(x)", ["assert f(9)", "assert sum(f(10**15)) == 1", *TESTS])
    assert (verdict.reason, verdict.detail) == ("timeout", "test 2")
    assert time.monotonic() - began < SECONDS


@needs_bubblewrap
def test_large_values_cross_in_time() -> None:
    code = "def power(n): return 2**n\ndef many(n): return list(range(n))\ndef long(n): return 'x' * n"
    tests = [
        "assert power(10**6) == 2**10**6 and power(5) == 32",
        "assert many(300_000) == list(range(300_000))",
        "assert long(10**6) == 'x' * 10**6",
        "assert len(str(power(20_000))) == 6021",
    ]
    assert SANDBOX.run_tests(code, tests).passed


def test_messages_have_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = sys.get_int_max_str_digits()
    try:
        pipe = io.BytesIO()
        send({"value": [1, "ü\n", 2.5]}, pipe)
        assert receive(io.BytesIO(pipe.getvalue())) == {"value": [1, "ü\n", 2.5]}
        assert sys.get_int_max_str_digits() == 0
        with pytest.raises(ValueError, match="4300"):
            receive(io.BytesIO(b"9" * 4301 + b"\n"))
        monkeypatch.setattr(wire, "MAX_MESSAGE_BYTES", 8)
        assert receive(io.BytesIO(b"1234567\n")) == 1234567
        for unfinished in (b"12345678\n", b"1234567", b""):
            with pytest.raises(EOFError):
                receive(io.BytesIO(unfinished))
    finally:
        sys.set_int_max_str_digits(limit)


@pytest.mark.parametrize("number", [2**4096 - 1, 2**4096, -(2**4097), 10**5000], ids=["below", "at", "above", "far"])
def test_numbers_that_decimals_would_make_slow_travel_as_hexadecimal(number: int) -> None:
    packed = wire.pack(number, lambda value: value)
    assert len(json.dumps(packed)) < 4300
    assert wire.unpack(json.loads(json.dumps(packed)), lambda value: value) == number
