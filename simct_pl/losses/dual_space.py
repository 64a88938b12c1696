"""What an objective in two hidden spaces is: states of both models in, what each would say with the other's head out.

Some methods (DSKD) translate one model's last hidden states into the other's hidden space and put them through the
other's head. Translating needs whole responses and is cheap; the heads are not: simct_pl.training.dual_space_loss
applies them to a few units at a time. So such an objective has two halves, `translate` and `__call__`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from typing_extensions import override

from simct_pl.losses.base import ObjectiveBase, UnitChunk, UnitLosses
from simct_pl.losses.inputs.unit_rows import UnitRows
from simct_pl.models.lm_head import input_embedding
from simct_pl.tokenization.pair import TokenizerPair


@dataclass(frozen=True, eq=False)
class SideStates:
    """One model's reading of the responses of a micro-batch.

    hidden_NH: one row a response token, the state that predicts it; a response's rows follow those of the one before.
    tokens: for each response, the last id of its prompt and then its own ids: its row i has read tokens[i] and
        predicts tokens[i + 1].
    embedding_KH: the model's input embeddings, detached.
    """

    hidden_NH: Tensor
    tokens: list[list[int]]
    embedding_KH: Tensor

    @classmethod
    def of(
        cls, model: PreTrainedModel, hidden_NH: Tensor, responses: Iterable[tuple[Sequence[int], Sequence[int]]]
    ) -> SideStates:
        """responses: prompt and response ids, of at least one token each prompt."""
        tokens = [[prompt_ids[-1], *response_ids] for prompt_ids, response_ids in responses]
        return cls(hidden_NH, tokens, input_embedding(model))

    @property
    def num_rows(self) -> list[int]:
        """Rows of each response."""
        return [len(tokens) - 1 for tokens in self.tokens]

    def embedded(self, shift: int) -> Tensor:
        """Embeddings of the token that each row has read (shift 0) or predicts (shift 1), [N, H]."""
        ids = [token for tokens in self.tokens for token in tokens[shift : len(tokens) - 1 + shift]]
        return F.embedding(torch.tensor(ids, dtype=torch.int64, device=self.hidden_NH.device), self.embedding_KH)


@dataclass(frozen=True, eq=False)
class PairStates:
    """The same responses, in the same order, as both models read them; rows: their units, on the CPU."""

    student: SideStates
    teacher: SideStates
    rows: UnitRows


@dataclass(frozen=True, eq=False)
class DualSpaceChunk:
    """A chunk of whole units, with two more matrices of logits.

    in_student_NK: beside units.student_logits_NK, what the student's head makes of the teacher's translated states.
    in_teacher_MK: beside units.teacher_logits_MK, what the teacher's head makes of the student's translated states.
    """

    units: UnitChunk
    in_student_NK: Tensor
    in_teacher_MK: Tensor


class DualSpaceObjective(ObjectiveBase):
    """An objective with projectors between the hidden spaces."""

    @abstractmethod
    @override
    def build_projectors(self, student: PreTrainedModel, teacher: PreTrainedModel, pair: TokenizerPair) -> nn.Module:
        """See ObjectiveBase."""

    @abstractmethod
    def translate(self, projectors: nn.Module, states: PairStates) -> tuple[Tensor, Tensor]:
        """The teacher in the student's space, [student rows, student width], and the student in the teacher's space,
        [teacher rows, teacher width]. Rows that are not supervised may hold anything finite.
        """

    @abstractmethod
    def __call__(self, chunk: DualSpaceChunk) -> UnitLosses:
        """Per-unit losses of a chunk. Gradients may reach all logits but the teacher's own; through in_student_NK and
        in_teacher_MK they go on to the translated states, and never to a head.
        """
