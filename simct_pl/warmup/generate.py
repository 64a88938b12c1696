"""generate(): a model and prompts in; several responses to each prompt out, as Parquet.

It may be killed at any moment and started again: prompts that are answered are not asked again, and the same responses
come out as without the interruption, because a seed depends on nothing but the prompt, the sample and the attempt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from simct_pl.data.source import PromptSource
from simct_pl.data.tools import as_stored, tools_as_json, uses_tools
from simct_pl.errors import PromptDataError, RecipeError
from simct_pl.files.lock import sole_writer
from simct_pl.models.loading import DtypeName, no_room
from simct_pl.progress import progress
from simct_pl.rollout.engine import Generation, RolloutEngine, SamplingParams
from simct_pl.rollout.inference_model import InferenceModel
from simct_pl.tokenization.chat import with_system_prompt
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.types import Prompt
from simct_pl.warmup.response_sampler import ResponseSampler, SampleRequest
from simct_pl.warmup.responses import GIVEN_UP, Response, ResponseStore

PAPER_SAMPLING = SamplingParams(temperature=0.6, top_p=0.95, max_tokens=4096)


def generate(
    model: str,
    prompts: PromptSource,
    output: str,
    engine: RolloutEngine | None = None,
    sampling: SamplingParams = PAPER_SAMPLING,
    num_samples: int = 8,
    batch_size: int = 64,
    max_retries: int = 3,
    domain_field: str | None = None,
    system_prompt: str | None = None,
    seed: int = 0,
    dtype: DtypeName = "bfloat16",
    trust_remote_code: bool = False,
    template: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Let a model answer prompts. Killed and started again, it goes on.

    Args:
        model: a model folder or hub name: the teacher, or any other.
        prompts: what it answers.
        output: folder of responses.parquet and report.json.
        engine: who generates; HFEngine by default, on the GPU where there is one.
        sampling: by default the paper's (arXiv 2605.07711): temperature 0.6, top-p 0.95, 4096 tokens.
        num_samples: responses a prompt.
        batch_size: prompts that are answered, and then written down, together.
        max_retries: how often a failed batch, or an empty response, is asked again.
        domain_field: field of the prompts that names their grader; carried along.
        system_prompt: put in front of every prompt.
        seed: from which all sampling seeds derive.
        dtype: of the weights.
        trust_remote_code: whether the model's own Python code may run.
        template: arguments of the model's chat template, {enable_thinking: false} say.

    Returns:
        the report: responses, finish reasons, and what failed, was asked again or given up.

    Raises:
        SimctError: before any weights load, if a model or the prompts are not as they should be; RolloutError if the
            engine answers nothing any more.
    """
    if num_samples < 1 or batch_size < 1:
        raise RecipeError(f"num_samples={num_samples}, batch_size={batch_size}; expected at least 1.")
    # Everything that can be refused, before any weights load.
    asked = InferenceModel.check(model, engine, dtype, trust_remote_code, template)
    reader = PromptReader(prompts, asked.tokenizer, domain_field, system_prompt, asked.context, sampling.max_tokens)
    wanted = reader.read()
    # All that the responses depend on: a folder of others must not be gone on with.
    settings = asked.identity | {
        **{"num_samples": num_samples, "batch_size": batch_size, "max_retries": max_retries, "seed": seed},
        **{"domain_field": domain_field, "system_prompt": system_prompt, "sampling": asdict(sampling)},
        "prompts": {**asdict(prompts), "sha256": prompts.sha256()},
    }
    folder = Path(output).expanduser()
    with sole_writer(folder, "generate"):
        store = ResponseStore(folder, settings, reader.has_tools)
        # Done before: nothing is loaded.
        if store.finished:
            store.tidy()
            return store.report()
        with asked.loaded() as reset:
            stop_ids = asked.tokenizer.stop_ids
            sampler = ResponseSampler(
                asked.engine, reset, asked.tokenizer.response_text, sampling, stop_ids, seed, max_retries
            )
            generating = Generating(store, sampler, num_samples)
            generating.run(wanted, batch_size)
        return generating.finish(reader.num_too_long)


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt as the model reads it. domain: the name of its grader, if the data set says."""

    prompt: Prompt
    domain: str | None
    prompt_ids: list[int]


class PromptReader:
    """Prompts of a source, rendered; those that leave no room for a response are counted and left out.

    has_tools: whether any that was read has tools, or messages that call some.
    """

    def __init__(
        self,
        source: PromptSource,
        tokenizer: ModelTokenizer,
        domain_field: str | None,
        system_prompt: str | None,
        context: int | None,
        max_tokens: int,
    ) -> None:
        self.source, self.tokenizer = source, tokenizer
        self.domain_field, self.system_prompt = domain_field, system_prompt
        self.context, self.max_tokens = context, max_tokens
        self.num_too_long, self.has_tools = 0, False
        if source.teacher_field is not None:
            raise RecipeError(
                f"teacher_field is {source.teacher_field!r}; `generate` has one model, and asks it what a student "
                "would be asked. Drop it, or put its text into the prompts."
            )

    def read(self) -> list[RenderedPrompt]:
        """The prompts, in order.

        Raises:
            PromptDataError: if none can be answered, or a row is not as the recipe says.
        """
        found = list(self._asked())
        if not found:
            raise PromptDataError(
                f"No prompt of {self.source.path!r} leaves room for a response of {self.max_tokens} tokens "
                f"(context {self.context})."
            )
        return found

    def _asked(self) -> Iterator[RenderedPrompt]:
        for index, row in self.source.rows():
            prompt = self.source.prompt(index, row)
            if self.domain_field is not None and row.get(self.domain_field) is None:
                raise PromptDataError(
                    f"Row {index} of {self.source.path!r} has no {self.domain_field!r}; its fields are "
                    f"{', '.join(sorted(row))}. Correct domain_field, or leave it out."
                )
            domain = None if self.domain_field is None else str(row[self.domain_field])
            messages = with_system_prompt(prompt.messages, self.system_prompt)
            prompt_ids = self.tokenizer.render(replace(prompt, messages=tuple(messages)))
            if no_room("A prompt", len(prompt_ids), self.max_tokens, self.context) or self.source.is_too_long(prompt):
                self.num_too_long += 1
                continue
            self.has_tools |= uses_tools(prompt.messages, prompt.tools)
            yield RenderedPrompt(prompt, domain, prompt_ids)


class Generating:
    """What is left to be answered, batch by batch into a store."""

    def __init__(self, store: ResponseStore, sampler: ResponseSampler, num_samples: int) -> None:
        self.store, self.sampler, self.num_samples = store, sampler, num_samples

    def run(self, wanted: list[RenderedPrompt], batch_size: int) -> None:
        """Answer what has not been answered. Batches are cut the same way whatever is done already."""
        done = self.store.done()
        batches = [wanted[start : start + batch_size] for start in range(0, len(wanted), batch_size)]
        with progress("prompts answered", len(wanted)) as bar:
            for place, batch in enumerate(batches):
                if not done.issuperset(asked.prompt.index for asked in batch):
                    self.store.add(place, self._answer(batch))
                bar.advance(len(batch))

    def _answer(self, batch: list[RenderedPrompt]) -> list[Response]:
        # A batch holds all samples of its prompts, so that a prompt is either answered whole or not at all.
        requests = [
            SampleRequest(a.prompt.index, sample, a.prompt_ids) for a in batch for sample in range(self.num_samples)
        ]
        prompts = {asked.prompt.index: asked for asked in batch}
        answers = self.sampler.answers(requests)
        return [self._response(prompts[request.prompt], request, generation) for request, generation in answers]

    def _response(self, asked: RenderedPrompt, request: SampleRequest, generation: Generation | None) -> Response:
        ids = generation.response_ids if generation is not None else []
        return Response(
            prompt=request.prompt,
            sample=request.sample,
            messages=as_stored(asked.prompt.messages),
            answer=asked.prompt.answer,
            domain=asked.domain,
            response=self.sampler.text_of(ids) if generation is not None else "",
            finish_reason=generation.finish_reason if generation is not None else GIVEN_UP,
            seed=request.seed(self.sampler.seed),
            attempt=request.attempt,
            num_tokens=len(ids),
            response_ids=ids,
            tools=tools_as_json(asked.prompt.tools),
        )

    def finish(self, num_too_long: int) -> dict[str, Any]:
        """Put everything into one file, and count it."""
        counts = {"stop": 0, "length": 0, GIVEN_UP: 0}
        num_retried = num_tokens = 0
        given_up = []
        for row in self.store.rows():
            counts[row["finish_reason"]] += 1
            num_retried += row["attempt"] > 0
            num_tokens += row["num_tokens"]
            if row["finish_reason"] == GIVEN_UP:
                given_up.append([row["prompt"], row["sample"]])
        report = {
            "num_responses": counts["stop"] + counts["length"],
            "finish_reasons": counts,
            "num_tokens": num_tokens,
            "num_asked_again": num_retried,
            "given_up": given_up,
            "prompts_too_long": num_too_long,
            "failures_since_the_last_start": dict(self.sampler.counts),
        }
        self.store.finish(report)
        return report
