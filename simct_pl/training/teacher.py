"""The frozen teacher: its own prompt, its own tokens, its own head; no gradients, and no place in the student's
checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel
from typing_extensions import override

from simct_pl.models.lm_head import LMHead, ResponseStates, response_states
from simct_pl.models.load_arguments import load_arguments
from simct_pl.models.loading import DtypeName
from simct_pl.models.lora import Lora
from simct_pl.models.microbatch import pack_by_length, unpack
from simct_pl.models.read_once import ReadOnce
from simct_pl.models.sharding import shard_teacher

CPU = torch.device("cpu")


class FrozenTeacher:
    """Reads responses and hands out the hidden states that predict their tokens.

    Not an nn.Module on purpose: as a submodule of the student's LightningModule it would be saved, moved and optimised
    with it.

    Args:
        path: model folder or hub name. dtype: of the weights. max_batch_tokens: padded tokens a forward. device: where
            the weights go, and where ranks exchange tensors. role: what errors call it. lora: adapters that it has.
        arguments: more of from_pretrained's, as plain values.
    """

    without_gradients: type[torch.inference_mode] | type[torch.no_grad] = torch.inference_mode

    def __init__(
        self,
        path: str,
        dtype: DtypeName = "bfloat16",
        max_batch_tokens: int = 16_384,
        trust_remote_code: bool = False,
        device: torch.device = CPU,
        role: str = "teacher",
        lora: Lora | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        arguments = load_arguments(f"{role}_kwargs", arguments or {}, device)
        read = ReadOnce.load(role, path, dtype, trust_remote_code, lora=lora, arguments=arguments)
        self._use(read.model, max_batch_tokens)
        self._place(device)
        read.fill(device)

    def _place(self, device: torch.device) -> None:
        """Where the weights go, before they are there."""
        self.to(device)

    @classmethod
    def of(cls, model: PreTrainedModel, max_batch_tokens: int = 16_384) -> FrozenTeacher:
        """A model that is there already, its head taken as it is."""
        teacher = cls.__new__(cls)
        teacher._use(model, max_batch_tokens)
        return teacher

    def _use(self, model: PreTrainedModel, max_batch_tokens: int) -> None:
        self.model = model.eval().requires_grad_(False)
        self.max_batch_tokens = max_batch_tokens
        self.head = LMHead.of(model)

    def at(self, temperature: float) -> FrozenTeacher:
        """The same, its logits divided by a temperature."""
        self.head = replace(self.head, temperature=temperature)
        return self

    def to(self, device: torch.device) -> FrozenTeacher:
        if self.model.device != device:
            self.model.to(device)
        return self

    def states(self, prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]]) -> ResponseStates:
        """States of all responses in the order given, computed in batches of similar length.

        They come in the teacher's own dtype, whatever the trainer's autocast says.
        """
        lengths = [len(p) + len(r) for p, r in zip(prompt_ids, response_ids, strict=True)]
        # Grouped by length for the forwards; `unpack` brings the parts back into the order given.
        groups, parts, num_positions = self._pack(lengths), [], 0
        with self.without_gradients(), torch.autocast(self.model.device.type, enabled=False):
            for batch in groups:
                found = response_states(self.model, [prompt_ids[i] for i in batch], [response_ids[i] for i in batch])
                parts.append(found.hidden_NH.split([len(response_ids[i]) for i in batch]))
                num_positions += found.num_positions
        # Outside inference mode, so that it is an ordinary tensor: autograd may save what is made of it.
        hidden_MH = torch.cat(unpack(groups, parts)) if lengths else self._no_states()
        offsets = list(accumulate(map(len, response_ids), initial=0))[:-1]
        return ResponseStates(hidden_MH, offsets, sum(lengths), num_positions)

    def metrics(self) -> dict[str, float]:
        """What a step has to log of it: nothing."""
        return {}

    def _pack(self, lengths: list[int]) -> list[list[int]]:
        """Indices of the responses of each forward."""
        return pack_by_length(lengths, self.max_batch_tokens)

    def _no_states(self) -> Tensor:
        head = self.head.projection
        return head.weight.new_empty(0, head.in_features)


class ShardedTeacher(FrozenTeacher):
    """A teacher whose decoder blocks the ranks share; in `states` they run the same number of forwards."""

    without_gradients = torch.no_grad  # FSDP2 writes over what it gathered before, which inference mode forbids

    def __init__(self, mesh: DeviceMesh, *arguments: Any) -> None:
        self.mesh = mesh
        super().__init__(*arguments)

    @override
    def _place(self, device: torch.device) -> None:
        shard_teacher(self.model, self.mesh)

    @override
    def _pack(self, lengths: list[int]) -> list[list[int]]:
        groups = super()._pack(lengths)
        # The rank with the most forwards decides. The others add empty ones, which take part in gathering the blocks.
        most = torch.tensor(len(groups), device=self.model.device)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        return groups + [[]] * (int(most) - len(groups))


def load_frozen(
    role: str,
    path: str,
    dtype: DtypeName,
    max_batch_tokens: int,
    trust_remote_code: bool,
    device: torch.device,
    mesh: DeviceMesh | None,
    lora: Lora | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> FrozenTeacher:
    """A model that only reads: whole on each rank, or shared by those of a mesh. Collective.

    role, and the others: see FrozenTeacher.
    """
    given = path, dtype, max_batch_tokens, trust_remote_code, device, role, lora, arguments
    return FrozenTeacher(*given) if mesh is None else ShardedTeacher(mesh, *given)
