"""Lightning callbacks of simct_pl, named in recipes as `callbacks.RolloutCallback` and so on; a file each.

A batch comes in with prompts. `rollout` or `teacher_rollout` writes responses into it before the step; after the step
the others read its record. Into the run's files: `checkpoint`, `hf_export`, `recipe_log`, `learning_curve`. Into its
metrics: `alignment_stats`, `policy_mismatch`, `span_gradients`, `timing`, `benchmark`; into its artifacts
`sample_table`.
`collapse_guard` warns or stops, and `distilled` asks whether the module is one of distillation.
"""

from callbacks.alignment_stats import AlignmentStats
from callbacks.benchmark import BenchmarkCallback
from callbacks.checkpoint import Checkpoint
from callbacks.collapse_guard import CollapseGuard
from callbacks.hf_export import HFExport
from callbacks.learning_curve import LearningCurve
from callbacks.policy_mismatch import PolicyMismatch
from callbacks.recipe_log import RecipeLog
from callbacks.rollout import RolloutCallback
from callbacks.sample_table import SampleTable
from callbacks.span_gradients import SpanGradients
from callbacks.teacher_rollout import TeacherRollout
from callbacks.timing import TimingCallback

__all__ = [
    "AlignmentStats",
    "BenchmarkCallback",
    "Checkpoint",
    "CollapseGuard",
    "HFExport",
    "LearningCurve",
    "PolicyMismatch",
    "RecipeLog",
    "RolloutCallback",
    "SampleTable",
    "SpanGradients",
    "TeacherRollout",
    "TimingCallback",
]
