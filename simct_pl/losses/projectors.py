"""Linear maps between the hidden spaces of two models, fitted on the tokens that both have.

In: the rows of two matrices that belong to the same tokens. Out: the map with which one is best made from the other,
by the pseudo-inverse (DSKD, arXiv 2406.17328 and 2504.11426).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from simct_pl.losses.inputs.logprobs import at_least_fp32
from simct_pl.models.lm_head import LMHead, input_embedding
from simct_pl.tokenization.shared_vocab import SharedVocab

ROWS_AT_A_TIME = 8192  # widened to float64


# Directions of a matrix below this share of its strongest one count as absent. Trained heads have some of almost no
# length, and their inverses would make a starting loss of 10,000 nats a token. It is about what the pseudo-inverse in
# fp32 leaves out by default for a vocabulary of 100,000.
WEAKEST_DIRECTION = 1e-2


@torch.no_grad()
def least_squares_map(source_VH: Tensor, target_VG: Tensor) -> Tensor:
    """pinv(source) @ target, float64 [H, G]: the smallest X with the least |source X - target|² over the source's
    directions that are not weak.

    By pinv(A) = pinv(AᵀA) Aᵀ, which needs [H, H] and [H, G] and nothing of the vocabulary's size.
    """
    width, target_width = source_VH.shape[1], target_VG.shape[1]
    gram_HH = source_VH.new_zeros(width, width, dtype=torch.float64)
    cross_HG = source_VH.new_zeros(width, target_width, dtype=torch.float64)
    for source_RH, target_RG in zip(source_VH.split(ROWS_AT_A_TIME), target_VG.split(ROWS_AT_A_TIME), strict=True):
        rows_RH = source_RH.double()
        gram_HH.addmm_(rows_RH.T, rows_RH)
        cross_HG.addmm_(rows_RH.T, target_RG.to(rows_RH))
    # Eigenvalues of AᵀA are the squares of A's singular values, and so is the limit.
    return torch.linalg.pinv(gram_HH, rtol=WEAKEST_DIRECTION**2, hermitian=True) @ cross_HG


class Projectors(nn.Module):
    """`to_student` and `to_teacher`, linear without bias, in the student's dtype.

    They start so that a translated state, put through the other model's head, has nearly the logits of the shared
    tokens that it has with its own: W_S (A h) ≈ W_T h, so A = pinv(W_S) W_T. Biases and soft-capping of heads are left
    out of account.
    """

    def __init__(self, student: PreTrainedModel, teacher: PreTrainedModel, shared: SharedVocab) -> None:
        super().__init__()
        heads = LMHead.of(student), LMHead.of(teacher)
        weights = [head.projection.weight.detach() * head.scale for head in heads]
        student_VH, teacher_VH = shared_rows(weights[0], weights[1], shared)
        like = heads[0].projection.weight
        self.to_student = linear_of(least_squares_map(student_VH, teacher_VH), like)
        self.to_teacher = linear_of(least_squares_map(teacher_VH, student_VH), like)


class AttentionProjectors(Projectors):
    """Projectors, and `query`: from two of the student's input embeddings, side by side, to two of the teacher's.

    It starts as the least-squares map between the embeddings of the shared tokens. teacher_std: standard deviation of
    the teacher's embeddings, by which they are divided.
    """

    teacher_std: Tensor

    def __init__(self, student: PreTrainedModel, teacher: PreTrainedModel, shared: SharedVocab) -> None:
        super().__init__(student, teacher, shared)
        student_KH, teacher_KH = (input_embedding(model) for model in (student, teacher))
        self.register_buffer("teacher_std", at_least_fp32(teacher_KH).std(), persistent=False)
        student_VH, teacher_VH = shared_rows(student_KH, teacher_KH, shared)
        half_GH = least_squares_map(student_VH, teacher_VH).T / self.teacher_std.double()
        # The same map twice: for the token that was read, and for the one that is predicted.
        self.query = linear_of(torch.block_diag(half_GH, half_GH), student_KH)


def shared_rows(student_KH: Tensor, teacher_KG: Tensor, shared: SharedVocab) -> tuple[Tensor, Tensor]:
    """The rows of the tokens that both models have, in the same order."""
    student_ids_V, teacher_ids_V = torch.from_numpy(shared.student_ids_V), torch.from_numpy(shared.teacher_ids_V)
    return student_KH[student_ids_V.to(student_KH.device)], teacher_KG[teacher_ids_V.to(teacher_KG.device)]


def linear_of(weight: Tensor, like: Tensor) -> nn.Linear:
    """A linear map without bias, its weight [out, in] as given, in another tensor's dtype and on its device."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    made.weight = nn.Parameter(weight.to(like.device, like.dtype))
    return made


def project(linear: nn.Module, states: Tensor) -> Tensor:
    """linear(states), in the dtype of its weight: FSDP may have gathered it in another than the states have."""
    assert isinstance(linear, nn.Linear)
    projected: Tensor = linear(states.to(linear.weight.dtype))
    return projected
