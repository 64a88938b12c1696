"""DSKD against a dense float64 reference: where its projectors start, its loss, and every gradient there is."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from simct_pl import DSKDCma, DSKDEta
from simct_pl.errors import RecipeError
from simct_pl.losses.dual_space import DualSpaceObjective, PairStates, SideStates
from simct_pl.losses.inputs.unit_rows import build_unit_rows
from simct_pl.losses.inputs.vocab_tables import PairTables
from simct_pl.losses.projectors import least_squares_map
from simct_pl.models.lm_head import LMHead
from simct_pl.training.dual_space_loss import dual_space_loss
from simct_pl.types import UnitStats
from tests.reference import dskd as reference
from tests.reference.bridge import alignment_of, shared_vocab_of
from tests.reference.scenes import Scene, random_scene
from tests.reference.vocabulary import Side, greedy_ids, partition

OBJECTIVES: dict[str, DualSpaceObjective] = {"eta": DSKDEta(), "cma": DSKDCma()}
every_objective = pytest.mark.parametrize("name", OBJECTIVES)
TEXTS = [b"202 ab", "a😀b20".encode(), b"0"]
PROMPT_END = 1
WIDTHS = 8, 6  # of the student, of the teacher


def model_of(side: Side, width: int, seed: int) -> LlamaForCausalLM:
    """Random, float64, with two rows of padding; only its head and its embeddings are used."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(side.tokens) + 2, **sizes, tie_word_embeddings=False)).double()
    for module in (model.get_output_embeddings(), model.get_input_embeddings()):
        nn.init.normal_(module.weight)
    return model


@dataclass(frozen=True)
class Batch:
    """Some responses of one pair, their states drawn at random."""

    scene: Scene
    student: LlamaForCausalLM
    teacher: LlamaForCausalLM
    ids: list[tuple[list[int], list[int]]]
    student_hidden_NH: Tensor
    teacher_hidden_MH: Tensor

    @property
    def pair(self) -> Any:
        return SimpleNamespace(shared_vocab=shared_vocab_of(self.scene.student, self.scene.teacher))


def make_related(student: LlamaForCausalLM, teacher: LlamaForCausalLM, scene: Scene) -> None:
    """Tie embeddings to heads, and make the student's rows of shared tokens nearly the teacher's, rotated: so that a
    translated state often, not always, has the favourite that it should have.
    """
    shared = shared_vocab_of(scene.student, scene.teacher)
    turn = torch.linalg.qr(torch.randn(WIDTHS, dtype=torch.float64)).Q.T
    own, theirs = (model.get_output_embeddings().weight.data for model in (student, teacher))
    own[shared.student_ids_V] = theirs[shared.teacher_ids_V] @ turn + 0.3 * own[shared.student_ids_V]
    for model, head in ((student, own), (teacher, theirs)):
        model.get_input_embeddings().weight.data = 1.5 * head.clone()


@cache
def batch() -> Batch:
    scene = random_scene(2)
    student, teacher = model_of(scene.student, WIDTHS[0], 0), model_of(scene.teacher, WIDTHS[1], 1)
    make_related(student, teacher, scene)
    ids = [(scene.student_ids, scene.teacher_ids)] + [
        (greedy_ids(scene.student, text), greedy_ids(scene.teacher, text)) for text in TEXTS
    ]
    lengths = [sum(len(both[side]) for both in ids) for side in (0, 1)]
    states = [torch.randn(n, width, dtype=torch.float64) for n, width in zip(lengths, WIDTHS, strict=True)]
    return Batch(scene, student, teacher, ids, *states)


@dataclass(frozen=True)
class Graded:
    loss: Tensor
    stats: UnitStats
    gradients: dict[str, Tensor | None]


