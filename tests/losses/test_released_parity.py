"""`anchor_merged` units with mean raw logits, shared prefixes kept: the numbers that the released code prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from simct_pl.alignment.anchor_merged import AnchorMergedAligner
from simct_pl.losses.api import distillation_loss
from simct_pl.tokenization.pair import TokenizedPair, read_side
from simct_pl.types import UnitAlignment
from tests.reference.bridge import shared_vocab_of, table_of
from tests.reference.vocabulary import Side

PINNED: dict[str, Any] = json.loads((Path(__file__).parent / "released_parity.json").read_text())
DIVERGENCES = sorted(PINNED["cases"]["one_to_one"]["loss"])


def side_of(tokens: list[str | None]) -> Side:
    return Side(tuple(token and token.encode("latin-1") for token in tokens), stop_ids=(tokens.index(None),))


STUDENT, TEACHER = side_of(PINNED["student_tokens"]), side_of(PINNED["teacher_tokens"])


def wave(num_rows: int, num_columns: int, phase: float) -> Tensor:
    """The pinned figures' logits: a formula, so that no random generator has to stay as it is."""
    i = torch.arange(num_rows, dtype=torch.float64)[:, None]
    j = torch.arange(num_columns, dtype=torch.float64)
    return (4 * torch.sin(2.3 * i + 1.7 * j + 0.37 * i * j + phase)).float()


def alignment_of(case: dict[str, Any]) -> UnitAlignment:
    """The released alignment's segments as units."""
    lengths = [len(STUDENT.tokens[token_id] or b"") for token_id in case["student_ids"]]
    ends = [0, *np.cumsum(lengths).tolist()]
    rows = [[*segment, ends[segment[0]], ends[segment[1]]] for segment in case["segments"]]
    return UnitAlignment(
        units_U6=np.array(rows, dtype=np.int64),
        student_ids_S=np.array(case["student_ids"]),
        teacher_ids_T=np.array(case["teacher_ids"]),
        text=b"".join(STUDENT.tokens[token_id] or b"" for token_id in case["student_ids"]),
        has_stop=rows[-1][4] == rows[-1][5],
        supervised_U=np.ones(len(rows), dtype=bool),
    )


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("name", sorted(PINNED["cases"]))
def test_equals_the_released_code(name: str, divergence: str) -> None:
    case = PINNED["cases"][name]
    logits = wave(len(case["student_ids"]), len(STUDENT.tokens), 0.5).requires_grad_()
    loss = distillation_loss(
        logits,
        wave(len(case["teacher_ids"]), len(TEACHER.tokens), 1.1),
        alignment_of(case),
        shared_vocab_of(STUDENT, TEACHER),
        score="mean_logit",
        prefix="keep",
        divergence=divergence,
        jsd_beta=1 - PINNED["jsd_beta_released"],  # there the weight of the student, here of the teacher
    )
    loss.backward()
    probe = torch.cos(torch.arange(logits.numel(), dtype=torch.float64)).view_as(logits)
    assert float(loss.detach()) == pytest.approx(case["loss"][divergence], rel=1e-5)
    assert float((logits.grad * probe).sum()) == pytest.approx(case["gradient_probe"][divergence], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", sorted(PINNED["cases"]))
def test_anchor_merged_units_are_the_released_segments(name: str) -> None:
    """But for one thing: there a mismatch in front of the stop swallows it, here the stop is a unit of its own."""
    case = PINNED["cases"][name]
    text = b"".join(STUDENT.tokens[token_id] or b"" for token_id in case["student_ids"])
    sides = []
    for side, ids in ((STUDENT, case["student_ids"]), (TEACHER, case["teacher_ids"])):
        stop = ids[-1] if ids[-1] in side.stop_ids else None
        sides.append(read_side(table_of(side), ids if stop is None else ids[:-1], text, stop))
    alignment = AnchorMergedAligner().align(TokenizedPair(text, *sides, has_stop=stop is not None))
    segments = case["segments"]
    if name == "span_before_stop":
        assert segments[-1] == [3, 5, 4, 8]
        segments = [*segments[:-1], [4, 5, 7, 8]]
    assert alignment.units_U6[:, :4].tolist() == segments
