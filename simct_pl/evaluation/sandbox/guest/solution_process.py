"""The process that holds the code under test. It gets the code, then calls to make; it never sees a test's expected
value, and nothing it says counts but the values it returns.

`program(...)` runs the code as a program that reads standard input; `functions(...)` answers calls on what it defines.
"""

from __future__ import annotations

import os
import sys
import traceback
from types import ModuleType
from typing import Any

from . import SOLUTION
from .confine import confine, silence
from .wire import Wire, items_of, pack, receive, send, unpack

Request = dict[str, Any]


def program(code_fd: int, memory_mb: int, cpu_seconds: int, file_mb: int) -> int:
    """Run the code that a file descriptor holds as `__main__`; sys.exit ends it well, whatever its code."""
    with open(code_fd, encoding="utf-8") as file:
        code = file.read()
    module = _module("__main__")
    confine(memory_mb, cpu_seconds, file_mb)
    try:
        exec(compile(code, "program.py", "exec", dont_inherit=True), module.__dict__)
    except SystemExit:
        pass
    except BaseException:
        traceback.print_exc(limit=-3)
        return 1
    sys.stdout.flush()
    return 0


def functions(memory_mb: int, cpu_seconds: int, file_mb: int) -> int:
    """Read the code and then calls from standard input, one JSON object a line; answer each with one."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    silence()
    code = receive(requests)["code"]
    module = _module(SOLUTION)
    confine(memory_mb, cpu_seconds, file_mb)
    answers_of = Answers(module)
    send(_guarded(lambda: exec(compile(code, "solution.py", "exec", dont_inherit=True), module.__dict__)), answers)
    while requests.peek(1):  # empty at the end
        send(_guarded(lambda: answers_of(receive(requests))), answers)
    return 0


class Answers:
    """Does what a request asks on the code's own objects; what is no plain data is kept and named by a number."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.kept: list[Any] = []

    def __call__(self, request: Request) -> Wire:
        target = self.kept[request["on"]] if "on" in request else None
        arguments = [unpack(argument, self.kept.__getitem__) for argument in request.get("arguments", ())]
        match request["do"]:
            case "global":
                value = getattr(self.module, request["name"])
            case "call":
                named = {name: unpack(wire, self.kept.__getitem__) for name, wire in request["named"].items()}
                value = target(*arguments, **named)  # type: ignore[misc]
            case "get":
                value = getattr(target, request["name"])
            case "set":
                setattr(target, request["name"], arguments[0])
                value = None
            case "items":
                value = items_of(target)  # type: ignore[arg-type]
        return pack(value, self._keep)

    def _keep(self, value: Any) -> Wire:
        self.kept.append(value)
        return {"handle": len(self.kept) - 1}


def _guarded(action: Any) -> dict[str, Any]:
    """The action's value, or the name and text of what it raised; sys.exit is an error here."""
    try:
        return {"value": action()}
    except BaseException as error:
        return {"error": [type(error).__name__, str(error)[:500]]}


def _module(name: str) -> ModuleType:
    """An empty module in sys.modules: pickle, dataclasses and typing look a class's module up there."""
    module = ModuleType(name)
    sys.modules[name] = module
    return module
