"""Nothing that code under test starts, or turns into, outlives its verdict or the process that asked for it."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from simct_pl.evaluation.sandbox.sandbox import Sandbox
from tests.evaluation.machine import bubblewrap_works

ROOT = Path(__file__).resolve().parents[2]
SANDBOX = Sandbox(time_limit=1.0)
PR_SET_CHILD_SUBREAPER = 36

pytestmark = pytest.mark.skipif(not bubblewrap_works(), reason="no bubblewrap that works on this machine")

# x86-64: what the first process of a sandbox would do if it ran the attacker's code.
MACHINE_CODE = bytes.fromhex(
    "b89d000000 bf01000000 31f6 0f05"  # prctl(PR_SET_PDEATHSIG, 0): no death with the parent
    "bb14000000"  # twenty times:
    "b839000000 0f05 85c0 7404 ffcb 75f1"  # fork(); the child leaves the loop
    "31ff be00008025 ba03000000 41ba22000000 4983c8ff 4531c9 b809000000 0f05"  # mmap() of 600 MiB
    "b822000000 0f05 ebf7"  # pause() for ever
)
WRITE_TO_FIRST = f"""
import os
def attack():
    for process in [name for name in os.listdir('/proc') if name.isdigit()]:
        place = int(open(f'/proc/{{process}}/syscall').read().split()[-1], 16)
        with open(f'/proc/{{process}}/mem', 'r+b', buffering=0) as memory:
            memory.seek(place)
            memory.write({MACHINE_CODE!r})
def f(x):
    attack()
    os._exit(0)
"""
CUT_TIES = """
import ctypes, signal, threading, time
libc = ctypes.CDLL(None)
cut = libc.prctl(1, 0, 0, 0, 0) == 0 or libc.syscall(157, 1, 0, 0, 0, 0) == 0
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
def stay():
    while True: time.sleep(1)
for _ in range(3): threading.Thread(target=stay).start()
"""


def processes() -> dict[int, int]:
    """Every living process, with its parent."""
    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            state, parent = Path(f"/proc/{name}/stat").read_text().rpartition(") ")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state not in "ZX":
            found[int(name)] = int(parent)
    return found


def below(root: int) -> set[int]:
    """Every living process that descends from one."""
    parents, found = processes(), {root}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {root}


@pytest.fixture
def survivors() -> Iterator[Callable[[], set[int]]]:
    """Living descendants that were not there before; orphans come to this process, and are killed in the end."""
    prctl = ctypes.CDLL(None).prctl
    assert prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    before = below(os.getpid())
    yield lambda: below(os.getpid()) - before
    for process in below(os.getpid()) - before:
        os.kill(process, signal.SIGKILL)
    prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="machine code of x86-64")
def test_machine_code_in_the_first_process_outlives_nothing(survivors: Callable[[], set[int]]) -> None:
    assert not SANDBOX.run_tests(WRITE_TO_FIRST, ["assert f(2) == 4"]).passed
    SANDBOX.run_program(f"{WRITE_TO_FIRST}\nf(2)", b"")
    assert survivors() == set()


def test_no_process_inside_is_without_limits() -> None:
    code = "import os\ndef f(): return os.getpid(), [name for name in os.listdir('/proc') if name.isdigit()]"
    assert SANDBOX.run_tests(code, ["assert f() == (1, ['1'])"]).passed


def test_a_process_cannot_make_itself_outlive_its_parent(survivors: Callable[[], set[int]]) -> None:
    assert SANDBOX.run_tests(f"{CUT_TIES}\ndef f(): return cut", ["assert f() == False"]).passed
    assert SANDBOX.run_program(f"{CUT_TIES}\nstay()", b"").reason == "timeout"
    assert survivors() == set()


@pytest.mark.parametrize("unsafe", [False, True], ids=["bubblewrap", "unsafe"])
def test_nothing_outlives_an_evaluation_that_is_killed(survivors: Callable[[], set[int]], unsafe: bool) -> None:
    program = (
        "from simct_pl.evaluation.sandbox.sandbox import Sandbox\n"
        f"Sandbox(time_limit=60, unsafe={unsafe}).run_tests({CUT_TIES!r} + 'def f(): stay()', ['f()'])"
    )
    evaluation = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    wanted = 3 if unsafe else 5  # the evaluation, and two processes, each behind its bwrap
    began = time.monotonic()
    while len(survivors()) < wanted and time.monotonic() - began < 60:
        time.sleep(0.05)
    assert len(survivors()) >= wanted
    time.sleep(1.0)  # until the code has cut what it can
    evaluation.kill()
    evaluation.wait()
    began = time.monotonic()
    while survivors() and time.monotonic() - began < 10:
        time.sleep(0.05)
    assert survivors() == set()
