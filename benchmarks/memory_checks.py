"""Predicted memory against what small models and the loss really hold on this machine.

A body's forward and backward are predicted without values (simct_pl/planning/measure.py), and then run: what autograd
keeps is summed over the tensors it saves, and the most alive is what a fresh process grows by. The loss is a formula
(planning/memory.py); its peak is counted over the tensors alive, and in resident memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen3Config,
)

from benchmarks.measure import in_fresh_process, peak_memory
from benchmarks.synthetic import UNIT_SHAPES, UNIT_SHARES, Problem, make_problem
from simct_pl.losses.simct import SimCTLoss
from simct_pl.planning.live_bytes import LiveBytes
from simct_pl.planning.measure import ModelSize, ModelSource, SizedModel, WorkBytes
from simct_pl.planning.memory import MemoryItem, Moment, PairBytes, Part, distillation_items, trained_items
from simct_pl.planning.step import StepShape
from simct_pl.training.chunked_loss import CPU_STRIP_BYTES, chunked_loss

SIZES: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
OBJECTIVE = SimCTLoss("sum_logprob", "marginal")
VOCABS = 32_000, 19_000  # about in the ratio of the published pair
WIDTH = 256  # of the states of both sides
TEACHER_TOKENS = sum(share * teacher for share, (_, teacher) in zip(UNIT_SHARES, UNIT_SHAPES, strict=True)) / sum(
    share * student for share, (student, _) in zip(UNIT_SHARES, UNIT_SHAPES, strict=True)
)  # for each token of the student


@dataclass(frozen=True)
class Check:
    """Bytes twice. what: they are. case: of what."""

    what: str
    case: str
    predicted: float
    measured: float

    @property
    def ratio(self) -> float:
        return self.predicted / self.measured


def tiny_configs(**sizes: int) -> dict[str, PretrainedConfig]:
    """Configurations of architectures that differ in norms, attention, windows, biases and experts."""
    shape = {**SIZES, **sizes}
    gpt2 = {"n_embd": shape["hidden_size"], "n_layer": shape["num_hidden_layers"], "n_head": 4, "n_positions": 4096}
    return {
        "Llama": LlamaConfig(**shape),
        "Qwen3": Qwen3Config(**shape, head_dim=32),
        "Gemma-3": Gemma3TextConfig(**shape, head_dim=24, sliding_window=32, query_pre_attn_scalar=24),
        "Phi-3": Phi3Config(**shape),
        "GPT-2": GPT2Config(**gpt2, vocab_size=shape["vocab_size"], attn_pdrop=0.0),
        "Mixtral": MixtralConfig(**shape, num_local_experts=4),
    }


# ---- the body ----


def kept_checks(num_sequences: int = 2, length: int = 256) -> list[Check]:
    """Bytes that autograd keeps of the body's forward."""
    checks = []
    for name, config in tiny_configs().items():
        for dtype, checkpointing in ((torch.float32, False), (torch.bfloat16, False), (torch.float32, True)):
            predicted = predicted_work(config, dtype, checkpointing, num_sequences, length).kept
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
            measured = saved_bytes(_trained(model, checkpointing), lambda: _states(model, num_sequences, length))  # noqa: B023
            kind = "checkpointed" if checkpointing else str(dtype).removeprefix("torch.")
            checks.append(Check(f"kept for backward, {kind}", f"tiny {name}", predicted, measured))
    return checks


def resident_body_checks(
    names: tuple[str, ...] = ("Llama", "Gemma-3", "Mixtral"), num_sequences: int = 4, length: int = 1024
) -> list[Check]:
    """What forward and backward of small bodies add to a fresh process."""
    checks = []
    for name in names:
        config = tiny_configs(hidden_size=256, intermediate_size=768)[name]
        for checkpointing in (False, True):
            predicted = predicted_work(config, torch.float32, checkpointing, num_sequences, length).most
            shape = config.to_dict(), checkpointing, num_sequences, length
            with freed_at_once():
                measured = in_fresh_process(measured_body_bytes, *shape)
            kind = ", checkpointed" if checkpointing else ""
            checks.append(Check(f"forward and backward{kind}: resident memory", f"small {name}", predicted, measured))
    return checks


def predicted_work(
    config: PretrainedConfig, dtype: torch.dtype, checkpointing: bool, num_sequences: int, length: int
) -> WorkBytes:
    sized = SizedModel(ModelSource(config), dtype)
    return sized.training(lambda: _states(sized.model, num_sequences, length), checkpointing=checkpointing)


def measured_body_bytes(config: dict[str, Any], checkpointing: bool, num_sequences: int, length: int) -> int:
    """What one more forward and backward adds to the process; call it in a fresh one."""
    torch.set_num_threads(1)
    model = _trained(AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)), checkpointing)
    _states(model, 1, 8).sum().backward()  # gradients, threads and libraries are there before
    with peak_memory() as peak:
        _states(model, num_sequences, length).sum().backward()
    return peak.extra


def saved_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes of the storages that a forward leaves for backward, and of its result; parameters are not among them."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}  # the tensors too, so that no address is given out again

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        keep(forward().detach())
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in parameters)


@contextmanager
def freed_at_once() -> Iterator[None]:
    """Processes started inside give large blocks back to the system when they are freed, instead of keeping them for
    later: resident memory then follows the tensors.
    """
    name = "MALLOC_MMAP_THRESHOLD_"  # glibc reads it when a process starts
    before = os.environ.get(name)
    os.environ[name] = str(2**16)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _trained(model: Any, checkpointing: bool) -> Any:
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def _states(model: Any, num_sequences: int, length: int) -> Tensor:
    ids_BS = torch.ones(num_sequences, length, dtype=torch.int64)
    states_BSH: Tensor = model.get_decoder()(input_ids=ids_BS, use_cache=False).last_hidden_state
    return states_BSH


