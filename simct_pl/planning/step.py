"""StepShape: sizes and dtypes of one optimizer step, all that memory depends on besides the two models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from simct_pl.training.chunked_loss import GPU_STRIP_BYTES

# Bytes that a GPU's data sheet names; SXM modules.
GPU_MEMORY = {"h100": 80e9, "h200": 141e9, "a100": 80e9}


@dataclass(frozen=True)
class StepShape:
    """One optimizer step; all responses have the same length.

    Args:
        num_prompts, num_samples: of the whole step; responses a prompt.
        prompt_tokens: of each prompt, on either side.
        response_tokens, teacher_response_tokens: the same text in the student's and in the teacher's tokens.
        micro_batch_tokens, teacher_batch_tokens: padded tokens of one forward.
        chunk_tokens, strip_bytes: of simct_pl.training.chunked_loss.
        checkpointing: the student's layers are recomputed in backward.
        dtype: of the weights that AdamW steps, of their gradients and moments.
        param_dtype: of the student's weights in its forward. autocast: products run in bf16 all the same.
        reduce_dtype: in which ranks add up gradients of a sharded student.
        teacher_dtype, engine_dtype: of their weights.
        num_gpus: each samples, aligns and trains on its share.
        student: "replicated" (DDP) or "fsdp". teacher: "replicated", "sharded" or "server".
        num_replicas: copies of what is sharded; num_gpus / num_replicas GPUs share each (HSDP).
        reshard: a block's gathered weights are freed after its forward.
        buckets: DDP's buckets are a second copy of the gradients (no gradient_as_bucket_view).
        cpu_offload: weights, gradients and moments lie in host memory.
        engine: who samples: a "copy" of the student on each GPU, the "student" itself, or a "server" on other GPUs.
        anchor: a frozen copy of the student is there too, in teacher_dtype, shared out as the teacher is.
        reserved_bytes: what the engine takes whatever it needs, in place of its weights and cache; 0: what it needs.
    """

    num_prompts: int = 64
    num_samples: int = 1
    prompt_tokens: int = 256
    response_tokens: int = 4096
    teacher_response_tokens: int = 4032
    micro_batch_tokens: int = 16_384
    teacher_batch_tokens: int = 16_384
    chunk_tokens: int = 1024
    strip_bytes: int = GPU_STRIP_BYTES
    checkpointing: bool = True
    dtype: torch.dtype = torch.float32
    param_dtype: torch.dtype = torch.bfloat16
    autocast: bool = False
    reduce_dtype: torch.dtype = torch.float32
    teacher_dtype: torch.dtype = torch.bfloat16
    engine_dtype: torch.dtype = torch.bfloat16
    num_gpus: int = 8
    student: Literal["replicated", "fsdp"] = "fsdp"
    teacher: Literal["replicated", "sharded", "server"] = "replicated"
    num_replicas: int = 1
    reshard: bool = True
    buckets: bool = False
    cpu_offload: bool = False
    engine: Literal["copy", "student", "server"] = "copy"
    anchor: bool = False
    reserved_bytes: float = 0.0

    @property
    def shard_size(self) -> int:
        """GPUs that share a copy of what is sharded."""
        return self.num_gpus // self.num_replicas

    @property
    def student_shards(self) -> int:
        """Parts that the student's weights, gradients and moments are cut into."""
        return self.shard_size if self.student == "fsdp" else 1

    @property
    def product_dtype(self) -> torch.dtype:
        """Of the student's matrix products, its head's among them."""
        return torch.bfloat16 if self.autocast else self.param_dtype

    @property
    def num_sequences(self) -> int:
        """Responses of one GPU, the fullest one."""
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
