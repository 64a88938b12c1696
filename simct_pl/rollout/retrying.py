"""RetryingEngine: another engine, asked again when it breaks in the middle of a batch, a bounded number of times.

Sampling seeds come with the request, so a response does not depend on whether it took a second attempt.
"""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_warn
from transformers import PreTrainedModel
from typing_extensions import override

from simct_pl.errors import RecipeError, RolloutError, SimctError
from simct_pl.models.sharding import is_sharded
from simct_pl.rollout.engine import Generation, RolloutEngine, SamplingParams, StudentSource


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
        assert self.policy_version is not None
        num_attempts = 1 if is_sharded(self._model) else 1 + self.max_retries
        for attempt in range(num_attempts):
            try:
                if attempt:
                    self.engine.close()
                    self.engine.refresh(self._model, self.policy_version)
                return self.engine.generate(prompts_ids, seeds, sampling, stop_ids)
            except (RuntimeError, OSError) as error:
                if isinstance(error, SimctError):
                    raise
                self.num_failures += 1
                failure = error
                rank_zero_warn(
                    f"The rollout engine failed at step {self.policy_version} ({error}); attempt {attempt + 1} of "
                    f"{num_attempts}, {self.num_failures} failures so far."
                )
        raise RolloutError(
            f"The rollout engine failed {num_attempts} times at step {self.policy_version}: {failure}. "
            "With callbacks.Checkpoint in the recipe, the run can be continued with --resume."
        ) from failure