# ---- weights, gradients, moments ----


def state_check(*, ddp: bool = False) -> Check:
    """Of a small Llama, in resident memory. ddp: in DistributedDataParallel, in a group of one process."""
    config = LlamaConfig(**{**SIZES, "hidden_size": 512, "intermediate_size": 1536, "vocab_size": 16_000})
    step = StepShape(student="replicated", num_gpus=1, param_dtype=torch.float32, buckets=ddp)
    predicted = sum(item.bytes for item in trained_items(SizedModel(ModelSource(config), step.dtype).size, None, step))
    with freed_at_once():
        measured = in_fresh_process(measured_state_bytes, config.to_dict(), ddp)
    return Check(f"state{', in DDP' if ddp else ''}: resident memory", "small Llama", predicted, measured)


def measured_state_bytes(config: dict[str, Any], ddp: bool) -> int:
    """What training a model adds to the process; call it in a fresh one."""
    torch.set_num_threads(1)
    if ddp:
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    train_once(LlamaConfig(**SIZES), ddp)  # libraries and threads are not what is measured
    with peak_memory() as peak:
        train_once(LlamaConfig(**config), ddp)
    return peak.extra


def train_once(config: LlamaConfig, ddp: bool) -> None:
    """One optimizer step on two tokens."""
    model: Any = AutoModelForCausalLM.from_config(config)
    model = nn.parallel.DistributedDataParallel(model) if ddp else model
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(input_ids=torch.ones(1, 2, dtype=torch.int64)).logits.sum().backward()
    optimizer.step()


# ---- the loss ----


def alive_check(num_tokens: int, chunk_tokens: int = 512, vocabs: tuple[int, int] = VOCABS) -> Check:
    """Most bytes of tensors alive in forward and backward of the loss."""
    problem = _problem(num_tokens, *vocabs)
    with LiveBytes() as alive:
        run_chunked(problem, chunk_tokens)
    return _loss_check("tensors alive", alive.most, num_tokens, chunk_tokens, vocabs)


def resident_check(num_tokens: int, chunk_tokens: int = 512, vocabs: tuple[int, int] = VOCABS) -> Check:
    """Peak of a fresh process: with what the allocator keeps and the kernels use for themselves."""
    with freed_at_once():
        resident = in_fresh_process(measured_loss_bytes, num_tokens, chunk_tokens, vocabs)
    return _loss_check("resident memory", resident, num_tokens, chunk_tokens, vocabs)


def run_chunked(problem: Problem, chunk_tokens: int) -> None:
    """Forward and backward of the loss over two heads."""
    loss, _ = chunked_loss(
        problem.student_hidden_NH,
        problem.teacher_hidden_MH,
        problem.rows,
        student_head=problem.student_head,
        teacher_head=problem.teacher_head,
        objective=OBJECTIVE,
        tables=problem.tables,
        chunk_tokens=chunk_tokens,
    )
    loss.backward()


def measured_loss_bytes(num_tokens: int, chunk_tokens: int, vocabs: tuple[int, int]) -> int:
    """What one loss adds to the process; call it in a fresh one."""
    torch.set_num_threads(1)
    run_chunked(_problem(8, 64, 64), chunk_tokens)  # threads, libraries and autograd's own set-up
    problem = _problem(num_tokens, *vocabs)
    with peak_memory() as peak:
        run_chunked(problem, chunk_tokens)
    return peak.extra


def loss_items(num_tokens: int, chunk_tokens: int, vocabs: tuple[int, int]) -> list[MemoryItem]:
    """What is predicted of the loss alone, over one response."""
    student, teacher = (ModelSize(vocab * WIDTH, (), vocab * WIDTH, WIDTH, vocab) for vocab in vocabs)
    step = StepShape(
        num_prompts=1,
        prompt_tokens=0,
        response_tokens=num_tokens,
        teacher_response_tokens=round(TEACHER_TOKENS * num_tokens),
        chunk_tokens=chunk_tokens,
        strip_bytes=CPU_STRIP_BYTES,
        num_gpus=1,
        student="replicated",
        engine="server",
    )
    items = distillation_items(PairBytes(student, teacher, None, None, None), step)
    return [item for item in items if item.part in (Part.HEAD_GRADIENT, Part.LOSS)]


def _loss_check(what: str, measured: float, num_tokens: int, chunk_tokens: int, vocabs: tuple[int, int]) -> Check:
    items = loss_items(num_tokens, chunk_tokens, vocabs)
    assert [item.when for item in items] == [Moment.TRAINING, Moment.LOSS]
    # The teacher's states are there before the loss begins.
    states = round(TEACHER_TOKENS * num_tokens) * WIDTH * torch.bfloat16.itemsize
    predicted = sum(item.bytes for item in items) - states
    return Check(f"loss in chunks of {chunk_tokens:,}: {what}", f"{num_tokens:,} tokens", predicted, measured)


def _problem(num_tokens: int, student_vocab: int, teacher_vocab: int) -> Problem:
    """Heads like those of the published pair: bf16, the student's soft-capped."""
    problem = make_problem(num_tokens, student_vocab, teacher_vocab, WIDTH, WIDTH, torch.bfloat16)
    return replace(problem, student_head=replace(problem.student_head, softcap=30.0))
