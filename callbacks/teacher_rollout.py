"""TeacherRollout: the teacher answers all training prompts. Off-policy distillation, by any aligner and objective; with
CrossEntropyLoss it is SeqKD. Held-out prompts are still answered by the student.
"""

from __future__ import annotations

from callbacks.rollout import RolloutCallback
from simct_pl.rollout.engine import RolloutEngine, SamplingParams


class TeacherRollout(RolloutCallback):
    """RolloutCallback with a teacher_share of 1.

    Takes its other arguments; `sampling` is the teacher's, in its tokens, and `engine` answers held-out prompts.
    """

    def __init__(
        self,
        sampling: SamplingParams = SamplingParams(),  # noqa: B008 - frozen
        num_samples: int = 1,
        val_sampling: SamplingParams | None = None,
        engine: RolloutEngine | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(sampling, num_samples, val_sampling, engine, seed, teacher_share=1.0)
