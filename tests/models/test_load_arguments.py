"""transformers' load arguments in a recipe: what is refused before weights load; a teacher that bitsandbytes packs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from simct_pl.errors import MissingPackageError, RecipeError, UnsupportedModelError
from simct_pl.models import load_arguments as room
from simct_pl.models.load_arguments import bits_a_weight, check_load_arguments, load_arguments
from simct_pl.models.sharding import Sharding
from simct_pl.training.teacher import FrozenTeacher
from tests.tiny import ASSETS, data, distill_module, sampled, trainer, unloaded_module

CPU = torch.device("cpu")
TEACHER = str(ASSETS / "teacher")
HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None
needs_bitsandbytes = pytest.mark.skipif(not HAS_BITSANDBYTES, reason="bitsandbytes is not installed")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"dtype": "float16"}, r"teacher_kwargs\.dtype is not set here; it is decided by the dtype beside it"),
        ({"device_map": "auto"}, "decided by the trainer"),
        ({"quantization_config": {"load_in_4bits": True}}, "refused by transformers.*load_in_8bit: true"),
        ({"quantization_config": {"quant_method": "magic"}}, "refused by transformers: Unknown quantization type"),
        ({"quantization_config": 4}, "refused by transformers"),
        (
            {"quantization_config": {"load_in_8bit": True, "llm_int8_treshold": 5.0}},
            "'llm_int8_treshold' is no field of BitsAndBytesConfig. Did you mean 'llm_int8_threshold'",
        ),
    ],
)
def test_what_cannot_be_loaded_with_is_refused_first(values: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        unloaded_module(teacher_kwargs=values).setup("fit")


@pytest.mark.skipif(HAS_BITSANDBYTES, reason="bitsandbytes is installed")
@pytest.mark.parametrize("bits", [4, 8])
def test_a_package_that_is_missing_is_named(bits: int) -> None:
    values = {"quantization_config": {f"load_in_{bits}bit": True}}
    with pytest.raises(MissingPackageError, match=r"needs a package that is not installed: .*bitsandbytes"):
        check_load_arguments("teacher_kwargs", values, CPU)


def test_what_is_not_quantised_goes_through_as_it_is() -> None:
    assert load_arguments("teacher_kwargs", {"attn_implementation": "eager"}, CPU) == {"attn_implementation": "eager"}
    module = distill_module(teacher_kwargs={"attn_implementation": "eager"})
    assert module.teacher is not None
    assert module.teacher.model.config._attn_implementation == "eager"
    plain = distill_module()
    assert plain.teacher is not None
    assert plain.teacher.model.config._attn_implementation == "sdpa"


def test_a_quantised_model_is_read_onto_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room.AutoHfQuantizer, "from_config", lambda *_, **__: Always())
    values = {"quantization_config": {"load_in_8bit": True}, "attn_implementation": "sdpa"}
    found = load_arguments("teacher_kwargs", values, torch.device("cuda", 1))
    assert found["device_map"] == {"": torch.device("cuda", 1)}
    assert found["quantization_config"].load_in_8bit
    assert found["attn_implementation"] == "sdpa"
    seen: list[dict[str, Any]] = []

    def read(*_: Any, **arguments: Any) -> Any:
        seen.append(arguments)
        return AutoModelForCausalLM.from_config(room_config())

    monkeypatch.setattr("simct_pl.models.loading.AutoModelForCausalLM.from_pretrained", read)
    FrozenTeacher(TEACHER, "float32", arguments=values)
    assert seen[0]["quantization_config"].load_in_8bit
    assert seen[0]["device_map"] == {"": CPU}


class Always:
    def validate_environment(self, **_: Any) -> None:
        pass


def room_config() -> Any:
    from simct_pl.models.loading import load_config

    return load_config("teacher", TEACHER)


def test_ranks_do_not_share_a_quantised_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room.AutoHfQuantizer, "from_config", lambda *_, **__: Always())
    values = {"quantization_config": {"load_in_8bit": True}}
    module = unloaded_module(teacher_kwargs=values, sharding=Sharding(shard_teacher=True))
    with pytest.raises(RecipeError, match=r"sharding\.shard_teacher cannot share a quantised teacher"):
        module.first_lesson.check(module.sharding, CPU)
    fitting = unloaded_module(teacher_kwargs=values, sharding=Sharding())
    fitting.first_lesson.check(fitting.sharding, CPU)


def test_a_head_that_is_packed_is_refused() -> None:
    """What bitsandbytes makes of one when nothing is left out: an nn.Linear of int8."""
    model = AutoModelForCausalLM.from_pretrained(TEACHER)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(UnsupportedModelError, match=r"floating-point weights.*leave it out of quantisation"):
        FrozenTeacher.of(model)


def test_bits() -> None:
    assert bits_a_weight({}) is None
    assert bits_a_weight({"quantization_config": {"load_in_8bit": True}}) == 8
    assert bits_a_weight({"quantization_config": {"load_in_4bit": True}}) == 4.5
    double = {"load_in_4bit": True, "bnb_4bit_use_double_quant": True}
    assert bits_a_weight({"quantization_config": double}) == 4.125


@needs_bitsandbytes
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
@pytest.mark.parametrize("bits", [4, 8])
def test_a_teacher_of_bitsandbytes_teaches(bits: int, tmp_path: Path) -> None:
    quantisation = {f"load_in_{bits}bit": True}
    module = unloaded_module(teacher_kwargs={"quantization_config": quantisation}, teacher_dtype="bfloat16")
    run = trainer(tmp_path, max_steps=2, limit_val_batches=0)
    run.fit(module, datamodule=data())
    assert module.teacher is not None
    layer = module.teacher.model.model.layers[0].self_attn.q_proj
    assert layer.weight.dtype == (torch.uint8 if bits == 4 else torch.int8)
    assert module.teacher.head.projection.weight.dtype == torch.bfloat16
    plain = distill_module(teacher_dtype="bfloat16")
    rollouts = sampled(plain)
    losses = [float(one.loss_sum(rollouts, one.align(rollouts))[0].detach()) for one in (plain, distilled_as(module))]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.2)


def distilled_as(module: Any) -> Any:
    """The same teacher under a student that has not moved."""
    return distill_module(teacher_kwargs=module.first_lesson.load_arguments, teacher_dtype="bfloat16")
