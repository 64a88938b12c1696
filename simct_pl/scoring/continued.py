"""The student with its loss, when the candidates hold continuations that the responses did not take.

In: a micro-batch. Out: its loss sum. Each direction has its own order: the student's tokens are known once it has read
the responses, so the teacher scores them beside the forward it makes anyway; the teacher's tokens are known after that,
and the student reads their spellings in a second forward, with gradients, over its cached states.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from typing_extensions import override

from simct_pl.losses.base import LaterLogProbs, Objective, ObjectiveBase
from simct_pl.losses.dual_space import DualSpaceObjective
from simct_pl.phases import PhaseTimer, Side
from simct_pl.scoring.aligned import AlignedBatch
from simct_pl.scoring.chunks import chunked_loss
from simct_pl.scoring.heads import LMHead, ResponseStates, response_states
from simct_pl.scoring.places import UnitPlaces
from simct_pl.scoring.proposals import Proposal, choose, likeliest_unshared
from simct_pl.scoring.spelling import Speller
from simct_pl.scoring.stats import UnitStats
from simct_pl.scoring.student import StudentWithLoss
from simct_pl.scoring.tables import PairTables
from simct_pl.scoring.teacher import FrozenTeacher
from simct_pl.scoring.tree import Forest, path_logprobs, tree_states, verify_tree
from simct_pl.tokenization.pair import TokenizerPair
from simct_pl.types import Rollout


class StudentWithContinuations(StudentWithLoss):
    """StudentWithLoss for an objective with continuations.

    counts: units, proposals, nodes read and what was left out since somebody emptied it (callbacks.ContinuationStats).
    unshared_mass: probability of all unshared tokens, summed over units, the same way.

    Args:
        pair: both tokenizers. The others: see StudentWithLoss.

    Raises:
        UnsupportedModelError: if a model that has to read continuations cannot (simct_pl.scoring.tree.verify_tree).
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: FrozenTeacher,
        objective: Objective,
        chunk_tokens: int,
        phases: PhaseTimer,
        pair: TokenizerPair,
    ) -> None:
        super().__init__(student, teacher, objective, chunk_tokens, phases)
        assert objective.continuations is not None
        self.chunk_objective, self.config = objective, objective.continuations
        self.student_table = pair.student.table
        self.spellers: dict[Side, Speller] = {
            "student": Speller(pair.student, pair.teacher, pair.shared_vocab),
            "teacher": Speller(pair.teacher, pair.student, pair.shared_vocab),
        }
        self.counts: Counter[str] = Counter()
        self.unshared_mass: defaultdict[Side, float] = defaultdict(float)
        for model, reads in ((teacher.model, self.config.student_k), (student, self.config.teacher_k)):
            if reads:
                verify_tree(model)

    @override
    def forward(
        self, rollouts: Sequence[Rollout], aligned: AlignedBatch | Future[AlignedBatch], tables: PairTables
    ) -> tuple[Tensor, UnitStats]:
        prompts, responses = [r.prompt_ids for r in rollouts], [r.response_ids for r in rollouts]
        cache = DynamicCache() if self.config.teacher_k else None
        with self.phases("student_forward"):
            student = response_states(self.student, prompts, responses, cache)
        with self.phases("alignment"):
            aligned = aligned.result() if isinstance(aligned, Future) else aligned
            places = UnitPlaces(aligned, self.student_table)
        with self.phases("loss"):
            by_student = self._student_proposals(student.hidden_NH, places)
        with self.phases("teacher"):
            teacher, teacher_later_P = self._read_by_teacher(aligned, places, by_student, student.hidden_NH.device)
        with self.phases("loss"):
            by_teacher = self._teacher_proposals(teacher.hidden_NH, places)
        with self.phases("student_forward"):
            hidden_NH, student_later_P = self._read_by_student(student, cache, rollouts, places, by_teacher)
        with self.phases("loss"):
            loss, stats = chunked_loss(
                hidden_NH,
                teacher.hidden_NH,
                replace(aligned.rows, paths=places.path_pair(by_student, by_teacher, self.config)),
                student_head=LMHead.of(self.student),
                teacher_head=self.teacher.head,
                objective=self.chunk_objective,
                tables=tables,
                chunk_tokens=self.chunk_tokens,
                later=_later(student_later_P, teacher_later_P),
            )
        self.counts.update(responses=len(rollouts), units=len(places.response_U))
        self.phases.count_worker(aligned.seconds)
        self.phases.count_forward("student", student.num_tokens, student.num_positions)
        self.phases.count_forward("teacher", teacher.num_tokens, teacher.num_positions)
        return loss, stats

    def _student_proposals(self, hidden_NH: Tensor, places: UnitPlaces) -> list[Proposal]:
        head, first_U = LMHead.of(self.student), places.student_first_U
        return self._propose("student", hidden_NH.detach(), first_U, head, self.config.student_k, places)

    def _teacher_proposals(self, hidden_MH: Tensor, places: UnitPlaces) -> list[Proposal]:
        head, first_U = self.teacher.head, places.teacher_first_U
        with torch.autocast(hidden_MH.device.type, enabled=False):
            return self._propose("teacher", hidden_MH, first_U, head, self.config.teacher_k, places)

    def _propose(
        self, side: Side, hidden_NH: Tensor, first_U: Tensor, head: LMHead, k: int, places: UnitPlaces
    ) -> list[Proposal]:
        if k == 0:
            return []
        speller = self.spellers[side]
        found = likeliest_unshared(hidden_NH, first_U, head, speller.unshared_ids_W, k, self.chunk_tokens)
        proposals, left_out = choose(found, places.texts, places.response_U, speller, self.config)
        self.counts[f"{side}_proposed"] += len(proposals)
        self.counts.update({f"{side}_{reason}": number for reason, number in left_out.items()})
        self.unshared_mass[side] += float(found.unshared_U.sum())
        return proposals

    def _read_by_teacher(
        self, aligned: AlignedBatch, places: UnitPlaces, by_student: list[Proposal], device: torch.device
    ) -> tuple[ResponseStates, Tensor]:
        """The teacher's states, and log p(later tokens | first) of the student's proposals."""
        responses = aligned.teacher_response_ids
        forest = Forest.grow(responses, places.teacher_paths(by_student))
        self.counts["teacher_nodes"] += forest.num_nodes
        trees = forest.trees if self.config.student_k else None
        states = self.teacher.to(device).states(aligned.teacher_prompt_ids, responses, trees)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return states, path_logprobs(states.hidden_NH, forest, self.teacher.head, self.chunk_tokens)

    def _read_by_student(
        self,
        states: ResponseStates,
        cache: Cache | None,
        rollouts: Sequence[Rollout],
        places: UnitPlaces,
        by_teacher: list[Proposal],
    ) -> tuple[Tensor, Tensor]:
        """The student's states, those of nodes last, and log p(later tokens | first) of the teacher's proposals."""
        hidden_NH = states.hidden_NH
        forest = Forest.grow([r.response_ids for r in rollouts], places.student_paths(by_teacher))
        self.counts["student_nodes"] += forest.num_nodes
        if cache is not None and forest.num_nodes:
            nodes_PH = tree_states(self.student, cache, [len(r.prompt_ids) for r in rollouts], forest.trees)
            hidden_NH = torch.cat([hidden_NH, nodes_PH])
        return hidden_NH, path_logprobs(hidden_NH, forest, LMHead.of(self.student), self.chunk_tokens)


def build_student_with_loss(
    student: PreTrainedModel,
    teacher: FrozenTeacher,
    objective: ObjectiveBase,
    pair: TokenizerPair,
    chunk_tokens: int,
    phases: PhaseTimer,
) -> StudentWithLoss:
    """The kind that the objective needs. The student is not sharded yet."""
    if isinstance(objective, Objective) and objective.continuations is not None:
        return StudentWithContinuations(student, teacher, objective, chunk_tokens, phases, pair)
    assert isinstance(objective, Objective | DualSpaceObjective)
    return StudentWithLoss.build(student, teacher, objective, pair, chunk_tokens, phases)


def _later(student_P: Tensor, teacher_P: Tensor) -> LaterLogProbs:
    """Sources number the student's proposals (student: a token, nothing later), then the teacher's (the reverse)."""
    return LaterLogProbs(
        torch.cat([student_P.new_zeros(len(teacher_P)), student_P]),
        torch.cat([teacher_P, teacher_P.new_zeros(len(student_P))]),
    )
