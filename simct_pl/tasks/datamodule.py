"""Arithmetic prompts in batches, with right responses attached: for supervised fine-tuning and for distillation
alike.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

import lightning as L
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from typing_extensions import override

from simct_pl.checkpointing.position import ContinuedLoader, DataPosition
from simct_pl.errors import RecipeError
from simct_pl.seeding import run_seed
from simct_pl.tasks.arithmetic import Problem, as_lengths, corrupted, distinct_problems, draw_problem
from simct_pl.types import Prompt, PromptBatch


class ArithmeticDataset(Dataset[Prompt]):
    """Training prompts; item i depends on the seed and i alone, whoever asks for it and when."""

    def __init__(
        self,
        num_prompts: int,
        pool: list[Problem] | None,
        num_terms: Sequence[int],
        limit: int,
        corrupt_share: float,
        seed: int,
        subtract_share: float = 0.0,
    ) -> None:
        self.num_prompts, self.pool = num_prompts, pool
        self.num_terms, self.limit, self.subtract_share = num_terms, limit, subtract_share
        self.corrupt_share, self.seed = corrupt_share, seed

    def __len__(self) -> int:
        return self.num_prompts

    def __getitem__(self, index: int) -> Prompt:
        if not 0 <= index < self.num_prompts:
            raise IndexError(index)
        # A stream for each item: neither workers nor a resumed run can change what it draws.
        rng = random.Random(f"{self.seed}/{index}")
        if self.pool is None:
            problem = draw_problem(rng, self.num_terms, self.limit, False, self.subtract_share)
        else:
            problem = rng.choice(self.pool)
        prompt = problem.prompt(index)
        return corrupted(prompt, problem, rng) if rng.random() < self.corrupt_share else prompt


class ContinuedSampler(DistributedSampler[Prompt]):
    """In the order of the indices, dealt out in turn to the ranks; the first pass leaves out what was trained before.

    num_done: prompts of a rank that the first pass leaves out.
    """

    def __init__(self, dataset: ArithmeticDataset, world_size: int, rank: int, num_done: int) -> None:
        super().__init__(dataset, world_size, rank, shuffle=False)
        self.num_done = num_done

    @override
    def __iter__(self) -> Iterator[Any]:
        num_done, self.num_done = self.num_done, 0
        return islice(super().__iter__(), num_done, None)


class ArithmeticDataModule(L.LightningDataModule):
    """Batches of `13+25+7?` prompts.

    Args:
        batch_size: prompts an optimizer step and rank. num_train_batches: steps of one epoch on one rank.
        num_val_prompts, val_batch_size: held-out prompts, the same for every seed.
        val_skip: leave out so many held-out problems and take those behind them: learning rates can be chosen on
            problems that no result is measured on.
        num_problems: distinct problems to train on; null draws from all that are not held out.
        corrupt_share: share of training responses with one wrong number, read and not predicted, that the rest follows
            from (robust teachers).
        num_terms, limit: how many numbers are added, each below limit; of a list of counts each is as likely.
        subtract_share: share of problems, held-out ones too, that subtract instead (`45-13-7?`): a second skill.
        seed: of problems and corruptions; by default the run's seed_everything.
    """

    def __init__(
        self,
        batch_size: int = 64,
        num_train_batches: int = 150,
        num_val_prompts: int = 200,
        val_batch_size: int = 200,
        num_problems: int | None = None,
        corrupt_share: float = 0.0,
        num_terms: int | list[int] = 3,
        limit: int = 50,
        seed: int | None = None,
        val_skip: int = 0,
        subtract_share: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= corrupt_share <= 1:
            raise RecipeError(f"corrupt_share is {corrupt_share}; expected a share in [0, 1].")
        if batch_size < 1 or val_batch_size < 1:
            raise RecipeError(f"batch_size={batch_size}, val_batch_size={val_batch_size}; expected at least 1.")
        if val_skip < 0:
            raise RecipeError(f"val_skip is {val_skip}; expected 0 or more held-out problems.")
        lengths = as_lengths(num_terms)
        if not lengths or min(lengths) < 2 or limit < 2:
            raise RecipeError(
                f"num_terms={num_terms}, limit={limit}; expected at least two numbers, each below 2 or more."
            )
        if not 0 <= subtract_share <= 1:
            raise RecipeError(f"subtract_share is {subtract_share}; expected a share in [0, 1].")
        if subtract_share > 0 and corrupt_share > 0:
            raise RecipeError(
                f"subtract_share={subtract_share} and corrupt_share={corrupt_share}: a wrong number would make others "
                "negative, which the task does not write. Set one of them to 0."
            )
        self.batch_size, self.num_train_batches = batch_size, num_train_batches
        self.num_val_prompts, self.val_batch_size = num_val_prompts, val_batch_size
        self.num_problems, self.corrupt_share = num_problems, corrupt_share
        self.num_terms, self.limit, self.seed = lengths, limit, run_seed(seed)
        self.subtract_share = subtract_share
        self.val_skip = val_skip
        self.position = DataPosition()

    @override
    def state_dict(self) -> dict[str, Any]:
        assert self.trainer is not None
        return asdict(DataPosition.of(self.trainer))

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.position = DataPosition(**state_dict)

    @override
    def train_dataloader(self) -> DataLoader[PromptBatch]:
        """The sampler is explicit because Lightning's own would shuffle as soon as there are several ranks."""
        pool = None
        if self.num_problems is not None:
            pool = self._distinct(self.seed, self.num_problems, held_out=False)
        world_size, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        dataset = ArithmeticDataset(
            world_size * self.batch_size * self.num_train_batches,
            pool,
            self.num_terms,
            self.limit,
            self.corrupt_share,
            self.seed,
            self.subtract_share,
        )
        sampler = ContinuedSampler(dataset, world_size, rank, self.position.batch * self.batch_size)
        return ContinuedLoader(dataset, self.batch_size, sampler=sampler, collate_fn=PromptBatch)

    @override
    def val_dataloader(self) -> DataLoader[PromptBatch]:
        return DataLoader(self.held_out_prompts(), self.val_batch_size, collate_fn=PromptBatch)  # type: ignore[arg-type]

    def held_out_prompts(self) -> list[Prompt]:
        """The prompts that accuracy is measured on."""
        count = self.val_skip + self.num_val_prompts
        problems = self._distinct(0, count, held_out=True)
        return [problem.prompt(index) for index, problem in enumerate(problems)][self.val_skip :]

    def _distinct(self, seed: int, count: int, held_out: bool) -> list[Problem]:
        return distinct_problems(seed, count, self.num_terms, self.limit, held_out, self.subtract_share)
