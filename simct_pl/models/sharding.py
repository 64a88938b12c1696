"""Models over several ranks: how FSDP2 shards a student and its teacher, and how to get whole tensors back.

In: a model that every rank has loaded whole, and the trainer's device mesh. Out: the same model, its parameters
DTensors of which each rank holds a part. FSDP2 gathers a decoder block's weights around that block's forward and
backward; what lies outside the blocks (embeddings, head, last norm) is gathered around the forward of the root,
StudentWithLoss.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from typing_extensions import override

from simct_pl.errors import RecipeError, UnsupportedModelError
from simct_pl.models.loading import DtypeName, torch_dtype


@dataclass(frozen=True)
class Sharding:
    """How FSDP2 lays a student out over ranks; it needs ShardedStrategy as trainer.strategy.

    Args:
        replicate: whole copies of the student; ranks / replicate neighbouring ranks share each (HSDP). 1: all ranks
            share one copy.
        param_dtype: of gathered weights, and so of the products; null keeps the weights' own. Each rank's part, the
            gradients that it keeps and AdamW's moments stay in student_dtype.
        reduce_dtype: in which ranks add gradients up.
        reshard_after_forward: free a block's weights after its forward and gather them again in backward: less memory,
            half as much traffic again. The root's weights are gathered once a micro-batch either way.
        cpu_offload: keep parts, gradients and moments in host memory; AdamW then runs there. On GPUs ranks then
            exchange tensors of both kinds: ShardedStrategy's process_group_backend must be "cpu:gloo,cuda:nccl".
        shard_teacher: share the teacher's decoder blocks too, gathered one at a time. Its embeddings and head stay
            whole on every rank.

    Raises:
        RecipeError: for a value outside its range.
    """

    replicate: int = 1
    param_dtype: DtypeName | None = None
    reduce_dtype: DtypeName = "float32"
    reshard_after_forward: bool = True
    cpu_offload: bool = False
    shard_teacher: bool = False

    def __post_init__(self) -> None:
        if self.replicate < 1:
            raise RecipeError(f"sharding.replicate is {self.replicate}; expected at least 1 copy of the student.")
        if "float16" in (self.param_dtype, self.reduce_dtype):
            raise RecipeError("sharding in float16 needs a loss scale, which is not there; use bfloat16 or float32.")

    def mesh(self, data_parallel: DeviceMesh) -> DeviceMesh:
        """The ranks as one row, or as [replicate, shard]."""
        if self.replicate == 1:
            return data_parallel
        shape = (self.replicate, data_parallel.size() // self.replicate)
        return init_device_mesh(data_parallel.device_type, shape, mesh_dim_names=("replicate", "shard"))

    def shard_student(self, root: nn.Module, student: PreTrainedModel, mesh: DeviceMesh) -> None:
        """Share the student's blocks, and what is outside them as the root's own group: tied heads stay tied.

        root: the module whose forward, or method `bits`, runs the student.
        """
        policy = MixedPrecisionPolicy(
            torch_dtype(self.param_dtype) if self.param_dtype else None, torch_dtype(self.reduce_dtype)
        )
        offload = CPUOffloadPolicy(pin_memory=torch.cuda.is_available()) if self.cpu_offload else OffloadPolicy()
        # Blocks first. The root comes last, and its group is whatever no block has taken.
        for block in decoder_blocks(student):
            fully_shard(
                block,
                mesh=mesh,
                reshard_after_forward=self.reshard_after_forward,
                mp_policy=policy,
                offload_policy=offload,
            )
        # The root's inputs are no tensors: there is nothing to cast, and looking for some in every rollout takes long.
        own_policy = MixedPrecisionPolicy(policy.param_dtype, policy.reduce_dtype, cast_forward_inputs=False)
        fully_shard(root, mesh=mesh, reshard_after_forward=False, mp_policy=own_policy, offload_policy=offload)
        register_fsdp_forward_method(root, "bits")


def shard_teacher(teacher: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Share a frozen model's blocks over all ranks. What is outside them stays whole: the loss reads the head."""
    blocks = decoder_blocks(teacher)
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    inside = {parameter for block in blocks for parameter in block.parameters()}
    # A root without parameters of its own, so that one block's gather overlaps the work of the block before.
    fully_shard(teacher.get_decoder(), mesh=mesh, ignored_params=set(teacher.parameters()) - inside)


def decoder_blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The repeated layers of a model, by the class names that its architecture lists.

    Raises:
        UnsupportedModelError: if it lists none.
    """
    names = set(model._no_split_modules or ())
    # Of a class that FSDP2 has derived too.
    blocks = [
        module
        for module in model.get_decoder().modules()
        if any(kind.__name__ in names for kind in type(module).__mro__)
    ]
    if not blocks:
        raise UnsupportedModelError(
            f"{type(model).__name__} does not say which of its modules are decoder blocks (_no_split_modules), so that "
            "it cannot be sharded. Leave `sharding` out and use trainer.strategy=ddp."
        )
    return blocks


class ShardedStrategy(ModelParallelStrategy):
    """All ranks, of all nodes, are data-parallel; checkpoints are one whole file, which any number of ranks resumes.

    Args:
        save_distributed_checkpoint: write a folder with a file a rank instead, which is faster for large models.
        process_group_backend: null is Lightning's choice, gloo on CPUs and NCCL on GPUs.
    """

    def __init__(self, save_distributed_checkpoint: bool = False, process_group_backend: str | None = None) -> None:
        super().__init__(
            save_distributed_checkpoint=save_distributed_checkpoint, process_group_backend=process_group_backend
        )

    @override
    def setup_environment(self) -> None:
        # Lightning's "auto" would shard over nodes and ask for tensor parallelism within each.
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()


# ---- whole tensors of a model that may be sharded ----


def is_sharded(model: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor, whole and detached. Collective when it is sharded."""
    tensor = tensor.detach()
    if not isinstance(tensor, DTensor):
        return tensor
    # An offloaded part goes where ranks exchange it.
    return cast(DTensor, tensor.to(tensor.device_mesh.device_type)).full_tensor()


def full_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Each parameter by its name in the model, whole and detached; tied ones once, under their first name.

    Only one gathered parameter exists at a time unless the caller keeps it. Collective: when the model is sharded,
    every rank must walk through all of them.
    """
    for name, parameter in model.named_parameters():
        yield name, full_tensor(parameter)


def full_state_dict(model: nn.Module, *, keep: bool = True) -> dict[str, Tensor]:
    """The model's state_dict with whole tensors; tied ones share their memory. Collective, as full_parameters.

    Those of a sharded model are copies on the CPU. keep: False gathers with the others and keeps nothing.
    """
    if not is_sharded(model):
        return model.state_dict() if keep else {}
    found: dict[Tensor, Tensor] = {}
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        # By tensor and not by name: a tied one is gathered once. Ranks meet in the same order, also those that keep
        # nothing.
        if tensor not in found:
            whole = full_tensor(tensor)
            found[tensor] = whole.cpu() if keep else whole.new_empty(0)
        state[name] = found[tensor]
    return state if keep else {}


def free_gathered(root: nn.Module) -> None:
    """After forwards without a backward, which leave weights gathered: register each rank's parts again."""
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