def graded(name: str, given: Batch, chunk_tokens: int = 1000, responses: slice = slice(None)) -> Graded:
    """The loss of some of the responses, and every gradient of it."""
    for model in (given.student, given.teacher):
        model.zero_grad()
    objective, ids = OBJECTIVES[name], given.ids[responses]
    alignments = [alignment_of(given.scene.student, given.scene.teacher, *both) for both in ids]
    hidden = [
        torch.cat(rows.split([len(both[side]) for both in given.ids])[responses] or (rows[:0],))
        .clone()
        .requires_grad_()
        for side, rows in enumerate((given.student_hidden_NH, given.teacher_hidden_MH))
    ]
    sides = [
        SideStates.of(model, hidden[side], [([PROMPT_END], both[side]) for both in ids])
        for side, model in enumerate((given.student, given.teacher))
    ]
    projectors = objective.build_projectors(given.student, given.teacher, given.pair)
    loss, stats = dual_space_loss(
        PairStates(*sides, build_unit_rows(alignments, given.pair.shared_vocab)),
        student_head=LMHead.of(given.student),
        teacher_head=LMHead.of(given.teacher),
        objective=objective,
        projectors=projectors,
        tables=PairTables.build(given.pair.shared_vocab),
        chunk_tokens=chunk_tokens,
    )
    loss.backward()
    found = {name: parameter.grad for name, parameter in projectors.named_parameters()}
    found |= {"student states": hidden[0].grad, "student head": given.student.get_output_embeddings().weight.grad}
    found |= {"teacher states": hidden[1].grad, "teacher head": given.teacher.get_output_embeddings().weight.grad}
    found |= {"student embeddings": given.student.get_input_embeddings().weight.grad}
    return Graded(loss.detach(), stats, found)


