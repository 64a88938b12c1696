"""Preflight: everything that is known about a recipe before it runs, and what to make of it.

In: a PlannedRun, and a ScoreReport if the models were scored. Out: Preflight: sections for a page, findings, a verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from simct_pl.models.loading import load_config, no_room
from simct_pl.planning.run import PlannedRun
from simct_pl.planning.section import Section
from simct_pl.planning.words import GB, memory_section, model_section, step_section
from simct_pl.preflight.classes import ClassesReport
from simct_pl.preflight.findings import Finding, Severity, verdict
from simct_pl.preflight.score import ScoreReport
from simct_pl.preflight.sides import SideReport
from simct_pl.preflight.taught import HEADERS as TAUGHT_HEADERS
from simct_pl.preflight.taught import TITLE, Taught
from simct_pl.preflight.units import (
    HEADERS,
    MANY_SPANS,
    DomainReport,
    coverage_findings,
    domain_reports,
    outside_share,
    outside_words,
    sample_text,
)
from simct_pl.preflight.which_method import which_method

FEW_SHARED = 1000  # fewer shared tokens than that, in vocabularies larger than ten times as many, are hardly a signal
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


def build_preflight(
    name: str, run: PlannedRun, scored: ScoreReport | None, why_not_scored: str, taught: Taught | None = None
) -> Preflight:
    """Put together what a run's parts, the scores of its models and the scene of two that agree say."""
    module = run.module
    # The first with tools, as more can go wrong in it, or else the first.
    prompt = next((sample.prompt for sample in run.samples if sample.prompt.tools), run.samples[0].prompt)
    sides = []
    for role, tokenizer, path in (
        ("student", module.pair.student, module.student_path),
        ("teacher", module.pair.teacher, module.teacher_path),
    ):
        config = load_config(role, path, role in module.trust_remote_code)
        sides.append(SideReport.of(role, tokenizer, config, prompt))
    domains = domain_reports(module.pair, module.aligner, run.samples)
    found = [finding for side in sides for finding in side.findings()]
    found += [*shared_findings(run), *coverage_findings(domains), *span_findings(run, domains), *length_findings(run)]
    found += [*memory_findings(run), *(scored.findings() if scored else []), *(taught.findings() if taught else [])]
    classes = _classes(run)
    sections = (
        model_section(module, run.plan),
        _side_section(sides, module.chat.thinking),
        _shared_section(run),
        _domain_section(run, domains),
        which_method(domains, module.pair.same_tokenizer),
        _taught_section(taught),
        *([classes.section()] if classes else []),
        *(Section(f"A prompt as the {side.role} reads it", (), [], text=side.shown) for side in sides),
        _score_section(scored, why_not_scored),
        step_section(module, run.rollouts, run.plan, run.lengths),
        memory_section(run.plan),
    )
    figures = {
        "agreement": taught.as_json() if taught else None,
        "classes": classes.as_json() if classes else None,
        "outside_1_1": outside_share(domains),
    }
    return Preflight(name, sections, tuple(sorted(found, key=lambda finding: -finding.severity)), figures)


def _classes(run: PlannedRun) -> ClassesReport | None:
    """Of an objective that compares by classes; None for others, and for one tokenizer, whose ids are all their own."""
    builder = run.module.objective.path_builder
    if builder is None or builder.links.same_tokenizer:
        return None
    return ClassesReport.of(builder.links, run.module.pair, [sample_text(sample) for sample in run.samples])


# ---- findings ----


def shared_findings(run: PlannedRun) -> list[Finding]:
    """Whether the two vocabularies have enough in common."""
    shared, pair = len(run.module.pair.shared_vocab), run.module.pair
    if shared < min(FEW_SHARED, len(pair.student.table) // 10, len(pair.teacher.table) // 10):
        return [
            Finding(Severity.STOP, f"Only {shared} tokens are shared by bytes: there is hardly anything to compare.")
        ]
    return []


def span_findings(run: PlannedRun, domains: Sequence[DomainReport]) -> list[Finding]:
    """Units of several tokens under an objective that counts their first token twice, or leaves them out."""
    units = sum(domain.num_units for domain in domains)
    spans = sum(domain.num_units - domain.num_one_to_one for domain in domains) / max(units, 1)
    if spans < MANY_SPANS or run.module.objective.describe().get("prefix") != "keep":
        return []
    text = f"{spans:.0%} of the units have several tokens, and prefix=keep counts the mass of their first token twice"
    return [
        Finding(Severity.CARE, f"{text} (docs/methods.md). Watch rollout/response_tokens, or take prefix=marginal.")
    ]


def length_findings(run: PlannedRun) -> list[Finding]:
    """Prompts and responses against contexts and max_tokens."""
    module, max_tokens = run.module, run.rollouts.sampling.max_tokens
    found = []
    if too_long := no_room("The longest prompt", run.lengths.student_prompt, max_tokens, module.student_context):
        found.append(Finding(Severity.STOP, too_long))
    read = run.lengths.teacher_prompt + round(max_tokens * run.lengths.teacher_share)
    if module.teacher_context is not None and read > module.teacher_context:
        text = f"With its prompt the longest response would take {read} tokens of the teacher, whose context is "
        found.append(Finding(Severity.CARE, f"{text}{module.teacher_context}. Lower max_tokens."))
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
    return Section(
        "Tokenizers and templates", ("", "student", "teacher"), [(name, *cells) for name, cells in rows.items()], note
    )


def _shared_section(run: PlannedRun) -> Section:
    pair = run.module.pair
    shared, sizes = len(pair.shared_vocab), (len(pair.student.table), len(pair.teacher.table))
    share = [f"{shared / size:.1%} of {size:,}" for size in sizes]
    kind = "one tokenizer on both sides" if pair.same_tokenizer else "equal bytes, and stop with stop"
    stop = "paired" if pair.shared_vocab.stop_column is not None else "not paired"
    rows = [("shared tokens", f"{shared:,} ({kind})"), ("of the student's", share[0]), ("of the teacher's", share[1])]
    return Section("Shared vocabulary", ("", "value"), [*rows, ("stops", stop)])


def _domain_section(run: PlannedRun, domains: Sequence[DomainReport]) -> Section:
    with_responses = any(sample.prompt.response for sample in run.samples)
    what = "reference responses" if with_responses else "prompts (the data have no reference responses)"
    note = (
        "student, teacher: their tokens. 1:1: share of the minimal units. outside: share of the student's tokens that "
        f"are none of these. covered, supervised: shares of them, by {type(run.module.aligner).__name__}. The first "
        f"{len(run.samples)} {what}. {outside_words(outside_share(domains))}"
    )
    return Section("Units of your own texts", HEADERS, [domain.row() for domain in domains], note)


def _taught_section(taught: Taught | None) -> Section:
    return Section(TITLE, TAUGHT_HEADERS, [], "Not run: --agreement false.") if taught is None else taught.section()


def _score_section(scored: ScoreReport | None, why_not: str) -> Section:
    title, headers = "Is the teacher better?", ("", "bits per byte of the references")
    if scored is None:
        return Section(title, headers, [], f"Not scored: {why_not}")
    rows = [
        ("student", f"{scored.student:.3f}"),
        ("teacher", f"{scored.teacher:.3f}"),
        ("teacher better by", f"{scored.gain:+.3f} ± {scored.standard_error:.3f} a response"),
        ("responses", f"{scored.num_better} of {scored.num_responses} better predicted by the teacher"),
    ]
    return Section(title, headers, rows, "±: standard error of the mean over responses. Fewer bits are better.")
