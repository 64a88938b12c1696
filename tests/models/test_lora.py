"""Adapters in a student: what is trained, what merging makes of it, what a folder holds; against PEFT and by hand."""

from __future__ import annotations

import builtins
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from simct_pl.errors import MissingPackageError, ModelFolderError, RecipeError
from simct_pl.models.adapter_folder import adapter_state, tokenizer_folder, write_adapter
from simct_pl.models.loading import load_causal_lm, load_config
from simct_pl.models.lora import Lora, TrainedShare
from simct_pl.models.merging import merged_parameters, merged_state_dict, without_adapters
from simct_pl.rollout.engine import SamplingParams
from simct_pl.rollout.hf import HFEngine
from simct_pl.rollout.vllm_weights import named_weights, weight_names
from tests.tiny import ASSETS

STUDENT = str(ASSETS / "student")
PLAIN = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dora": {"use_dora": True},
    "rank-stabilised": {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "init_lora_weights": "orthogonal"},
    "tied ends": {"target_modules": ["q_proj", "down_proj"], "modules_to_save": ["lm_head", "norm"]},
    "layers": {"target_modules": ["q_proj"], "layers_to_transform": [1]},
}


def adapted(values: Mapping[str, Any] = PLAIN, dtype: Any = "float32", moved: bool = True) -> PreTrainedModel:
    """The quickstart's student with adapters that training has moved."""
    lora = Lora.of("student", STUDENT, values)
    assert lora is not None
    model = load_causal_lm("student", STUDENT, dtype).eval()
    lora.attach(model)
    if moved:
        move(model)
    return model


@torch.no_grad()
def move(model: PreTrainedModel) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=torch.arange(24).view(2, 12) % 200).logits
    return found


def folder_of(model: PreTrainedModel, folder: Path) -> Path:
    folder.mkdir()
    write_adapter(model, adapter_state(model), folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_are_pefts_and_the_student_is_left_alone(kind: str, tmp_path: Path) -> None:
    model = adapted({**PLAIN, **KINDS[kind]})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merged = merged_state_dict(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    theirs = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(STUDENT), str(folder_of(model, tmp_path / "adapter"))
    ).eval()
    assert torch.allclose(logits(theirs), logits(model), atol=1e-5)
    expected = theirs.merge_and_unload().state_dict()
    assert merged.keys() == expected.keys() == load_causal_lm("student", STUDENT, "float32").state_dict().keys()
    for name, tensor in expected.items():
        assert torch.allclose(merged[name], tensor, atol=1e-6), name
    own = load_causal_lm("student", STUDENT, "float32").eval()
    own.load_state_dict(merged)
    assert torch.allclose(logits(own), logits(model), atol=1e-4)
    assert not torch.allclose(logits(own), logits(load_causal_lm("student", STUDENT, "float32").eval()), atol=1e-2)


def test_merging_is_the_weight_and_a_scaled_product() -> None:
    """By hand, for one matrix."""
    model, base = adapted(), load_file(f"{STUDENT}/model.safetensors")
    own, name = dict(model.named_parameters()), "model.layers.0.mlp.up_proj"
    product = own[f"{name}.lora_B.default.weight"].double() @ own[f"{name}.lora_A.default.weight"].double()
    expected = base[f"{name}.weight"].double() + 8 / 4 * product
    assert torch.allclose(dict(merged_parameters(model))[f"{name}.weight"].double(), expected, atol=1e-6)


def test_only_adapters_are_trained_in_fp32_beside_weights_in_bfloat16() -> None:
    model = adapted(dtype="bfloat16")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name and p.dtype == torch.float32 for name, p in trained.items())
    assert all(p.dtype == torch.bfloat16 for name, p in model.named_parameters() if name not in trained)
    share = TrainedShare.of(model)
    assert share.trained == sum(p.numel() for p in trained.values())
    assert share.all - share.trained == TrainedShare.of(load_causal_lm("student", STUDENT, "float32")).all
    assert all(tensor.dtype == torch.bfloat16 for tensor in merged_state_dict(model).values())
    config = load_config("student", STUDENT)
    assert Lora(STUDENT, PLAIN).check(config, "bfloat16") == share  # told without weights


def test_a_new_adapter_changes_nothing_and_draws_nothing() -> None:
    torch.manual_seed(3)
    model = adapted(moved=False)
    drawn = float(torch.rand(()))
    again = adapted(moved=False)  # the same seed, and a number drawn in between
    assert all(map(torch.equal, model.parameters(), again.parameters()))
    assert torch.equal(logits(model), logits(load_causal_lm("student", STUDENT, "float32").eval()))
    torch.manual_seed(3)
    assert float(torch.rand(())) == drawn
    torch.manual_seed(4)
    assert not all(map(torch.equal, model.parameters(), adapted(moved=False).parameters()))


def test_switched_off_the_student_is_its_base() -> None:
    model = adapted()
    with without_adapters(model):
        off = logits(model)
    assert torch.equal(off, logits(load_causal_lm("student", STUDENT, "float32").eval()))
    assert not torch.allclose(off, logits(model), atol=1e-2)
    assert Lora(STUDENT, PLAIN).begins_as_base
    assert not Lora(STUDENT, {**PLAIN, "bias": "all"}).begins_as_base
    assert not Lora(STUDENT, PLAIN, Path("x")).begins_as_base


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_brings_the_adapter_back(kind: str, tmp_path: Path) -> None:
    model = adapted({**PLAIN, **KINDS[kind]})
    again, own = read(str(folder_of(model, tmp_path / "adapter"))), dict(model.named_parameters())
    assert own.keys() == dict(again.named_parameters()).keys()
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, own[name]), name
        assert parameter.requires_grad == own[name].requires_grad
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight


