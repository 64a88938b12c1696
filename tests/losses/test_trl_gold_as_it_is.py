"""trl_gold_loss against TRL's own ULDLoss with nothing put right: late rows, match by string, the last token left out.

python -m tests.losses.test_trl_gold_as_it_is        writes TRL's numbers again; needs the extra `bench`
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from simct_pl import GOLDLoss
from simct_pl.errors import AlignmentError, RecipeError
from tests.losses.test_all_objectives import chunk_of
from tests.losses.test_trl_gold import byte_offsets, trl_objective
from tests.losses.trl_gold import matches_by_spelling, trl_gold_loss
from tests.reference.bridge import scene_inputs
from tests.reference.scenes import Scene, random_scene
from tests.reference.vocabulary import Side

PINNED = Path(__file__).parent / "trl_gold_as_it_is.json"
SEEDS = (1, 4, 12, 104)
CASES = [(seed, merge, beta) for seed in SEEDS for merge in ("observed", "bayesian") for beta in (0.0, 0.5, 1.0)]
STOPPED, CUT_INSIDE_A_UNIT = 4, 104


def spellings(side: Side, space: str) -> dict[str, int]:
    """A tokenizer's get_vocab(): spaces in its family's way, bytes in hexadecimal, control tokens by number."""
    names = {}
    for token_id, token in enumerate(side.tokens):
        name = f"<{token_id}>" if token is None else token.decode("latin-1").replace(" ", space)
        names[f"<0x{token[0]:02X}>" if token and token_id in side.fallback_ids else name] = token_id
    return names


def vocabularies(scene: Scene) -> tuple[dict[str, int], dict[str, int]]:
    return spellings(scene.student, "\u0120"), spellings(scene.teacher, "\u2581")


def trls(scene: Scene, merge: str, beta: float) -> tuple[float, Tensor]:
    """TRL's number and its gradient for the student's logits. Row p of what it gets predicts token p + 1."""
    tokenizers = tuple(SimpleNamespace(get_vocab=lambda names=names: names) for names in vocabularies(scene))
    loss = trl_objective(merge, beta, skip_stop=True, tokenizers=tokenizers)  # type: ignore[arg-type]
    student_SV = scene.student_logits_SV.clone().requires_grad_()
    logits, labels, offsets = [], [], []
    for side, ids, rows in (
        (scene.student, scene.student_ids, student_SV),
        (scene.teacher, scene.teacher_ids, scene.teacher_logits_TV),
    ):
        logits.append(torch.cat([rows, torch.full_like(rows[:1], torch.nan)])[None])  # behind the end nobody may read
        labels.append(torch.tensor([-100, *ids])[None])
        offsets.append(byte_offsets(side, ids))
    found: Tensor = loss(*logits, *labels, *(label.clamp_min(0) for label in labels), *offsets)
    (gradient_SV,) = torch.autograd.grad(found.sum(), student_SV)
    return float(found.detach()), gradient_SV


def ours(scene: Scene, merge: str, beta: float) -> tuple[float, Tensor]:
    student_SV = scene.student_logits_SV.clone().requires_grad_()
    matches = matches_by_spelling(*vocabularies(scene))
    given = student_SV, scene.teacher_logits_TV, *scene_inputs(scene)
    loss = trl_gold_loss(*given, matches, merge=merge, beta=beta)  # type: ignore[arg-type]
    (gradient_SV,) = torch.autograd.grad(loss, student_SV)
    return float(loss.detach()), gradient_SV


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed: pip install '.[bench]'")
@pytest.mark.parametrize(("seed", "merge", "beta"), CASES)
def test_it_is_trls_loss_and_gradient(seed: int, merge: str, beta: float) -> None:
    scene = random_scene(seed)
    loss, gradient = ours(scene, merge, beta)
    expected, expected_gradient = trls(scene, merge, beta)
    assert loss == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(("seed", "merge", "beta"), CASES)
def test_it_is_the_number_that_trl_gave(seed: int, merge: str, beta: float) -> None:
    pinned = json.loads(PINNED.read_text())
    assert ours(random_scene(seed), merge, beta)[0] == pytest.approx(pinned[f"{seed} {merge} {beta}"], rel=1e-9)


def test_the_scenes_show_what_differs() -> None:
    """A stop; an end inside a unit, where the two sides lose unequal texts with their last tokens; other matches."""
    ends = {seed: random_scene(seed).units[-1] for seed in SEEDS}
    assert ends[STOPPED].is_stop
    assert not ends[CUT_INSIDE_A_UNIT].is_stop
    assert min(len(ends[CUT_INSIDE_A_UNIT].student_ids), len(ends[CUT_INSIDE_A_UNIT].teacher_ids)) > 1
    cut = random_scene(CUT_INSIDE_A_UNIT)
    assert cut.student.tokens[cut.student_ids[-1]] != cut.teacher.tokens[cut.teacher_ids[-1]]
    scene = random_scene(STOPPED)
    student_ids, _ = matches_by_spelling(*vocabularies(scene))
    _, shared_vocab = scene_inputs(scene)
    assert set(student_ids.tolist()) != set(shared_vocab.student_ids_V.tolist())


@pytest.mark.parametrize("merge", ["observed", "bayesian"])
def test_what_is_right_is_another_number(merge: str) -> None:
    scene = random_scene(CUT_INSIDE_A_UNIT)
    right = GOLDLoss("first" if merge == "observed" else "last", 0.5)(
        chunk_of(scene, scene.student_logits_SV, scene.teacher_logits_TV)
    )
    assert float(right.loss_U.mean()) != pytest.approx(ours(scene, merge, 0.5)[0], rel=0.1)


def test_a_response_of_one_token_is_a_zero_that_runs_backward() -> None:
    scene = random_scene(STOPPED)
    one = scene.student.ids_by_bytes()[b"a"], scene.teacher.ids_by_bytes()[b"a"]
    rows = scene.student_logits_SV[:1], scene.teacher_logits_TV[:1]
    loss, gradient = ours(Scene(scene.student, scene.teacher, [one[0]], [one[1]], *rows), "observed", 0.5)
    assert loss == 0
    assert not gradient.any()


def test_logits_without_a_row_for_each_token_are_refused() -> None:
    scene = random_scene(STOPPED)
    given = scene.student_logits_SV[:-1], scene.teacher_logits_TV, *scene_inputs(scene)
    with pytest.raises(AlignmentError, match="student logits have shape"):
        trl_gold_loss(*given, matches_by_spelling(*vocabularies(scene)))


def test_an_unknown_merge_is_refused() -> None:
    scene = random_scene(STOPPED)
    with pytest.raises(RecipeError, match="merge is 'first'"):
        ours(scene, "first", 0.5)


if __name__ == "__main__":
    numbers = {f"{seed} {merge} {beta}": trls(random_scene(seed), merge, beta)[0] for seed, merge, beta in CASES}
    PINNED.write_text(json.dumps(numbers, indent=1) + "\n")
