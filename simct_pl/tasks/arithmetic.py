"""Chained additions: the embedded task on which a tiny student can be watched learning.

    13+25+7?  →  13+25= 38, 38+7= 45, total 45

Every step is written out, so that a wrong number early on shows later, and a teacher can grade a student's own
mistakes. A tenth of all problems, chosen by a hash of their text, is never trained on.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from typing_extensions import override

from simct_pl.errors import PromptDataError, RecipeError
from simct_pl.evaluation.grader import Grader
from simct_pl.types import Prompt

HELD_OUT_SHARE = 10  # one problem in so many
TOTAL = re.compile(r"total (\d+)")


@dataclass(frozen=True)
class Problem:
    """Numbers to be added from left to right; at least two, of which negative ones are subtracted."""

    terms: tuple[int, ...]

    @property
    def question(self) -> str:
        return "".join([str(self.terms[0]), *(f"{term:+d}" for term in self.terms[1:]), "?"])

    @property
    def total(self) -> int:
        return sum(self.terms)

    @property
    def held_out(self) -> bool:
        """Whether the problem is kept for evaluation; a property of its text alone."""
        digest = hashlib.blake2b(self.question.encode(), digest_size=8).digest()
        return int.from_bytes(digest) % HELD_OUT_SHARE == 0

    @property
    def response(self) -> str:
        """The right chain."""
        return chain(list(self.terms))

    def prompt(self, index: int) -> Prompt:
        """One user message, with the right response."""
        return Prompt(index, ({"role": "user", "content": self.question},), self.response, str(self.total))


def chain(terms: list[int], wrong: dict[int, int] | None = None) -> str:
    """The response to `terms`, in which the n-th number written is replaced as `wrong` says.

    Numbers are counted from 0 in the order of writing: each step writes left, right and sum. What follows a wrong
    number is computed from the text as it stands, so the chain goes on consistently.
    """
    replaced = wrong or {}
    steps, running = [], terms[0]
    for step, term in enumerate(terms[1:]):
        left = replaced.get(3 * step, running)
        right = replaced.get(3 * step + 1, abs(term))
        running = replaced.get(3 * step + 2, left + right if term >= 0 else left - right)
        steps.append(f"{left}{'+' if term >= 0 else '-'}{right}= {running}")
    return ", ".join([*steps, f"total {running}"])


def corrupted(prompt: Prompt, problem: Problem, rng: random.Random) -> Prompt:
    """The prompt with one wrong number in its response and a continuation that is right for the text before it.

    Trained on such chains, a teacher reads a student's mistake as it stands instead of answering it with nonsense. The
    number itself is an unsupervised span: the teacher is not to make the mistake. So is the character behind it where
    the right number would have gone on: that the number ends there is the mistake.
    """
    position = rng.randrange(3 * (len(problem.terms) - 1))
    right = re.findall(r"\d+", problem.response)[position]
    wrong = str(_other_number(int(right), rng))
    response = chain(list(problem.terms), {position: int(wrong)})
    start, end = list(re.finditer(r"\d+", response))[position].span()
    return replace(prompt, response=response, unsupervised_spans=((start, end + right.startswith(wrong)),))


def _other_number(number: int, rng: random.Random) -> int:
    """A near miss as often as any other number of the same size: students make both mistakes."""
    if rng.random() < 0.5:
        candidates = [number + delta for delta in (-10, -2, -1, 1, 2, 10) if number + delta >= 0]
        return rng.choice(candidates)
    other = rng.randrange(max(2 * number, 10))
    return other if other != number else number + 1


def draw_problem(
    rng: random.Random, num_terms: Sequence[int], limit: int, held_out: bool, subtract_share: float = 0.0
) -> Problem:
    """A problem out of the held-out ones or out of all others.

    num_terms: of them one is drawn. limit: terms are drawn uniformly from [0, limit). subtract_share: probability of a
    subtraction, from a number that leaves no negative one: what remains and what is taken away are below limit.
    """
    while True:
        # One choice draws nothing: the problems of a seed are the same whether one number or a list of one is given.
        count = num_terms[0] if len(num_terms) == 1 else rng.choice(num_terms)
        if subtract_share > 0 and rng.random() < subtract_share:
            taken = [rng.randrange(1, limit) for _ in range(count - 1)]
            problem = Problem((rng.randrange(limit) + sum(taken), *(-number for number in taken)))
        else:
            problem = Problem(tuple(rng.randrange(limit) for _ in range(count)))
        if problem.held_out == held_out:
            return problem


def distinct_problems(
    seed: int, count: int, num_terms: int | Sequence[int], limit: int, held_out: bool, subtract_share: float = 0.0
) -> list[Problem]:
    """`count` different problems, the same ones for the same seed; the rest as `draw_problem` has it.

    Raises:
        RecipeError: if so many do not exist.
    """
    lengths = as_lengths(num_terms)
    share = 1 / HELD_OUT_SHARE if held_out else 1 - 1 / HELD_OUT_SHARE
    available = share * limit ** max(lengths)
    if count > 0.8 * available:  # the hash splits only approximately, and the last few take long to find
        raise RecipeError(
            f"{count} different problems of {max(lengths)} terms below {limit} were asked for; about {available:.0f} "
            "exist. Ask for fewer, or raise num_terms or limit."
        )
    rng = random.Random(f"{seed}/{held_out}")
    found: dict[Problem, None] = {}  # in the order in which they came
    while len(found) < count:
        found.setdefault(draw_problem(rng, lengths, limit, held_out, subtract_share))
    return list(found)


def as_lengths(num_terms: int | Sequence[int]) -> tuple[int, ...]:
    """One number of terms, or several that are equally likely, as a tuple."""
    return (num_terms,) if isinstance(num_terms, int) else tuple(num_terms)


def stated_total(response: str) -> int | None:
    """The number behind the only, final "total", or None when the response does not end with one."""
    match = re.search(rf"(?:^|, ){TOTAL.pattern}$", response)
    return int(match.group(1)) if match and response.count("total") == 1 else None


def chain_is_correct(question: str, response: str) -> bool:
    """Whether every step is written and right: the response is exactly the one that Problem.response gives."""
    terms = [int(term) for term in re.findall(r"-?\d+", question)]
    return response == chain(terms)


class TotalGrader(Grader):
    """Right if the response ends with "total N" and N is the answer, whatever stands in between.

    Raises:
        PromptDataError: for a prompt whose answer is no whole number.
    """

    @override
    def __call__(self, prompt: Prompt, response: str) -> float:
        total = stated_total(response)
        if prompt.answer is None:
            return 0.0
        if not prompt.answer.strip().isdecimal():
            raise PromptDataError(
                f"Prompt {prompt.index} has the answer {prompt.answer!r:.80}; TotalGrader expects a whole number. "
                "answer_pattern cuts one out of a longer answer."
            )
        return float(total == int(prompt.answer))


class ChainGrader(Grader):
    """Right if the whole chain is, step by step."""

    @override
    def __call__(self, prompt: Prompt, response: str) -> float:
        return float(chain_is_correct(prompt.messages[-1]["content"], response))