def test_engines_get_the_base_models_names() -> None:
    model = adapted()
    base = load_causal_lm("student", STUDENT, "float32")
    assert weight_names(model) == weight_names(base)
    sent = dict(named_weights(model))
    assert list(sent) == weight_names(base)
    merged = merged_state_dict(model)
    assert all(torch.equal(tensor, merged[name]) for name, tensor in sent.items())
    changing = dict(named_weights(model, only_changing=True))
    assert changing.keys() == {name for name in sent if ".layers." in name}  # embeddings and last norm rest


def test_an_adapted_layer_outside_the_blocks_is_sent_too() -> None:
    model = adapted({**PLAIN, "modules_to_save": ["norm"]})
    assert "model.norm.weight" in dict(named_weights(model, only_changing=True))


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_ids_of_the_live_student_are_those_of_the_merged_one(kind: str) -> None:
    model = adapted({**PLAIN, **KINDS[kind]})
    merged = load_causal_lm("student", STUDENT, "float32").eval()
    merged.load_state_dict(merged_state_dict(model))
    prompts, ids = [[3, 4, 5], [17, 2]], []
    for one in (model, merged, load_causal_lm("student", STUDENT, "float32").eval()):
        engine = HFEngine()
        engine.refresh(one, 0)
        found = engine.generate(prompts, [0, 0], SamplingParams(temperature=0.0, max_tokens=30), (1,))
        ids.append([generation.response_ids for generation in found])
    assert ids[0] == ids[1] != ids[2]


def checked(values: Mapping[str, Any]) -> TrainedShare:
    lora = Lora.of("student", STUDENT, values)
    assert lora is not None
    return lora.check(load_config("student", STUDENT), "float32")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rr": 4}, r"A field of lora is 'rr'; expected one of .*Did you mean 'r'"),
        ({"lora_alfa": 4}, "Did you mean 'lora_alpha'"),
        ({"task_type": "CAUSAL_LM"}, "lora.task_type is not yours to set"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'; expected one of"),
        ({"init_lora_weights": False}, "init_lora_weights is False"),
        ({"trainable_token_indices": [1]}, r"lora.trainable_token_indices is \[1\]; it trains parts"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"bias": "some"}, "PEFT refuses|do not fit"),
        ({"r": 0, "target_modules": "all-linear"}, "do not fit LlamaForCausalLM"),
        ({"target_modules": ["c_attn"]}, "do not fit LlamaForCausalLM.*c_attn.*all-linear"),
        (
            {"target_modules": ["q_proj", "lm_head"]},
            r"names lm_head, the student's embeddings or head.*modules_to_save",
        ),
        ({"target_modules": r".*embed_tokens"}, r"names model\.embed_tokens"),
    ],
)
def test_what_does_not_fit_is_refused_without_weights(values: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        checked(values)


@pytest.mark.parametrize("values", [{"modules_to_save": ["norm"]}, {"bias": "all"}])
def test_weights_of_the_base_are_not_trained_in_low_precision(values: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"small steps are lost\. Set student_dtype: float32"):
        Lora(STUDENT, {**PLAIN, **values}).check(load_config("student", STUDENT), "bfloat16")


def test_fields_beside_an_adapter_folder(tmp_path: Path) -> None:
    folder = str(folder_of(adapted(), tmp_path / "adapter"))
    same = Lora.of("student", folder, {"r": 4})
    assert same is not None
    assert same.values["lora_alpha"] == 8
    with pytest.raises(RecipeError, match=r"lora says r=16, and the student .* is an adapter with r=4. Leave lora out"):
        Lora.of("student", folder, {"r": 16})
    assert Lora.of("student", STUDENT, None) is None


def read(folder: str) -> PreTrainedModel:
    """A base model with the adapter of a folder."""
    lora = Lora.of("student", folder, None)
    assert lora is not None
    model = load_causal_lm("student", lora.base, "float32").eval()
    lora.attach(model)
    return model


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = folder_of(adapted(), tmp_path / "adapter")
    config = folder / "adapter_config.json"
    content = json.loads(config.read_text())
    other = tmp_path / "other.json"
    for changed, said in (
        ({"base_model_name_or_path": str(ASSETS / "teacher")}, "does not fit"),
        ({"r": 2}, "does not fit its model"),
        ({"target_modules": ["q_proj"]}, "is in one of the two alone, with"),
        ({"peft_type": "IA3"}, "of kind 'IA3'; expected LORA"),
        ({"base_model_name_or_path": None}, "does not name its base model"),
    ):
        config.write_text(json.dumps({**content, **changed}))
        with pytest.raises(ModelFolderError, match=said):
            read(str(folder))
    config.write_text("{")
    with pytest.raises(ModelFolderError, match="cannot be read"):
        Lora.of("student", str(folder), None)
    config.write_text(json.dumps(content))
    (folder / "adapter_model.safetensors").rename(other)
    with pytest.raises(ModelFolderError, match=r"has no adapter_model\.safetensors"):
        Lora.of("student", str(folder), None)


def test_the_tokenizer_of_an_adapter_is_its_own_if_it_has_one(tmp_path: Path) -> None:
    folder = folder_of(adapted(), tmp_path / "adapter")
    assert tokenizer_folder(folder, STUDENT) == tokenizer_folder(None, STUDENT) == STUDENT
    shutil.copy(ASSETS / "student/tokenizer_config.json", folder)
    assert tokenizer_folder(folder, STUDENT) == str(folder)


def test_without_peft_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *arguments: Any, **named: Any) -> Any:
        if name == "peft":
            raise ImportError("No module named 'peft'")
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingPackageError, match=r"pip install 'simct_pl\[lora\]'"):
        Lora.of("student", STUDENT, PLAIN)
    assert Lora.of("student", STUDENT, None) is None
