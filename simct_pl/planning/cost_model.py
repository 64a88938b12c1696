"""Bytes, FLOPs, seconds and memory of one on-policy step, a GPU, from the sizes of two models.

In: the shapes of student and teacher, of the step, and of the hardware. Out: phases (what runs) and memory items (what
is kept). All responses have the same length and GPUs share them evenly. benchmarks/cost_checks.py and
benchmarks/cost_loss_checks.py compare the parts with what can be counted or measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from simct_pl.planning.cost_inputs import FP32, Efficiency, HardwareShape, LossShape, StepShape
from simct_pl.planning.shapes import ModelShape

# What transformers' eager layers read and write, products apart, for each byte of activations that backward needs:
# counted in bf16, see cost_checks.
FORWARD_TRAFFIC, BACKWARD_TRAFFIC = 4.6, 9.0


@dataclass(frozen=True)
class Phase:
    """What one GPU does in one phase. bytes: its own memory's traffic. hidden: behind another phase."""

    name: str
    flops: float
    bytes: float
    seconds: float
    link_bytes: float = 0.0
    hidden: bool = False


@dataclass(frozen=True)
class MemoryItem:
    """Bytes on one GPU. when: held "always", or while "generating" or "training"."""

    name: str
    bytes: float
    when: Literal["always", "generating", "training"] = "always"


