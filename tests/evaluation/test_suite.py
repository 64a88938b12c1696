"""What a suite of tests takes from the code under test, and what it finds elsewhere; suites that grade nothing."""

from __future__ import annotations

import pytest

from simct_pl.evaluation.sandbox.guest.suite import free_names, modules_meant, why_ungradable
from simct_pl.evaluation.sandbox.sandbox import Sandbox
from tests.evaluation.machine import bubblewrap_works

SANDBOX = Sandbox(time_limit=5.0)

needs_bubblewrap = pytest.mark.skipif(not bubblewrap_works(), reason="no bubblewrap that works on this machine")

MODULES = ["bisect", "queue", "array", "profile", "statistics", "math", "string", "time", "calendar", "random", "types"]


@needs_bubblewrap
def test_a_function_may_be_called_like_a_module() -> None:
    code = "".join(f"def {name}(x): return x * {i}\n" for i, name in enumerate(MODULES))
    tests = [f"assert {name}(2) == {2 * i}" for i, name in enumerate(MODULES)]
    assert SANDBOX.run_tests(code, tests).passed
    assert not SANDBOX.run_tests(code.replace("*", "-"), tests).passed


@needs_bubblewrap
@pytest.mark.parametrize(
    ("code", "tests"),
    [
        ("class queue:\n    size = 3", ["q = queue()\nassert q.size == 3"]),
        ("class array:\n    make = staticmethod(lambda: [1])", ["assert array.make() == [1]"]),  # no module's attribute
        ("def queue(x): return x", ["queue = queue(3)\nassert queue == 3"]),
        ("def total(x): return x", ["total = total(3)", "assert total == 3"]),
        ("def f(x): return x + 1", ["assert max([1, 2], key=lambda f: -f) == 1 and f(1) == 2"]),
        ("def x(n): return n", ["assert [x for x in range(3)] == [0, 1, 2] and x(1) == 1"]),
        ("def f(x): return x", ["def check(g):\n    f = g\n    return f(2)\nassert check(abs) == 2 and f(3) == 3"]),
        ("from datetime import datetime\ndef f(d): return d.year", ["assert f(datetime(2020, 1, 2)) == 2020"]),
        ("import math\ndef f(x): return math.sqrt(x)", ["assert math.isclose(f(2), 1.4142, rel_tol=1e-3)"]),
        ("def f(): raise UnicodeDecodeError('utf-8', b'x', 0, 1, 'bad')",
         ["try:\n    f()\nexcept UnicodeDecodeError:\n    ok = 1\nassert ok"]),
    ],
)  # fmt: skip
def test_names_are_found_where_they_are(code: str, tests: list[str]) -> None:
    verdict = SANDBOX.run_tests(code, tests)
    assert verdict.passed, verdict


@needs_bubblewrap
def test_modules_that_a_test_forgot_to_import_are_not_the_code_s() -> None:
    fake = "math = type('M', (), {'isclose': staticmethod(lambda *a, **k: True)})\ndef root(x): return 0"
    assert not SANDBOX.run_tests(fake, ["assert math.isclose(root(2), 1.4142, rel_tol=1e-3)"]).passed


@needs_bubblewrap
def test_tests_import_from_the_solution() -> None:
    code = "def add(a, b): return a + b\ndef sum(a, b): return a * b\ndef queue(x): return x"
    setup = "from solution import add as plus, sum, queue\nimport solution\nimport solution as s"
    tests = ["assert plus(1, 2) == 3 and sum(3, 4) == 12 and queue(5) == 5", "assert solution.add(1, 2) == s.add(2, 1)"]
    assert SANDBOX.run_tests(code, tests, setup).passed
    assert not SANDBOX.run_tests("def add(a, b): return a + b", tests, setup).passed


@needs_bubblewrap
def test_prints_are_no_verdict() -> None:
    noise = "import sys, os\nprint('noise')\nsys.stdout.write('{}')\nos.write(1, b'x' * 2**21)\nsys.stderr.write('x')\n"
    assert SANDBOX.run_tests("def f(x):\n    print(x)\n    return x", [f"{noise}assert f(1) == 1"], noise).passed
    assert not SANDBOX.run_tests("def f(x): return x", [f"{noise}assert f(1) == 2"], noise).passed
    assert SANDBOX.run_tests("def f(x): return x", ["try:\n    input()\nexcept EOFError:\n    assert f(1) == 1"]).passed


@pytest.mark.parametrize(
    ("setup", "tests", "why"),
    [
        ("", [], "no test"),
        ("", ["", "# later", "pass", "x = 1", "'text'"], "none that checks anything"),
        ("assert True", [""], "none that checks anything"),
        ("", ["assert f(1) == 1", "assert ("], "no Python"),
        ("import (", ["assert f(1) == 1"], "no Python"),
        ("", ["import numpy as np\nassert f(np.array([1]))"], "import numpy"),
        ("from scipy.stats import norm", ["assert f(1) == 1"], "import scipy"),
        ("", ["x = '\0'", "assert f(1)"], "no Python"),
    ],
)
def test_tests_that_tell_nothing_apart_are_ungradable(setup: str, tests: list[str], why: str) -> None:
    if bubblewrap_works():
        verdict = SANDBOX.run_tests("def f(x): return x", tests, setup)
        assert (verdict.passed, verdict.reason) == (False, "ungradable")
        assert why in verdict.detail
    if not why.startswith("import"):  # here these may be installed
        assert why in str(why_ungradable(setup, tests))


@pytest.mark.parametrize(
    "test",
    ["f(1)", "if f(1) != 1:\n    raise ValueError",
     "try:\n    import numpy\nexcept ImportError:\n    numpy = None\nf(1)",
     "import os.path, solution\nassert f(1) == 1"],
)  # fmt: skip
def test_tests_that_check_in_other_ways_are_gradable(test: str) -> None:
    assert why_ungradable("", [test]) is None


def test_names_of_several_sources() -> None:
    assert free_names("a = b", "assert a == c", "d = d + e") == ["b", "c", "d", "e"]
    assert free_names("x = 1", "x = x + 1") == []
    assert free_names("def f(y): return y + z", "class C(B): w: T = 1") == ["B", "T", "z"]
    assert set(modules_meant("math.isclose(queue(1), 2)", "array.none()", "os.path.join(json)")) == {"math", "os"}
