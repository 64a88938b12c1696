"""A pair of vocabularies of any size and responses over them, as index tensors: no tokenizer, no text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.synthetic_paths import make_labels, make_paths
from simct_pl.losses.inputs.unit_rows import UnitRows
from simct_pl.losses.inputs.vocab_tables import PairTables, SideTables
from simct_pl.losses.token_paths.masses import SideLabels
from simct_pl.losses.token_paths.paths import TokenPaths
from simct_pl.models.lm_head import LMHead

# Student and teacher tokens of a unit, and how often it is seen; English text over a SentencePiece student and a
# byte-level teacher looks about like this.
UNIT_SHAPES = ((1, 1), (2, 1), (1, 2), (2, 2), (3, 2))
UNIT_SHARES = (0.86, 0.06, 0.04, 0.03, 0.01)


@dataclass(frozen=True)
class Problem:
    """What the chunked loss gets, at random. paths, labels: for the objective that follows the teacher's path."""

    student_hidden_NH: Tensor
    teacher_hidden_MH: Tensor
    rows: UnitRows
    student_head: LMHead
    teacher_head: LMHead
    tables: PairTables
    paths: TokenPaths
    labels: tuple[SideLabels, SideLabels]


def make_problem(
    num_student_tokens: int,
    student_vocab: int,
    teacher_vocab: int,
    student_width: int,
    teacher_width: int,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Problem:
    """One response of about num_student_tokens over vocabularies of which 60 % of the smaller is shared."""
    torch.manual_seed(seed)
    tables, rows, labels, paths = make_units(num_student_tokens, student_vocab, teacher_vocab, seed)
    heads = []
    for vocab, width in ((student_vocab, student_width), (teacher_vocab, teacher_width)):
        projection = nn.Linear(width, vocab, bias=False, dtype=dtype)
        nn.init.normal_(projection.weight, std=1.5 * width**-0.5)
        heads.append(LMHead(projection))
    return Problem(
        torch.randn(len(rows.student_ids_N), student_width, dtype=dtype, requires_grad=True),
        torch.randn(len(rows.teacher_ids_M), teacher_width, dtype=dtype),
        rows,
        *heads,
        tables,
        paths,
        labels,
    )


def make_units(
    num_student_tokens: int, student_vocab: int, teacher_vocab: int, seed: int = 0
) -> tuple[PairTables, UnitRows, tuple[SideLabels, SideLabels], TokenPaths]:
    """Tables, units, classes and paths of one response of about num_student_tokens."""
    generator = np.random.default_rng(seed)
    num_shared = int(0.6 * min(student_vocab, teacher_vocab))
    tables = PairTables(
        _side_tables(generator, student_vocab, num_shared), _side_tables(generator, teacher_vocab, num_shared), 0
    )
    rows = _unit_rows(generator, num_student_tokens, tables, student_vocab, teacher_vocab)
    labels = make_labels(student_vocab, teacher_vocab, seed)
    return tables, rows, labels, make_paths(rows, labels, seed)


def _side_tables(generator: np.random.Generator, vocab: int, num_shared: int) -> SideTables:
    ids_V = generator.permutation(vocab)[:num_shared]
    columns_K = np.full(vocab, -1, np.int64)
    columns_K[ids_V] = np.arange(num_shared)
    bucket_K = np.where(columns_K < 0, generator.integers(1, num_shared, vocab), columns_K)
    return SideTables.build(ids_V, columns_K, bucket_K, ())


def _unit_rows(
    generator: np.random.Generator, num_student_tokens: int, tables: PairTables, student_vocab: int, teacher_vocab: int
) -> UnitRows:
    shapes_U2 = np.asarray(UNIT_SHAPES)[generator.choice(len(UNIT_SHAPES), num_student_tokens, p=UNIT_SHARES)]
    shapes_U2 = shapes_U2[: np.searchsorted(shapes_U2[:, 0].cumsum(), num_student_tokens, "right")]
    num_units = len(shapes_U2)
    one_to_one_U = (shapes_U2 == 1).all(1)
    column_U = np.where(one_to_one_U, generator.integers(0, len(tables.student.ids_V), num_units), -1)
    sides = {}
    for side, letter, vocab, length_U in (
        ("student", "N", student_vocab, shapes_U2[:, 0]),
        ("teacher", "M", teacher_vocab, shapes_U2[:, 1]),
    ):
        first_U = length_U.cumsum() - length_U
        ids_V = (tables.student if side == "student" else tables.teacher).ids_V.numpy()
        # A token that is a whole unit without a column is shared by nobody, or it would be that column.
        unshared = np.setdiff1d(np.arange(vocab), ids_V)
        ids = unshared[generator.integers(0, len(unshared), length_U.sum())]
        ids[first_U[one_to_one_U]] = ids_V[column_U[one_to_one_U]]
        sides |= {
            f"{side}_rows_{letter}": np.arange(len(ids)),
            f"{side}_ids_{letter}": ids,
            f"{side}_unit_{letter}": np.repeat(np.arange(num_units), length_U),
            f"{side}_first_U": first_U,
        }
    arrays = {
        **sides,
        "column_U": column_U,
        "one_to_one_U": one_to_one_U,
        "prefix_unit_P": np.empty(0, np.int64),
        "prefix_column_P": np.empty(0, np.int64),
    }
    return UnitRows(**{name: torch.from_numpy(array) for name, array in arrays.items()})
