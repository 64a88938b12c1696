"""Fits of a student with adapters: what moves, what a checkpoint holds, what is exported, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from callbacks import Checkpoint, HFExport
from simct_pl import DistillModule, DSKDEta
from simct_pl.checkpointing.folder import CheckpointFolder, SavedCheckpoint
from simct_pl.errors import CheckpointError, ExportError, RecipeError
from simct_pl.models.adapter_folder import adapter_state, write_adapter
from simct_pl.models.merging import merged_state_dict
from simct_pl.models.read_once import ReadOnce
from simct_pl.rollout.hf import HFEngine
from simct_pl.rollout.inference_model import InferenceModel
from simct_pl.training.optim import OptimizerConfig
from simct_pl.warmup import SFTModule
from tests.callbacks.test_checkpoint import At, cut, newest
from tests.models.test_lora import PLAIN, STUDENT, logits, move
from tests.tiny import ASSETS, data, distill_module, sampled, trainer, unloaded_module

LORA = {**PLAIN, "lora_dropout": 0.1}  # which draws in every forward
FAST = OptimizerConfig(lr=3e-3)


def fit(
    folder: Path,
    *callbacks: L.Callback,
    steps: int = 4,
    resume: SavedCheckpoint | None = None,
    **overrides: Any,
) -> DistillModule:
    L.seed_everything(1, verbose=False)
    module = unloaded_module(**{"lora": LORA, "optimizer": FAST, **overrides})
    run = trainer(folder, *callbacks, max_steps=steps, limit_val_batches=0)
    state = str(resume.state) if resume else None
    run.fit(module, datamodule=data(num_train_batches=3), ckpt_path=state, weights_only=True)
    return module


def state_of(module: L.LightningModule) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def gradients(module: DistillModule, parts: list[list[int]]) -> dict[str, Tensor]:
    rollouts = sampled(module)
    module.zero_grad()
    for part in parts:
        chosen = [rollouts[i] for i in part]
        module.loss_sum(chosen, module.align(chosen))[0].backward()
    return {name: p.grad.clone() for name, p in module.student.named_parameters() if p.grad is not None}


def test_adapters_move_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = fit(tmp_path)
    base = load_file(f"{STUDENT}/model.safetensors")
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained)
    for name, parameter in module.student.named_parameters():
        if not parameter.requires_grad:
            assert torch.equal(parameter, base[name.replace(".base_layer.", ".")]), name
    assert any(p.detach().any() for name, p in module.student.named_parameters() if "lora_B" in name)
    groups = module.trainer.optimizers[0].param_groups
    assert sum(len(group["params"]) for group in groups) == len(trained) == len(module.trainer.optimizers[0].state)
    size = sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert module.student_with_loss.parameter_groups()[0]["params"][0].requires_grad
    assert size < 0.1 * sum(p.numel() for p in module.student.parameters())


def test_how_a_batch_is_cut_and_recomputed_activations_change_no_gradient() -> None:
    found = []
    for checkpointing, parts in (
        (False, [list(range(6))]),
        (False, [[0, 3], [1], [2, 4, 5]]),
        (True, [list(range(6))]),
    ):
        module = distill_module(lora=PLAIN, gradient_checkpointing=checkpointing)
        module.setup("fit")
        move(module.student)
        found.append(gradients(module, parts))
    first, *others = found
    assert all("lora_" in name for name in first)
    assert any(gradient.abs().max() > 1e-3 for gradient in first.values())
    for other in others:
        assert other.keys() == first.keys()
        assert max(float((other[name] - first[name]).norm() / first[name].norm()) for name in first) < 1e-5


def test_gradients_of_adapters_follow_from_those_of_the_weights() -> None:
    """dL/dB = s dL/dW Aᵀ and dL/dA = s Bᵀ dL/dW, with dL/dW from a student whose merged weights are trained whole."""
    module = distill_module(lora=PLAIN)
    module.setup("fit")
    move(module.student)
    whole = distill_module()
    whole.setup("fit")
    whole.student.load_state_dict(merged_state_dict(module.student))
    rollouts, found = sampled(module), []
    for one in (module, whole):
        one.loss_sum(rollouts, one.align(rollouts))[0].backward()
        found.append({name: p.grad for name, p in one.student.named_parameters() if p.grad is not None})
    adapters, weights = found
    own = dict(module.student.named_parameters())
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        a, b = own[f"{name}.lora_A.default.weight"], own[f"{name}.lora_B.default.weight"]
        slope = weights[f"{name}.weight"]
        assert torch.allclose(adapters[f"{name}.lora_B.default.weight"], 2 * slope @ a.T, rtol=1e-3, atol=1e-4)
        assert torch.allclose(adapters[f"{name}.lora_A.default.weight"], 2 * b.T @ slope, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_cut_run_goes_on_bit_for_bit_from_a_checkpoint_without_the_base(tmp_path: Path) -> None:
    alone = state_of(fit(tmp_path / "alone", Checkpoint(every_n_steps=1), steps=5))
    with pytest.raises(KeyError):
        fit(tmp_path / "cut", Checkpoint(every_n_steps=1), At(4, cut), steps=5)
    saved = newest(tmp_path / "cut")
    state = torch.load(saved.state, weights_only=True)
    assert all("lora_" in name for name in state["state_dict"])
    assert saved.state.stat().st_size < (ASSETS / "student/model.safetensors").stat().st_size
    resumed = fit(tmp_path / "cut", Checkpoint(every_n_steps=1), steps=5, resume=saved)
    assert alone.keys() == state_of(resumed).keys()
    assert all(torch.equal(tensor, alone[name]) for name, tensor in resumed.state_dict().items())


def test_a_checkpoint_is_of_its_base_and_its_adapters(tmp_path: Path) -> None:
    student = tmp_path / "student"
    shutil.copytree(STUDENT, student)
    fit(tmp_path / "run", Checkpoint(every_n_steps=1), steps=1, student=str(student))
    saved = CheckpointFolder(tmp_path / "run/checkpoints").newest_good()
    with pytest.raises(CheckpointError, match="is of other adapters"):
        fit(
            tmp_path / "run",
            Checkpoint(),
            student=str(student),
            resume=saved,
            lora={**LORA, "target_modules": ["q_proj"]},
        )
    with pytest.raises(CheckpointError, match="is of a LoRA student"):
        fit(tmp_path / "run", Checkpoint(), student=str(student), resume=saved, lora=None)
    weights = load_file(student / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, student / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"student' are no longer those that the checkpoint's adapters were"):
        fit(tmp_path / "run", Checkpoint(), student=str(student), resume=saved)


def test_a_checkpoint_without_lora_is_as_it_was(tmp_path: Path) -> None:
    plain = fit(tmp_path, Checkpoint(every_n_steps=1), steps=1, lora=None)
    saved = CheckpointFolder(tmp_path / "checkpoints").newest_good()
    assert saved is not None
    state = torch.load(saved.state, weights_only=True)
    assert state["state_dict"].keys() == plain.state_dict().keys()
    assert "lora" not in state
    with pytest.raises(CheckpointError, match="is of a student without LoRA"):
        fit(tmp_path, Checkpoint(), resume=saved)


def test_exports_merged_and_as_an_adapter_that_is_a_student_again(tmp_path: Path) -> None:
    merged, adapter = tmp_path / "merged", tmp_path / "adapter"
    module = fit(tmp_path / "run", HFExport(str(merged)), HFExport(str(adapter), adapter=True))
    own = logits(module.student.eval())
    files = {path.name for path in merged.iterdir()}
    added = {"generation_config.json", "README.md"}
    assert files == {path.name for path in Path(STUDENT).iterdir()} - {"MODEL_CARD.md"} | added
    whole = distill_module(student=str(merged))
    assert torch.allclose(logits(whole.student.eval()), own, atol=1e-4)
    assert load_file(merged / "model.safetensors").keys() == load_file(f"{STUDENT}/model.safetensors").keys()
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(str(adapter)).eval()
    assert torch.equal(logits(theirs), own)
    again = distill_module(student=str(adapter))  # no lora: its own
    assert (again.student_path, again.starts_from, again.tokenizer_path) == (STUDENT, str(adapter), str(adapter))
    assert torch.equal(logits(again.student.eval()), own)
    trained_on = fit(tmp_path / "on", student=str(adapter), lora=None)
    before = adapter_state(again.student)
    moved = adapter_state(trained_on.student)
    assert moved.keys() == before.keys()
    assert any(not torch.equal(moved[name], before[name]) for name in before)
    with pytest.raises(ExportError, match="is a model that the run starts from"):
        fit(tmp_path / "over", HFExport(str(adapter)), student=str(adapter), lora=None)


def test_an_adapter_answers_as_its_merged_model(tmp_path: Path) -> None:
    """`evaluate` and `generate` take adapter folders."""
    module = distill_module(lora=PLAIN)
    move(module.student)
    folder = tmp_path / "adapter"
    folder.mkdir()
    write_adapter(module.student, adapter_state(module.student), folder)
    asked = InferenceModel.check(str(folder), HFEngine(), "float32")
    assert asked.path == str(folder)
    assert "+" in asked.identity["weights"]
    with asked.loaded():
        assert isinstance(asked.engine, HFEngine)
        assert asked.engine._model is not None
        assert torch.equal(logits(asked.engine._model), logits(module.student.eval()))


def test_an_adapter_is_exported_of_a_student_that_has_one(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"HFExport has adapter: true.*model\.init_args\.lora"):
        fit(tmp_path, HFExport(str(tmp_path / "x"), adapter=True), lora=None)


@pytest.mark.parametrize("objective", [None, DSKDEta()], ids=["token", "two spaces"])
def test_the_anchor_is_the_student_without_its_adapters(objective: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No second copy is loaded, and it pulls as a copy would."""
    loaded: list[str] = []
    load = ReadOnce.load

    def counted(role: str, *arguments: Any, **named: Any) -> ReadOnce:
        loaded.append(role)
        return load(role, *arguments, **named)

    monkeypatch.setattr(ReadOnce, "load", counted)
    overrides = {"anchor_weight": 0.7, **({} if objective is None else {"objective": objective})}
    inside, found = distill_module(lora=LORA, **overrides), []
    assert loaded == ["student", "teacher"]
    copy = distill_module(lora={**LORA, "bias": "lora_only"}, **overrides)  # may train biases: a copy is taken
    assert loaded[2:] == ["student", "teacher", "student"]
    for module in (inside, copy):
        module.setup("fit")
        move(module.student)
        module.student.eval()  # no dropout
        rollouts = sampled(module)
        loss, stats = module.loss_sum(rollouts, module.align(rollouts))
        loss.backward()
        gradient = {name: p.grad for name, p in module.student.named_parameters() if p.grad is not None}
        found.append((stats.anchor_U, gradient))
    assert found[0][0].sum() > 0.1
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-4, atol=1e-5)
    assert found[0][1].keys() == found[1][1].keys()
    assert all(torch.allclose(found[0][1][name], found[1][1][name], rtol=1e-3, atol=1e-4) for name in found[0][1])


