"""Byte-prefix marginalisation (BPM, arXiv 2607.22334): a target over the student's vocabulary at each of its tokens.

At a student token that begins behind the bytes r of a teacher token (none, where both begin here), the teacher's row at
that token's start says what follows:

    every teacher token that begins with r counts, with its probability among those, for the longest student token that
    is a byte prefix of what it adds to r
    along the realised path the mass is corrected: a student token that reaches beyond the teacher's gets the
    probability of the paths that begin with it, and what stood for the realised token before gives it up
    what stands for no student token is the residual

and the student's row is compared with that; its tokens that stand for nothing are its residual. Mass is moved, never
made. But the teacher's row knows where the teacher has cut, and the student's where the student has, so that two models
which agree about every text may differ here (docs/methods.md, "What two models that agree are taught").

Beside the released code: a path ends with its unit instead of running on through the next ones; a stop is supervised
like any other token, not as stop against all else; a token inside a teacher token that ends inside a further student
token is supervised, where that code leaves it out.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from simct_pl.errors import RecipeError
from simct_pl.losses.base import Objective, UnitChunk, UnitLosses
from simct_pl.losses.columns.column_logprobs import join_stops
from simct_pl.losses.divergences import DivergenceName, named_divergence
from simct_pl.losses.inputs.logprobs import at_least_fp32
from simct_pl.tokenization.pair import TokenizerPair
from simct_pl.tokenization.shared_vocab import SharedVocab

RESIDUAL = -1  # what stands for no student token; a target's last column
MOST_PREFIXES = 4096  # of teacher tokens, for which the tokens that go on are kept


class BPMLoss(Objective):
    """Divergence from the byte-prefix target, at every student token.

    Args:
        divergence, jsd_beta: the paper's is the Jensen-Shannon divergence at one half.
        skip_blank: leave out rows whose realised student token is nothing but spaces and tabs (the paper's cure for
            students that lose their indentation).

    Raises:
        RecipeError: for an unknown divergence, or when called before `prepare`.
    """

    def __init__(self, divergence: DivergenceName = "jsd", jsd_beta: float = 0.5, skip_blank: bool = True) -> None:
        self._divergence = named_divergence(divergence, jsd_beta=jsd_beta)
        self._description = {"divergence": divergence, "jsd_beta": jsd_beta, "skip_blank": skip_blank}
        self.skip_blank = skip_blank
        self._prefixes: BytePrefixes | None = None

    @override
    def prepare(self, pair: TokenizerPair) -> None:
        if self._prefixes is None or self._prefixes.shared is not pair.shared_vocab:
            self.use(pair.shared_vocab)

    def use(self, shared: SharedVocab) -> None:
        """Take a shared vocabulary; `prepare` hands over that of its pair."""
        self._prefixes = BytePrefixes(shared)
        self._standing_J = torch.from_numpy(self._prefixes.standing_J)
        self._is_blank_K = torch.tensor([bool(t) and not t.strip(b" \t") for t in shared.student.tokens])

    def __call__(self, chunk: UnitChunk) -> UnitLosses:
        if self._prefixes is None:
            raise RecipeError(f"{type(self).__name__} knows no vocabularies yet; call prepare(pair) first.")
        student_NK = join_stops(at_least_fp32(chunk.student.logits_NK).softmax(-1), chunk.tables.student)
        device = student_NK.device
        self._standing_J, self._is_blank_K = self._standing_J.to(device), self._is_blank_K.to(device)
        with torch.no_grad():
            target_NX, stands_NK = self._targets(chunk, self._prefixes, student_NK.shape[1])
        # What stands for nothing is one more column, on both sides, so that the two are compared whole.
        rest_N1 = student_NK.masked_fill(stands_NK, 0.0).sum(-1, keepdim=True)
        student_NX = torch.cat([student_NK, rest_N1], -1)
        hidden_NX = torch.nn.functional.pad(~stands_NK, (0, 1))
        tiny = torch.finfo(student_NX.dtype).tiny
        logs = [mass.clamp_min(tiny).log().masked_fill(hidden_NX, -torch.inf) for mass in (student_NX, target_NX)]
        loss_N, rows = self._divergence(*logs), chunk.rows
        if self.skip_blank:
            blank_N = self._is_blank_K[rows.student_ids_N]
            loss_N = loss_N.masked_fill(blank_N, 0.0)
            graded_U = chunk.student.sum_by_unit((~blank_N).to(loss_N.dtype)) > 0
        else:
            graded_U = torch.ones(rows.num_units, dtype=torch.bool, device=device)
        return UnitLosses.over_everything(chunk.student.sum_by_unit(loss_N), graded_U)

    def _targets(self, chunk: UnitChunk, prefixes: BytePrefixes, num_ids: int) -> tuple[Tensor, Tensor]:
        """The teacher's mass of each student id and of the residual, [N, K + 1], and which ids stand for something."""
        rows, logp_MJ = chunk.rows, at_least_fp32(chunk.teacher.logits_NK).log_softmax(-1)
        paths = list(prefixes.paths(chunk))
        # The teacher's row: that of the unit's first token, or where the student's token begins inside a later one, of
        # that.
        row_N = rows.teacher_first_U[rows.student_unit_N]
        row_N[[path.row for path in paths]] = row_N.new_tensor([path.teacher_row for path in paths])
        mass_NJ = logp_MJ.exp()[row_N]
        standing_J, known = self._standing_J, min(len(self._standing_J), mass_NJ.shape[1])
        target_NX = mass_NJ.new_zeros(len(row_N), num_ids + 1)
        # RESIDUAL is the last column of K + 1, also where an index must not be below 0: -1 % (K + 1) = K.
        target_NX.index_add_(1, standing_J[:known] % (num_ids + 1), mass_NJ[:, :known])
        target_NX[:, RESIDUAL] += mass_NJ[:, known:].sum(-1)  # a model's rows may outnumber its tokenizer's ids
        # First as if every token began where the teacher's does; then the rows of which that is not so.
        stands_NK = _marked(standing_J, num_ids).repeat(len(row_N), 1)
        for path in paths:
            # The student is inside a teacher token: only those with the bytes written so far can be meant, and share
            # all mass.
            if path.written:
                token_ids, standing = (torch.from_numpy(a).to(row_N) for a in prefixes.inside(path.written, path.room))
                mass = logp_MJ[path.teacher_row, token_ids].softmax(-1)
                target_NX[path.row] = mass.new_zeros(num_ids + 1).index_add(0, standing % (num_ids + 1), mass)
                stands_NK[path.row] = _marked(standing, num_ids)
            # Student tokens that reach beyond the teacher's take their part from what stands for the realised one.
            if path.longer:
                _correct(path, logp_MJ, rows.teacher_ids_M, prefixes, target_NX[path.row])
                stands_NK[path.row, [one.student_id for one in path.longer]] = True
        return target_NX, stands_NK

    def describe(self) -> dict[str, object]:
        return {"objective": type(self).__name__, **self._description}


