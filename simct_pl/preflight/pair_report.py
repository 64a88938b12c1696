"""What a preflight says of the student and one of its teachers: units, classes, scores, and what agreement teaches.

In: a PlannedRun and one of its module's lessons. Out: PairReport: sections, findings and figures. Of several teachers
each is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from simct_pl.models.loading import load_config
from simct_pl.planning.run import PlannedRun
from simct_pl.planning.section import Section
from simct_pl.preflight.classes import ClassesReport
from simct_pl.preflight.findings import Finding, Severity
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
from simct_pl.training.lesson import Lesson
from simct_pl.types import Prompt

FEW_SHARED = 1000  # fewer shared tokens than that, in vocabularies larger than ten times as many, are hardly a signal


@dataclass(frozen=True)
class Looked:
    """What was run with one teacher beside reading. taught: None if it was not asked for; scored: None for why_not."""

    taught: Taught | None = None
    scored: ScoreReport | None = None
    why_not_scored: str = ""


@dataclass(frozen=True)
class PairReport:
    """run, lesson: what it is about. side: the teacher's. is_one_of_several: sections and findings then name it."""

    run: PlannedRun
    lesson: Lesson
    side: SideReport
    domains: list[DomainReport]
    classes: ClassesReport | None
    looked: Looked
    is_one_of_several: bool

    @classmethod
    def of(cls, run: PlannedRun, lesson: Lesson, prompt: Prompt, looked: Looked) -> PairReport:
        """prompt: shown as the teacher reads it."""
        several = len(run.module.lessons) > 1
        config = load_config("teacher", lesson.path, lesson.trusted)
        side = SideReport.of(f"teacher {lesson.name}" if several else "teacher", lesson.pair.teacher, config, prompt)
        domains = domain_reports(lesson.pair, run.module.aligner, run.samples)
        return cls(run, lesson, side, domains, _classes(run, lesson), looked, several)

    def findings(self) -> list[Finding]:
        """What of this pair speaks against the run."""
        found = [*shared_findings(self.lesson), *coverage_findings(self.domains)]
        found += span_findings(self.lesson, self.domains)
        found += self.looked.scored.findings() if self.looked.scored else []
        found += self.looked.taught.findings() if self.looked.taught else []
        named = f"{self.lesson.name}: " if self.is_one_of_several else ""
        return self.side.findings() + [replace(finding, text=named + finding.text) for finding in found]

    def sections(self) -> list[Section]:
        """Tables about the pair."""
        looked = self.looked
        found = [
            self._shared_section(),
            self._domain_section(),
            which_method(self.domains, self.lesson.pair.same_tokenizer),
            _taught_section(looked.taught),
            *([self.classes.section()] if self.classes else []),
            _score_section(looked.scored, looked.why_not_scored),
        ]
        if not self.is_one_of_several:
            return found
        return [replace(section, title=f"{section.title} ({self.lesson.name})") for section in found]

    def figures(self) -> dict[str, Any]:
        """Of some sections, for a program."""
        return {
            "agreement": self.looked.taught.as_json() if self.looked.taught else None,
            "classes": self.classes.as_json() if self.classes else None,
            "outside_1_1": outside_share(self.domains),
        }

    def _shared_section(self) -> Section:
        pair = self.lesson.pair
        shared, sizes = len(pair.shared_vocab), (len(pair.student.table), len(pair.teacher.table))
        share = [f"{shared / size:.1%} of {size:,}" for size in sizes]
        kind = "one tokenizer on both sides" if pair.same_tokenizer else "equal bytes, and stop with stop"
        stop = "paired" if pair.shared_vocab.stop_column is not None else "not paired"
        rows = [
            ("shared tokens", f"{shared:,} ({kind})"),
            ("of the student's", share[0]),
            ("of the teacher's", share[1]),
        ]
        return Section("Shared vocabulary", ("", "value"), [*rows, ("stops", stop)])

    def _domain_section(self) -> Section:
        with_responses = any(sample.prompt.response for sample in self.run.samples)
        what = "reference responses" if with_responses else "prompts (the data have no reference responses)"
        note = (
            "student, teacher: their tokens. 1:1: share of the minimal units. outside: share of the student's tokens "
            f"that are none of these. covered, supervised: shares of them, by {type(self.run.module.aligner).__name__}."
            f" The first {len(self.run.samples)} {what}. {outside_words(outside_share(self.domains))}"
        )
        return Section("Units of your own texts", HEADERS, [domain.row() for domain in self.domains], note)


def _classes(run: PlannedRun, lesson: Lesson) -> ClassesReport | None:
    """Of an objective that compares by classes; None for others, and for one tokenizer, whose ids are all their own."""
    builder = lesson.objective.path_builder
    if builder is None or builder.links.same_tokenizer:
        return None
    return ClassesReport.of(builder.links, lesson.pair, [sample_text(sample) for sample in run.samples])


def shared_findings(lesson: Lesson) -> list[Finding]:
    """Whether the two vocabularies have enough in common."""
    shared, pair = len(lesson.pair.shared_vocab), lesson.pair
    if shared < min(FEW_SHARED, len(pair.student.table) // 10, len(pair.teacher.table) // 10):
        return [
            Finding(Severity.STOP, f"Only {shared} tokens are shared by bytes: there is hardly anything to compare.")
        ]
    return []


def span_findings(lesson: Lesson, domains: Sequence[DomainReport]) -> list[Finding]:
    """Units of several tokens under an objective that counts their first token twice, or leaves them out."""
    units = sum(domain.num_units for domain in domains)
    spans = sum(domain.num_units - domain.num_one_to_one for domain in domains) / max(units, 1)
    if spans < MANY_SPANS or lesson.objective.describe().get("prefix") != "keep":
        return []
    text = f"{spans:.0%} of the units have several tokens, and prefix=keep counts the mass of their first token twice"
    return [
        Finding(Severity.CARE, f"{text} (docs/methods.md). Watch rollout/response_tokens, or take prefix=marginal.")
    ]


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
