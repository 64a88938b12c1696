"""The numeral scene (X-Token, arXiv 2605.21699): who teaches a student to write `202`, and who teaches it not to.

    python -m benchmarks.numerals --write true

The student owns `202` as one token and has just sampled it; the teacher spells it `2`, `0`, `2`. In the first scene the
teacher likes the text, 0.9 for each digit, and the student is unsure. In the second the student gives every text the
probability that the teacher gives it, so there is nothing to learn. One gradient step each, at a learning rate that
makes the step of the first scene the same length for every method.
"""

from __future__ import annotations

import jsonargparse
import torch
from torch import Tensor

from benchmarks.report import publish, table
from simct_pl import ALMLoss, DPCALoss, GOLDLoss, SharedVocabLoss, SimCTLoss, ULDLoss, XTokenHKL, XTokenPKL
from simct_pl.losses.base import Objective, UnitChunk
from simct_pl.losses.inputs.unit_rows import UnitRows
from simct_pl.losses.inputs.vocab_tables import PairTables
from simct_pl.tokenization.bytes import TokenBytes
from simct_pl.tokenization.projection import TokenProjection
from simct_pl.tokenization.shared_vocab import SharedVocab

LETTERS = [b"0", b"1", b"2", b"a", b" "]
STUDENT, TEACHER = [*LETTERS, b"202", b"10", None], [*LETTERS, None]
NUMERAL, FIRST_DIGIT, STOP = 5, 2, 7
TEACHER_IDS = (2, 0, 2)
TEACHER_OF = {"202": "202", "10": "10"}  # digit by digit, and the digits' ids are the digits
STEP = 0.05  # length of the step in the first scene, in logits

OBJECTIVES: dict[str, Objective] = {
    "SimCT as published (`mean_logprob`, `keep`)": SimCTLoss(),
    "SimCT as released (`mean_logit`, `keep`)": SimCTLoss("mean_logit"),
    "SimCT `sum_logprob`, `keep`": SimCTLoss("sum_logprob"),
    "SimCT `sum_logprob`, `mask`": SimCTLoss("sum_logprob", "mask"),
    "SimCT `sum_logprob`, `subtract`": SimCTLoss("sum_logprob", "subtract"),
    "SimCT `sum_logprob`, `marginal`": SimCTLoss("sum_logprob", "marginal"),
    "exact (shared 1:1 tokens only)": SharedVocabLoss(),
    "ULD": ULDLoss(),
    "GOLD": GOLDLoss(),
    "ALM, limit of high temperature": ALMLoss("kl", None),
    "DPCA": DPCALoss(),
    "X-Token P-KL": XTokenPKL(),
    "X-Token H-KL": XTokenHKL(),
}


def peaked(num_tokens: int, favourites: dict[int, float]) -> Tensor:
    """Log-probabilities [tokens]: the favourites as given, what is left evenly over the others."""
    probs = torch.full((num_tokens,), (1 - sum(favourites.values())) / (num_tokens - len(favourites)))
    for token_id, prob in favourites.items():
        probs[token_id] = prob
    return probs.double().log()


SCENES = {
    "unsure": peaked(8, {NUMERAL: 0.2, FIRST_DIGIT: 0.1}),
    "agrees": peaked(8, {NUMERAL: 0.9**3, FIRST_DIGIT: 0.9 - 0.9**3, 0: 0.02, 3: 0.02, 4: 0.02, STOP: 0.02}),
}


def gradient(objective: Objective, student_K: Tensor) -> Tensor:
    """Of the loss of one unit, by the student's logits [K]."""
    logits_1K = student_K[None].clone().requires_grad_()
    teacher_3K = torch.stack([peaked(6, {digit: 0.9}) for digit in TEACHER_IDS])
    vocab = SharedVocab.build(TokenBytes.from_list(STUDENT, {7}), TokenBytes.from_list(TEACHER, {5}), (STOP,), (5,))
    if isinstance(objective, XTokenPKL | XTokenHKL):
        objective.use(TokenProjection.build(vocab, lambda texts: [list(map(int, TEACHER_OF[t])) for t in texts], 0.9))
    losses = objective(UnitChunk(logits_1K, teacher_3K, _one_unit(vocab), PairTables.build(vocab)))
    losses.loss_U.sum().backward()
    assert logits_1K.grad is not None
    return logits_1K.grad[0]


def changes(objective: Objective) -> list[str]:
    """How a step changes the probabilities of the numeral and of its first digit, scene by scene."""
    length = float(gradient(objective, SCENES["unsure"]).norm())
    if length == 0:
        return ["–"] * (2 * len(SCENES))
    cells = []
    for student_K in SCENES.values():
        after = (student_K - STEP / length * gradient(objective, student_K)).softmax(-1)
        ratio = after / student_K.softmax(-1) - 1
        cells += [f"{100 * float(ratio[token]):+.1f} %" for token in (NUMERAL, FIRST_DIGIT)]
    return cells


def _one_unit(vocab: SharedVocab) -> UnitRows:
    """One student token against three of the teacher's."""
    integers = {
        "student_rows_N": [0],
        "student_ids_N": [NUMERAL],
        "student_unit_N": [0],
        "teacher_rows_M": [0, 1, 2],
        "teacher_ids_M": list(TEACHER_IDS),
        "teacher_unit_M": [0, 0, 0],
        "student_first_U": [0],
        "teacher_first_U": [0],
        "column_U": [-1],
        "prefix_unit_P": [0],
        "prefix_column_P": vocab.prefix_columns(b"202"),
    }
    tensors = {name: torch.tensor(values) for name, values in integers.items()}
    return UnitRows(**tensors, one_to_one_U=torch.tensor([False]))


def main(write: bool = False) -> None:
    """Print the table.

    Args:
        write: put it into docs/methods.md.
    """
    rows = [[name, *changes(objective)] for name, objective in OBJECTIVES.items()]
    headers = ["objective", "unsure: `202`", "unsure: `2`", "agrees: `202`", "agrees: `2`"]
    publish("numerals", "python -m benchmarks.numerals", table(headers, rows), write=write, page="methods.md")


if __name__ == "__main__":
    jsonargparse.auto_cli(main)