def referred(name: str, given: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The same by the reference, its projectors started by numpy."""
    sides = given.scene.student, given.scene.teacher
    student, teacher = (
        reference.Model(
            side,
            model.get_output_embeddings().weight.detach().clone().requires_grad_(),
            model.get_input_embeddings().weight.detach(),
        )
        for side, model in zip(sides, (given.student, given.teacher), strict=True)
    )
    leaves = {
        "to_student.weight": torch.tensor(reference.starting_projector(teacher, student), requires_grad=True),
        "to_teacher.weight": torch.tensor(reference.starting_projector(student, teacher), requires_grad=True),
        "student states": given.student_hidden_NH.clone().requires_grad_(),
    }
    if name == "cma":
        leaves["query.weight"] = torch.tensor(reference.starting_query(student, teacher), requires_grad=True)
    states = leaves["student states"].split([len(own) for own, _ in given.ids])
    others = given.teacher_hidden_MH.split([len(theirs) for _, theirs in given.ids])
    total = torch.zeros((), dtype=torch.float64)
    for (own, theirs), own_states, their_states in zip(given.ids, states, others, strict=True):
        units, prompt = partition(*sides, own, theirs), [PROMPT_END]
        response = reference.Response(units, prompt + own, prompt + theirs, own_states, their_states)
        projectors = leaves["to_student.weight"], leaves["to_teacher.weight"]
        if name == "cma":
            total = total + reference.cma_loss(student, teacher, *projectors, leaves["query.weight"], response)
        else:
            total = total + reference.eta_loss(student, teacher, *projectors, response)
    total.backward()
    gradients = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    assert student.head.grad is not None
    return total.detach(), gradients | {"student head": student.head.grad}


@every_objective
@pytest.mark.parametrize("chunk_tokens", [1, 5, 1000])
def test_loss_and_gradients_equal_the_reference(name: str, chunk_tokens: int) -> None:
    found = graded(name, batch(), chunk_tokens)
    loss, gradients = referred(name, batch())
    torch.testing.assert_close(found.loss, loss, rtol=1e-9, atol=1e-9)
    assert len(gradients) == (5 if name == "cma" else 4)
    for key, expected in gradients.items():
        assert expected.any()
        torch.testing.assert_close(found.gradients.pop(key), expected, rtol=1e-7, atol=1e-9, msg=key)
    assert set(found.gradients) == {"teacher states", "teacher head", "student embeddings"}
    assert all(gradient is None for gradient in found.gradients.values())


@every_objective
def test_a_response_has_the_same_loss_whatever_is_beside_it(name: str) -> None:
    whole = graded(name, batch())
    alone = [graded(name, batch(), responses=slice(i, i + 1)) for i in range(len(batch().ids))]
    torch.testing.assert_close(torch.cat([one.stats.loss_U for one in alone]), whole.stats.loss_U)
    assert float(whole.loss) == pytest.approx(float(whole.stats.loss_U.sum()))


def test_eta_grades_matches_alone_and_cma_everything() -> None:
    units = [unit for own, theirs in batch().ids for unit in partition(*sides_of(batch()), own, theirs)]
    one_to_one = [len(unit.student_ids) == len(unit.teacher_ids) == 1 for unit in units]
    eta, cma = (graded(name, batch()).stats for name in ("eta", "cma"))
    assert 0 < int(eta.supervised_U.sum()) <= sum(one_to_one) < len(units)
    assert not eta.loss_U[~eta.supervised_U].any()
    assert cma.supervised_U.all()
    assert (cma.loss_U > 0).all()


def sides_of(given: Batch) -> tuple[Side, Side]:
    return given.scene.student, given.scene.teacher


@every_objective
def test_without_a_response_backward_reaches_every_parameter_with_zeros(name: str) -> None:
    nothing = graded(name, batch(), responses=slice(0, 0))
    assert float(nothing.loss) == 0
    for key, gradient in nothing.gradients.items():
        if key in ("student states", "student head") or key.endswith(".weight"):
            assert gradient is not None, key
            assert not gradient.any()


@every_objective
def test_a_translated_state_keeps_the_logits_of_shared_tokens(name: str) -> None:
    """Where the widths and heads allow it: the student's head is the teacher's, rotated, for tokens that both have."""
    given = batch()
    shared = given.pair.shared_vocab
    student, teacher = model_of(given.scene.student, WIDTHS[1], 3), given.teacher
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    with torch.no_grad():
        own = student.get_output_embeddings().weight
        own[shared.student_ids_V] = teacher.get_output_embeddings().weight[shared.teacher_ids_V] @ rotation
    projectors = OBJECTIVES[name].build_projectors(student, teacher, given.pair)
    state = torch.randn(6, dtype=torch.float64)
    translated, back = projectors.to_student(state), projectors.to_teacher(projectors.to_student(state))
    logits = student.get_output_embeddings()(translated)[shared.student_ids_V]
    torch.testing.assert_close(logits, teacher.get_output_embeddings()(state)[shared.teacher_ids_V])
    torch.testing.assert_close(back, state)


@pytest.mark.parametrize("weakest", [0.05, 1e-3, 0.0], ids=["strong", "weak", "none"])
def test_the_map_is_the_pseudo_inverse_without_weak_directions(weakest: float) -> None:
    """Of a source whose directions are of length 1, but for one."""
    directions = torch.linalg.qr(torch.randn(40, 6, dtype=torch.float64)).Q
    source = directions * torch.tensor([1, 1, 1, 1, 1, weakest], dtype=torch.float64)
    target = torch.randn(40, 4, dtype=torch.float64)
    expected = np.linalg.pinv(source.numpy(), rcond=0.01) @ target.numpy()
    found = least_squares_map(source, target)
    torch.testing.assert_close(found, torch.from_numpy(expected))
    assert bool(found[5].abs().max() > 1e-9) == (weakest == 0.05)  # what is left is rounding


@every_objective
def test_no_logits_are_larger_than_a_chunk(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most four rows of a source at a time; a longer unit is a chunk of its own."""
    units = [unit for own, theirs in batch().ids for unit in partition(*sides_of(batch()), own, theirs)]
    longest = max(max(len(unit.student_ids), len(unit.teacher_ids)) for unit in units)
    whole, real, seen = graded(name, batch()), LMHead.project, []

    def project(head: LMHead, states: Tensor, *arguments: Tensor) -> Tensor:
        seen.append(len(states))
        return real(head, states, *arguments)

    monkeypatch.setattr(LMHead, "project", project)
    cut = graded(name, batch(), chunk_tokens=4)
    assert len(seen) > 4 * 6
    assert max(seen) <= max(4, longest) < len(units)
    torch.testing.assert_close(cut.loss, whole.loss)


@every_objective
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_lower_precision_is_finite_and_near(name: str, dtype: torch.dtype) -> None:
    given = batch()
    student, teacher = (copy.deepcopy(model).to(dtype) for model in (given.student, given.teacher))
    lower = replace(
        given,
        student=student,
        teacher=teacher,
        student_hidden_NH=given.student_hidden_NH.to(dtype),
        teacher_hidden_MH=given.teacher_hidden_MH.to(dtype),
    )
    found = graded(name, lower)
    assert found.loss.dtype == torch.float32
    assert all(gradient is None or torch.isfinite(gradient).all() for gradient in found.gradients.values())
    exact = graded(name, given)
    assert float(found.loss) == pytest.approx(float(exact.loss), rel=0.1 if dtype == torch.bfloat16 else 1e-4)


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(RecipeError, match="projector_lr is 0"):
        DSKDEta(projector_lr=0)
    with pytest.raises(RecipeError, match="divergence is 'klx'"):
        DSKDCma("klx")  # type: ignore[arg-type]
