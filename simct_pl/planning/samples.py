"""A few of a recipe's own prompts, with their domains and reference responses, and how long they are in tokens.

In: the recipe's data module and two tokenizers. Out: Samples, and Lengths for a plan. Reads no more rows than it needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import lightning as L

from simct_pl.data.prompts import PromptDataModule, PromptStream
from simct_pl.data.source import PromptSource
from simct_pl.errors import PromptDataError
from simct_pl.tokenization.pair import TokenizerPair
from simct_pl.types import Prompt, PromptBatch

NO_DOMAIN = "all"
MOST_TEXTS = 64


@dataclass(frozen=True)
class Sample:
    """A prompt, and the value of the prompt file's domain field."""

    prompt: Prompt
    domain: str = NO_DOMAIN


@dataclass(frozen=True)
class Lengths:
    """Tokens, of the student's unless said otherwise.

    student_prompt, teacher_prompt: the longest of the samples, as either side reads it. response: mean of the reference
    responses, None without any. teacher_share: the teacher's tokens for one of the student's, on the same text. texts:
    of which these are the lengths, at most MOST_TEXTS.
    """

    student_prompt: int
    teacher_prompt: int
    response: float | None
    teacher_share: float
    texts: tuple[str, ...]

    @property
    def longest_prompt(self) -> int:
        """Of either side."""
        return max(self.student_prompt, self.teacher_prompt)


def read_samples(datamodule: L.LightningDataModule, num: int, domain_field: str = "domain") -> list[Sample]:
    """The first prompts: those held out if they come with reference responses, else those to train on.

    domain_field: of the prompt file; rows without it, and data that are in no file, are one domain.

    Raises:
        PromptDataError: if there is no prompt, or the file cannot be read.
    """
    if isinstance(datamodule, PromptDataModule):
        samples = _from_source(datamodule, num, domain_field)
    else:
        samples = [Sample(prompt) for prompt in islice(_from_loaders(datamodule), num)]
    if not samples:
        raise PromptDataError("The recipe's data hold no prompt.")
    return samples


def _from_source(datamodule: PromptDataModule, num: int, domain_field: str) -> list[Sample]:
    source, prompts = datamodule.train, list[Prompt]()
    if datamodule.val is not None:
        source, prompts = datamodule.val, _first(datamodule, datamodule.val, num)
    # A response may be a field of its own, or the answer that a conversation ends with.
    if not any(prompt.response for prompt in prompts):
        source, prompts = datamodule.train, _first(datamodule, datamodule.train, num)
    last = max((prompt.index for prompt in prompts), default=-1)
    domains = {
        index: str(row[domain_field])
        for index, row in enumerate(islice(source.open(), last + 1))
        if row.get(domain_field) not in (None, "")
    }
    return [Sample(prompt, domains.get(prompt.index, NO_DOMAIN)) for prompt in prompts]


def _first(datamodule: PromptDataModule, source: PromptSource, num: int) -> list[Prompt]:
    """Prompts of a source, as a run reads them."""
    stream = PromptStream(
        source, system_prompt=datamodule.system_prompt, teacher_system_prompt=datamodule.teacher_system_prompt
    )
    return list(islice(stream, num))


def _from_loaders(datamodule: L.LightningDataModule) -> Iterator[Prompt]:
    loaders: list[Iterable[PromptBatch]] = [datamodule.val_dataloader(), datamodule.train_dataloader()]
    for loader in loaders:
        for batch in loader:
            yield from batch.prompts


def measure_lengths(pairs: Sequence[TokenizerPair], samples: Sequence[Sample]) -> Lengths:
    """Lengths of some prompts, and of their reference responses where there are any (else of the prompts' words).

    pairs: of one student and its teachers; of these the one with the most tokens counts.
    """
    prompts, pair = [sample.prompt for sample in samples], pairs[0]
    student_prompt = max(len(pair.student.render(prompt)) for prompt in prompts)
    teacher_prompt = max(len(one.teacher.render(prompt.for_teacher)) for one in pairs for prompt in prompts)
    responses = [prompt.response for prompt in prompts if prompt.response]
    texts = responses or [prompt.messages[-1]["content"] for prompt in prompts]
    student = sum(map(len, pair.student.encode_batch(texts)))
    teacher = max(sum(map(len, one.teacher.encode_batch(texts))) for one in pairs)
    mean = student / len(responses) if responses else None
    share = teacher / max(student, 1)
    return Lengths(student_prompt, teacher_prompt, mean, share, tuple(text for text in texts if text)[:MOST_TEXTS])
