"""An evaluation: a model's tokenizer and an engine in, graded responses and their statistics out.

Each problem is answered once a seed, at the sampling of the paper's protocol unless told otherwise. What is done is on
disk at once, and is not done again when the evaluation is started anew.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L

from simct_pl.errors import EvaluationError, PromptDataError, RecipeError, TokenizerError
from simct_pl.evaluation.benchmark import Benchmark, Problem, subset
from simct_pl.evaluation.items import ItemStore
from simct_pl.evaluation.scores import Item
from simct_pl.models.loading import no_room
from simct_pl.progress import progress
from simct_pl.rollout.engine import Generation, RolloutEngine, SamplingParams, sample_seed
from simct_pl.tokenization.model_tokenizer import ModelTokenizer


@dataclass(frozen=True)
class Protocol:
    """How responses are drawn; the defaults are the paper's (arXiv 2605.07711).

    temperature, top_p: of sampling. max_tokens: of a response; by default each benchmark's own. num_seeds: responses a
    problem. seed: from which all sampling seeds derive. limit: problems of each benchmark, spread evenly over it.
    batch_size: responses that are generated, and then written down, together.

    Raises:
        RecipeError: for a count below 1.
    """

    temperature: float = 0.6
    top_p: float = 0.95
    max_tokens: int | None = None
    num_seeds: int = 5
    seed: int = 0
    limit: int | None = None
    batch_size: int = 64

    def __post_init__(self) -> None:
        for name in ("num_seeds", "limit", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"{name} is {value}; expected at least 1.")

    def sampling(self, benchmark: Benchmark) -> SamplingParams:
        """How a benchmark's responses are drawn."""
        return SamplingParams(self.temperature, self.top_p, max_tokens=self.max_tokens or benchmark.max_tokens)


class BenchmarkProvider(L.Callback):
    """A callback that scores the student in the test stage; `test` refuses to start without one."""


class Request(NamedTuple):
    """A response to be made."""

    problem: Problem
    prompt_ids: list[int]
    seed_index: int
    sampling_seed: int


