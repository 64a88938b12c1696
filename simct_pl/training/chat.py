"""How a run's two models read prompts, and what of a reasoning student's responses is learned from.

In: a recipe's values, and rollouts as they were sampled. Out: the pair's tokenizers with their template arguments, and
rollouts as the loss is to read them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from simct_pl.errors import require_choice
from simct_pl.tokenization.pair import TokenizerPair
from simct_pl.tokenization.thinking import CHOICES, Thinking, num_thinking_tokens
from simct_pl.types import Rollout


@dataclass(frozen=True)
class ChatSettings:
    """Values of a recipe.

    student, teacher: arguments of that model's chat template, for every prompt: {enable_thinking: false}.
    thinking: a student's <think> … </think> in front of its answer is "supervised" like the rest; "skipped": both
        models read it, the loss does not count it; or "left_out": the teacher reads prompt and answer alone.

    Raises:
        RecipeError: for another name.
    """

    student: dict[str, Any] = field(default_factory=dict)
    teacher: dict[str, Any] = field(default_factory=dict)
    thinking: Thinking = "supervised"

    def __post_init__(self) -> None:
        require_choice("thinking", self.thinking, CHOICES)

    def load_pair(self, student: str, teacher: str) -> TokenizerPair:
        """Both tokenizers; see TokenizerPair.from_pretrained."""
        return TokenizerPair.from_pretrained(student, teacher, self.student, self.teacher)

    def supervised_part(self, pair: TokenizerPair, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """The rollouts with what is learned from them: thinking marked as unsupervised, or moved into the student's
        prompt.
        """
        if self.thinking == "supervised":
            return list(rollouts)
        return [self._without_thinking(pair, rollout) for rollout in rollouts]

    def _without_thinking(self, pair: TokenizerPair, rollout: Rollout) -> Rollout:
        content = rollout.response_ids[: len(rollout.response_ids) - rollout.stopped]
        num = num_thinking_tokens(pair.student.table, rollout.prompt_ids, content)
        # Thinking that never ends has no answer behind it, and its stop ends no answer.
        endless = 0 < num == len(content)
        num = len(rollout.response_ids) if endless else num
        if num == 0:
            return rollout
        if self.thinking == "skipped":
            return replace(rollout, num_unsupervised=num)
        return replace(
            rollout,
            prompt_ids=[*rollout.prompt_ids, *rollout.response_ids[:num]],
            response_ids=rollout.response_ids[num:],
            engine_logprobs=rollout.engine_logprobs[num:],
            finish_reason="length" if endless else rollout.finish_reason,
        )


def supervised_share(sampled: Sequence[Rollout], learned: Sequence[Rollout]) -> float:
    """Share of the sampled tokens that are not thinking which was skipped or left out; 1 of no token at all."""
    num = sum(len(rollout.response_ids) for rollout in sampled)
    return sum(rollout.num_targets for rollout in learned) / num if num else 1.0