def _marked(standing: Tensor, num_ids: int) -> Tensor:
    """Which student ids are among some, the residual aside, bool [K]."""
    return torch.zeros(num_ids + 1, dtype=torch.bool, device=standing.device).index_fill(
        0, standing % (num_ids + 1), True
    )[:-1]


@dataclass(frozen=True)
class Longer:
    """A student token that begins the realised text here and reaches beyond the teacher token.

    It passes through the teacher's tokens from the governing one up to last_row, and takes the bytes `begun` of that.
    """

    student_id: int
    last_row: int
    begun: bytes


@dataclass(frozen=True)
class TokenPath:
    """Where a student token of a unit of several tokens begins.

    row: the student's. teacher_row: of the teacher token that it begins in. written: that token's bytes before it, and
        room: how many are left.
    stands: the student id that stands for the realised teacher token. longer: short ones first.
    """

    row: int
    teacher_row: int
    written: bytes
    room: int
    stands: int
    longer: list[Longer]


class BytePrefixes:
    """What is known of a pair of vocabularies before any row.

    standing_J: int64, teacher id → the student id that it counts for, or RESIDUAL.
    """

    def __init__(self, shared: SharedVocab) -> None:
        self.shared = shared
        stops = np.flatnonzero(shared.student_columns == shared.stop_column) if shared.stop_column is not None else ()
        self._student_id_of = shared.student.ids_by_bytes(without=stops)
        self._longest = max(map(len, self._student_id_of), default=0)
        tokens, columns_J = shared.teacher.tokens, shared.teacher_columns
        self.standing_J = np.where(columns_J >= 0, shared.student_ids_V[columns_J], RESIDUAL)
        for token_id in np.flatnonzero((columns_J < 0) & shared.teacher.is_text_V).tolist():
            self.standing_J[token_id] = self._standing(tokens[token_id])
        self._by_bytes = sorted(np.flatnonzero(shared.teacher.is_text_V).tolist(), key=tokens.__getitem__)
        self._sorted = [tokens[token_id] for token_id in self._by_bytes]
        self.inside = lru_cache(MOST_PREFIXES)(self._inside)

    def _standing(self, added: bytes) -> int:
        """The longest student token that is a byte prefix."""
        lengths = range(min(len(added), self._longest), 0, -1)
        return next((self._student_id_of[added[:n]] for n in lengths if added[:n] in self._student_id_of), RESIDUAL)

    def beginning_with(self, begun: bytes) -> list[int]:
        """Ids of the teacher tokens that begin with some bytes, those bytes themselves among them."""
        start = bisect_left(self._sorted, begun)
        end = bisect_right(self._sorted, begun, start, key=lambda token: token[: len(begun)])
        return self._by_bytes[start:end]

    def _inside(self, written: bytes, room: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the teacher tokens that begin with what is written: their ids, and what stands for what they add.

        room: no student token longer than this stands for anything; the realised teacher token ends there.
        """
        ids, start = self.beginning_with(written), len(written)
        tokens = self.shared.teacher.tokens
        standing = [self._standing(tokens[token_id][start : start + room]) for token_id in ids]
        return np.asarray(ids, np.int64), np.asarray(standing, np.int64)

    def paths(self, chunk: UnitChunk) -> Iterator[TokenPath]:
        """Of every student token in a unit that is not 1:1."""
        rows = chunk.rows
        student_ids, teacher_ids = rows.student_ids_N.tolist(), rows.teacher_ids_M.tolist()
        firsts = [*rows.student_first_U.tolist(), len(student_ids)], [*rows.teacher_first_U.tolist(), len(teacher_ids)]
        for unit in torch.nonzero(~rows.one_to_one_U).squeeze(-1).tolist():
            students, teachers = (range(*first[unit : unit + 2]) for first in firsts)
            pieces = [self.shared.teacher.tokens[teacher_ids[row]] for row in teachers]
            place = 0
            for row in students:
                yield self._path(row, teachers.start, pieces, place)
                place += len(self.shared.student.tokens[student_ids[row]])

    def _path(self, row: int, first_row: int, pieces: list[bytes], place: int) -> TokenPath:
        """pieces: the teacher's tokens of the unit. place: bytes of it before the student's token."""
        text, ends = b"".join(pieces), list(accumulate(map(len, pieces)))
        # The teacher token that the place lies in, and where it starts and ends within the unit.
        k = min(bisect_right(ends, place), len(pieces) - 1)
        start, end = ends[k] - len(pieces[k]), ends[k]
        longer = []
        for stop in range(end + 1, min(len(text), place + self._longest) + 1):
            student_id = self._student_id_of.get(text[place:stop])
            if student_id is not None:
                last = bisect_left(ends, stop)
                longer.append(Longer(student_id, first_row + last, text[ends[last - 1] : stop]))
        # Within the teacher token, the longest student token stands for the realised bytes.
        stands = self._standing(text[place:end])
        return TokenPath(row, first_row + k, text[start:place], end - place, stands, longer)


def _correct(path: TokenPath, logp_MJ: Tensor, teacher_ids_M: Tensor, prefixes: BytePrefixes, target_X: Tensor) -> None:
    """Hand on, in place, from what stands for the realised token to each student token that reaches beyond it."""
    # Of the realised teacher token, given the bytes that are written already.
    logp = logp_MJ[path.teacher_row, teacher_ids_M[path.teacher_row]]
    if path.written:
        logp = logp - logp_MJ[path.teacher_row, prefixes.beginning_with(path.written)].logsumexp(-1)
    holder = path.stands
    for one in path.longer:
        # The paths that go through the realised tokens in between, and then by any token that begins with the needed
        # bytes.
        between = range(path.teacher_row + 1, one.last_row)
        passed = sum((logp_MJ[row, teacher_ids_M[row]] for row in between), logp)
        mass = (passed + logp_MJ[one.last_row, prefixes.beginning_with(one.begun)].logsumexp(-1)).exp()
        target_X[holder] -= mass
        target_X[one.student_id] += mass
        # A still longer token has its mass out of this one's: whatever begins with it begins with this one too.
        holder = one.student_id
    target_X.clamp_min_(0.0)
