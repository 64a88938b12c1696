"""What a benchmark is: problems out of a data set, each with the prompt a model reads, and a grade for a response."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from simct_pl.data.source import PromptSource
from simct_pl.errors import EvaluationError, SimctError
from simct_pl.evaluation.maths import MathVerifier
from simct_pl.types import Message, Prompt, Tool


@dataclass(frozen=True)
class Problem:
    """id: as the data set names it. prompt: what the user says to the model, zero-shot. gold: of maths, LaTeX.

    code: what belongs in front of an answer's code. tests, setup: see Sandbox.run_tests; pairs: standard input and
    output of a program. entry: name of what the tests call. messages, tools: a conversation that is asked instead of
    the prompt, and what the model may call.
    """

    id: str
    prompt: str
    gold: str = ""
    code: str = ""
    setup: str = ""
    tests: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    entry: str | None = None
    messages: tuple[Message, ...] = field(default=(), repr=False)
    tools: tuple[Tool, ...] = field(default=(), repr=False)

    @property
    def asked(self) -> Prompt:
        """As a model, and a grader of prompts, reads it."""
        messages = self.messages or ({"role": "user", "content": self.prompt},)
        return Prompt(0, messages, answer=self.gold or None, tools=self.tools)


@dataclass(frozen=True)
class Grade:
    """score: 1.0 or 0.0. reason: one word that is counted; "ungradable" for a problem that no response could solve.
    detail: what a person wants to see.
    """

    score: float
    reason: str
    detail: str = ""


class Benchmark(ABC):
    """A named set of problems and how they are graded.

    name: says the split or release that is scored; part of the metrics' names. max_tokens: of a response, in the
    paper's protocol.
    """

    name: str
    max_tokens: int = 4096

    @abstractmethod
    def problems(self) -> list[Problem]:
        """All problems, in the data set's order.

        Raises:
            SimctError: if the data set is missing or is another one.
        """

    @abstractmethod
    def grade(self, problem: Problem, response: str) -> Grade:
        """Whether the response is right. Called from several threads."""

    def grading(self) -> dict[str, Any]:
        """What a grade depends on beside problem and response; plain values."""
        return {}

    def check(self) -> None:  # noqa: B027 - most need nothing
        """Refuse what cannot be graded on this machine, before anything is generated.

        Raises:
            SimctError: of the kind that fits.
        """

    def close(self) -> None:  # noqa: B027 - the same
        """End what grading started."""


class MathBenchmark(Benchmark):
    """Answers in `\\boxed{}`, compared by math-verify.

    Args:
        time_limit: seconds of one comparison.
    """

    def __init__(self, time_limit: float = 15.0) -> None:
        self.verify = MathVerifier(time_limit)

    def grade(self, problem: Problem, response: str) -> Grade:
        verdict = self.verify.verdict(problem.gold, response)
        return Grade(float(verdict.right), verdict.reason, verdict.answer or "")

    def grading(self) -> dict[str, Any]:
        return {"time_limit": self.verify.time_limit}

    def close(self) -> None:
        self.verify.close()

    @staticmethod
    def ask(question: str) -> str:
        """A zero-shot prompt."""
        return f"{question.strip()}\n\nPlease reason step by step, and put your final answer within \\boxed{{}}."


@dataclass(frozen=True)
class Rows:
    """Rows of a data file or of a hub data set; each has the fields that a benchmark reads."""

    path: str
    fields: tuple[str, ...]
    name: str | None = None
    split: str = "test"
    source: PromptSource = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", PromptSource(self.path, name=self.name, split=self.split))

    def problems(self, make: Callable[[int, Mapping[str, Any]], Problem | None]) -> list[Problem]:
        """What `make` reads in each row, given its number; None leaves the row out.

        Raises:
            MissingFileError, PromptDataError: if the file cannot be read.
            EvaluationError: naming the row that lacks a field, or holds something else in it than expected.
        """
        found = []
        for index, row in self.source.rows():
            missing = [name for name in self.fields if row.get(name) is None]
            if missing:
                raise EvaluationError(
                    f"Row {index} of {self.path!r} has no {', '.join(missing)}; its fields are "
                    f"{', '.join(sorted(row))}. Is it the right data set?"
                )
            try:
                problem = make(index, row)
            except (AttributeError, LookupError, SyntaxError, TypeError, ValueError) as error:
                if isinstance(error, SimctError):
                    raise
                raise EvaluationError(
                    f"Row {index} of {self.path!r} cannot be read as a problem ({type(error).__name__}: {error}). "
                    "Is it the right data set?"
                ) from error
            found += [problem] if problem is not None else []
        return found


def subset(problems: list[Problem], limit: int | None) -> list[Problem]:
    """At most so many problems, spread evenly over the data set, whose order often follows subject or difficulty."""
    if limit is None or limit >= len(problems):
        return problems
    return [problems[i * len(problems) // limit] for i in range(limit)]
