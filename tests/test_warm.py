"""Warm processes are what `python -m` in a fresh interpreter would be, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import warm

TELL = """
import os, sys
print(sys.argv[1:], __name__, __spec__.name, sys.path[0] == os.getcwd(), os.environ.get("OWN"), sys.stdin.read() == "")
print("an error", file=sys.stderr)
sys.exit(7)
"""
CHILD = """
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path("child.part").write_text(str(child.pid))
pathlib.Path("child.part").rename("child.txt")
time.sleep(600)
"""


def is_running(pid: int) -> bool:
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_module_sees_and_says_what_it_would_in_a_fresh_interpreter(tmp_path: Path) -> None:
    (tmp_path / "tell.py").write_text(TELL)
    found = warm.run(["tell", "a", "--b=c d"], tmp_path, OWN="x", PYTHONPATH=str(warm.ROOT))
    command = [sys.executable, "-m", "tell", "a", "--b=c d"]
    environment = warm.environment_of(OWN="x")
    fresh = subprocess.run(
        command, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout, found.stderr) == (fresh.returncode, fresh.stdout, fresh.stderr)
    assert fresh.returncode == 7
    assert os.environ.get("OWN") is None


@pytest.mark.parametrize(
    ("code", "returned", "said"),
    [
        ("raise ValueError('why')", 1, "ValueError: why"),
        ("import sys; sys.exit('because')", 1, "because"),
        ("import atexit; atexit.register(print, 'at the end')", 0, "at the end"),
        (
            "import threading as t, time; t.Thread(target=lambda: (time.sleep(0.3), print('late'))).start()",
            0,
            "late",
        ),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, ""),
    ],
    ids=["exception", "message", "atexit", "thread", "signal"],
)
def test_it_ends_as_an_interpreter_does(code: str, returned: int, said: str, tmp_path: Path) -> None:
    (tmp_path / "part.py").write_text(code)
    done = warm.run(["part"], tmp_path)
    assert done.returncode == returned
    assert said in done.stdout + done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_that_takes_too_long_is_killed_with_what_it_started(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(CHILD)
    with warm.start(["parent"], tmp_path, tmp_path / "printed.txt") as process:
        while not (tmp_path / "child.txt").exists():
            assert process.poll() is None
            time.sleep(0.01)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.01)
    started = [process.pid, int((tmp_path / "child.txt").read_text())]
    deadline = time.monotonic() + 60
    while any(map(is_running, started)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(is_running, started))


def test_a_function_gives_its_value_or_says_what_went_wrong() -> None:
    assert warm.call(os.path.join, "a", "b") == os.path.join("a", "b")
    assert warm.call(os.getpid) != os.getpid()
    with pytest.raises(AssertionError, match="FileNotFoundError"):
        warm.call(os.remove, "/no/such/file")
