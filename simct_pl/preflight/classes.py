"""What classes of first tokens lose on the user's own texts, in bits.

In: ids of texts in one side's tokens, and the class of each id (VocabLinks). Out: ClassBits. Where two vocabularies are
compared by classes, tokens of one class are one outcome: a next-token distribution keeps H(class) of its H(token) bits.
The distributions are counts on the texts, so that no model is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from simct_pl.losses.token_paths.vocab_links import STOP, LinksReport, VocabLinks
from simct_pl.planning.section import Section
from simct_pl.tokenization.bytes import TokenBytes
from simct_pl.tokenization.pair import TokenizerPair

SHOWN = 3  # classes that lose most; ids of the largest
LONGEST = 16  # characters of a token
NOTE = (
    "Off the teacher's own path the two models are compared by classes: which of a class's tokens the student should "
    "write is not taught there. Bits: entropy of the next token's class, of that of the token, counted on your texts. "
    "The difference is the most that is lost: a class that the response itself goes into is told apart along the path. "
    "A large class matters only if your texts use it. Classes depend on the two tokenizers alone: they are kept on "
    "disk by the pair's fingerprint, and fit reads them from there."
)


@dataclass(frozen=True)
class LossyClass:
    """bits: what it loses, of ClassBits.token - ClassBits.kept. ids: its most frequent tokens, that one first."""

    bits: float
    ids: tuple[int, ...]


@dataclass(frozen=True)
class ClassBits:
    """Bits a token, of next-token distributions counted on texts.

    token, kept: entropies of the token and of its class. token_after, kept_after: the same given the token before;
        counted on few texts they are too small, and so is what is lost. With many texts no more is lost by knowing the
        token before than without.
    num_tokens: that were counted. worst: classes that lose most.
    """

    num_tokens: int
    token: float
    kept: float
    token_after: float
    kept_after: float
    worst: tuple[LossyClass, ...]

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]], label_K: np.ndarray) -> ClassBits:
        """texts: ids of each. label_K: int64, id → class."""
        ids = np.concatenate([np.asarray(text, np.int64) for text in texts] or [np.zeros(0, np.int64)])
        before = np.concatenate([np.asarray(text[:-1], np.int64) for text in texts] or [np.zeros(0, np.int64)])
        after = np.concatenate([np.asarray(text[1:], np.int64) for text in texts] or [np.zeros(0, np.int64)])
        places_before = np.unique(before, return_inverse=True)[1]
        return cls(
            len(ids),
            entropy(ids),
            entropy(label_K[ids]),
            _joint(places_before, after) - entropy(before),
            _joint(places_before, label_K[after]) - entropy(before),
            _worst(ids, label_K),
        )


def entropy(values: np.ndarray) -> float:
    """Of the values' own frequencies, in bits; 0 without any."""
    counts = np.unique(values, return_counts=True)[1]
    p = counts / max(counts.sum(), 1)
    return float(-(p * np.log2(p)).sum())


def _joint(places: np.ndarray, values: np.ndarray) -> float:
    return entropy(places * (int(values.max(initial=0)) + 1) + values)


def _worst(ids: np.ndarray, label_K: np.ndarray) -> tuple[LossyClass, ...]:
    tokens, counts = np.unique(ids, return_counts=True)
    labels, place = np.unique(label_K[tokens], return_inverse=True)
    of_class = np.bincount(place, counts, minlength=len(labels))
    share = counts / max(counts.sum(), 1)
    bits = np.bincount(place, share * np.log2(of_class[place] / counts), minlength=len(labels))
    found = []
    for number in np.argsort(-bits, kind="stable")[:SHOWN]:
        own = np.flatnonzero(place == number)
        frequent = own[np.argsort(-counts[own], kind="stable")][:6]
        if bits[number] > 0:
            found.append(LossyClass(float(bits[number]), tuple(tokens[frequent].tolist())))
    return tuple(found)


@dataclass(frozen=True)
class ClassesReport:
    """How much two vocabularies have in common as an objective with classes sees them, and on the user's own texts.

    largest: tokens of the largest class, a few of either side. student, teacher: bits on the texts.
    """

    links: LinksReport
    largest: tuple[str, ...]
    student: ClassBits
    teacher: ClassBits
    worst: tuple[tuple[str, ...], tuple[str, ...]]

    @classmethod
    def of(cls, links: VocabLinks, pair: TokenizerPair, texts: Sequence[str]) -> ClassesReport:
        """texts: what responses look like."""
        sides = (pair.student, links.student_label_K), (pair.teacher, links.teacher_label_K)
        bits = [ClassBits.of(tokenizer.encode_batch(texts), label_K) for tokenizer, label_K in sides]
        worst = tuple(
            tuple(f"{shown(tokenizer.table, one.ids)} ({one.bits:.2f})" for one in own.worst)
            for (tokenizer, _), own in zip(sides, bits, strict=True)
        )
        return cls(links.report(), _largest(links, pair), bits[0], bits[1], (worst[0], worst[1]))

    def section(self) -> Section:
        links = self.links
        rows = [
            ("classes of text", f"{links.num_classes:,}"),
            ("ids in a class with others of their side", f"{links.student_coarse:.0%} | {links.teacher_coarse:.0%}"),
            ("largest class", f"{links.largest:,} ids of both: {' '.join(self.largest)}"),
            ("in no class, compared as one", f"{links.num_rest:,} ids of both"),
            ("your texts, bits a token kept", f"{_kept(self.student)} | {_kept(self.teacher)}"),
            ("the same, given the token before", f"{_kept_after(self.student)} | {_kept_after(self.teacher)}"),
        ]
        rows += [
            (f"loses most, {role}'s tokens (bits)", "; ".join(worst))
            for role, worst in zip(("student", "teacher"), self.worst, strict=True)
            if worst
        ]
        return Section("Classes of first tokens", ("", "student | teacher"), rows, NOTE)

    def as_json(self) -> dict[str, Any]:
        """For a program; bits a token."""
        return {
            **asdict(self.links),
            **{
                role: {name: value for name, value in asdict(bits).items() if name != "worst"}
                for role, bits in (("student_bits", self.student), ("teacher_bits", self.teacher))
            },
        }


def shown(table: TokenBytes, ids: Sequence[int]) -> str:
    """Tokens as they are spelt, in quotation marks; a space is ␣, and long runs are cut."""
    texts = (repr(table.tokens[token].decode(errors="replace")).replace(" ", "␣") for token in ids)
    return " ".join(text if len(text) <= LONGEST else f"{text[:LONGEST]}…'" for text in texts)


def _largest(links: VocabLinks, pair: TokenizerPair) -> tuple[str, ...]:
    """A few tokens of either side in the largest class."""
    sides = (pair.student, links.student_label_K), (pair.teacher, links.teacher_label_K)
    sizes = np.sum([np.bincount(label_K, minlength=links.num_labels) for _, label_K in sides], 0)
    sizes[: STOP + 1] = 0
    found = []
    for tokenizer, label_K in sides:
        ids = np.flatnonzero(label_K == np.argmax(sizes))
        found.append(shown(tokenizer.table, ids[:: max(1, len(ids) // SHOWN)][:SHOWN].tolist()))
    return tuple(found)


def _kept(bits: ClassBits) -> str:
    return f"{bits.kept:.2f} of {bits.token:.2f}"


def _kept_after(bits: ClassBits) -> str:
    return f"{bits.kept_after:.2f} of {bits.token_after:.2f}"
