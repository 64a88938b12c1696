"""PromptDataModule: prompts from JSONL, Parquet or the hub, streamed; batches of messages, no tokenizer in sight.

Each model renders the messages by its own template later on, so the same batch serves a student and a teacher.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from datasets import IterableDataset, load_dataset
from datasets.distributed import split_dataset_by_node
from datasets.exceptions import DatasetsError
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader
from torch.utils.data import IterableDataset as TorchIterableDataset
from typing_extensions import override

from simct_pl.data.chat import with_system_prompt
from simct_pl.errors import MissingFileError, PromptDataError, RecipeError
from simct_pl.seeding import run_seed
from simct_pl.types import Prompt, PromptBatch

BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
COMPRESSIONS = {".gz", ".zst", ".xz", ".bz2"}


@dataclass(frozen=True)
class PromptSource:
    """Where prompts come from and which fields hold what.

    path: a .jsonl, .json or .parquet file (also compressed), or a hub name. name, split: of a hub data set.
    prompt_field: a string, or a list of {"role", "content"} messages.
    response_field: a reference response, for bits per byte and supervised fine-tuning.
    answer_field: what the grader compares with; answer_pattern: a regular expression whose first group is the answer
        inside it.
    skip, limit: rows left out at the beginning, and at most so many taken after them.
    max_prompt_chars: longer prompts are left out, counted and reported.
    """

    path: str
    name: str | None = None
    split: str = "train"
    prompt_field: str = "prompt"
    response_field: str | None = None
    answer_field: str | None = None
    answer_pattern: str | None = None
    skip: int = 0
    limit: int | None = None
    max_prompt_chars: int | None = None

    def __post_init__(self) -> None:
        if self.answer_pattern is None:
            return
        try:
            num_groups = re.compile(self.answer_pattern).groups
        except re.error as error:
            raise RecipeError(f"answer_pattern {self.answer_pattern!r} is no regular expression: {error}.") from error
        if num_groups < 1:
            raise RecipeError(f"answer_pattern {self.answer_pattern!r} has no group; put the answer in parentheses.")

    def open(self) -> IterableDataset:
        """The rows, streamed.

        Raises:
            MissingFileError, PromptDataError: if the path cannot be opened as a data set, or holds no row.
        """
        builder, looks_local = _builder(self.path)
        if looks_local:
            if not Path(self.path).is_file():
                raise MissingFileError(f"Prompt file {self.path!r} does not exist.")
            if Path(self.path).stat().st_size == 0:
                raise PromptDataError(f"Prompt file {self.path!r} is empty; expected at least one row.")
        try:
            if builder is not None:
                rows = load_dataset(builder, data_files=self.path, split="train", streaming=True)
            else:
                rows = load_dataset(self.path, self.name, split=self.split, streaming=True)
        except (OSError, ValueError) as error:
            raise PromptDataError(
                f"Prompts {self.path!r} cannot be opened: {error}. "
                "Expected a .jsonl, .json or .parquet file, or a hub name."
            ) from error
        return rows

    def prompt(self, index: int, row: Mapping[str, Any]) -> Prompt:
        """One row as a Prompt.

        Raises:
            PromptDataError: naming the row, if a field is missing, empty or of the wrong type.
        """
        value = self._field(index, row, self.prompt_field)
        messages = [{"role": "user", "content": value}] if isinstance(value, str) else value
        if not _are_messages(messages):
            raise PromptDataError(
                f"Row {index} of {self.path!r}: {self.prompt_field!r} is {value!r:.80}; "
                "expected a text, or a list of messages with 'role' and 'content'."
            )
        response = self._field(index, row, self.response_field) if self.response_field else None
        if response is not None and not isinstance(response, str):
            raise PromptDataError(
                f"Row {index} of {self.path!r}: {self.response_field!r} is {response!r:.80}; expected a text."
            )
        answer = str(self._field(index, row, self.answer_field)) if self.answer_field else None
        if answer is not None and self.answer_pattern:
            match = re.search(self.answer_pattern, answer)
            if match is None:
                raise PromptDataError(
                    f"Row {index} of {self.path!r}: answer_pattern {self.answer_pattern!r} is not in {answer!r:.80}."
                )
            answer = match.group(1)
        return Prompt(index, tuple({"role": m["role"], "content": m["content"]} for m in messages), response, answer)

    def _field(self, index: int, row: Mapping[str, Any], name: str) -> Any:
        if row.get(name) in (None, ""):
            raise PromptDataError(
                f"Row {index} of {self.path!r} has no {name!r}; its fields are {', '.join(sorted(row))}. "
                "Set prompt_field (response_field, answer_field) to the right name."
            )
        return row[name]


def _are_messages(value: Any) -> bool:
    """Whether a value is a conversation: a list, not empty, of texts with a role each."""
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(m, Mapping) and all(isinstance(m.get(k), str) for k in ("role", "content")) for m in value)


def _builder(path: str) -> tuple[str | None, bool]:
    """(datasets builder for a data file or None, whether the path means a local file)."""
    suffixes = [suffix for suffix in Path(path).suffixes if suffix not in COMPRESSIONS]
    builder = BUILDERS.get(suffixes[-1]) if suffixes else None
    looks_local = builder is not None and "://" not in path
    return builder, looks_local or path.startswith((".", "/", "~"))


class PromptStream(TorchIterableDataset[Prompt]):
    """Prompts of one source for one rank; each pass over it is shuffled anew, the same way in every run.

    num_too_long: prompts left out so far by max_prompt_chars.
    """

    def __init__(
        self,
        source: PromptSource,
        *,
        shuffle_buffer: int = 0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        system_prompt: str | None = None,
        teacher_system_prompt: str | None = None,
    ) -> None:
        self.source, self.shuffle_buffer, self.seed = source, shuffle_buffer, seed
        self.rank, self.world_size = rank, world_size
        self.system_prompt, self.teacher_system_prompt = system_prompt, teacher_system_prompt
        self.epoch = 0
        self.num_too_long = 0

    def __iter__(self) -> Iterator[Prompt]:
        rows = self.source.open().map(lambda row, index: {**row, "_index": index}, with_indices=True)
        rows = rows.skip(self.source.skip)
        if self.source.limit is not None:
            rows = rows.take(self.source.limit)
        if self.shuffle_buffer:
            rows = rows.shuffle(seed=self.seed + self.epoch, buffer_size=self.shuffle_buffer)
        if self.world_size > 1:
            rows = split_dataset_by_node(rows, self.rank, self.world_size)
        self.epoch += 1
        for row in self._readable(rows):
            prompt = self._with_system_prompts(self.source.prompt(row.pop("_index"), row))
            limit = self.source.max_prompt_chars
            if limit is not None and sum(len(message["content"]) for message in prompt.messages) > limit:
                self.num_too_long += 1
                continue
            yield prompt
        if self.num_too_long:
            rank_zero_info(f"{self.source.path}: {self.num_too_long} prompts left out, longer than {limit} characters.")

    def _readable(self, rows: IterableDataset) -> Iterator[dict[str, Any]]:
        """The rows; what the reader finds broken in the file becomes an error that names it."""
        try:
            yield from rows
        except (OSError, ValueError, DatasetsError) as error:
            raise PromptDataError(f"Prompts {self.source.path!r} cannot be read: {error}") from error

    def _with_system_prompts(self, prompt: Prompt) -> Prompt:
        if self.system_prompt is None and self.teacher_system_prompt is None:
            return prompt
        teacher_text = self.teacher_system_prompt or self.system_prompt
        return Prompt(
            prompt.index,
            tuple(with_system_prompt(prompt.messages, self.system_prompt)),
            prompt.response,
            prompt.answer,
            tuple(with_system_prompt(prompt.messages, teacher_text)),
        )


class PromptDataModule(L.LightningDataModule):
    """Streams training prompts, and held-out ones when the recipe names them.

    Args:
        train, val: sources. batch_size: prompts an optimizer step and rank. val_batch_size: prompts a validation batch.
        system_prompt: put in front of every prompt, for both models. teacher_system_prompt: for the teacher alone.
        shuffle_buffer: rows among which the next prompt is drawn; 0 keeps the file's order.
        seed: of the shuffle; by default the run's seed_everything.
    """

    def __init__(
        self,
        train: PromptSource,
        val: PromptSource | None = None,
        batch_size: int = 64,
        val_batch_size: int = 64,
        system_prompt: str | None = None,
        teacher_system_prompt: str | None = None,
        shuffle_buffer: int = 10_000,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1 or val_batch_size < 1:
            raise RecipeError(f"batch_size={batch_size}, val_batch_size={val_batch_size}; expected at least 1.")
        self.train, self.val = train, val
        self.batch_size, self.val_batch_size = batch_size, val_batch_size
        self.system_prompt, self.teacher_system_prompt = system_prompt, teacher_system_prompt
        self.shuffle_buffer, self.seed = shuffle_buffer, run_seed(seed)

    @override
    def setup(self, stage: str) -> None:
        """Read one row of each source, so that an unfit file stops the run before weights load."""
        for source in (self.train, self.val):
            if source is not None and next(iter(self._stream(source)), None) is None:
                raise PromptDataError(
                    f"Prompts {source.path!r} hold no usable row (skip={source.skip}, limit={source.limit})."
                )

    @override
    def train_dataloader(self) -> DataLoader[Prompt]:
        return DataLoader(self._stream(self.train, self.shuffle_buffer), self.batch_size, collate_fn=PromptBatch)

    @override
    def val_dataloader(self) -> DataLoader[Prompt] | list[Any]:
        if self.val is None:
            return []
        return DataLoader(self._stream(self.val), self.val_batch_size, collate_fn=PromptBatch)

    def _stream(self, source: PromptSource, shuffle_buffer: int = 0) -> PromptStream:
        trainer = self.trainer
        return PromptStream(
            source,
            shuffle_buffer=shuffle_buffer,
            seed=self.seed,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            system_prompt=self.system_prompt,
            teacher_system_prompt=self.teacher_system_prompt,
        )
