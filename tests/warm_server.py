"""`python -m tests.warm_server SOCKET`: becomes `python -m MODULE …` again and again, with the heavy imports done.

In: requests of tests/warm.py, each with the files for its output. Out: the process id at once, and how the process
ended when it has. It forks for each request, has no thread and runs nothing but imports, so a fork is what a fresh
interpreter would be after them. Processes whose asker has gone are killed; all of them when standard input ends.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
import traceback
from typing import Any, NoReturn

PRELOADED = (
    "callbacks",
    "mlflow.store.tracking.sqlalchemy_store",
    "simct_pl.commands.evaluate",
    "simct_pl.commands.generate",
    "simct_pl.commands.report",
    "simct_pl.commands.sweep",
    "simct_pl.config.lightning_cli",
    "transformers.models.llama.modeling_llama",
)
LARGEST_REQUEST = 2**20


class Server:
    """Forks until its own standard input ends; in a child, `serve` returns the request that the child is for."""

    def __init__(self, path: str) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(path)
        self.listener.listen(64)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ, self._accept)
        self.selector.register(0, selectors.EVENT_READ, self._end)
        self.running: dict[int, tuple[socket.socket, int]] = {}  # by process id: who asked, and the process's own file
        self.is_warm = False

    def serve(self) -> tuple[dict[str, Any], list[int]] | None:
        """(request, its two files) in each child; None in the server, at its end."""
        while True:
            for key, _ in self.selector.select():
                found = key.data()
                if found is not None:
                    return found or None

    def _accept(self) -> tuple[dict[str, Any], list[int]] | None:
        connection, _ = self.listener.accept()
        message, files, _, _ = socket.recv_fds(connection, LARGEST_REQUEST, 2)
        if not message:
            connection.close()
            return None
        self._warm_up()
        pid = os.fork()
        with contextlib.suppress(PermissionError):  # it has become another program already
            os.setpgid(pid, pid)  # a group for what it starts; said in both processes, for either may come first
        if pid == 0:
            self._forget(connection)
            return json.loads(message), files
        for file in files:
            os.close(file)
        process = os.pidfd_open(pid)
        self.running[pid] = connection, process
        self.selector.register(process, selectors.EVENT_READ, lambda: self._ended(pid))
        self.selector.register(connection, selectors.EVENT_READ, lambda: self._abandoned(pid))
        with contextlib.suppress(BrokenPipeError):
            connection.send(str(pid).encode())
        return None

    def _warm_up(self) -> None:
        if not self.is_warm:
            for module in PRELOADED:
                importlib.import_module(module)
            self.is_warm = True

    def _forget(self, connection: socket.socket) -> None:
        """In a child: nothing of the server is left open."""
        connection.close()
        self.listener.close()
        self.selector.close()
        for asker, process in self.running.values():
            asker.close()
            os.close(process)

    def _ended(self, pid: int) -> None:
        connection, process = self.running.pop(pid)
        self.selector.unregister(process)
        os.close(process)
        if connection in self.selector.get_map():
            self.selector.unregister(connection)
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(BrokenPipeError):  # the asker may have gone
            connection.send(str(os.waitstatus_to_exitcode(status)).encode())
        connection.close()

    def _abandoned(self, pid: int) -> None:
        if pid in self.running:  # it may have ended in the same moment
            self.selector.unregister(self.running[pid][0])
            _kill(pid)

    def _end(self) -> tuple[()]:
        for pid in self.running:
            _kill(pid)
        return ()


def _kill(pid: int) -> None:
    """A process, and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def become(request: dict[str, Any], files: list[int]) -> NoReturn:
    """Be `python -m MODULE ARGUMENTS` in the folder and the environment of the request; ends as that does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    null = os.open(os.devnull, os.O_RDONLY)
    for file, stream in ((null, 0), (files[0], 1), (files[1], 2)):
        os.dup2(file, stream)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    searched = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [os.getcwd(), *searched, *(path for path in sys.path[1:] if path not in searched)]
    module, *arguments = request["arguments"]
    sys.argv = [module, *arguments]
    os._exit(_exit_code(module))


def _exit_code(module: str) -> int:
    """Run a module as a program, up to the point where an interpreter takes its modules down: seconds for nothing."""
    code: object = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        code = error.code
    except BaseException:  # what an interpreter does with it
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code or 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who asks
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # no driver is opened before a fork
    accepted = Server(sys.argv[1]).serve()
    if accepted is None:
        os._exit(0)  # there is nothing to tidy up, and much to take down
    become(*accepted)
