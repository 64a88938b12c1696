"""What a preflight says of a tokenizer and of texts, against hand-made vocabularies and plain counting."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate, pairwise

import pytest
from transformers import Gemma2Config, LlamaConfig

from simct_pl.alignment import CommonBoundaryAligner, OneToOneAligner
from simct_pl.planning.samples import Sample
from simct_pl.preflight.findings import Finding, Severity, verdict
from simct_pl.preflight.sides import SideReport
from simct_pl.preflight.units import coverage_findings, domain_reports, outside_share, outside_words
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.tokenization.pair import TokenizerPair
from simct_pl.types import Prompt
from tests.tiny import unloaded_module
from tests.tokenization import small

PROMPT = Prompt(0, ({"role": "user", "content": "hello"},), teacher_messages=({"role": "user", "content": "world"},))


def side(template: str | None = small.CHATML, eos: str | None = "<|im_end|>", role: str = "student") -> SideReport:
    hf = small.byte_level(eos=eos, chat_template=template)
    hf.bos_token = "<|endoftext|>"
    return SideReport.of(role, ModelTokenizer(hf), LlamaConfig(vocab_size=len(hf) + 5), PROMPT)


def severities(report: SideReport) -> list[Severity]:
    return [finding.severity for finding in report.findings()]


def test_a_side_shows_its_own_template_and_stop() -> None:
    report = side()
    assert report.rendered == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert report.stops[0] == "<|im_end|>"
    assert "5 padding rows" in report.rows_words
    assert report.findings() == []
    assert "world" in side(role="teacher").rendered


def test_tools_are_named_and_both_ends_of_a_long_prompt_are_shown() -> None:
    tools = ({"type": "function", "function": {"name": "add", "description": "a" * 5000}},)
    hf = small.byte_level(eos="<|im_end|>", chat_template=small.CHATML_TOOLS)
    report = SideReport.of("student", ModelTokenizer(hf), LlamaConfig(vocab_size=len(hf)), replace(PROMPT, tools=tools))
    assert (report.tools, side().tools) == ("add", "none")
    assert report.shown.startswith('<|im_start|>tools\n{"type": "function", "function": {"name": "add"')
    assert report.shown.endswith("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n")
    cut = len(report.rendered) - 1200
    assert f" … ({cut} more characters) … " in report.shown


@pytest.mark.parametrize(("times", "expected"), [(0, []), (1, []), (2, [Severity.CARE])])
def test_a_second_bos_is_found(times: int, expected: list[Severity]) -> None:
    report = side("<|endoftext|>" * times + small.CHATML)
    assert report.num_bos == times
    assert severities(report) == expected


def test_no_stop_stops_and_no_template_needs_care() -> None:
    assert severities(side(template=None, eos=None)) == [Severity.STOP, Severity.CARE]


def test_more_ids_than_rows_need_care() -> None:
    report = replace(side(), num_rows=10)
    assert "ids without a row" in report.rows_words
    assert severities(report) == [Severity.CARE]


def test_soft_capping_is_read_from_the_configuration() -> None:
    hf = small.byte_level(chat_template=small.CHATML)
    report = SideReport.of("teacher", ModelTokenizer(hf), Gemma2Config(vocab_size=len(hf)), PROMPT)
    assert report.softcap == 30.0
    assert side().softcap is None


def counted(pair: TokenizerPair, text: str) -> tuple[int, int, int]:
    """(units, 1:1 units, student tokens in 1:1 units) from byte offsets alone: the paper's definition, by sets."""
    ends = []
    for tokenizer in (pair.student, pair.teacher):
        tokens = [tokenizer.table[token] for token in tokenizer.encode(text)]
        assert b"".join(tokens) == text.encode()
        ends.append(set(accumulate(map(len, tokens))))
    cuts = sorted({0} | (ends[0] & ends[1]))
    inner = [[sum(start < end < stop for end in side) for side in ends] for start, stop in pairwise(cuts)]
    one_to_one = sum(counts == [0, 0] for counts in inner)
    return len(inner), one_to_one, one_to_one


def test_units_are_counted_by_domain() -> None:
    pair = unloaded_module().pair
    texts = {"sums": ["13+25= 38, total 38", "4+4= 8"], "words": ["total 9"]}
    samples = [
        Sample(Prompt(0, ({"role": "user", "content": "?"},), text), domain)
        for domain, of_domain in texts.items()
        for text in of_domain
    ]
    reports = domain_reports(pair, CommonBoundaryAligner(), samples)
    exact = domain_reports(pair, OneToOneAligner(), samples)
    assert [report.domain for report in reports] == ["sums", "words"]
    for report, narrow in zip(reports, exact, strict=True):
        expected = [counted(pair, text) for text in texts[report.domain]]
        assert report.num_units == sum(units for units, _, _ in expected)
        assert report.num_one_to_one == sum(ones for _, ones, _ in expected)
        assert report.num_one_to_one < report.num_units
        assert report.outside == pytest.approx(1 - sum(tokens for _, _, tokens in expected) / report.student_tokens)
        assert report.coverage == 1.0
        assert report.lost == {}
        assert narrow.covered == pytest.approx(sum(tokens for _, _, tokens in expected))
        assert narrow.num_units == report.num_units


def test_the_share_outside_1_1_is_over_tokens_and_says_what_it_implies() -> None:
    pair = unloaded_module().pair
    samples = [Sample(Prompt(0, ({"role": "user", "content": "?"},), text), text) for text in ("total 9", "13+25= 38")]
    reports = domain_reports(pair, CommonBoundaryAligner(), samples)
    ones = sum(counted(pair, text)[1] for text in ("total 9", "13+25= 38"))
    tokens = sum(len(pair.student.encode(text)) for text in ("total 9", "13+25= 38"))
    assert outside_share(reports) == pytest.approx(1 - ones / tokens)
    assert 0 < outside_share(reports) < 1
    assert "All of the student's tokens" in outside_words(0.0)
    for share, expected in ((0.08, "ablations/exact beside"), (0.15, "ablations/exact beside"), (0.3, "beyond the 3")):
        assert expected in outside_words(share)
        assert f"{share:.1%}" in outside_words(share)


def test_low_coverage_is_a_finding_by_its_size() -> None:
    pair = unloaded_module().pair
    (report,) = domain_reports(pair, CommonBoundaryAligner(), [Sample(PROMPT)])
    assert coverage_findings([report]) == []
    for share, expected in ((0.7, Severity.CARE), (0.3, Severity.STOP)):
        (finding,) = coverage_findings([replace(report, covered=share * report.student_tokens)])
        assert finding.severity == expected
        assert f"{share:.0%}" in finding.text


def test_the_worst_finding_is_the_verdict() -> None:
    assert verdict([]) == Severity.GO
    assert (
        verdict([Finding(Severity.CARE, ""), Finding(Severity.STOP, ""), Finding(Severity.CARE, "")]) == Severity.STOP
    )
