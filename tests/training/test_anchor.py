"""The anchor against a reference in float64 that shares no code with it, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.live_bytes import LiveBytes
from benchmarks.synthetic import make_problem
from callbacks import AlignmentStats
from simct_pl import DSKDEta, OneToOneAligner, SharedVocabLoss, SimCTLoss, TokenConditionalLoss
from simct_pl.errors import RecipeError
from simct_pl.losses.base import Objective
from simct_pl.losses.inputs.unit_rows import build_unit_rows
from simct_pl.losses.inputs.vocab_tables import PairTables
from simct_pl.models.lm_head import LMHead
from simct_pl.models.read_once import ReadOnce
from simct_pl.training.anchor import AnchorStates
from simct_pl.training.chunked_loss import chunked_loss
from simct_pl.training.module import DistillModule
from simct_pl.types import STUDENT_END, STUDENT_START, Rollout
from tests.reference.bridge import shared_vocab_of
from tests.tiny import data, distill_module, sampled, trainer
from tests.training.test_chunked_loss import WIDTH, batch, conditional

WEIGHT = 0.7


def softmax(row: np.ndarray) -> np.ndarray:
    weights = np.exp(row - row.max())
    return weights / weights.sum()


def kl_and_gradient(student: np.ndarray, anchor: np.ndarray) -> tuple[float, np.ndarray]:
    """KL(softmax student || softmax anchor) of one row of logits, and its gradient: p (log p/r - KL)."""
    p, r = softmax(student), softmax(anchor)
    kl = float((p * np.log(p / r)).sum())
    return kl, p * (np.log(p / r) - kl)


@pytest.mark.parametrize("softcap", [None, 2.0], ids=["plain head", "soft-capped head"])
@pytest.mark.parametrize("chunk_tokens", [1, 3, 100])
@pytest.mark.parametrize("make", [lambda: SimCTLoss("sum_logprob", "marginal"), conditional], ids=["marginal", "token"])
def test_value_and_gradient_are_those_of_the_divergence(
    make: Callable[[], Objective], chunk_tokens: int, softcap: float | None
) -> None:
    given, objective = batch(), make()
    torch.manual_seed(1)
    weights = given.student_head.weight.shape
    frozen = nn.Linear(WIDTH, weights[0], dtype=torch.float64)
    frozen_NH = torch.randn_like(given.student_hidden_NH, requires_grad=True)

    def run(weight: float | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        hidden_NH = given.student_hidden_NH.clone().requires_grad_()
        given.student_head.zero_grad()
        vocab = shared_vocab_of(given.scene.student, given.scene.teacher)
        loss, stats = chunked_loss(
            hidden_NH,
            given.teacher_hidden_MH,
            build_unit_rows(given.alignments, vocab, path_builder=objective.path_builder),
            student_head=LMHead(given.student_head, softcap=softcap),
            teacher_head=LMHead(given.teacher_head),
            objective=objective,
            tables=PairTables.build(vocab),
            chunk_tokens=chunk_tokens,
            anchor=None if weight is None else AnchorStates(frozen_NH, LMHead(frozen, softcap=softcap), weight),
        )
        loss.backward()
        head = given.student_head
        assert hidden_NH.grad is not None
        assert head.weight.grad is not None
        assert head.bias.grad is not None
        return loss.detach(), stats.anchor_U, hidden_NH.grad, head.weight.grad.clone(), head.bias.grad.clone()

    plain, held = run(None), run(WEIGHT)
    assert not plain[1].any()
    assert frozen_NH.grad is None
    assert frozen.weight.grad is None

    # By hand: the rows of the tokens of every supervised unit, response after response.
    hidden, frozen_states = given.student_hidden_NH.numpy(), frozen_NH.detach().numpy()
    heads = [[p.detach().numpy() for p in head.parameters()] for head in (given.student_head, frozen)]
    squash = (lambda x: x) if softcap is None else (lambda x: softcap * np.tanh(x / softcap))
    kl_U, first, grad_logits = [], 0, np.zeros((len(hidden), weights[0]))
    for alignment in given.alignments:
        for unit in alignment.units_U6[alignment.supervised_U]:
            total = 0.0
            for i in range(first + unit[STUDENT_START], first + unit[STUDENT_END]):
                rows = [w @ states[i] + b for states, (w, b) in zip((hidden, frozen_states), heads, strict=True)]
                kl, gradient = kl_and_gradient(squash(rows[0]), squash(rows[1]))
                slope = 1.0 if softcap is None else 1 - np.tanh(rows[0] / softcap) ** 2
                total, grad_logits[i] = total + kl, WEIGHT * gradient * slope
            kl_U.append(WEIGHT * total)
        first += alignment.num_student_tokens
    expected = (sum(kl_U), np.array(kl_U), grad_logits @ heads[0][0], grad_logits.T @ hidden, grad_logits.sum(0))
    assert min(kl_U) > 0.01
    for i, (one, other, by_hand) in enumerate(zip(held, plain, expected, strict=True)):
        np.testing.assert_allclose((one - other).numpy(), by_hand, rtol=1e-8, atol=1e-10, err_msg=str(i))


def moved_module(**overrides: Any) -> DistillModule:
    """A student that has left where it began."""
    module = distill_module(**{"anchor_weight": WEIGHT, "chunk_tokens": 7, **overrides})
    module.setup("fit")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.student.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return module


def from_whole_logits(module: DistillModule, rollouts: list[Rollout]) -> float:
    """WEIGHT * KL over the tokens of all units, by one forward of each model on each response, in float64."""
    start, total = distill_module().student.eval(), 0.0
    for rollout, alignment in zip(rollouts, module.align(rollouts).alignments, strict=True):
        ids = torch.tensor([[*rollout.prompt_ids, *rollout.response_ids]])
        with torch.no_grad():
            logs = [m(ids).logits[0, len(rollout.prompt_ids) - 1 :].double().numpy() for m in (module.student, start)]
        for unit in alignment.units_U6[alignment.supervised_U]:
            total += sum(kl_and_gradient(*(log[i] for log in logs))[0] for i in range(unit[0], unit[1]))
    return WEIGHT * total


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"objective": TokenConditionalLoss()},
        {"objective": SharedVocabLoss(), "aligner": OneToOneAligner()},
        {"objective": DSKDEta()},
    ],
    ids=["marginal", "token", "exact", "two spaces"],
)
def test_the_student_is_held_to_the_one_in_the_folder(overrides: dict[str, Any]) -> None:
    module, free = moved_module(**overrides), moved_module(anchor_weight=0.0, **overrides)
    rollouts = sampled(module)
    held, stats = module.loss_sum(rollouts, module.align(rollouts))
    alone, nothing = free.loss_sum(rollouts, free.align(rollouts))
    expected = from_whole_logits(module, rollouts)
    assert expected > 0.1
    assert float(held - alone) == pytest.approx(expected, rel=1e-3)
    assert float(stats.anchor_U.sum()) == pytest.approx(expected, rel=1e-4)
    assert torch.equal(stats.loss_U, nothing.loss_U)
    assert not nothing.anchor_U.any()
    with torch.no_grad():  # held-out losses are the objective's alone
        assert module.loss_sum(rollouts, module.align(rollouts))[0].item() == pytest.approx(alone.item(), rel=1e-5)


def test_it_is_zero_where_the_student_begins() -> None:
    module = distill_module(anchor_weight=WEIGHT)
    rollouts = sampled(module)
    _, stats = module.loss_sum(rollouts, module.align(rollouts))
    assert float(stats.anchor_U.abs().max()) < 1e-5


def test_without_a_weight_nothing_is_loaded_and_nothing_of_it_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    load = ReadOnce.load

    def counted(role: str, *arguments: Any, **named: Any) -> ReadOnce:
        loaded.append(role)
        return load(role, *arguments, **named)

    monkeypatch.setattr(ReadOnce, "load", counted)
    free = distill_module()
    assert loaded == ["student", "teacher"]
    assert free.student_with_loss.anchor is None
    loaded.clear()
    held = distill_module(anchor_weight=WEIGHT)
    assert sorted(loaded) == ["student", "student", "teacher"]
    assert held.state_dict().keys() == free.state_dict().keys()
    assert len(list(held.parameters())) == len(list(free.parameters()))


def test_it_is_logged_and_holds_the_student_back(tmp_path: Path) -> None:
    found = {}
    for weight in (0.0, 30.0):
        module = distill_module(anchor_weight=weight)
        before = [parameter.detach().clone() for parameter in module.student.parameters()]
        run = trainer(tmp_path, AlignmentStats(), max_steps=4, limit_val_batches=0)
        run.fit(module, datamodule=data())
        far = sum(float((p - q).pow(2).sum()) for p, q in zip(module.student.parameters(), before, strict=True))
        found[weight] = far, {name: float(value) for name, value in run.callback_metrics.items()}
    assert found[30.0][0] < found[0.0][0]
    metrics = found[30.0][1]
    assert metrics["policy/anchor_kl"] > 1e-5
    tokens = metrics["align/coverage"]  # the divergence is a token of a unit, the loss a token of a response
    assert metrics["loss/anchor"] == pytest.approx(30 * metrics["policy/anchor_kl"] * tokens, rel=1e-3)
    parts = metrics["loss/anchor"] + metrics["loss/shared_units"] + metrics["loss/span_units"]
    assert metrics["loss/train"] == pytest.approx(parts, rel=1e-4)
    assert not {"policy/anchor_kl", "loss/anchor"} & found[0.0][1].keys()


def test_a_weight_below_zero_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"anchor_weight is -1.0; expected 0"):
        distill_module(anchor_weight=-1.0)


def most_alive(num_tokens: int) -> int:
    problem = make_problem(num_tokens, 3000, 2000, 16, 16)
    held = torch.randn_like(problem.student_hidden_NH)
    with LiveBytes() as alive:
        loss, _ = chunked_loss(
            problem.student_hidden_NH,
            problem.teacher_hidden_MH,
            problem.rows,
            student_head=problem.student_head,
            teacher_head=problem.teacher_head,
            objective=SimCTLoss("sum_logprob", "marginal"),
            tables=problem.tables,
            chunk_tokens=64,
            anchor=AnchorStates(held, problem.student_head, WEIGHT),
        )
        loss.backward()
    return alive.most


def test_memory_is_flat_in_the_response() -> None:
    short, long = most_alive(256), most_alive(2048)
    whole = (2048 - 256) * 3000 * 4
    assert short > 3 * 64 * 2000 * 4, "three chunks of logits are more"
    assert long - short < whole / 20, f"{long - short} bytes more; the anchor's logits alone would be {whole}"
