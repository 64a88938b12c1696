"""The process that holds the tests. Names that a test uses and nobody else defines are the candidate's: calling one
asks the other process. When every test has passed, and only then, the secret is printed.

Comparisons happen here, on plain data built here (wire.py), so that the code under test can neither read what is
expected nor change what `==` means.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import IO, Any

from .confine import confine
from .wire import Wire, pack, unpack


class OutOfTime(BaseException):
    """A test took longer than it may; no `except Exception` of a test catches it."""


class CandidateLost(BaseException):
    """The candidate's process has ended, or says what no candidate says."""


class CandidateError(Exception):
    """The candidate raised something that is no built-in exception."""


def examine(to_candidate: int, from_candidate: int, memory_mb: int, cpu_seconds: int) -> int:
    """Read a job from standard input, run it, print {"secret"} or {"failed", "reason"}."""
    job = json.loads(sys.stdin.read())
    sys.set_int_max_str_digits(0)
    channel = Channel(to_candidate, from_candidate)
    confine(memory_mb, cpu_seconds, file_mb=1)
    signal.signal(signal.SIGALRM, _out_of_time)
    names = free_names("\n".join([job["setup"], *job["tests"]])) + job["entry"]
    verdict = run_tests(channel, names, job["code"], job["setup"], job["tests"], job["time_limit"])
    sys.__stdout__.write(json.dumps(verdict or {"secret": job["secret"]}))  # type: ignore[union-attr]
    sys.__stdout__.flush()  # type: ignore[union-attr]
    os._exit(0)  # objects that live in the other process need no farewell


def run_tests(
    channel: Channel, names: list[str], code: str, setup: str, tests: list[str], time_limit: float
) -> dict[str, Any] | None:
    """What failed first, or None. The code's definitions and each test have the time limit to themselves.

    names: which the setup and the tests take from the code.
    """
    namespace: dict[str, Any] = {"__name__": "tests"}
    steps = [("code", ""), ("setup", setup), *((f"test {i}", test) for i, test in enumerate(tests, start=1))]
    for name, source in steps:
        signal.setitimer(signal.ITIMER_REAL, time_limit)
        try:
            if name == "code":
                channel.begin(code)
                namespace.update(values_of(channel, names))
            exec(compile(source, name, "exec", dont_inherit=True), namespace)
        except OutOfTime:
            return {"failed": name, "reason": "timeout"}
        except CandidateLost:
            return {"failed": name, "reason": "died"}
        except BaseException as error:
            return {"failed": name, "reason": "wrong", "error": f"{type(error).__name__}: {error}"[:500]}
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    return None


def values_of(channel: Channel, names: Iterable[str]) -> dict[str, Any]:
    """What names mean: the code's own, but for modules that a test forgot to import."""
    found: dict[str, Any] = {}
    for name in names:
        if name in sys.stdlib_module_names:
            found[name] = importlib.import_module(name)
            continue
        try:
            found[name] = channel.ask(do="global", name=name)
        except (AttributeError, CandidateError):
            continue  # a test that needs it raises NameError
    return found


def free_names(source: str) -> list[str]:
    """Names that a source uses and neither defines, imports nor finds among the built-ins, sorted."""
    used: set[str] = set()
    bound = set(dir(builtins))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).partition(".")[0])
    return sorted(used - bound)


class Channel:
    """The pipe to the candidate: one request, one answer."""

    def __init__(self, to_candidate: int, from_candidate: int) -> None:
        self._requests: IO[str] = os.fdopen(to_candidate, "w", encoding="utf-8")
        self._answers: IO[str] = os.fdopen(from_candidate, encoding="utf-8")

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
            self._requests.write(json.dumps(request) + "\n")
            self._requests.flush()
            answer = json.loads(self._answers.readline())
            if "error" not in answer:
                return unpack(answer["value"], lambda number: Remote(self, int(number)))
            name, text = answer["error"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError, MemoryError) as error:
            raise CandidateLost from error
        known = getattr(builtins, str(name), None)
        is_error = isinstance(known, type) and issubclass(known, Exception)
        raise (known if is_error else CandidateError)(str(text))  # type: ignore[misc]


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


def _out_of_time(number: int, frame: FrameType | None) -> None:
    raise OutOfTime
