"""Preflight: everything that is known about a recipe before it runs, and what to make of it.

In: a PlannedRun, and what was run with each teacher. Out: Preflight: sections for a page, findings, a verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from simct_pl.models.loading import load_config, no_room
from simct_pl.planning.run import PlannedRun
from simct_pl.planning.section import Section
from simct_pl.planning.words import GB, memory_section, model_section, step_section
from simct_pl.preflight.findings import Finding, Severity, verdict
from simct_pl.preflight.pair_report import Looked, PairReport
from simct_pl.preflight.sides import SideReport

FULL = 0.9  # of the memory
MANY_CUT = 0.1


@dataclass(frozen=True)
class Preflight:
    """name: of the recipes. findings: from the worst to the mildest. figures: of some sections, for a program."""

    name: str
    sections: tuple[Section, ...]
    findings: tuple[Finding, ...]
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> Severity:
        return verdict(self.findings)

    @property
    def reasons(self) -> list[str]:
        """What the verdict rests on; a verdict of "go" rests on nothing having been found."""
        return [f"{finding.severity.words}: {finding.text}" for finding in self.findings] or [
            "Nothing was found that speaks against this run."
        ]


def build_preflight(name: str, run: PlannedRun, looked: Mapping[str, Looked]) -> Preflight:
    """Put together what a run's parts say, and what was run beside reading them.

    looked: by teacher.
    """
    module = run.module
    # The first with tools, as more can go wrong in it, or else the first.
    prompt = next((sample.prompt for sample in run.samples if sample.prompt.tools), run.samples[0].prompt)
    config = load_config("student", module.student_path, "student" in module.trust_remote_code)
    student = SideReport.of("student", module.pair.student, config, prompt)
    pairs = [PairReport.of(run, lesson, prompt, looked[name]) for name, lesson in module.lessons.items()]
    found = student.findings() + [finding for pair in pairs for finding in pair.findings()]
    found += [*length_findings(run), *memory_findings(run)]
    sides = [student, *(pair.side for pair in pairs)]
    sections = (
        model_section(module, run.plan),
        _side_section(sides, module.chat.thinking),
        *(section for pair in pairs for section in pair.sections()),
        *(Section(f"A prompt as the {side.role} reads it", (), [], text=side.shown) for side in sides),
        step_section(module, run.rollouts, run.plan, run.lengths),
        memory_section(run.plan),
    )
    figures = {pair.lesson.name: pair.figures() for pair in pairs}
    return Preflight(
        name,
        sections,
        tuple(sorted(found, key=lambda finding: -finding.severity)),
        pairs[0].figures() if len(pairs) == 1 else {"teachers": figures},
    )


# ---- findings ----


def length_findings(run: PlannedRun) -> list[Finding]:
    """Prompts and responses against contexts and max_tokens."""
    module, max_tokens = run.module, run.rollouts.sampling.max_tokens
    found = []
    if too_long := no_room("The longest prompt", run.lengths.student_prompt, max_tokens, module.student_context):
        found.append(Finding(Severity.STOP, too_long))
    read = run.lengths.teacher_prompt + round(max_tokens * run.lengths.teacher_share)
    context = min((lesson.context for lesson in module.lessons.values() if lesson.context), default=None)
    if context is not None and read > context:
        text = f"With its prompt the longest response would take {read} tokens of the teacher, whose context is "
        found.append(Finding(Severity.CARE, f"{text}{context}. Lower max_tokens."))
    responses = [sample.prompt.response for sample in run.samples if sample.prompt.response]
    cut = sum(len(ids) >= max_tokens for ids in module.pair.student.encode_batch(responses)) / max(len(responses), 1)
    if cut > MANY_CUT:
        text = (
            f"{cut:.0%} of the reference responses are longer than max_tokens={max_tokens}: rollouts will be cut too."
        )
        found.append(Finding(Severity.CARE, text))
    return found


def memory_findings(run: PlannedRun) -> list[Finding]:
    """Whether one rank's rehearsed peak fits."""
    plan = run.plan
    missing = [Finding(Severity.CARE, f"The rehearsed memory lacks a part: {why}") for why in plan.why_not]
    need, there_is = plan.peak / GB, plan.deployment.memory / GB
    if need > there_is:
        text = f"One rank would need {need:.1f} GB of {there_is:.1f} GB. Lay recipe fsdp2 over it, set shard_teacher"
        stop = Finding(Severity.STOP, f"{text}, lower micro_batch_tokens, or take more GPUs (docs/scaling.md).")
        return [stop, *missing]
    if need > FULL * there_is:
        text = f"One rank would need {need:.1f} GB of {there_is:.1f} GB: hardly any is left."
        return [Finding(Severity.CARE, text), *missing]
    return missing


# ---- sections ----


def _side_section(sides: Sequence[SideReport], thinking: str) -> Section:
    rows = {
        "chat template": [("its own" if side.has_template else "none") for side in sides],
        "arguments of the template": [side.arguments for side in sides],
        "stops, primary first": [" ".join(side.stops) or "none" for side in sides],
        "prompts begin with BOS": [side.bos_words for side in sides],
        "vocabulary": [side.rows_words for side in sides],
        "logit soft-capping": [(f"± {side.softcap:g}" if side.softcap else "none") for side in sides],
        "output head": [("tied to the embeddings" if side.tied else "of its own") for side in sides],
        "configuration's dtype": [side.config_dtype for side in sides],
        "tools of the prompt below": [side.tools for side in sides],
        "tokens of the prompt below": [str(side.num_prompt_tokens) for side in sides],
    }
    note = f"The student's <think> … </think>, where it writes one, is {thinking.replace('_', ' ')}."
    headers = ("", *(side.role for side in sides))
    return Section("Tokenizers and templates", headers, [(name, *cells) for name, cells in rows.items()], note)
