"""Which method a pair asks for: the decision table of docs/methods.md, by the units of the user's own texts.

In: domain reports, and whether both sides have one tokenizer. Out: a section of a preflight.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from simct_pl.planning.section import Section
from simct_pl.preflight.units import DomainReport, outside_share

FEW = 0.03  # of the student's tokens: fewer outside of 1:1 units hardly decide anything
NOTE = (
    "What was seen on small tasks with small models (docs/lab.md, docs/proof.md). Whatever the pair: where the teacher "
    "is right on nearly all of your prompts, SeqKD (ablations/seqkd) teaches as much, on answers that can be written "
    "once, so begin with it; where only samples of its answers are to be had, or SeqKD on them has stopped teaching, "
    "the table's method teaches more; and the learning rate decides more than the method, above all what is left of "
    "other skills."
)


class Pair(Enum):
    """How the student cuts the texts beside its teacher; (what is seen, what to use, why)."""

    SAME = (
        "one tokenizer on both sides",
        "SharedVocabLoss (recipe same_tokenizer)",
        "every objective gives the same numbers",
    )
    ALIKE = (
        "nearly all of the student's tokens are 1:1",
        "TokenConditionalLoss, with ablations/exact beside it",
        "what little lies outside decides little, and may do harm (docs/methods.md)",
    )
    FINER = (
        "the student's tokens are the finer ones",
        "TokenConditionalLoss",
        "exact, SimCT and marginal took such a student (digits under pairs of digits) from 63 % to 0",
    )
    COARSER = (
        "the student's tokens are the coarser ones",
        "TokenConditionalLoss, or marginal",
        "they ended alike; exact and SimCT as published or released lost accuracy at each rate that taught anything",
    )

    @classmethod
    def of(cls, domains: Sequence[DomainReport], same_tokenizer: bool) -> Pair:
        """Of the texts' student tokens, which kind outside of 1:1 units has more."""
        if same_tokenizer:
            return cls.SAME
        if outside_share(domains) < FEW:
            return cls.ALIKE
        finer, coarser = (sum(getattr(domain, kind) for domain in domains) for kind in ("finer", "coarser"))
        return cls.FINER if finer >= coarser else cls.COARSER


def which_method(domains: Sequence[DomainReport], same_tokenizer: bool) -> Section:
    """All rows of the table; an arrow in front of this pair's."""
    own = Pair.of(domains, same_tokenizer)
    rows = [(f"{'→' if pair is own else ' '} {pair.value[0]}", *pair.value[1:]) for pair in Pair]
    return Section("Which method", ("your pair", "use", "because"), rows, NOTE)
