"""What an objective teaches two models that agree: the answer has to be nothing.

In: a small language, two tokenizers, an objective and an aligner. Out: Agreement. One distribution over the language's
texts is written by both models, each in its canonical tokens, as a table of next-token probabilities; then the two
agree about every text, and no objective has anything to teach. The loss is the objective's own, over units and rows as
in a step, and its expectation over the student's texts is exact, with no sampling. The student's table is then changed
by plain gradient descent: how far does it go from what was right, and does a student that was wrong come nearer?
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from simct_pl.alignment.base import Aligner
from simct_pl.losses.base import Objective, UnitChunk
from simct_pl.losses.inputs.unit_rows import build_unit_rows
from simct_pl.losses.inputs.vocab_tables import PairTables
from simct_pl.preflight.languages import Language
from simct_pl.preflight.listed_tokenizer import cut_down
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.tokenization.pair import TokenizedPair, TokenizerPair

SMOOTHING = 1e-4  # of each row, evenly over the vocabulary; what is left of a right objective's loss comes from it
NOISE = 0.8  # nats, of the texts' log-probabilities in a student that does not agree
STEPS, RATE = 40, 0.3

ExpectedLoss = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Agreement:
    """Nats a text.

    loss: the expected loss of two models that agree. drift: KL(language || student's texts) after some steps from
    there, which should have changed nothing. start, end: the same KL of a student that disagrees, before and after.
    """

    loss: float
    drift: float
    start: float
    end: float


@dataclass(frozen=True)
class Table:
    """A model as a table (N texts, R different beginnings of texts in tokens, K ids).

    rows: for each text the row that predicts each of its tokens, the stop included. ids: the tokens. num_ids: K.
    """

    rows: list[list[int]]
    ids: list[list[int]]
    num_ids: int

    @classmethod
    def of(cls, ids: list[list[int]], num_ids: int) -> Table:
        row_of: dict[tuple[int, ...], int] = {}
        rows = [[row_of.setdefault(tuple(own[:i]), len(row_of)) for i in range(len(own))] for own in ids]
        return cls(rows, ids, num_ids)

    def logits(self, p_N: Tensor) -> Tensor:
        """Log-probabilities of a model that writes the texts with these probabilities, float64 [R, K]."""
        mass_RK = torch.zeros(max(map(max, self.rows)) + 1, self.num_ids, dtype=torch.float64)
        for p, rows, ids in zip(p_N, self.rows, self.ids, strict=True):
            mass_RK[rows, ids] += p
        return ((1 - SMOOTHING) * mass_RK / mass_RK.sum(-1, keepdim=True) + SMOOTHING / self.num_ids).log()

    def text_logp(self, logits_RK: Tensor) -> Tensor:
        """Log-probability of each text in its canonical tokens, [N]."""
        logp_RK = logits_RK.log_softmax(-1)
        return torch.stack([logp_RK[rows, ids].sum() for rows, ids in zip(self.rows, self.ids, strict=True)])


@dataclass(frozen=True)
class Scene:
    """A language that two models write. p_N: float64, probability of each text. tokenized: the texts, with stops."""

    pair: TokenizerPair
    texts: list[str]
    p_N: Tensor
    tokenized: list[TokenizedPair]
    student: Table
    teacher: Table

    @classmethod
    def of(cls, language: Language, student: ModelTokenizer, teacher: ModelTokenizer) -> Scene:
        """With both tokenizers cut down to the language.

        Raises:
            MissingStopTokenError: if one of them has no stop.
        """
        return cls.whole(language, TokenizerPair(*cut_down([student, teacher], language)))

    @classmethod
    def whole(cls, language: Language, pair: TokenizerPair) -> Scene:
        """With the vocabularies as they are: a table of a large one takes some hundred megabytes.

        Raises:
            MissingStopTokenError: if the student has no stop.
        """
        texts = list(language)
        stop_id = pair.student.stop_ids[0]
        tokenized = pair.tokenize_batch([([*ids, stop_id], True) for ids in pair.student.encode_batch(texts)])
        p_N = torch.tensor([language[text] for text in texts], dtype=torch.float64)
        tables = [
            Table.of([side.ids.tolist() for side in sides], len(tokenizer.table))
            for sides, tokenizer in (
                ([both.student for both in tokenized], pair.student),
                ([both.teacher for both in tokenized], pair.teacher),
            )
        ]
        return cls(pair, texts, p_N / p_N.sum(), tokenized, *tables)

    @property
    def num_unread(self) -> int:
        """Texts that one of the two sides cannot write."""
        return sum(bool(both.student.faults_N.any() or both.teacher.faults_N.any()) for both in self.tokenized)

    def divergence(self, student_RK: Tensor) -> float:
        """KL(language || student's texts), nats."""
        return float((self.p_N * (self.p_N.log() - self.student.text_logp(student_RK))).sum())

    def disagreeing(self, seed: int = 1) -> Tensor:
        """The table of a student that writes the texts with other probabilities, [R, K]."""
        noise_N = torch.randn(len(self.p_N), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return self.student.logits((self.p_N.log() + NOISE * noise_N).softmax(-1))

    def expected_loss(self, objective: Objective, aligner: Aligner, *, on_policy: bool = True) -> ExpectedLoss:
        """The objective's loss a text, as a function of the student's table: over texts as the student writes them, or
        as the language has them (answers of the teacher). No gradient goes through the weights of the texts.
        """
        objective.prepare(self.pair)
        alignments = [aligner.align(tokens) for tokens in self.tokenized]
        rows = build_unit_rows(
            alignments,
            self.pair.shared_vocab,
            with_prefixes=objective.uses_prefixes,
            path_builder=objective.path_builder,
        )
        tables = PairTables.build(self.pair.shared_vocab)
        student_N = torch.tensor([*chain.from_iterable(self.student.rows)])[rows.student_rows_N]
        read_X = rows.read_rows_X
        read_XK = self.teacher.logits(self.p_N)[torch.tensor([*chain.from_iterable(self.teacher.rows)])[read_X]]
        text_U = torch.from_numpy(
            np.repeat(np.arange(len(alignments)), [int(a.supervised_U.sum()) for a in alignments])
        )

        def loss(student_RK: Tensor) -> Tensor:
            weight_N = self.student.text_logp(student_RK.detach()).softmax(-1) if on_policy else self.p_N
            losses = objective(UnitChunk.read(student_RK[student_N], read_XK, read_X, rows, tables))
            return (weight_N[text_U] * losses.loss_U).sum()

        return loss


def descend(loss: ExpectedLoss, start_RK: Tensor, steps: int, rate: float) -> Tensor:
    """The student's table after some steps of gradient descent."""
    table_RK = start_RK.clone().requires_grad_()
    for _ in range(steps):
        (gradient_RK,) = torch.autograd.grad(loss(table_RK), table_RK)
        table_RK = (table_RK.detach() - rate * gradient_RK).requires_grad_()
    return table_RK.detach()


def measure(
    scene: Scene,
    objective: Objective,
    aligner: Aligner,
    *,
    on_policy: bool = True,
    steps: int = STEPS,
    rate: float = RATE,
) -> Agreement:
    """What an objective teaches in a scene."""
    expected = scene.expected_loss(objective, aligner, on_policy=on_policy)
    disagreeing_RK = scene.disagreeing()
    loss, drift = _at_agreement(scene, expected, steps, rate)
    end = scene.divergence(descend(expected, disagreeing_RK, steps, rate))
    return Agreement(loss, drift, scene.divergence(disagreeing_RK), end)


def at_agreement(
    scene: Scene, objective: Objective, aligner: Aligner, *, on_policy: bool = True
) -> tuple[float, float]:
    """(loss, drift) of Agreement alone, in half the time."""
    return _at_agreement(scene, scene.expected_loss(objective, aligner, on_policy=on_policy), STEPS, RATE)


def _at_agreement(scene: Scene, expected: ExpectedLoss, steps: int, rate: float) -> tuple[float, float]:
    agreeing_RK = scene.student.logits(scene.p_N)
    with torch.no_grad():
        loss = float(expected(agreeing_RK))
    return loss, scene.divergence(descend(expected, agreeing_RK, steps, rate))


def whole_loss(language: Language, pair: TokenizerPair, objective: Objective, aligner: Aligner) -> float:
    """Agreement.loss with whole vocabularies, text by text; their tables are too large to be taught anything."""
    objective.prepare(pair)
    scene, tables, total = Scene.whole(language, pair), PairTables.build(pair.shared_vocab), 0.0
    student_RK, teacher_RK = scene.student.logits(scene.p_N), scene.teacher.logits(scene.p_N)
    for n, p in enumerate(scene.p_N.tolist()):
        rows = build_unit_rows(
            [aligner.align(scene.tokenized[n])],
            pair.shared_vocab,
            with_prefixes=objective.uses_prefixes,
            path_builder=objective.path_builder,
        )
        student_NK = student_RK[torch.tensor(scene.student.rows[n])[rows.student_rows_N]]
        read_XK = teacher_RK[torch.tensor(scene.teacher.rows[n])[rows.read_rows_X]]
        with torch.no_grad():
            losses = objective(UnitChunk.read(student_NK, read_XK, rows.read_rows_X, rows, tables))
        total += p * float(losses.loss_U.sum())
    return total