@dataclass(frozen=True)
class CostModel:
    """A student, a teacher, a step with its loss, and what it runs on."""

    student: ModelShape
    teacher: ModelShape
    step: StepShape = field(default_factory=StepShape)
    loss: LossShape = field(default_factory=LossShape)
    hardware: HardwareShape = field(default_factory=HardwareShape)
    efficiency: Efficiency = field(default_factory=Efficiency)

    # ---- phases ----

    def phases(self) -> list[Phase]:
        """One step of one GPU, in order."""
        return [
            self.prefill(),
            self.decode(),
            self.alignment(),
            self.student_forward(),
            self.teacher_forward(),
            self.head_products(),
            self.objective(),
            self.student_backward(),
            self.sync(),
            self.optimizer(),
            self.refresh(),
        ]

    def prefill(self) -> Phase:
        step, student = self.step, self.student
        flops = step.num_sequences * self._body_flops(student, step.prompt_tokens)
        return self._computed("rollout: prefill", flops, step.compute_bytes * student.parameters)

    def decode(self) -> Phase:
        """A step a token: every weight and every key and value so far is read once."""
        step, student = self.step, self.student
        rows = step.num_sequences
        lengths = range(step.prompt_tokens, step.student_length)
        cache = rows * sum(student.kv_bytes(length, step.compute_bytes) for length in lengths)
        weights = step.response_tokens * step.compute_bytes * student.parameters
        flops = rows * (
            student.matrix_flops(step.response_tokens)
            + student.attention_flops(step.student_length)
            - student.attention_flops(step.prompt_tokens)
            + 2 * step.response_tokens * student.head_parameters
        )
        return self._computed("rollout: decode", flops, weights + cache, bandwidth=self.efficiency.decode)

    def alignment(self) -> Phase:
        tokens = self.step.num_sequences * self.step.response_tokens
        seconds = 1e-6 * self.efficiency.alignment_us_per_token * tokens
        return Phase("alignment (a CPU thread, behind the models)", 0.0, 0.0, seconds, hidden=True)

    def student_forward(self) -> Phase:
        """Products and attention of the body, and passes over its activations."""
        step, student = self.step, self.student
        flops = step.num_sequences * self._body_flops(student, step.student_length)
        return self._computed("student forward", flops, FORWARD_TRAFFIC * self._student_activations())

    def student_backward(self) -> Phase:
        """Twice the products; attention 2.5 times, as its weights are made again; all of forward with checkpointing."""
        step, student = self.step, self.student
        matrices = student.matrix_flops(step.student_length)
        attention = student.attention_flops(step.student_length)
        repeated = matrices + attention if step.checkpointing else 0.0
        flops = step.num_sequences * (2 * matrices + 2.5 * attention + repeated)
        gradients = step.num_micro_batches * 2 * step.master_bytes * student.parameters  # read and written
        passes = BACKWARD_TRAFFIC + (FORWARD_TRAFFIC if step.checkpointing else 0.0)
        traffic = passes * self._student_activations() + gradients
        return self._computed("student backward", flops, traffic)

    def teacher_forward(self) -> Phase:
        step, teacher = self.step, self.teacher
        flops = step.num_sequences * self._body_flops(teacher, step.teacher_length)
        passes = step.num_micro_batches * math.ceil(step.micro_batch / step.teacher_batch)
        activations = step.num_sequences * step.teacher_length * self._activation_bytes(teacher, False)
        link = passes * step.compute_bytes * self._shared_of_teacher() * _others(step.shard_size)
        return self._computed("teacher forward", flops, FORWARD_TRAFFIC * activations, link)

    def head_products(self) -> Phase:
        """Student's head forward, towards the states and towards the weight; teacher's head forward."""
        step = self.step
        student_rows = step.num_sequences * step.response_tokens
        teacher_rows = step.num_sequences * step.teacher_response_tokens
        flops = 6 * student_rows * self.student.head_parameters + 2 * teacher_rows * self.teacher.head_parameters
        num_chunks = math.ceil(student_rows / self.loss.chunk_tokens)
        # A chunk reads the student's weight twice and the teacher's once, and adds to the weight's gradient.
        weights = step.compute_bytes * (2 * self.student.head_parameters + self.teacher.head_parameters)
        traffic = num_chunks * (weights + 2 * step.master_bytes * self.student.head_parameters)
        logits = step.compute_bytes * (3 * student_rows * self.student.vocab + teacher_rows * self.teacher.vocab)
        return self._computed("loss: heads", flops, traffic + logits)

    def objective(self) -> Phase:
        """All that is done to logits, once they are made: passes over memory and hardly any arithmetic."""
        step = self.step
        logits = step.num_sequences * self._logits(step.response_tokens, step.teacher_response_tokens)
        traffic = self.loss.traffic_per_logit * logits
        return self._computed("loss: objective", 0.0, traffic, bandwidth=self.efficiency.elementwise)

    def sync(self) -> Phase:
        """Rings: FSDP gathers weights twice and scatters gradients once a micro-batch, and replicas then add up their
        parts; DDP adds gradients up once.
        """
        step, gradients = self.step, self.step.master_bytes * self.student.parameters
        if step.student == "replicated":
            return self._exchange(2 * _others(step.num_gpus) * gradients, step.num_gpus)
        inside = 2 * self._gathered(self.student) + _others(step.shard_size) * gradients
        shared = self._exchange(step.num_micro_batches * inside, step.shard_size)
        across = 2 * _others(step.num_replicas) * gradients / step.shard_size
        added = self._exchange(step.num_micro_batches * across, step.num_gpus)
        return replace(shared, seconds=shared.seconds + added.seconds, link_bytes=shared.link_bytes + added.link_bytes)

    def optimizer(self) -> Phase:
        """AdamW reads weight, gradient and moments and writes all but the gradient; clipping reads and scales it."""
        step = self.step
        per_parameter = 5 * step.master_bytes + 2 * step.optimizer_bytes
        traffic = per_parameter * self.student.parameters / self._student_shards
        return self._computed("optimizer", 0.0, traffic, bandwidth=self.efficiency.elementwise)

    def refresh(self) -> Phase:
        """The engine's copy of the student is written anew."""
        step = self.step
        link = self._gathered(self.student) if step.student == "fsdp" else 0.0
        traffic = (step.master_bytes / self._student_shards + 2 * step.compute_bytes) * self.student.parameters
        return self._computed("refresh", 0.0, traffic, link, bandwidth=self.efficiency.elementwise)

    # ---- memory ----

    def memory(self, *, dense: bool = False) -> list[MemoryItem]:
        """What one GPU holds. dense: logits of all rows of a micro-batch at once, through autograd."""
        step, student = self.step, self.student
        per_shard = student.parameters / self._student_shards
        tokens = step.micro_batch * step.student_length
        generated = step.num_sequences * student.kv_bytes(step.student_length, step.compute_bytes)
        teacher_bytes = step.compute_bytes * (self.teacher.parameters - self._shared_of_teacher())
        teacher_bytes += step.compute_bytes * self._shared_of_teacher() / step.shard_size
        return [
            MemoryItem("student weights", step.master_bytes * per_shard),
            MemoryItem("gradients", step.master_bytes * per_shard, "training"),
            MemoryItem("AdamW moments", step.optimizer_bytes * per_shard),
            MemoryItem("teacher weights", teacher_bytes),
            MemoryItem("engine weights", step.compute_bytes * student.parameters if step.engine == "copy" else 0.0),
            MemoryItem("engine KV cache", generated if step.engine != "server" else 0.0, "generating"),
            MemoryItem("student weights for products", self._compute_weight_bytes(), "training"),
            MemoryItem("student activations", tokens * self._activation_bytes(student, step.checkpointing), "training"),
            MemoryItem("one layer, recomputed or teacher's", self._one_layer_bytes(), "training"),
            MemoryItem("logits, dense" if dense else "logits, chunked", self.loss_bytes(dense=dense), "training"),
        ]

    def peak_bytes(self, *, dense: bool = False) -> float:
        """Most that one GPU holds while generating or training, as if all items of that time were alive together."""
        items = self.memory(dense=dense)
        return max(
            sum(item.bytes for item in items if item.when in ("always", moment))
            for moment in ("generating", "training")
        )

    def loss_bytes(self, *, dense: bool) -> float:
        """Most that the loss holds beside the models, for one micro-batch."""
        step = self.step
        rows = step.micro_batch * step.response_tokens, step.micro_batch * step.teacher_response_tokens
        state_gradients = rows[0] * self.student.width * step.compute_bytes
        weight_gradient = self.student.head_parameters * step.compute_bytes
        if dense:
            return self.loss.dense_bytes_per_logit * self._logits(*rows) + state_gradients + weight_gradient
        if step.compute_bytes != FP32:  # each chunk's share is added up in fp32
            weight_gradient += FP32 * self.student.head_parameters
        chunk = step.compute_bytes * self._logits(*(min(self.loss.chunk_tokens, side) for side in rows))
        widest = FP32 * max(self.student.vocab, self.teacher.vocab)
        strip = min(max(self.loss.strip_bytes, widest), min(self.loss.chunk_tokens, max(rows)) * widest)
        return chunk + self.loss.strip_temporaries * strip + state_gradients + weight_gradient

    # ---- parts ----

    @property
    def _student_shards(self) -> int:
        return self.step.shard_size if self.step.student == "fsdp" else 1

    def _shared_of_teacher(self) -> float:
        """Parameters that GPUs share: the layers'; embeddings and head stay whole."""
        layers = self.teacher.num_layers * self.teacher.layer_parameters
        return layers if self.step.teacher == "sharded" else 0

    def _exchange(self, link: float, num_gpus: int) -> Phase:
        return self._computed("sync (at worst, not hidden)", 0.0, 0.0, link, num_gpus=num_gpus)

    def _computed(
        self,
        name: str,
        flops: float,
        traffic: float,
        link: float = 0.0,
        bandwidth: float | None = None,
        num_gpus: int | None = None,
    ) -> Phase:
        """Kernels run one after another: products, then passes over memory. Links work at the same time.

        num_gpus: that exchange something; those that share a copy unless given.
        """
        hardware, efficiency = self.hardware, self.efficiency
        inside = (num_gpus or self.step.shard_size) <= hardware.gpus_per_node
        link_bandwidth = hardware.link_bandwidth if inside else hardware.network_bandwidth
        seconds = max(
            flops / (hardware.flops * efficiency.products)
            + traffic / (hardware.memory_bandwidth * (bandwidth or efficiency.elementwise)),
            link / (link_bandwidth * efficiency.link),
        )
        return Phase(name, flops, traffic, seconds, link)

    def _body_flops(self, model: ModelShape, length: int) -> float:
        return model.matrix_flops(length) + model.attention_flops(length)

    def _activation_bytes(self, model: ModelShape, checkpointing: bool) -> int:
        return model.activation_bytes(self.step.compute_bytes, checkpointing=checkpointing)

    def _student_activations(self) -> float:
        """Bytes over all micro-batches, as if none were recomputed."""
        step = self.step
        return step.num_sequences * step.student_length * self._activation_bytes(self.student, False)

    def _compute_weight_bytes(self) -> float:
        """FSDP gathers what is outside the layers, and two layers at a time (one runs, one comes); autocast keeps a
        copy of everything.
        """
        step, student = self.step, self.student
        if step.student == "fsdp":
            return step.compute_bytes * (student.parameters - (student.num_layers - 2) * student.layer_parameters)
        return step.compute_bytes * student.parameters if step.compute_bytes != step.master_bytes else 0.0

    def _one_layer_bytes(self) -> float:
        """What a single layer needs at a time: the student's, recomputed, or the teacher's, never at once."""
        step = self.step
        student = step.micro_batch * step.student_length * self.student.layer_activation_bytes(step.compute_bytes)
        teacher = step.teacher_batch * step.teacher_length * self.teacher.layer_activation_bytes(step.compute_bytes)
        return max(student if step.checkpointing else 0, teacher)

    def _gathered(self, model: ModelShape) -> float:
        """Bytes that one GPU receives when all weights are gathered."""
        return self.step.compute_bytes * model.parameters * _others(self.step.shard_size)

    def _logits(self, student_rows: float, teacher_rows: float) -> float:
        return student_rows * self.student.vocab + teacher_rows * self.teacher.vocab


def _others(num_gpus: int) -> float:
    """What a GPU of a ring lacks: all but its own share."""
    return (num_gpus - 1) / num_gpus
