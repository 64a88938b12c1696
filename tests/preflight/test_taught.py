"""What a recipe's own objective teaches models that agree: verdicts, sentences, and what cannot be run."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from typing_extensions import override

from benchmarks.agreement import TOYS
from simct_pl import BPMLoss, CommonBoundaryAligner, DSKDEta, SimCTLoss, TokenConditionalLoss
from simct_pl.errors import RecipeError
from simct_pl.losses.base import UnitChunk, UnitLosses
from simct_pl.preflight.agreement import Scene, at_agreement, measure, whole_loss
from simct_pl.preflight.findings import Severity
from simct_pl.preflight.languages import LANGUAGES, SUMS
from simct_pl.preflight.listed_tokenizer import longest_match
from simct_pl.preflight.taught import LITTLE, NOTHING, LanguageTaught, Taught, what_is_taught
from simct_pl.tokenization.pair import TokenizerPair

SUMS_ONLY = {"sums": SUMS}
PATH = CommonBoundaryAligner()


def toys(student: str, teacher: str) -> TokenizerPair:
    return TokenizerPair(*(longest_match(TOYS[name], name) for name in (student, teacher)))


def test_what_is_pushed_away_is_named_with_what_would_leave_it_alone() -> None:
    marginal = SimCTLoss("sum_logprob", "marginal")
    found = what_is_taught(toys("digits", "pairs"), marginal, PATH, languages=SUMS_ONLY)
    (sums,) = found.languages
    assert sums.verdict == "pushed away"
    assert sums.drift > 1 > NOTHING > sums.other  # type: ignore[operator]
    (finding,) = found.findings()
    assert finding.severity == Severity.CARE
    for expected in ("SimCTLoss (prefix marginal)", "sums (loss ", "Use TokenConditionalLoss", "leaves them alone"):
        assert expected in finding.text
    assert found.section().text == finding.text
    assert json.loads(json.dumps(found.as_json()))["languages"]["sums"]["verdict"] == "pushed away"


def test_the_short_form_has_the_benchmarks_figures() -> None:
    scene = Scene.of(SUMS, *(longest_match(TOYS[name], name) for name in ("pairs", "digits")))
    whole = measure(scene, SimCTLoss(), PATH)
    assert at_agreement(scene, SimCTLoss(), PATH) == (whole.loss, whole.drift)
    assert whole_loss(SUMS, scene.pair, SimCTLoss(), PATH) == pytest.approx(whole.loss, rel=1e-3)


def test_what_is_fine_is_said_too_and_is_no_finding() -> None:
    found = what_is_taught(toys("pairs", "digits"), TokenConditionalLoss(), PATH, languages=SUMS_ONLY)
    assert found.findings() == []
    assert found.sentence == "Under TokenConditionalLoss, models that agree stay where they are: sums."
    assert found.section().rows[0][-1] == "fine"


def test_the_recipes_objective_stays_prepared_for_its_pair() -> None:
    pair, objective = toys("digits", "pairs"), TokenConditionalLoss()
    objective.prepare(pair)
    builder = objective.path_builder
    what_is_taught(pair, objective, PATH, languages=SUMS_ONLY)
    assert objective.path_builder is builder


class Refuses(BPMLoss):
    """An objective of a user's that does not run here."""

    @override
    def __call__(self, chunk: UnitChunk) -> UnitLosses:
        raise RecipeError("no such rows.")


@pytest.mark.parametrize(
    ("objective", "reason"),
    [(DSKDEta(), "DSKDEta: it compares hidden states"), (Refuses(), "RecipeError: no such row")],
)
def test_an_objective_that_cannot_run_is_named_with_the_reason(objective: object, reason: str) -> None:
    found = what_is_taught(toys("pairs", "digits"), objective, PATH, languages=SUMS_ONLY)
    assert reason in found.section().text
    assert found.findings() == []
    assert reason.split(": ")[1] in found.as_json()["why_not"]


def test_a_language_that_a_vocabulary_cannot_write_is_named() -> None:
    languages = {"sums": SUMS, "words": LANGUAGES["words"]}
    found = what_is_taught(toys("pairs", "digits"), TokenConditionalLoss(), PATH, languages=languages)
    assert "Not run, words: 18 of 18 texts cannot be written" in found.sentence
    assert found.section().rows[1][1:3] == ("–", "–")


def test_verdicts_go_by_drift_and_by_whole_vocabularies_where_they_were_asked() -> None:
    at = LanguageTaught("a", 9.0, NOTHING, is_divergence=False)
    drifts = (at, replace(at, drift=LITTLE), replace(at, drift=2 * LITTLE), replace(at, drift=2.0, whole=0.0))
    assert [one.verdict for one in drifts] == ["fine", "a little", "pushed away", "fine"]
    named = Taught("X", (replace(at, name="b", drift=LITTLE), replace(at, name="c", drift=0.3, whole=2.0)))
    assert named.sentence == (
        "Under X, models that agree are pushed apart, nats a text: c (loss 2.0 with whole vocabularies). "
        "A little: b (0.050 nats)."
    )
    hardly = replace(at, loss=0.35, is_divergence=True)
    assert hardly.verdict == "hardly moved"
    assert "hardly moves the student: a (loss 0.35)." in Taught("X", (hardly,)).sentence
    alone = Taught("X", (replace(at, name="b", drift=LITTLE),))
    assert alone.sentence == "Under X, models that agree are pushed apart a little: b (0.050 nats)."