class Evaluation:
    """Runs benchmarks on one model.

    Args:
        model: what names the model and its weights, plain values. tokenizer, context: the model's; context in tokens,
            None if unknown.
        engine: generates with the model's weights, which it has already. protocol: see there.
        folder: of the results. rank, num_ranks: this process does its share of the problems.
    """

    def __init__(
        self,
        model: dict[str, Any],
        tokenizer: ModelTokenizer,
        context: int | None,
        engine: RolloutEngine,
        protocol: Protocol,
        folder: Path,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        self.model, self.tokenizer, self.context = model, tokenizer, context
        self.engine, self.protocol, self.folder = engine, protocol, folder
        self.rank, self.num_ranks = rank, num_ranks
        self._loaded: dict[str, list[Problem]] = {}

    def check(self, benchmark: Benchmark) -> None:
        """Load the problems, see that each prompt leaves room for a response, that grading works here, and that the
        folder's items are of the same settings. None of it needs weights.

        Raises:
            SimctError: of the kind that fits.
        """
        benchmark.check()
        problems = self.problems(benchmark)
        self.requests(benchmark, problems)
        ItemStore.check(self.folder, benchmark.name, self._settings(benchmark, problems))

    def problems(self, benchmark: Benchmark) -> list[Problem]:
        """The benchmark's problems, read once."""
        if benchmark.name not in self._loaded:
            self._loaded[benchmark.name] = load(benchmark, self.protocol.limit)
        return self._loaded[benchmark.name]

    def run(self, benchmark: Benchmark) -> list[Item]:
        """Answer and grade what is not done yet; all items of this rank's problems."""
        problems = self.problems(benchmark)
        settings = {**self._settings(benchmark, problems), "policy_version": self.engine.policy_version}
        store = ItemStore(self.folder, benchmark.name, settings, self.rank)
        requests = self.requests(benchmark, problems[self.rank :: self.num_ranks])
        wanted = {(request.problem.id, request.seed_index) for request in requests}
        done = {(item.problem, item.seed_index): item for item in store.read()}
        left = [request for request in requests if (request.problem.id, request.seed_index) not in done]
        with closing(benchmark), progress(benchmark.name, len(requests), self.rank == 0) as bar:
            bar.advance(len(requests) - len(left))
            for start in range(0, len(left), self.protocol.batch_size):
                items = self._answer(benchmark, left[start : start + self.protocol.batch_size])
                store.add(items)
                done |= {(item.problem, item.seed_index): item for item in items}
                bar.advance(len(items))
        return [item for key, item in done.items() if key in wanted]

    def requests(self, benchmark: Benchmark, problems: Sequence[Problem]) -> list[Request]:
        """Every problem once a seed, one seed after the other.

        Raises:
            PromptDataError: naming a problem that leaves no room for a response.
        """
        max_tokens = self.protocol.sampling(benchmark).max_tokens
        prompts = [self._render(benchmark, problem) for problem in problems]
        for problem, prompt_ids in zip(problems, prompts, strict=True):
            name, fix = f"{benchmark.name}, problem {problem.id}", "Lower max_tokens."
            if too_long := no_room(name, len(prompt_ids), max_tokens, self.context, model="model", fix=fix):
                raise PromptDataError(too_long)
        return [
            Request(problem, prompt_ids, k, sample_seed(self.protocol.seed, 0, _number_of(benchmark, problem), k))
            for k in range(self.protocol.num_seeds)
            for problem, prompt_ids in zip(problems, prompts, strict=True)
        ]

    def _render(self, benchmark: Benchmark, problem: Problem) -> list[int]:
        try:
            return self.tokenizer.render_prompt(problem.asked.messages, problem.tools)
        except (TokenizerError, PromptDataError) as error:
            raise type(error)(f"{benchmark.name}, problem {problem.id}: {error}") from error

    def _answer(self, benchmark: Benchmark, requests: Sequence[Request]) -> list[Item]:
        generations = self.engine.generate(
            [request.prompt_ids for request in requests],
            [request.sampling_seed for request in requests],
            self.protocol.sampling(benchmark),
            self.tokenizer.stop_ids,
        )
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            return list(pool.map(lambda pair: self._item(benchmark, *pair), zip(requests, generations, strict=True)))

    def _item(self, benchmark: Benchmark, request: Request, generation: Generation) -> Item:
        response = self.tokenizer.response_text(generation.response_ids)
        grade = benchmark.grade(request.problem, response)
        return Item(
            request.problem.id,
            request.seed_index,
            request.sampling_seed,
            response,
            generation.finish_reason,
            len(generation.response_ids),
            grade.score,
            grade.reason,
            grade.detail,
        )

    def _settings(self, benchmark: Benchmark, problems: Sequence[Problem]) -> dict[str, Any]:
        """What responses and grades depend on beside the weights; num_seeds may grow from one run to the next."""
        digest = hashlib.blake2b(digest_size=16)
        for problem in problems:  # a row number is not all that names one
            digest.update(repr(problem).encode(errors="surrogatepass"))
            if problem.messages or problem.tools:
                digest.update(repr((problem.messages, problem.tools)).encode(errors="surrogatepass"))
        return {
            **self.model,
            "benchmark": benchmark.name,
            "problems": [problem.id for problem in problems],
            "problems_digest": digest.hexdigest(),
            "tokenizer": self.tokenizer.fingerprint,
            "grading": benchmark.grading(),
            "sampling": asdict(self.protocol.sampling(benchmark)),
            "seed": self.protocol.seed,
        }


def load(benchmark: Benchmark, limit: int | None) -> list[Problem]:
    """A benchmark's problems, checked.

    Raises:
        EvaluationError: if it has none, or two of the same name.
    """
    problems = benchmark.problems()
    if not problems or len({problem.id for problem in problems}) != len(problems):
        raise EvaluationError(
            f"{benchmark.name} has {len(problems)} problems, {len({p.id for p in problems})} of them with different "
            "names; expected at least one, and no name twice. Is its path the right file?"
        )
    return subset(problems, limit)


def _number_of(benchmark: Benchmark, problem: Problem) -> int:
    """Names one problem of one benchmark for its seeds, however many others are evaluated."""
    return zlib.crc32(f"{benchmark.name}/{problem.id}".encode())
