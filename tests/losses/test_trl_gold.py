"""GOLDLoss against TRL's own ULDLoss (PyPI trl 1.16.0): the package itself where it is installed, its numbers always.

    python -m tests.losses.test_trl_gold        writes those numbers again; needs the extra `bench`

TRL reads the row behind the right one when it merges as "observed"; it is given its rows one place later here, so that
the two errors cancel. Its mean over units becomes a sum, and its match by string our match by bytes. With its errors
left as they are: test_trl_gold_as_it_is.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from simct_pl import GOLDLoss
from simct_pl.losses.inputs.unit_rows import build_unit_rows
from simct_pl.losses.inputs.vocab_tables import PairTables
from tests.losses.test_all_objectives import chunk_of
from tests.reference.bridge import scene_inputs
from tests.reference.scenes import Scene, random_scene
from tests.reference.vocabulary import Side

PINNED = Path(__file__).parent / "trl_gold.json"
MERGES = {"first": "observed", "last": "bayesian"}
SEEDS = (1, 4, 12)
BETAS = (0.0, 0.5, 1.0)
CASES = [(seed, merge, beta) for seed in SEEDS for merge in MERGES for beta in BETAS]


def scene_without_stop(seed: int) -> Scene:
    """TRL leaves the stop out, and knows of no further stops: they are tokens without a name in common."""
    scene = random_scene(seed)
    if scene.units[-1].is_stop:
        cut = scene.student_ids[:-1], scene.teacher_ids[:-1], scene.student_logits_SV[:-1], scene.teacher_logits_TV[:-1]
        scene = Scene(scene.student, scene.teacher, *cut)
    student, teacher = (replace(side, stop_ids=side.stop_ids[:1]) for side in (scene.student, scene.teacher))
    return replace(scene, student=student, teacher=teacher)


def trl_objective(strategy: str, beta: float, *, skip_stop: bool, tokenizers: tuple[Any, Any] = (None, None)) -> Any:
    """TRL's hybrid ULDLoss; tokenizers: of the student and of the teacher, for its match by string."""
    from trl.experimental.gold.gold_trainer import ULDLoss

    config = SimpleNamespace(
        uld_crossentropy_weight=0.0,
        uld_distillation_weight=1.0,
        uld_student_temperature=1.0,
        uld_teacher_temperature=1.0,
        uld_skip_student_eos=skip_stop,
        uld_skip_teacher_eos=skip_stop,
        use_extended_uld=True,
        uld_token_merge_strategy=strategy,
        uld_use_hybrid_loss=True,
        uld_hybrid_matched_weight=None,
        uld_hybrid_unmatched_weight=None,
        beta=beta,
    )
    return ULDLoss(config, *tokenizers, device="cpu")


def byte_offsets(side: Side, ids: list[int]) -> Tensor:
    """Start and end of each token of a response, [1, 1 + tokens, 2]; in front, the one token of the prompt."""
    ends = torch.tensor([0, *(len(side.tokens[i] or b"") for i in ids)]).cumsum(0)
    return torch.stack([torch.cat([ends[:1], ends[:-1]]), ends], 1)[None]


def trl_loss(scene: Scene, merge: str, beta: float) -> float:
    """TRL's loss times its number of units."""
    alignment, shared_vocab = scene_inputs(scene)
    loss = trl_objective(MERGES[merge], beta, skip_stop=False)
    tables = PairTables.build(shared_vocab)
    student_ids, teacher_ids = tables.student.ids_V, tables.teacher.ids_V
    loss._vocab_mapping = dict(zip(teacher_ids.tolist(), student_ids.tolist(), strict=True))
    loss._teacher_matched_ids, loss._student_matched_ids = set(teacher_ids.tolist()), set(student_ids.tolist())
    loss.mapping_tensor = torch.zeros(scene.teacher_logits_TV.shape[1], dtype=torch.int64)
    loss.mapping_tensor[teacher_ids] = student_ids
    sides = (
        (scene.student, scene.student_ids, scene.student_logits_SV),
        (scene.teacher, scene.teacher_ids, scene.teacher_logits_TV),
    )
    logits, ids, offsets = [], [], []
    for side, own_ids, rows in sides:
        # One position of a prompt in front; row p predicts token p + 1, or token p for "observed".
        padding = torch.zeros(1, rows.shape[1], dtype=rows.dtype)
        logits.append(torch.cat([rows, padding] if merge == "last" else [padding, rows])[None])
        ids.append(torch.tensor([-100, *own_ids])[None])
        offsets.append(byte_offsets(side, own_ids))
    given = [tokens.clamp_min(0) for tokens in ids]
    found: Tensor = loss(*logits, *ids, *given, *offsets)
    return float(found) * alignment.num_units


def our_loss(scene: Scene, merge: str, beta: float) -> float:
    chunk = chunk_of(scene, scene.student_logits_SV, scene.teacher_logits_TV)
    return float(GOLDLoss(merge, beta)(chunk).loss_U.sum())  # type: ignore[arg-type]


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed: pip install '.[bench]'")
@pytest.mark.parametrize(("seed", "merge", "beta"), CASES)
def test_it_is_trls_loss(seed: int, merge: str, beta: float) -> None:
    scene = scene_without_stop(seed)
    assert our_loss(scene, merge, beta) == pytest.approx(trl_loss(scene, merge, beta), rel=1e-9)


@pytest.mark.parametrize(("seed", "merge", "beta"), CASES)
def test_it_is_the_number_that_trl_gave(seed: int, merge: str, beta: float) -> None:
    pinned = json.loads(PINNED.read_text())
    assert our_loss(scene_without_stop(seed), merge, beta) == pytest.approx(pinned[f"{seed} {merge} {beta}"], rel=1e-9)


def test_the_scenes_have_units_of_several_tokens() -> None:
    for seed in SEEDS:
        rows = build_unit_rows([scene_inputs(scene_without_stop(seed))[0]], scene_inputs(scene_without_stop(seed))[1])
        assert 0 < int(rows.one_to_one_U.sum()) < rows.num_units


if __name__ == "__main__":
    numbers = {f"{seed} {merge} {beta}": trl_loss(scene_without_stop(seed), merge, beta) for seed, merge, beta in CASES}
    PINNED.write_text(json.dumps(numbers, indent=1) + "\n")
