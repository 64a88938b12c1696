"""The cost model against small models: parameters, FLOPs, and what training keeps in memory.

Parameters and FLOPs are counted by torch, activations are summed over the tensors that autograd keeps, and the trained
state is what a fresh process grows by. The loss and the seconds are in benchmarks/cost_loss_checks.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, Phi3Config, PretrainedConfig, Qwen2Config

from benchmarks.architectures import published_configs
from benchmarks.measure import in_fresh_process, peak_memory
from benchmarks.tracers import TrafficCounter
from simct_pl.planning.cost_inputs import BF16, FP32, StepShape
from simct_pl.planning.cost_model import BACKWARD_TRAFFIC, FORWARD_TRAFFIC, CostModel
from simct_pl.planning.shapes import ModelShape

TINY: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@dataclass(frozen=True)
class Check:
    """One number twice. what: the number. case: of what. unit: "" (a count), "FLOP", "B" or "s"."""

    what: str
    case: str
    predicted: float
    measured: float
    unit: str = ""

    @property
    def ratio(self) -> float:
        return self.predicted / self.measured


def tiny_configs() -> dict[str, PretrainedConfig]:
    """One configuration of each known architecture."""
    return {
        "Llama": LlamaConfig(**TINY, eos_token_id=2),
        "Qwen2": Qwen2Config(**TINY),
        "Gemma-2": Gemma2Config(**TINY, head_dim=24, query_pre_attn_scalar=24),
        "Phi-3": Phi3Config(**TINY, pad_token_id=0, eos_token_id=2),
    }


# ---- counts ----


def parameter_checks() -> list[Check]:
    """Published sizes against models without storage."""
    checks = []
    for name, config in published_configs().items():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        counted = sum(parameter.numel() for parameter in model.parameters())
        checks.append(Check("parameters", name, ModelShape.from_config(config).parameters, counted))
    return checks


def flop_checks(num_sequences: int = 2, length: int = 48) -> list[Check]:
    """Body and head of tiny models; torch counts eager attention only, which skips nothing that the mask hides."""
    checks = []
    for name, config in tiny_configs().items():
        model, shape = (
            AutoModelForCausalLM.from_config(config, attn_implementation="eager"),
            ModelShape.from_config(config),
        )
        ids_BS = torch.randint(0, config.vocab_size, (num_sequences, length))
        with FlopCounterMode(display=False) as forward:
            logits = model(input_ids=ids_BS, use_cache=False).logits
        with FlopCounterMode(display=False) as backward:
            logits.sum().backward()
        num_tokens = num_sequences * length
        predicted = shape.matrix_flops(num_tokens) + 2 * num_tokens * shape.head_parameters
        predicted += num_sequences * shape.attention_flops(length, causal=False)
        checks.append(Check("forward: FLOPs", f"tiny {name}", predicted, forward.get_total_flops(), "FLOP"))
        both = forward.get_total_flops() + backward.get_total_flops()
        checks.append(Check("forward and backward: FLOPs", f"tiny {name}", 3 * predicted, both, "FLOP"))
    return checks


# ---- memory ----


def activation_checks(num_sequences: int = 2, length: int = 256) -> list[Check]:
    """Bytes that autograd keeps of the body's forward."""
    checks = []
    for name, config in tiny_configs().items():
        for dtype, checkpointing in ((torch.float32, False), (torch.bfloat16, False), (torch.float32, True)):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").train()
            if checkpointing:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            ids_BS = torch.randint(0, config.vocab_size, (num_sequences, length))
            measured = saved_bytes(model, lambda: model.get_decoder()(input_ids=ids_BS, use_cache=False))  # noqa: B023
            per_token = ModelShape.from_config(config).activation_bytes(dtype.itemsize, checkpointing=checkpointing)
            kind = "checkpointed" if checkpointing else str(dtype).removeprefix("torch.")
            checks.append(
                Check(f"activations, {kind}", f"tiny {name}", num_sequences * length * per_token, measured, "B")
            )
    return checks


def body_traffic_checks(length: int = 512) -> list[Check]:
    """Bytes that forward and backward of the body read and write, products apart, in bf16."""
    checks = []
    for name, config in tiny_configs().items():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
        ids_BS = torch.randint(0, config.vocab_size, (1, length))
        with TrafficCounter() as forward:
            states = model.get_decoder()(input_ids=ids_BS, use_cache=False).last_hidden_state
        with TrafficCounter() as backward:
            states.sum().backward()
        activations = length * ModelShape.from_config(config).activation_bytes(BF16, checkpointing=False)
        for phase, share, counter in (
            ("forward", FORWARD_TRAFFIC, forward),
            ("backward", BACKWARD_TRAFFIC, backward),
        ):
            checks.append(Check(f"{phase}: traffic", f"tiny {name}", share * activations, counter.bytes, "B"))
    return checks


def saved_bytes(model: nn.Module, forward: Callable[[], object]) -> int:
    """Bytes of the storages that a forward leaves for backward, parameters not among them; each counts once."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}  # the tensors too, so that no address is given out again

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    del result
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in parameters)


def state_check() -> Check:
    """Weights, gradients and AdamW's moments of a small Llama, in resident memory."""
    config = LlamaConfig(**{**TINY, "hidden_size": 512, "intermediate_size": 1536, "vocab_size": 16_000})
    step = StepShape(student="replicated", num_gpus=1, compute_bytes=FP32)
    shape = ModelShape.from_config(config)
    items = CostModel(shape, shape, step).memory()
    names = ("student weights", "gradients", "AdamW moments")
    # AdamW updates a parameter at a time here, with two temporaries of its size.
    predicted = sum(item.bytes for item in items if item.name in names) + 2 * FP32 * shape.head_parameters
    measured = in_fresh_process(measured_state_bytes, config.to_dict())
    return Check("weights, gradients, AdamW: resident memory", "small Llama", predicted, measured, "B")


def measured_state_bytes(config: dict[str, Any]) -> int:
    """What training a model adds to the process; call it in a fresh one."""
    torch.set_num_threads(1)
    AutoModelForCausalLM.from_config(LlamaConfig(**TINY, eos_token_id=2))  # its imports are not what is measured
    with peak_memory() as peak:
        model = AutoModelForCausalLM.from_config(LlamaConfig(**config))
        optimizer = torch.optim.AdamW(model.parameters())
        model(input_ids=torch.ones(1, 2, dtype=torch.int64)).logits.sum().backward()
        optimizer.step()
    return peak.extra
