"""A process in the sandbox from its start to its end. In: a command line, and files by their descriptors. Out: how it
ended; when the block ends in which it runs, it and all that it started are gone.

bwrap itself stays outside and waits. The program is the first process of its PID namespace, so the kernel ends the
whole namespace with it. It is killed by its own number: it may have cut what ties its life to bwrap's.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

END_SECONDS = 5.0  # for bwrap to notice that the program is dead


class Running:
    """A process that runs. info_fd: of the file that bwrap writes the program's number to; None without bwrap."""

    def __init__(self, process: subprocess.Popen[bytes], info_fd: int | None) -> None:
        self._process, self._info_fd = process, info_fd

    @property
    def exit_code(self) -> int | None:
        """As a shell gives it, 128 + n for signal n; None while it runs."""
        code = self._process.returncode
        return 128 - code if code is not None and code < 0 else code

    def wait(self, seconds: float) -> bool:
        """Wait so long for its end. Whether it ended by itself; if not, or if somebody interrupts, it is ended."""
        try:
            self._process.wait(seconds)
            return True
        except subprocess.TimeoutExpired:
            return False
        finally:
            self.end()

    def end(self) -> None:
        """Kill it and all that it started, if it still runs."""
        if self._process.returncode is not None:
            return
        if self._kill_program():
            try:
                self._process.wait(END_SECONDS)  # bwrap ends when the namespace is empty
                return
            except subprocess.TimeoutExpired:
                pass
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _kill_program(self) -> bool:
        """Kill the program inside by its number outside. Whether there was one."""
        if self._info_fd is None:
            return False
        try:
            program = os.pidfd_open(json.loads(content_of(self._info_fd))["child-pid"])
        except (ValueError, ProcessLookupError):  # nothing was started yet, or it has just ended
            return False
        try:
            # The number may be another process's by now. bwrap has not been waited for: its number is its own.
            is_ours = self._process.pid == _parent_of(program)
            if is_ours:
                signal.pidfd_send_signal(program, signal.SIGKILL)
            return is_ours
        except ProcessLookupError:
            return False
        finally:
            os.close(program)


@contextmanager
def running(
    command: Sequence[str],
    stdin: int,
    stdout: int,
    stderr: int = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
    bwrap: Sequence[str] = (),
) -> Iterator[Running]:
    """Start a command, in a bubblewrap or (without one) in a session of its own; end it with the block."""
    with memory_file() as info_fd:
        inside = [bwrap[0], "--info-fd", str(info_fd), *bwrap[1:]] if bwrap else []
        process = subprocess.Popen(
            [*inside, *command],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=[*pass_fds, info_fd] if bwrap else pass_fds,
            start_new_session=True,
            env={},
        )
        found = Running(process, info_fd if bwrap else None)
        try:
            yield found
        finally:
            found.end()


@contextmanager
def memory_file(content: bytes = b"") -> Iterator[int]:
    """A file without a name, for a process to read or write; writes are bounded by the writer's own limit."""
    descriptor = os.memfd_create("simct_pl")
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def content_of(descriptor: int) -> bytes:
    """All that a memory file holds, wherever its writer stands."""
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _parent_of(pidfd: int) -> int | None:
    """The parent's number, as long as the process lives."""
    info = dict(line.split(":\t", 1) for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines())
    try:
        status = Path(f"/proc/{info['Pid']}/status").read_text()
    except FileNotFoundError:
        return None
    return int(dict(line.split(":\t", 1) for line in status.splitlines())["PPid"])
