"""The cost model against the loss, and against the clock.

The loss's traffic is counted operator by operator, its peak over the tensors alive and in resident memory, and seconds
are predicted from this machine's own rates, measured beforehand on one product and one copy.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.cost_checks import Check
from benchmarks.loss_forms import MARGINAL, chunked
from benchmarks.measure import best_seconds, in_fresh_process, peak_memory
from benchmarks.synthetic import UNIT_SHAPES, UNIT_SHARES, Problem, make_problem
from benchmarks.tracers import LiveBytes, TrafficCounter
from simct_pl.losses.base import UnitChunk
from simct_pl.planning.cost_inputs import FP32, Efficiency, HardwareShape, LossShape, StepShape
from simct_pl.planning.cost_model import CostModel
from simct_pl.planning.shapes import ModelShape
from simct_pl.training.chunked_loss import CPU_STRIP_BYTES
from simct_pl.training.unit_stats import unit_stats

OBJECTIVE = MARGINAL
VOCABS = 32_000, 19_000  # about in the ratio of the published pair
WIDTH = 256  # of the states of both sides
TEACHER_TOKENS = sum(share * teacher for share, (_, teacher) in zip(UNIT_SHARES, UNIT_SHAPES, strict=True)) / sum(
    share * student for share, (student, _) in zip(UNIT_SHARES, UNIT_SHAPES, strict=True)
)  # for each token of the student
# All of one, at full use: what this machine does has been measured.
MEASURED_RATES = Efficiency(products=1, decode=1, elementwise=1, link=1)


def run_chunked(problem: Problem, chunk_tokens: int = 1024) -> None:
    """Forward and backward of ours."""
    chunked(problem, chunk_tokens, objective=OBJECTIVE).backward()


def run_dense(problem: Problem) -> None:
    """The same loss with logits of all rows at once, left to autograd."""
    student_NK = problem.student_head(problem.student_hidden_NH)
    with torch.no_grad():
        teacher_MK = problem.teacher_head(problem.teacher_hidden_MH)
    chunk = UnitChunk(student_NK, teacher_MK, problem.rows, problem.tables)
    losses = OBJECTIVE(chunk)
    unit_stats(chunk, losses)
    losses.loss_U.sum().backward()


def traffic_check(num_tokens: int = 256, student_vocab: int = 5120, teacher_vocab: int = 3040) -> Check:
    """Bytes read and written after the projections."""
    problem = _problem(num_tokens, student_vocab, teacher_vocab)
    predicted = LossShape().traffic_per_logit * _num_logits(problem)
    return Check("objective: traffic", f"{num_tokens} tokens", predicted, counted_traffic(problem), "B")


def counted_traffic(problem: Problem) -> int:
    with TrafficCounter() as counter:
        run_chunked(problem)
    return counter.bytes


def alive_check(
    num_tokens: int, chunk_tokens: int = 512, *, dense: bool = False, vocabs: tuple[int, int] = VOCABS
) -> Check:
    """Most bytes of tensors alive in forward and backward."""
    problem = _problem(num_tokens, *vocabs)
    with LiveBytes() as alive:
        run_dense(problem) if dense else run_chunked(problem, chunk_tokens)
    return _peak_check("tensors alive", alive.most, num_tokens, chunk_tokens, dense, vocabs)


def resident_check(
    num_tokens: int, chunk_tokens: int = 512, *, dense: bool = False, vocabs: tuple[int, int] = VOCABS
) -> Check:
    """Peak of a fresh process: with what the allocator keeps and the kernels use for themselves."""
    resident = in_fresh_process(measured_peak, num_tokens, chunk_tokens, dense, vocabs)
    return _peak_check("resident memory", resident, num_tokens, chunk_tokens, dense, vocabs)


def _peak_check(
    what: str, measured: float, num_tokens: int, chunk_tokens: int, dense: bool, vocabs: tuple[int, int]
) -> Check:
    predicted = _heads_alone(num_tokens, *vocabs, chunk_tokens).loss_bytes(dense=dense)
    form = "dense loss" if dense else f"loss in chunks of {chunk_tokens:,}"
    return Check(f"{form}: {what}", f"{num_tokens:,} tokens", predicted, measured, "B")


def measured_peak(num_tokens: int, chunk_tokens: int, dense: bool, vocabs: tuple[int, int]) -> int:
    """What one loss adds to the process; call it in a fresh one."""
    torch.set_num_threads(1)
    run_chunked(_problem(8, 64, 64))  # threads, libraries and autograd's own set-up
    problem = _problem(num_tokens, *vocabs)
    with peak_memory() as peak:
        run_dense(problem) if dense else run_chunked(problem, chunk_tokens)
    return peak.extra


# ---- seconds ----


def this_machine(rows: int = 512, width: int = 512, ff_width: int = 1536) -> HardwareShape:
    """Rates of a product and of a copy, in fp32 with the threads in use.

    A run lasts about as long as what is predicted from it, so that other programs disturb both alike.
    """
    states, weight = torch.rand(rows, width), torch.rand(ff_width, width)
    source, target = torch.rand(2, 16 * 2**20)  # 64 MiB each: no cache holds them
    num = 20
    products = best_seconds(lambda: [nn.functional.linear(states, weight) for _ in range(num)])
    copies = best_seconds(lambda: [target.copy_(source) for _ in range(num)])
    flops, bandwidth = num * 2 * rows * width * ff_width / products, num * 2 * source.nbytes / copies
    return HardwareShape(flops, bandwidth, link_bandwidth=1.0, memory=0.0)


def seconds_checks(
    length: int = 512, width: int = 512, num_layers: int = 4, vocab: int = 20_000, repeats: int = 3
) -> list[Check]:
    """Forward and backward of a small Llama's body, and the loss over its head, on this machine."""
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=num_layers,
        num_attention_heads=width // 64,
        tie_word_embeddings=True,
    )
    shape = ModelShape.from_config(config)
    problem = make_problem(length, vocab, vocab, width, width)
    loss = LossShape(traffic_per_logit=counted_traffic(problem) / _num_logits(problem))
    step = StepShape(1, 1, 0, length, length, checkpointing=False, compute_bytes=FP32, num_gpus=1, student="replicated")
    cost = CostModel(shape, shape, step, loss, this_machine(), MEASURED_RATES)
    body = AutoModelForCausalLM.from_config(config).get_decoder()
    ids_BS = torch.randint(0, vocab, (1, length))

    def forward() -> Tensor:
        states: Tensor = body(input_ids=ids_BS, use_cache=False).last_hidden_state
        return states

    with torch.no_grad():
        forward_seconds = best_seconds(forward, repeats)
    both_seconds = best_seconds(lambda: forward().sum().backward(), repeats)
    loss_seconds = best_seconds(lambda: run_chunked(problem), repeats)
    predicted = [cost.student_forward().seconds, cost.student_backward().seconds]
    predicted.append(cost.head_products().seconds + cost.objective().seconds)
    return [
        Check("seconds: forward of the body", "small Llama", predicted[0], forward_seconds, "s"),
        Check("seconds: forward and backward of the body", "small Llama", sum(predicted[:2]), both_seconds, "s"),
        Check("seconds: loss over its head", "small Llama", predicted[2], loss_seconds, "s"),
    ]


