"""PromptDataModule: prompts from JSONL, Parquet or the hub, streamed; batches of messages, no tokenizer in sight.

Each model renders the messages by its own template later on, so the same batch serves a student and a teacher.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader
from torch.utils.data import IterableDataset as TorchIterableDataset
from typing_extensions import override

from simct_pl.checkpointing.position import ContinuedLoader, DataPosition
from simct_pl.data.source import PromptSource
from simct_pl.data.tools import uses_tools
from simct_pl.errors import PromptDataError, RecipeError
from simct_pl.files.fingerprint import WatchedFile
from simct_pl.seeding import run_seed
from simct_pl.tokenization.chat import with_system_prompt
from simct_pl.types import Prompt, PromptBatch


class PromptStream(TorchIterableDataset[Prompt]):
    """Prompts of one source for one rank; each pass over it is shuffled anew, the same way in every run.

    epoch, num_done: the first pass is that of this epoch, without so many prompts of this rank.
    file: what the source reads, when that is a local file; looked at with every row.
    num_prompts: of a pass on each rank, where that is known: the stream has a length then, and ends there.
    num_too_long: prompts of the present pass, of all ranks, left out so far by max_prompt_chars.
    num_unshown: prompts of the present pass, of this rank, in which the teacher is shown nothing of its own, where the
        source's teacher_field says what. num_without_tools: those without tools, where its tools_field names them.
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
        epoch: int = 0,
        num_done: int = 0,
        file: WatchedFile | None = None,
        num_prompts: int | None = None,
    ) -> None:
        self.source, self.shuffle_buffer, self.seed = source, shuffle_buffer, seed
        self.rank, self.world_size = rank, world_size
        self.system_prompt, self.teacher_system_prompt = system_prompt, teacher_system_prompt
        self.epoch, self.num_done = epoch, num_done
        self.num_too_long = self.num_unshown = self.num_without_tools = 0
        self.warned_of_calls = False
        self.file, self.num_prompts = file, num_prompts

    def __len__(self) -> int:
        if self.num_prompts is None:
            raise TypeError("the length of the stream is not known")  # what asks for a length expects this type
        return self.num_prompts

    def __iter__(self) -> Iterator[Prompt]:
        # Rows that are left out are read all the same: the shuffle draws the next one among those that came before.
        num_done, self.num_done = self.num_done, 0
        yield from islice(self._pass(), num_done, self.num_prompts)
        self._report()

    def _pass(self) -> Iterator[Prompt]:
        # Each row is marked with its place in the file first: that is what a prompt is known by ever after.
        rows = self.source.open().map(lambda row, index: {**row, "_index": index}, with_indices=True)
        rows = rows.skip(self.source.skip)
        if self.source.limit is not None:
            rows = rows.take(self.source.limit)
        if self.shuffle_buffer:
            rows = rows.shuffle(seed=self.seed + self.epoch, buffer_size=self.shuffle_buffer)
        # Long prompts leave before the ranks share the rest out, so that each gets as many as the others.
        self.num_too_long = self.num_unshown = self.num_without_tools = 0
        if self.source.max_prompt_chars is not None:
            rows = rows.filter(self._is_short)
        if self.world_size > 1:
            rows = split_dataset_by_node(rows, self.rank, self.world_size)
        self.epoch += 1
        for row in self._readable(rows):
            prompt = self.source.prompt(row.pop("_index"), row)
            self._count_unshown(prompt)
            self._count_without_tools(prompt, row)
            yield self._with_system_prompts(prompt)

    def _count_unshown(self, prompt: Prompt) -> None:
        if self.source.teacher_field is None or prompt.teacher_messages is not None:
            return
        self.num_unshown += 1
        if self.num_unshown == 1 and self.epoch == 1:  # a long pass may never come to its report
            rank_zero_warn(
                f"{self.source.path}: row {prompt.index} has no {self.source.teacher_field!r}: the teacher reads it as "
                "the student does. The end of a pass says how many there are."
            )

    def _count_without_tools(self, prompt: Prompt, row: dict[str, Any]) -> None:
        if self.source.tools_field is None and self.source.tools is None:
            self._warn_of_calls(prompt)
        if not self.source.lacks_tools(row):
            return
        self.num_without_tools += 1
        if self.num_without_tools == 1 and self.epoch == 1:
            rank_zero_warn(
                f"{self.source.path}: row {prompt.index} has no {self.source.tools_field!r}: it has no tools. The end "
                "of a pass says how many such rows there are."
            )

    def _warn_of_calls(self, prompt: Prompt) -> None:
        """Calls of tools that no recipe names: their schemas are probably in a field that nobody reads."""
        if not self.warned_of_calls and uses_tools(prompt.conversation, ()):
            self.warned_of_calls = True
            rank_zero_warn(
                f"{self.source.path}: row {prompt.index} calls tools, and the recipe names none. Set tools_field to "
                "the field that holds their schemas, or tools to the schemas themselves; otherwise no model reads them."
            )

    def _report(self) -> None:
        if self.num_without_tools:
            rank_zero_info(
                f"{self.source.path}: {self.num_without_tools} prompts of this rank without "
                f"{self.source.tools_field!r}, and so without tools."
            )
        if self.num_unshown:
            rank_zero_info(
                f"{self.source.path}: {self.num_unshown} prompts of this rank without {self.source.teacher_field!r}, "
                "which the teacher read as the student did."
            )
        if self.num_too_long:
            rank_zero_info(
                f"{self.source.path}: {self.num_too_long} prompts left out, longer than "
                f"{self.source.max_prompt_chars} characters."
            )

    def _is_short(self, row: dict[str, Any]) -> bool:
        fits = not self.source.is_too_long(self.source.prompt(row["_index"], row))
        self.num_too_long += not fits
        return fits

    def _readable(self, rows: IterableDataset) -> Iterator[dict[str, Any]]:
        """The rows, while their file stays what it was."""
        with self.source.reading():
            for row in rows:
                if self.file is not None:
                    self.file.check()
                yield row

    def _with_system_prompts(self, prompt: Prompt) -> Prompt:
        if self.system_prompt is None and self.teacher_system_prompt is None:
            return prompt
        teacher_text = self.teacher_system_prompt or self.system_prompt
        return replace(
            prompt,
            messages=tuple(with_system_prompt(prompt.messages, self.system_prompt)),
            teacher_messages=tuple(with_system_prompt(prompt.teacher_messages or prompt.messages, teacher_text)),
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
        self.position = DataPosition()
        self._files: dict[str, WatchedFile] = {}  # by path, as they were when the run first looked

    @override
    def state_dict(self) -> dict[str, Any]:
        assert self.trainer is not None
        files = {path: asdict(file.fingerprint) for path, file in self._files.items()}
        return {"position": asdict(DataPosition.of(self.trainer)), "files": files}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint ended.

        Raises:
            PromptDataError: naming a prompt file whose content is not what it was.
        """
        # A prompt is known by its row: in another file, the same place would be another prompt.
        for path, values in state_dict["files"].items():
            if path in self._files and asdict(self._files[path].fingerprint) != values:
                raise PromptDataError(
                    f"Prompt file {path!r} is not the one that the checkpoint was trained on (that had "
                    f"{values['num_bytes']} bytes). Put it back, or start a new run."
                )
        self.position = DataPosition(**state_dict["position"])

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
        # A resumed run begins in the middle of a pass: the shuffle is that pass's, its first prompts are left out.
        num_done = self.position.batch * self.batch_size
        stream = self._stream(self.train, self.shuffle_buffer, self.position.epoch, num_done)
        if self._ends_by_epochs() and (self.train.limit is not None or self.train.is_local):
            stream.num_prompts = self._count()
        return ContinuedLoader(stream, self.batch_size, collate_fn=PromptBatch)

    @override
    def val_dataloader(self) -> DataLoader[Prompt] | list[Any]:
        if self.val is None:
            return []
        return DataLoader(self._stream(self.val), self.val_batch_size, collate_fn=PromptBatch)

    def _ends_by_epochs(self) -> bool:
        """Whether only the length of a pass says how many steps the run has. With max_steps a length is of no use,
        and Lightning would bind validation to it.
        """
        return self.trainer is not None and self.trainer.max_steps < 0

    def _count(self) -> int:
        """Prompts that each rank gets of a pass: every row is read, and the last few may stay out, so that all ranks
        take equally many steps.
        """
        counts_all = self.train.max_prompt_chars is None
        rows = self.train.rows()
        num = sum(1 for row in rows if counts_all or not self.train.is_too_long(self.train.prompt(*row)))
        world_size = self.trainer.world_size if self.trainer else 1
        if num < world_size:
            raise PromptDataError(
                f"Prompts {self.train.path!r} hold {num} usable rows; {world_size} ranks need one each."
            )
        return num // world_size

    def _stream(self, source: PromptSource, shuffle_buffer: int = 0, epoch: int = 0, num_done: int = 0) -> PromptStream:
        trainer = self.trainer
        # Hashed once, when the run first looks at it; train and val may be parts of one file.
        if source.is_local and source.path not in self._files and Path(source.path).is_file():
            self._files[source.path] = WatchedFile(source.path)
        return PromptStream(
            source,
            shuffle_buffer=shuffle_buffer,
            seed=self.seed,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            system_prompt=self.system_prompt,
            teacher_system_prompt=self.teacher_system_prompt,
            epoch=epoch,
            num_done=num_done,
            file=self._files.get(source.path),
        )
