"""Short fits of the tiny pair, on as many ranks as there are processes; what each leaves behind is a file to compare.

python -m torch.distributed.run --standalone --nproc-per-node=2 -m tests.distributed.runs FOLDER UNTIED_STUDENT
"""

from __future__ import annotations

import multiprocessing.connection
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch.strategies import Strategy
from torch import Tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.utils.data import DataLoader, IterableDataset

from callbacks import AlignmentStats, HFExport, PolicyMismatch, SpanGradients
from simct_pl.errors import ExportError, ModelFolderError
from simct_pl.losses.base import Objective
from simct_pl.losses.inputs.unit_rows import build_unit_rows
from simct_pl.losses.token_conditional import TokenConditionalLoss
from simct_pl.models.merging import merged_state_dict
from simct_pl.models.sharding import ShardedStrategy, Sharding, full_parameters, full_tensor, is_sharded
from simct_pl.rollout.hf import HFEngine
from simct_pl.rollout.vllm_server import VLLMServerEngine
from simct_pl.rollout.vllm_weights import named_weights, weight_names
from simct_pl.tasks.arithmetic import TotalGrader
from simct_pl.tasks.datamodule import ArithmeticDataModule
from simct_pl.training.collectives import gather_scalars
from simct_pl.training.graded_batch import GradedBatch
from simct_pl.training.lesson import Lesson, TeacherSettings
from simct_pl.training.module import DistillModule
from simct_pl.types import Prompt, PromptBatch, Rollout
from tests.tiny import ASSETS, regraded, trainer, unloaded_module

GLOBAL_BATCH, NUM_STEPS, SAVED_STEP = 12, 5, 3
SHARDED = Sharding()
LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "modules_to_save": ["norm"]}
RAGGED = {"micro_batch_tokens": 80}  # so few that ranks get several micro-batches, and not the same number


@dataclass
class Trace:
    """What a fit did: a number a step (text KL: with its error and coverage), whole gradients of the first step as the
    optimizer saw them, whole weights at the end, held-out metrics, the number of micro-batches of each rank,
    [steps][ranks], and of each step SpanGradients' two numbers where it can run.
    """

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    text_kl: list[list[float]] = field(default_factory=list)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    held_out: dict[str, float] = field(default_factory=dict)
    num_groups: list[list[float]] = field(default_factory=list)
    spans: list[list[float]] = field(default_factory=list)


class Recorder(L.Callback):
    """Fills a trace, and saves a checkpoint at the end of the first epoch when given a path."""

    def __init__(self, checkpoint: Path | None) -> None:
        self.trace, self.checkpoint = Trace(), checkpoint

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        if not self.trace.gradients:
            grads = {name: p.grad for name, p in pl_module.student.named_parameters()}
            self.trace.gradients = {name: full_tensor(g).clone() for name, g in grads.items() if g is not None}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: PromptBatch, batch_idx: int
    ) -> None:
        assert float(trainer.callback_metrics["policy/lag"]) == 0
        self.trace.losses.append(float(trainer.callback_metrics["loss/train"]))
        self.trace.norms.append(float(trainer.callback_metrics["optim/grad_norm"]))
        names = [f"policy/text_kl{part}" for part in ("", "_error", "_coverage")]
        self.trace.text_kl.append([float(trainer.callback_metrics[name]) for name in names])
        if (names := ["span/cosine", "span/norm_ratio"])[0] in trainer.callback_metrics:
            self.trace.spans.append([float(trainer.callback_metrics[name]) for name in names])
        assert batch.rollouts is not None
        self.trace.num_groups.append(gather_scalars(pl_module, len(pl_module._pack(batch.rollouts))).tolist())

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.checkpoint is not None and trainer.global_step == SAVED_STEP:
            trainer.save_checkpoint(self.checkpoint)


class OneRankHasAll(IterableDataset[PromptBatch]):
    """Held-out batches that lie on the first rank; the others have none."""

    def __init__(self, batches: list[PromptBatch], rank: int) -> None:
        self.batches = batches if rank == 0 else []

    def __iter__(self) -> Iterator[PromptBatch]:
        return iter(self.batches)


class Data(ArithmeticDataModule):
    """Three steps an epoch, and held-out prompts that one rank has to itself."""

    def val_dataloader(self) -> DataLoader[PromptBatch]:
        prompts = self.held_out_prompts()
        batches = [PromptBatch(prompts[:3]), PromptBatch(prompts[3:])]
        rank = self.trainer.global_rank if self.trainer else 0
        return DataLoader(OneRankHasAll(batches, rank), batch_size=None)


