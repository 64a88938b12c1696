"""The process that holds the tests. Names that a test uses and nobody else defines are the candidate's: calling one
asks the other process. When every test has passed, and only then, the secret is written down.

Comparisons happen here, on plain data built here (wire.py), so that the code under test can neither read what is
expected nor change what `==` means. What it sends may be made to take long (a set whose items collide): a signal ends
a step that takes too long, and where a single call of the interpreter's takes all the time, a watchdog ends the
process. The verdict that counts then is written down before the step.
"""

from __future__ import annotations

import builtins
import faulthandler
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FrameType, ModuleType
from typing import Any

from . import SOLUTION
from .confine import confine, silence
from .suite import free_names, modules_meant, why_ungradable
from .wire import Wire, pack, receive, send, unpack

WATCHDOG_SECONDS = 0.5  # what a step may take beyond its limit before the process ends
MAX_ERROR_CHARS = 500

Verdict = dict[str, Any]  # {"secret"}, or what failed: {"failed", "reason", "error"}
Step = tuple[str, Callable[[], object]]


class OutOfTime(BaseException):
    """A test took longer than it may; no `except Exception` of a test catches it."""


class CandidateLost(BaseException):
    """The candidate's process has ended, or says what no candidate says."""


class CandidateError(Exception):
    """The candidate raised something that is no built-in exception."""


def examine(to_candidate: int, from_candidate: int, memory_mb: int, cpu_seconds: int) -> int:
    """Read a job from standard input, run it, and write a verdict to what standard output was at the start."""
    job = json.loads(sys.stdin.read())
    verdict_fd = os.dup(1)
    silence()  # tests may print
    sys.set_int_max_str_digits(0)
    channel = Channel(to_candidate, from_candidate)
    confine(memory_mb, cpu_seconds, file_mb=1)
    failure = run_job(channel, job, verdict_fd)
    write_verdict(verdict_fd, failure or {"secret": job["secret"]})
    os._exit(0)  # objects that live in the other process need no farewell


def run_job(channel: Channel, job: dict[str, Any], verdict_fd: int) -> Verdict | None:
    """What failed first, or None."""
    if why := why_ungradable(job["setup"], job["tests"]):
        return {"failed": "", "reason": "ungradable", "error": why}
    signal.signal(signal.SIGALRM, _out_of_time)
    for name, step in steps_of(channel, job):
        write_verdict(verdict_fd, {"failed": name, "reason": "timeout"})
        if failure := run_step(step, job["time_limit"]):
            return {"failed": name, **failure}
    return None


def steps_of(channel: Channel, job: dict[str, Any]) -> list[Step]:
    """What is done one after the other, each with the time limit to itself: the code's definitions, setup and tests.
    They are compiled before any clock runs, because tests may hold megabytes of literals.
    """
    namespace: dict[str, Any] = {"__name__": "tests"}
    sources = [("setup", job["setup"]), *((f"test {i}", test) for i, test in enumerate(job["tests"], start=1))]
    texts = [text for _, text in sources]
    modules = {name: module for name, module in modules_meant(*texts).items() if name not in job["entry"]}
    names = dict.fromkeys([*free_names(*texts), *job["entry"]])

    def begin() -> None:
        channel.begin(job["code"])
        sys.modules[SOLUTION] = Solution(channel)
        namespace.update(values_of(channel, names, modules))

    def run(program: CodeType) -> Callable[[], object]:
        return lambda: exec(program, namespace)

    compiled = [(name, compile(text, name, "exec", dont_inherit=True)) for name, text in sources]
    return [("code", begin), *((name, run(program)) for name, program in compiled)]


def run_step(step: Callable[[], object], time_limit: float) -> Verdict | None:
    """Why a step failed, or None; it gets so many seconds."""
    faulthandler.dump_traceback_later(time_limit + WATCHDOG_SECONDS, exit=True, file=2)
    signal.setitimer(signal.ITIMER_REAL, time_limit)
    try:
        step()
    except OutOfTime:
        return {"reason": "timeout"}
    except CandidateLost:
        return {"reason": "died"}
    except BaseException as error:
        return {"reason": "wrong", "error": f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARS]}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
    return None


def write_verdict(verdict_fd: int, verdict: Verdict) -> None:
    """Replace what the file holds."""
    content = json.dumps(verdict).encode()
    os.pwrite(verdict_fd, content, 0)
    os.ftruncate(verdict_fd, len(content))


def values_of(channel: Channel, names: Iterable[str], modules: dict[str, ModuleType]) -> dict[str, Any]:
    """What names mean: modules that a test forgot to import, and the code's own."""
    found: dict[str, Any] = {}
    for name in names:
        try:
            found[name] = modules[name] if name in modules else channel.ask(do="global", name=name)
        except (AttributeError, CandidateError):
            if name in sys.stdlib_module_names:
                found[name] = importlib.import_module(name)
            # A test that needs another one raises NameError.
    return found


class Channel:
    """The pipe to the candidate: one request, one answer."""

    def __init__(self, to_candidate: int, from_candidate: int) -> None:
        self._requests = os.fdopen(to_candidate, "wb")
        self._answers = os.fdopen(from_candidate, "rb")

    def begin(self, code: str) -> None:
        """Have the code's definitions run."""
        self._exchange({"code": code})

    def ask(self, arguments: Iterable[Any] = (), named: dict[str, Any] | None = None, **request: Any) -> Any:
        """The candidate's answer as a value.

        Raises:
            Exception: the built-in one that the candidate raised, or CandidateError. CandidateLost: if it is gone.
        """
        request["arguments"] = [pack(argument, _handle_of) for argument in arguments]
        request["named"] = {name: pack(value, _handle_of) for name, value in (named or {}).items()}
        return self._exchange(request)

    def _exchange(self, request: dict[str, Any]) -> Any:
        try:
            send(request, self._requests)
            answer = receive(self._answers)
            if "error" not in answer:
                return unpack(answer["value"], lambda number: Remote(self, int(number)))
            name, text = map(str, answer["error"])
        except (OSError, EOFError, ValueError, LookupError, TypeError, ArithmeticError) as error:
            raise CandidateLost from error
        except (AttributeError, RecursionError, MemoryError) as error:
            raise CandidateLost from error
        known = getattr(builtins, name, None)
        is_error = isinstance(known, type) and issubclass(known, Exception)
        raise _error_of(known if is_error else CandidateError, text)  # type: ignore[arg-type]


class Solution(ModuleType):
    """The code under test as the module that tests may import its names from."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(SOLUTION)
        self.__dict__["_channel"] = channel

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._channel.ask(do="global", name=name)


class Remote:
    """An object that lives in the candidate's process. It equals nothing but itself."""

    def __init__(self, channel: Channel, number: int) -> None:
        object.__setattr__(self, "_channel", channel)
        object.__setattr__(self, "_number", number)

    def _ask(self, do: str, **request: Any) -> Any:
        return self._channel.ask(do=do, on=self._number, **request)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._ask("call", arguments=arguments, named=named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask("get", name=name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("set", name=name, arguments=[value])

    def __iter__(self) -> Iterator[Any]:
        return iter(self._ask("items"))


def _handle_of(value: Any) -> Wire:
    if isinstance(value, Remote):
        return {"handle": value._number}
    raise TypeError(f"a {type(value).__name__} cannot be handed to the code under test")


def _error_of(kind: type[Exception], text: str) -> Exception:
    """An exception without its own constructor, which may want more (UnicodeDecodeError)."""
    error = kind.__new__(kind, text)
    error.args = (text,)
    return error


def _out_of_time(number: int, frame: FrameType | None) -> None:
    raise OutOfTime