def _problem(num_tokens: int, student_vocab: int, teacher_vocab: int) -> Problem:
    """Heads like those of the published pair: bf16, the student's soft-capped."""
    problem = make_problem(num_tokens, student_vocab, teacher_vocab, WIDTH, WIDTH, torch.bfloat16)
    return replace(problem, student_head=replace(problem.student_head, softcap=30.0))


def _num_logits(problem: Problem) -> int:
    rows = problem.rows
    student, teacher = problem.student_head.projection, problem.teacher_head.projection
    return len(rows.student_ids_N) * len(student.weight) + len(rows.teacher_ids_M) * len(teacher.weight)


def _heads_alone(num_tokens: int, student_vocab: int, teacher_vocab: int, chunk_tokens: int) -> CostModel:
    """A step of one response whose models are nothing but heads."""
    student, teacher = (ModelShape(0, WIDTH, 0, 0, 0, 0, vocab, tied=True) for vocab in (student_vocab, teacher_vocab))
    teacher_tokens = round(TEACHER_TOKENS * num_tokens)
    step = StepShape(1, 1, 0, num_tokens, teacher_tokens, num_tokens, num_tokens, num_gpus=1)
    loss = LossShape(chunk_tokens, CPU_STRIP_BYTES)
    return CostModel(student, teacher, step, loss)
