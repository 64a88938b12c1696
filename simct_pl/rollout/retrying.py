"""Asking an engine again when it breaks in the middle of a batch, a bounded number of times; and an engine that does.

Sampling seeds come with the request, so a response does not depend on whether it took a second attempt.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from lightning.pytorch.utilities import rank_zero_warn
from transformers import PreTrainedModel
from typing_extensions import override

from simct_pl.errors import RecipeError, RolloutError, SimctError
from simct_pl.models.sharding import is_sharded
from simct_pl.rollout.engine import Generation, RolloutEngine, SamplingParams, StudentSource

MAX_WAIT_SECONDS = 60

T = TypeVar("T")


def ask_again(
    ask: Callable[[], T],
    restart: Callable[[], None],
    on_failure: Callable[[str], None],
    *,
    max_retries: int,
    wait_seconds: float = 0.0,
    where: str = "",
    advice: str = "",
) -> T:
    """What `ask` returns, which may fail at first.

    Args:
        restart: called in front of each further attempt. on_failure: told of each failure, in words.
        max_retries: attempts after the first one. wait_seconds: before the first of them; doubled for each further one.
        where: in the run, for the messages, such as " at step 7". advice: the last sentence of the error.

    Raises:
        RolloutError: when the last attempt fails too. SimctError: at once; that is something the user can put right.
    """
    num_attempts = 1 + max_retries
    for attempt in range(num_attempts):
        try:
            if attempt:
                time.sleep(min(wait_seconds * 2 ** (attempt - 1), MAX_WAIT_SECONDS))
                restart()
            return ask()
        except (RuntimeError, OSError) as error:
            # Our own errors say what to put right; asking again would say it again.
            if isinstance(error, SimctError):
                raise
            failure = error
            on_failure(f"The rollout engine failed{where} ({error}); attempt {attempt + 1} of {num_attempts}.")
    raise RolloutError(f"The rollout engine failed {num_attempts} times{where}: {failure}.{advice}") from failure


class RetryingEngine(RolloutEngine):
    """Closes, refreshes and asks again after a failure; once only where ranks share the student: a refresh takes all.

    Args:
        engine: who generates. max_retries: attempts after the first one, for each batch.

    num_failures: of the whole run.
    """

    def __init__(self, engine: RolloutEngine, max_retries: int = 1) -> None:
        if max_retries < 1:
            raise RecipeError(f"max_retries is {max_retries}; expected at least 1, or the engine without this one.")
        self.engine, self.max_retries, self.num_failures = engine, max_retries, 0
        self.placement, self.reserved_share = engine.placement, engine.reserved_share
        self._model: PreTrainedModel | None = None

    @override
    def check(self, student: StudentSource) -> None:
        self.engine.check(student)

    @override
    def close(self) -> None:
        self.engine.close()

    @override
    def refresh(self, model: PreTrainedModel, policy_version: int) -> None:
        self.engine.refresh(model, policy_version)
        self._model, self.policy_version = model, self.engine.policy_version

    @override
    def generate(
        self, prompts_ids: list[list[int]], seeds: list[int], sampling: SamplingParams, stop_ids: tuple[int, ...]
    ) -> list[Generation]:
        """See RolloutEngine.

        Raises:
            RolloutError: naming the step, when the last attempt fails too.
        """
        assert self._model is not None
        return ask_again(
            lambda: self.engine.generate(prompts_ids, seeds, sampling, stop_ids),
            self._restart,
            self._count,
            max_retries=0 if is_sharded(self._model) else self.max_retries,
            where=f" at step {self.policy_version}",
            advice=" With callbacks.Checkpoint in the recipe, the run can be continued with --resume.",
        )

    @override
    def finish(self) -> None:
        self.engine.finish()
        self.policy_version = self.engine.policy_version

    def _restart(self) -> None:
        assert self._model is not None
        assert self.policy_version is not None
        self.engine.close()
        self.engine.refresh(self._model, self.policy_version)

    def _count(self, failure: str) -> None:
        self.num_failures += 1
        rank_zero_warn(f"{failure} {self.num_failures} failures so far.")
