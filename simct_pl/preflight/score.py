"""Is the teacher better than the student on held-out responses? Bits per byte, a model at a time.

In: both models' weights and samples with reference responses. Out: ScoreReport, paired response by response: the same
bytes are predicted by both, so that tokenizers do not matter.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from simct_pl.models.bits_per_byte import reference_bits
from simct_pl.models.load_arguments import load_arguments
from simct_pl.models.loading import load_causal_lm
from simct_pl.planning.samples import Sample
from simct_pl.preflight.findings import Finding, Severity
from simct_pl.progress import follow
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.training.lesson import Lesson
from simct_pl.training.module import DistillModule
from simct_pl.types import Prompt

CLEARLY = 2.0  # standard errors
PATIENCE_BYTES = 4e9  # of one model's weights, on a CPU


@dataclass(frozen=True)
class ScoreReport:
    """Bits per byte over all responses. gain: mean over responses of student's minus teacher's, each per byte;
    standard_error: of that mean. num_better: responses that the teacher predicts better.
    """

    num_responses: int
    student: float
    teacher: float
    gain: float
    standard_error: float
    num_better: int

    @classmethod
    def of(cls, student_bits: Sequence[float], teacher_bits: Sequence[float], num_bytes: Sequence[int]) -> ScoreReport:
        """From the bits of each response under either model."""
        pairs = list(zip(student_bits, teacher_bits, num_bytes, strict=True))
        gains = [(student - teacher) / size for student, teacher, size in pairs]
        mean = sum(gains) / len(gains)
        variance = sum((gain - mean) ** 2 for gain in gains) / max(len(gains) - 1, 1)
        total = sum(num_bytes)
        return cls(
            len(gains),
            sum(student_bits) / total,
            sum(teacher_bits) / total,
            mean,
            math.sqrt(variance / len(gains)) if len(gains) > 1 else math.inf,
            sum(gain > 0 for gain in gains),
        )

    def findings(self) -> list[Finding]:
        """Care where the difference may be noise; stop where the teacher is clearly the worse one."""
        difference = f"{self.gain:+.3f} ± {self.standard_error:.3f} bits per byte over {self.num_responses} responses"
        if self.gain > CLEARLY * self.standard_error:
            return []
        if self.gain < -CLEARLY * self.standard_error:
            text = (
                f"The teacher predicts the references worse than the student ({difference}): it would teach mistakes."
            )
            return [Finding(Severity.STOP, f"{text} Take another teacher, or check its template.")]
        text = f"The teacher is not clearly better than the student on the references ({difference})."
        return [Finding(Severity.CARE, f"{text} Score more of them (--num_scored), or compare their accuracy.")]


def why_not_by_itself(module: DistillModule, lesson: Lesson) -> str | None:
    """Why the models should not be loaded unless somebody asks for it; None if they may.

    Their weights must be here, and small enough: for the GPU, or for a CPU's patience.
    """
    folders = [Path(path) for path in (module.student_path, lesson.path)]
    if not all(folder.is_dir() for folder in folders):
        return "the weights are not in local folders"
    largest = max(sum(file.stat().st_size for file in folder.glob("*.safetensors")) for folder in folders)
    limit = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else PATIENCE_BYTES
    if largest > limit:
        return f"{largest / 1e9:.1f} GB of weights are much for this machine"
    return None


def score(module: DistillModule, lesson: Lesson, samples: Sequence[Sample]) -> ScoreReport | None:
    """Load the student, then the teacher, and score the samples' responses; None if they have none."""
    prompts = [sample.prompt for sample in samples if sample.prompt.response]
    if not prompts:
        return None
    sizes = [len((prompt.response or "").encode()) for prompt in prompts]
    theirs = [prompt.for_teacher for prompt in prompts]
    return ScoreReport.of(_student_bits(module, prompts), _teacher_bits(lesson, theirs), sizes)


def _student_bits(module: DistillModule, prompts: Sequence[Prompt]) -> list[float]:
    trusted = "student" in module.trust_remote_code
    model = load_causal_lm("student", module.student_path, module.student_dtype, trusted)
    if module.lora is not None:
        module.lora.attach(model)
    return _bits(model, module.pair.student, prompts, "student")


def _teacher_bits(lesson: Lesson, prompts: Sequence[Prompt]) -> list[float]:
    arguments = load_arguments("teacher_kwargs", lesson.load_arguments, _device())
    model = load_causal_lm("teacher", lesson.path, lesson.dtype, lesson.trusted, arguments)
    return _bits(model, lesson.pair.teacher, prompts, lesson.name)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _bits(model: PreTrainedModel, tokenizer: ModelTokenizer, prompts: Sequence[Prompt], name: str) -> list[float]:
    """Of each response, under a model that is let go afterwards."""
    model.eval()
    if model.device.type != _device().type:  # a quantised one is there, and cannot be moved
        model.to(_device())  # type: ignore[arg-type]
    bits = [reference_bits(model, tokenizer, [prompt]) for prompt in follow(prompts, f"scoring the {name}")]
    del model
    gc.collect()
    return bits
