"""What the cost model is told besides the two models: the step, the hardware, and how well it is used."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from simct_pl.training.chunked_loss import GPU_STRIP_BYTES

FP32, BF16 = 4, 2  # bytes of a value


@dataclass(frozen=True)
class StepShape:
    """One optimizer step.

    Args:
        num_prompts, num_samples: of the whole step; responses a prompt.
        prompt_tokens: of each prompt, on either side.
        response_tokens, teacher_response_tokens: the same text in the student's and in the teacher's tokens.
        micro_batch_tokens, teacher_batch_tokens: padded tokens of one forward.
        checkpointing: the student's layers are recomputed in backward.
        master_bytes: of a trained weight (fp32). compute_bytes: of weights and activations in products.
        optimizer_bytes: a parameter, AdamW's two moments.
        num_gpus: each samples, aligns and trains on its share.
        student: "replicated" (DDP) or "fsdp". teacher: "replicated" or "sharded".
        num_replicas: copies of what is sharded; num_gpus / num_replicas GPUs share each (HSDP).
        engine: who samples: a "copy" of the student on each GPU, the "student" itself, or a "server" on other GPUs,
            whose sampling is timed as if it had as many.
    """

    num_prompts: int = 64
    num_samples: int = 1
    prompt_tokens: int = 256
    response_tokens: int = 4096
    teacher_response_tokens: int = 4032
    micro_batch_tokens: int = 16_384
    teacher_batch_tokens: int = 16_384
    checkpointing: bool = True
    master_bytes: int = FP32
    compute_bytes: int = BF16
    optimizer_bytes: int = 2 * FP32
    num_gpus: int = 8
    student: Literal["replicated", "fsdp"] = "fsdp"
    teacher: Literal["replicated", "sharded"] = "replicated"
    num_replicas: int = 1
    engine: Literal["copy", "student", "server"] = "copy"

    @property
    def shard_size(self) -> int:
        """GPUs that share a copy of what is sharded."""
        return self.num_gpus // self.num_replicas

    @property
    def num_sequences(self) -> int:
        """Responses of one GPU; the fullest one sets the pace."""
        return math.ceil(self.num_prompts * self.num_samples / self.num_gpus)

    @property
    def student_length(self) -> int:
        return self.prompt_tokens + self.response_tokens

    @property
    def teacher_length(self) -> int:
        return self.prompt_tokens + self.teacher_response_tokens

    @property
    def micro_batch(self) -> int:
        """Responses of one student forward."""
        return min(max(self.micro_batch_tokens // self.student_length, 1), self.num_sequences)

    @property
    def num_micro_batches(self) -> int:
        return math.ceil(self.num_sequences / self.micro_batch)

    @property
    def teacher_batch(self) -> int:
        """Responses of one teacher forward; it gets one micro-batch of the student at a time."""
        return min(max(self.teacher_batch_tokens // self.teacher_length, 1), self.micro_batch)


@dataclass(frozen=True)
class LossShape:
    """How the loss treats logits; "a logit" is one of either side.

    The figures are those of SimCTLoss (sum_logprob, marginal, reverse KL) on bf16 heads with a soft-capped student.
    benchmarks/cost_loss_checks.py counts and measures them again.

    Args:
        chunk_tokens, strip_bytes: of simct_pl.training.chunked_loss.
        traffic_per_logit: bytes read and written after the projections, gradients included.
        strip_temporaries: [rows x vocabulary] fp32 tensors of one strip that are alive together, of both sides.
        dense_bytes_per_logit: held at the peak when all rows have logits at once and autograd keeps what it needs.
    """

    chunk_tokens: int = 1024
    strip_bytes: int = GPU_STRIP_BYTES
    traffic_per_logit: float = 212.0
    strip_temporaries: float = 7.5
    dense_bytes_per_logit: float = 20.5


@dataclass(frozen=True)
class HardwareShape:
    """Peaks of one device. Rates a second; the defaults are an H100 SXM's data sheet (bf16 without sparsity).

    flops: of matrix products. memory_bandwidth, link_bandwidth: bytes from and to its memory, and to its peers in one
    direction. network_bandwidth: the same to GPUs of other nodes (a 400 Gbit/s card for each GPU). memory: bytes.
    """

    flops: float = 989e12
    memory_bandwidth: float = 3.35e12
    link_bandwidth: float = 450e9
    memory: float = 80e9
    network_bandwidth: float = 50e9
    gpus_per_node: int = 8


# Data sheets of SXM modules; 400 Gbit/s cards for Hopper, 200 for Ampere.
GPUS = {
    "h100": HardwareShape(),
    "h200": HardwareShape(memory_bandwidth=4.8e12, memory=141e9),
    "a100": HardwareShape(flops=312e12, memory_bandwidth=2.039e12, link_bandwidth=300e9, network_bandwidth=25e9),
}


@dataclass(frozen=True)
class Efficiency:
    """Shares of the peaks that are reached: all but the last are assumptions.

    products: of FLOPs, while products run. decode: of memory bandwidth, while tokens are sampled. elementwise: of
    memory bandwidth, in all other passes. link: of the links.
    alignment_us_per_token: of the student, in one CPU thread; measured, 0.1 for the alignment and 1.1 for the teacher's
    tokenizer.
    """

    products: float = 0.6
    decode: float = 0.6
    elementwise: float = 0.7
    link: float = 0.7
    alignment_us_per_token: float = 1.2