def test_the_anchor_of_an_adapter_that_is_gone_on_with_is_that_adapter(tmp_path: Path) -> None:
    first = distill_module(lora=PLAIN)
    move(first.student)
    folder = tmp_path / "adapter"
    folder.mkdir()
    write_adapter(first.student, adapter_state(first.student), folder)
    module = distill_module(student=str(folder), anchor_weight=0.7)
    rollouts = sampled(module)
    _, stats = module.loss_sum(rollouts, module.align(rollouts))
    assert float(stats.anchor_U.abs().max()) < 1e-5
    assert not any(p.requires_grad for p in module.student_with_loss.anchor.model.model.parameters())  # type: ignore[union-attr]


def test_the_anchor_keeps_the_students_mode_and_its_adapters() -> None:
    module = distill_module(lora=LORA, anchor_weight=0.7)
    anchor = module.student_with_loss.anchor
    assert anchor is not None
    rollouts = sampled(module)
    module.student.train()
    anchor.states(rollouts, torch.device("cpu"))
    assert module.student.training
    assert all(not layer._disable_adapters for layer in module.student.modules() if hasattr(layer, "_disable_adapters"))


def test_what_cannot_be_combined_is_refused(tmp_path: Path) -> None:
    quantised = tmp_path / "quantised"
    shutil.copytree(STUDENT, quantised)
    config = json.loads((quantised / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (quantised / "config.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError, match="is quantised, and adapters are merged"):
        unloaded_module(lora=PLAIN, student=str(quantised)).setup("fit")
    with pytest.raises(RecipeError, match="Name linear layers"):
        unloaded_module(lora={"target_modules": ["c_attn"]}).setup("fit")
    with pytest.raises(RecipeError, match="from_scratch trains all"):
        SFTModule(STUDENT, from_scratch=True, lora=PLAIN)


@pytest.mark.parametrize("adapter", [False, True])
def test_supervised_fine_tuning_of_adapters_goes_on_and_exports(adapter: bool, tmp_path: Path) -> None:
    def supervised(folder: Path, *callbacks: L.Callback, resume: SavedCheckpoint | None = None) -> SFTModule:
        L.seed_everything(1, verbose=False)
        module = SFTModule(
            STUDENT, output=str(tmp_path / "out"), optimizer=OptimizerConfig(lr=1e-3), lora=LORA, adapter=adapter
        )
        run = trainer(folder, callbacks=[Checkpoint(every_n_steps=1), *callbacks], max_steps=4)
        state = str(resume.state) if resume else None
        run.fit(module, datamodule=data(num_train_batches=3), ckpt_path=state, weights_only=True)
        return module

    alone = supervised(tmp_path / "alone")
    with pytest.raises(KeyError):
        supervised(tmp_path / "cut", At(3, cut))
    resumed = supervised(tmp_path / "cut", resume=newest(tmp_path / "cut"))
    assert all(torch.equal(*pair) for pair in zip(alone.parameters(), resumed.parameters(), strict=True))
    exported = SFTModule(str(tmp_path / "out"), lora=None)
    exported.configure_model()
    assert (exported.lora is not None) == adapter
    assert torch.allclose(logits(exported.model.eval()), logits(resumed.model.eval()), atol=1e-4)