class HalfDeaf(DistillModule):
    """Grades nothing of the prompts with an odd index: of two ranks, the second has nothing that aligns."""

    def align(self, rollouts: Sequence[Rollout]) -> GradedBatch:
        aligned = super().align(rollouts)
        alignments = [
            replace(alignment, supervised_U=alignment.supervised_U & (rollout.prompt.index % 2 == 0))
            for rollout, alignment in zip(rollouts, aligned.alignments, strict=True)
        ]
        return regraded(aligned, alignments=alignments, rows=build_unit_rows(alignments, self.pair.shared_vocab))


class ByParity(DistillModule):
    """Two teachers, by the prompt's index: of two ranks, each needs but one of them."""

    def lesson_of(self, prompt: Prompt) -> Lesson | None:
        return [*self.lessons.values()][prompt.index % 2]


BY_TEACHER: dict[str, Any] = {
    "kind": ByParity,
    "teacher": None,
    "teachers": {
        "digits": TeacherSettings(str(ASSETS / "teacher")),
        "pairs": TeacherSettings(str(ASSETS / "two_digit_teacher")),
    },
    "objective": TokenConditionalLoss(),
    "anchor_weight": 5.0,
}


def fit(
    folder: Path,
    name: str,
    module: DistillModule,
    *,
    strategy: Strategy | str = "auto",
    num_ranks: int = 1,
    resume: Path | None = None,
    exports: Sequence[HFExport] = (),
) -> Trace:
    """Fit; the first rank leaves `<name>.pt`, and unless it resumes a checkpoint `<name>.ckpt` of the first epoch."""
    recorder = Recorder(None if resume else folder / f"{name}.ckpt")
    can_compare = module.sharding is None and isinstance(module.objective, Objective)
    run = trainer(
        folder,
        PolicyMismatch(),
        AlignmentStats(),
        *([SpanGradients(every_n_steps=1)] if can_compare else []),
        recorder,
        *exports,
        max_steps=NUM_STEPS,
        strategy=strategy,
        devices=num_ranks,
    )
    data = Data(batch_size=GLOBAL_BATCH // num_ranks, num_train_batches=SAVED_STEP, num_val_prompts=5)
    run.fit(module, datamodule=data, ckpt_path=resume, weights_only=False)
    trace = recorder.trace
    trace.weights = {name: weight.clone() for name, weight in full_parameters(module.student)}
    trace.held_out = module.history[0].metrics if module.history else {}
    if run.is_global_zero:
        torch.save(vars(trace), folder / f"{name}.pt")
    return trace


def sharded(**overrides: Any) -> DistillModule:
    return unloaded_module(**{"sharding": SHARDED, "grader": TotalGrader(), **overrides})


def check_gathers(module: DistillModule) -> None:
    """The root gathers once a micro-batch and each of the two blocks once a pass; gradients are shared out once."""
    with CommDebugMode() as communication:
        loss, _ = module.loss_sum([], module.align([]))
        loss.backward()
    counts = {str(op): count for op, count in communication.get_comm_counts().items()}
    gathers, scatters = (sum(n for op, n in counts.items() if word in op) for word in ("gather", "scatter"))
    assert (gathers, scatters) == (1 + 2 * 2, 1 + 2), counts


def check_refresh(module: DistillModule) -> None:
    """After a refresh every rank's engine has the student's very values, tied heads too."""
    assert is_sharded(module.student)
    engine = HFEngine()
    for version in (1, 2):
        with torch.no_grad():
            for parameter in module.student.parameters():
                parameter.add_(0.125)
        engine.refresh(module.student, version)
        assert engine.policy_version == version
        assert engine._model is not None
        assert not is_sharded(engine._model)
        own = dict(engine._model.named_parameters())
        for name, weight in full_parameters(module.student):
            assert torch.equal(own.pop(name), weight), name
        assert not own
        assert engine._model.get_output_embeddings().weight is engine._model.get_input_embeddings().weight


def check_failed_refresh(module: DistillModule, folder: Path) -> None:
    """Where the first rank cannot write the weights, every rank hears of it, and none is left in a gather."""
    blocked = folder / "a file"
    blocked.touch()
    engine = VLLMServerEngine(weights_folder=str(blocked / "weights"))
    with pytest.raises(ExportError, match="a file"):
        engine.refresh(module.student, 1)
    assert engine.policy_version is None
    assert len(list(full_parameters(module.student))) > 1


@contextmanager
def reading(first: bool) -> Iterator[None]:
    """Inside, only the first rank can read a model, or only the others."""

    def refuse(*_: object) -> None:
        raise ModelFolderError("this rank reads nothing")

    with pytest.MonkeyPatch.context() as patch:
        if (os.environ["LOCAL_RANK"] == "0") is not first:
            patch.setattr("simct_pl.models.read_once.load_causal_lm", refuse)
        yield


def check_failed_load(folder: Path) -> None:
    """What the first rank cannot read is heard of on every rank."""
    said = "reads nothing" if os.environ["LOCAL_RANK"] == "0" else "load the student: rank 0: ModelFolderError"
    with reading(first=False), pytest.raises(ModelFolderError, match=said):
        fit(folder, "unread", sharded(), strategy=ShardedStrategy(), num_ranks=2)


def fsdp2(folder: Path) -> None:
    module = sharded(**RAGGED)
    fit(
        folder,
        "fsdp2",
        module,
        strategy=ShardedStrategy(),
        exports=[HFExport(str(folder / "fsdp2-export"))],
        num_ranks=2,
    )
    check_gathers(module)
    check_refresh(module)
    check_failed_refresh(module, folder)


def lora(folder: Path) -> None:
    """Adapters that ranks share, from an adapter folder, with every export and a checkpoint; and what engines get."""
    start = str(folder / "adapter")
    module = sharded(student=start, gradient_checkpointing=True, anchor_weight=5.0, **RAGGED)
    exports = [HFExport(str(folder / f"lora-{name}"), adapter=name == "adapter") for name in ("merged", "adapter")]
    fit(folder, "lora", module, strategy=ShardedStrategy(), num_ranks=2, exports=exports)
    engine = HFEngine()
    engine.refresh(module.student, 1)
    assert engine._model is not None
    assert not is_sharded(engine._model)
    merged = merged_state_dict(module.student)
    assert all(torch.equal(weight, merged[name]) for name, weight in engine._model.named_parameters())
    names = [name for name, _ in named_weights(module.student, only_changing=True)]
    assert names == [name for name in weight_names(module.student) if "embed" not in name and "lm_head" not in name]
    module = sharded(student=start, gradient_checkpointing=True, anchor_weight=5.0, **RAGGED)
    fit(folder, "lora resumed", module, strategy=ShardedStrategy(), num_ranks=2, resume=folder / "lora.ckpt")
    module = unloaded_module(student=start, grader=TotalGrader(), anchor_weight=5.0, **RAGGED)
    fit(folder, "lora ddp", module, strategy="ddp", num_ranks=2)
    mixed = sharded(lora={**LORA, "modules_to_save": None}, student_dtype="bfloat16", sharding=Sharding())
    fit(folder, "lora bfloat16", mixed, strategy=ShardedStrategy(), num_ranks=2)


def on_two_ranks(folder: Path, untied: str) -> None:
    """All fits, in one process of two."""

    def run(name: str, module: DistillModule, strategy: Strategy | str = "", resume: Path | None = None) -> None:
        fit(folder, name, module, strategy=strategy or ShardedStrategy(), resume=resume, num_ranks=2)

    run("ddp", unloaded_module(grader=TotalGrader(), **RAGGED), "ddp")
    fsdp2(folder)
    lora(folder)
    run("resumed on 2", sharded(**RAGGED), resume=folder / "fsdp2.ckpt")
    everything = Sharding(reshard_after_forward=False, cpu_offload=True, shard_teacher=True)
    batches = {"teacher_batch_tokens": 60, "anchor_weight": 5.0, **RAGGED}
    objective = TokenConditionalLoss()
    with reading(first=True):
        run("everything", sharded(sharding=everything, objective=objective, gradient_checkpointing=True, **batches))
    check_failed_load(folder)
    run("hsdp", sharded(student=untied, sharding=Sharding(replicate=2)))
    run("half deaf", sharded(kind=HalfDeaf, **RAGGED))
    run("by teacher", sharded(sharding=Sharding(shard_teacher=True), **BY_TEACHER, **RAGGED))
    run("by teacher ddp", unloaded_module(grader=TotalGrader(), **BY_TEACHER, **RAGGED), "ddp")
    run("bfloat16", sharded(sharding=Sharding(param_dtype="bfloat16")))


def rank(local_rank: int, port: int, work: Callable[[], None]) -> None:
    """Be one of two ranks."""
    os.environ |= {"LOCAL_RANK": str(local_rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    work()
    torch.distributed.destroy_process_group()


def main(work: Callable[[], None]) -> int:
    """Run the same on two ranks; the number of them that failed."""
    torch.set_num_threads(1)
    port = find_free_network_port()
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=rank, args=(i, port, work)) for i in range(2)]
    for process in ranks:
        process.start()
    multiprocessing.connection.wait(
        [process.sentinel for process in ranks]
    )  # a rank that fails leaves the other waiting
    for process in ranks:
        process.join(None if all(other.exitcode in (None, 0) for other in ranks) else 5)
        process.kill()
        process.join()
    return sum(process.exitcode != 0 for process in ranks)


if __name__ == "__main__":
    sys.exit(main(partial(on_two_ranks, Path(sys.argv[1]), sys.argv[2])))
