"""What a recipe's objective teaches two models of the user's own pair that agree already, language by language.

In: a pair, an objective, an aligner. Out: Taught. The scene is simct_pl.preflight.agreement's, in a short form that
ends in seconds. Against `python -m benchmarks.agreement` it leaves out a student that disagrees (whether the objective
teaches what it should), the sums of digits, and every other pair and objective. As there, both tokenizers are cut down
to the languages' texts, from fifty tokens to some hundred, each text has one probability, and a token is never followed
by what no text of its language has.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from simct_pl.alignment.base import Aligner
from simct_pl.errors import first_line
from simct_pl.losses.base import Objective, ObjectiveBase
from simct_pl.losses.cross_entropy import CrossEntropyLoss
from simct_pl.losses.dpca import DPCALoss
from simct_pl.losses.token_conditional import TokenConditionalLoss
from simct_pl.planning.section import Section
from simct_pl.preflight.agreement import Scene, at_agreement, whole_loss
from simct_pl.preflight.findings import Finding, Severity
from simct_pl.preflight.languages import LANGUAGES, Language
from simct_pl.progress import follow
from simct_pl.tokenization.pair import TokenizerPair

# KL(language || student's texts), nats, behind the steps: the tables' own smoothing makes .0005 to .0012 of it.
NOTHING, LITTLE = 0.005, 0.05
NO_DIVERGENCES = (CrossEntropyLoss, DPCALoss)  # what they minimise is not 0 where models agree
TITLE = "What agreeing models are taught"
HEADERS = ("language", "loss at agreement", "carried away", "verdict")
NOTE = (
    "Two models of this pair that write the same texts with the same probabilities have nothing to learn from each "
    "other. Loss: the objective's, nats a text; one that is no divergence (CrossEntropyLoss, DPCALoss) is not 0 there. "
    "Carried away, which the verdict is about: KL(texts || student's), nats, after 40 small steps from agreement; "
    "smoothing alone makes 0.001. Small languages, both vocabularies cut down to their texts; docs/preflight.md."
)


@dataclass(frozen=True)
class LanguageTaught:
    """loss, drift: nats a text, see Agreement. other: the drift under TokenConditionalLoss, None where not tried.
    whole: the loss at agreement with whole vocabularies, None where not tried. is_divergence: whether the loss is 0 at
    best. why_not: why the language was not run; loss and drift are NaN then.
    """

    name: str
    loss: float = float("nan")
    drift: float = float("nan")
    other: float | None = None
    whole: float | None = None
    is_divergence: bool = True
    why_not: str = ""

    @property
    def worst(self) -> float:
        """What the verdict is about: the drift, or the loss with whole vocabularies where that was asked."""
        return self.drift if self.whole is None else self.whole

    @property
    def verdict(self) -> str:
        if self.why_not:
            return f"not run: {self.why_not}"
        if self.worst > NOTHING:
            return "a little" if self.worst <= LITTLE else "pushed away"
        return "hardly moved" if self.whole is None and self.is_divergence and self.loss > LITTLE else "fine"

    @property
    def is_helped(self) -> bool:
        """Whether TokenConditionalLoss leaves at most a tenth of the drift."""
        return self.other is not None and self.other <= max(NOTHING, 0.1 * self.drift)

    def row(self) -> tuple[str, ...]:
        if self.why_not:
            return (self.name, "–", "–", self.verdict, "")
        other = "" if self.other is None else f"{nats(self.other)} away"
        whole = "" if self.whole is None else f"loss {nats(self.whole)}"
        return (self.name, nats(self.loss), nats(self.drift), self.verdict, other or whole)


@dataclass(frozen=True)
class Taught:
    """objective: in words. languages: in order; empty if the objective does not run in a scene, for a reason."""

    objective: str
    languages: tuple[LanguageTaught, ...] = ()
    why_not: str = ""

    def named(self, *verdicts: str) -> list[LanguageTaught]:
        """Languages of some verdicts, the most carried away first."""
        return sorted((one for one in self.languages if one.verdict in verdicts), key=lambda one: -one.worst)

    @property
    def sentence(self) -> str:
        """What is pushed away, and what is fine."""
        if self.why_not:
            return f"Not run with {self.objective}: {self.why_not}"
        parts = []
        if far := self.named("pushed away"):
            pushed = ", ".join(map(_pushed, far))
            parts.append(f"Under {self.objective}, models that agree are pushed apart, nats a text: {pushed}.")
            if helped := [one.name for one in far if one.is_helped]:
                left = "them" if len(helped) == len(far) else ", ".join(helped)
                parts.append(f"Use TokenConditionalLoss (ablations/token_conditional): it leaves {left} alone.")
        if little := self.named("a little"):
            begin = "A little" if parts else f"Under {self.objective}, models that agree are pushed apart a little"
            parts.append(f"{begin}: {', '.join(f'{one.name} ({nats(one.worst)} nats)' for one in little)}.")
        if hardly := self.named("hardly moved"):
            losses = ", ".join(f"{one.name} (loss {nats(one.loss)})" for one in hardly)
            parts.append(f"Something is asked for under {self.objective}, and hardly moves the student: {losses}.")
        if fine := self.named("fine"):
            begin = "Fine" if parts else f"Under {self.objective}, models that agree stay where they are"
            names = [one.name for one in self.languages if one in fine]
            parts.append(f"{begin}: {', '.join(names)}.")
        parts += [f"Not run, {one.name}: {one.why_not}" for one in self.languages if one.why_not]
        return " ".join(parts)

    def findings(self) -> list[Finding]:
        """Care, where a language is pushed away."""
        return [Finding(Severity.CARE, self.sentence)] if self.named("pushed away") else []

    def section(self) -> Section:
        last: list[str] = []
        if any(one.other is not None for one in self.languages):
            last = ["under TokenConditionalLoss"]
        if any(one.whole is not None for one in self.languages):
            last = ["whole vocabularies"]
        headers = (*HEADERS, *last)
        rows = [one.row()[: len(headers)] for one in self.languages]
        return Section(TITLE, headers, rows, NOTE if rows else "", self.sentence)

    def as_json(self) -> dict[str, Any]:
        """For a program: figures in nats a text, null where a language was not run."""
        return {
            "objective": self.objective,
            "why_not": self.why_not,
            "languages": {
                one.name: {
                    "loss_at_agreement": None if one.why_not else one.loss,
                    "carried_away": None if one.why_not else one.drift,
                    "carried_away_token_conditional": one.other,
                    "loss_at_agreement_whole_vocabularies": one.whole,
                    "verdict": one.verdict,
                }
                for one in self.languages
            },
        }


def what_is_taught(
    pair: TokenizerPair,
    objective: object,
    aligner: Aligner,
    *,
    on_policy: bool = True,
    languages: Mapping[str, Language] = LANGUAGES,
) -> Taught:
    """Run the scene with a copy of the recipe's objective; where that carries the student away, with
    TokenConditionalLoss too. Where an objective that follows the teacher's path (a path_builder) does, its loss is
    measured once more with whole vocabularies: seconds a language.

    on_policy: whether responses are the student's own.
    """
    name = words_of(objective)
    if not isinstance(objective, Objective):
        return Taught(name, why_not="it compares hidden states, and the scene's models are tables of probabilities.")
    # The user's own class may raise anything, and a preflight has more to say than this.
    try:
        own = deepcopy(objective, {id(pair): pair})  # it will be prepared for small vocabularies
    except Exception as error:
        return Taught(name, why_not=f"it cannot be copied: {type(error).__name__}: {first_line(error)}")
    found = []
    for language, texts in follow(list(languages.items()), "what agreeing models are taught"):
        try:
            found.append(_in_scene(language, texts, pair, own, objective, aligner, on_policy))
        except Exception as error:
            found.append(LanguageTaught(language, why_not=f"{type(error).__name__}: {first_line(error)}"))
    reasons = {one.why_not for one in found}
    if len(reasons) == 1 and (why_not := reasons.pop()):
        return Taught(name, why_not=why_not)
    return Taught(name, tuple(found))


def _in_scene(
    name: str,
    texts: Language,
    pair: TokenizerPair,
    objective: Objective,
    prepared: Objective,
    aligner: Aligner,
    on_policy: bool,
) -> LanguageTaught:
    """prepared: the objective as it is, ready for the whole pair; `objective` is prepared for what is cut down."""
    scene = Scene.of(texts, pair.student, pair.teacher)
    if unread := scene.num_unread:
        return LanguageTaught(name, why_not=f"{unread} of {len(scene.texts)} texts cannot be written by both sides.")
    loss, drift = at_agreement(scene, objective, aligner, on_policy=on_policy)
    is_divergence = not isinstance(objective, NO_DIVERGENCES)
    left_alone = drift <= NOTHING and (loss <= LITTLE or not is_divergence)
    if left_alone or (drift <= LITTLE and objective.path_builder is None):
        return LanguageTaught(name, loss, drift, is_divergence=is_divergence)
    if objective.path_builder is not None:
        # It asks tokenizers about texts that a few tokens may not write: what is found has to hold of whole ones.
        return LanguageTaught(name, loss, drift, whole=whole_loss(texts, pair, prepared, aligner))
    return LanguageTaught(name, loss, drift, at_agreement(scene, TokenConditionalLoss(), aligner)[1])


def words_of(objective: object) -> str:
    """An objective by its class, and its prefix where it has one."""
    prefix = objective.describe().get("prefix") if isinstance(objective, ObjectiveBase) else None
    return f"{type(objective).__name__} (prefix {prefix})" if prefix else type(objective).__name__


def nats(value: float) -> str:
    """Two digits: 11, 1.6, 0.20, 0.003."""
    digits = 0 if value >= 9.95 else 1 if value >= 0.995 else 2 if value >= 0.0995 else 3
    return f"{value:.{digits}f}"


def _pushed(one: LanguageTaught) -> str:
    if one.whole is not None:
        return f"{one.name} (loss {nats(one.whole)} with whole vocabularies)"
    return f"{one.name} (loss {nats(one.loss)}; small steps carry the student {nats(one.drift)} away)"
