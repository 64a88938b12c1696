"""How two tokenizers cut the user's own texts, domain by domain.

In: samples, a pair, the recipe's aligner. Out: a DomainReport each: shapes of the minimal units, and what the aligner
covers. Reference responses are aligned where there are any, else the prompts' own words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from simct_pl.alignment import Aligner, CommonBoundaryAligner
from simct_pl.alignment.one_to_one import is_one_to_one
from simct_pl.planning.samples import Sample
from simct_pl.preflight.findings import Finding, Severity
from simct_pl.progress import follow
from simct_pl.tokenization.pair import TokenizerPair
from simct_pl.types import STUDENT_END, STUDENT_START, TEACHER_END, TEACHER_START, UnitAlignment

LOW_COVERAGE, HOPELESS_COVERAGE = 0.9, 0.5
MANY_SPANS = 0.05  # from here on, what becomes of units with several tokens matters
FEW_OUTSIDE = 0.15  # of the student's tokens: up to here losses at other units than 1:1 were found to do harm


@dataclass(frozen=True)
class DomainReport:
    """num_units: minimal units, num_one_to_one of them of one token on each side. covered, supervised: student tokens
    in a unit of the recipe's aligner, and in one that can be supervised. lost: stretches by reason. finer, coarser:
    student tokens in minimal units where the student has more tokens than the teacher, and fewer.
    """

    domain: str
    num_texts: int
    student_tokens: int
    teacher_tokens: int
    num_units: int
    num_one_to_one: int
    covered: float
    supervised: int
    lost: Counter[str]
    finer: int = 0
    coarser: int = 0

    @property
    def coverage(self) -> float:
        return self.covered / max(self.student_tokens, 1)

    @property
    def spans(self) -> float:
        """Share of minimal units that are not 1:1."""
        return 1 - self.num_one_to_one / max(self.num_units, 1)

    @property
    def outside(self) -> float:
        """Share of the student's tokens that are no 1:1 unit of the minimal ones."""
        return 1 - self.num_one_to_one / max(self.student_tokens, 1)

    def row(self) -> tuple[str, ...]:
        lost = ", ".join(f"{count} {reason}" for reason, count in sorted(self.lost.items())) or "nothing"
        return (
            self.domain,
            f"{self.num_texts:,}",
            f"{self.student_tokens:,}",
            f"{self.teacher_tokens:,}",
            f"{1 - self.spans:.1%}",
            f"{self.outside:.1%}",
            f"{self.coverage:.1%}",
            f"{self.supervised / max(self.student_tokens, 1):.1%}",
            lost,
        )


HEADERS = ("domain", "texts", "student", "teacher", "1:1", "outside", "covered", "supervised", "lost")


def sample_text(sample: Sample) -> str:
    """What is aligned of a sample."""
    return sample.prompt.response or sample.prompt.messages[-1]["content"]


def domain_reports(pair: TokenizerPair, aligner: Aligner, samples: Sequence[Sample]) -> list[DomainReport]:
    """One a domain, by name."""
    texts: dict[str, list[str]] = {}
    for sample in samples:
        texts.setdefault(sample.domain, []).append(sample_text(sample))
    return [_report(pair, aligner, domain, texts[domain]) for domain in sorted(texts)]


def _report(pair: TokenizerPair, aligner: Aligner, domain: str, texts: Sequence[str]) -> DomainReport:
    minimal = CommonBoundaryAligner()
    units = one_to_one = finer = coarser = 0
    aligned: list[UnitAlignment] = []
    for text in follow(texts, f"aligning {domain}"):
        # As a rollout would come: the student's ids, which the teacher then reads as text.
        tokens = pair.tokenize(pair.student.encode(text), stopped=False)
        units_U6 = minimal.align(tokens).units_U6
        units, one_to_one = units + len(units_U6), one_to_one + int(is_one_to_one(units_U6).sum())
        students_U = units_U6[:, STUDENT_END] - units_U6[:, STUDENT_START]
        teachers_U = units_U6[:, TEACHER_END] - units_U6[:, TEACHER_START]
        finer += int(students_U[students_U > teachers_U].sum())
        coarser += int(students_U[students_U < teachers_U].sum())
        aligned.append(aligner.align(tokens))
    return DomainReport(
        domain,
        len(texts),
        sum(one.num_student_tokens for one in aligned),
        sum(one.num_teacher_tokens for one in aligned),
        units,
        one_to_one,
        sum(one.coverage * one.num_student_tokens for one in aligned),
        sum(one.num_supervised_student_tokens for one in aligned),
        sum((one.lost_counts for one in aligned), Counter()),
        finer,
        coarser,
    )


def outside_share(reports: Sequence[DomainReport]) -> float:
    """Share of the student's tokens outside 1:1 units, over all domains."""
    return 1 - sum(r.num_one_to_one for r in reports) / max(sum(r.student_tokens for r in reports), 1)


def outside_words(share: float) -> str:
    """What the share of student tokens outside 1:1 units implies."""
    if share == 0:
        return "All of the student's tokens are 1:1 units: what becomes of other units does not matter here."
    known = "losses added at them lost to 1:1 units alone in 18 of 18 comparisons (arXiv 2610.08448)"
    found = f"{share:.1%} of the student's tokens lie outside 1:1 units. "
    if share <= FEW_OUTSIDE:
        return (
            f"{found}Where 3 to 15 % did, {known}: run ablations/exact beside this recipe, and log "
            "callbacks.SpanGradients."
        )
    return f"{found}That is beyond the 3 to 15 % where {known}; 1:1 units alone would leave so much ungraded."


def coverage_findings(reports: Sequence[DomainReport]) -> list[Finding]:
    """Domains that the recipe's aligner leaves out, wholly or in part."""
    found = []
    for report in reports:
        if report.coverage >= LOW_COVERAGE:
            continue
        severity = Severity.STOP if report.coverage < HOPELESS_COVERAGE else Severity.CARE
        text = f"Domain {report.domain!r}: {report.coverage:.0%} of the student's tokens are in a unit. "
        why = "Lost: " + ", ".join(sorted(report.lost)) + "." if report.lost else "The aligner leaves the rest out."
        found.append(Finding(severity, f"{text}{why} docs/troubleshooting.md, low coverage."))
    return found
