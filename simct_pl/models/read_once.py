"""Loading a model on several ranks: the first one reads it, the others get it from there, one parameter at a time.

Reading it everywhere would keep as many copies in a host's memory as it has ranks, before any of them is shared out or
on a GPU. In: a model folder, and where the ranks exchange tensors. Out: a model on every rank, to be sharded or moved,
and then filled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from simct_pl.errors import ModelFolderError
from simct_pl.models.lm_head import verify_head
from simct_pl.models.load_arguments import is_quantised
from simct_pl.models.loading import DtypeName, load_causal_lm, load_config, torch_dtype
from simct_pl.models.lora import Lora
from simct_pl.models.ranks import failing_together, num_ranks, objects_of_ranks, rank


@dataclass
class ReadOnce:
    """model: with the weights, on a single rank; else what its constructor leaves, in memory that nobody has touched.

    source: the weights, on the first of several ranks.
    """

    model: PreTrainedModel
    source: PreTrainedModel | None

    @classmethod
    def load(
        cls,
        role: str,
        path: str,
        dtype: DtypeName,
        trust_remote_code: bool = False,
        *,
        everywhere: bool = False,
        check: Callable[[PreTrainedModel], None] = verify_head,
        lora: Lora | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> ReadOnce:
        """Read a model, and check it where its weights are. Collective.

        everywhere: read it on every rank all the same: somebody needs its values before `fill`. lora: adapters that it
            gets, behind the check. arguments: more of from_pretrained's; with any, and where weights are packed, every
            rank reads them.

        Raises:
            ModelFolderError, UnsupportedModelError: see load_causal_lm and `check`; on the other ranks the first.
        """
        everywhere = everywhere or num_ranks() == 1 or bool(arguments)
        if everywhere or is_quantised({}, load_config(role, path, trust_remote_code)):
            model = load_causal_lm(role, path, dtype, trust_remote_code, arguments)
            check(model)
            if lora is not None:
                lora.attach(model)
            return cls(model, None)
        source = None
        with failing_together(f"load the {role}", ModelFolderError):
            if rank() == 0:
                source = load_causal_lm(role, path, dtype, trust_remote_code)
                check(source)
                if lora is not None:
                    lora.attach(source)
        # What a checkpoint says beside the weights: its sampling defaults, and which of them stay in another dtype.
        dtypes = None if source is None else {name: p.dtype for name, p in source.named_parameters()}
        kept = objects_of_ranks(None if source is None else (source.generation_config, dtypes))[0]
        model = _untouched(role, path, dtype, trust_remote_code)
        model.generation_config, dtypes = kept
        if lora is not None:
            lora.attach(model, load=False)
        for name, parameter in model.named_parameters():
            if parameter.dtype != dtypes[name]:
                parameter.data = torch.empty(parameter.shape, dtype=dtypes[name])
        return cls(model, source)

    @torch.no_grad()
    def fill(self, device: torch.device) -> None:
        """Bring the weights to every rank, each keeping its part where they are sharded. Collective.

        device: on which ranks exchange tensors.
        """
        if num_ranks() == 1 or not any(objects_of_ranks(self.source is not None)):
            return
        read = dict(_tensors(self.source)) if self.source is not None else {}
        for name, tensor in _tensors(self.model):
            whole = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            if read:
                whole.copy_(read[name])
            dist.broadcast(whole, 0)
            if isinstance(tensor, DTensor):
                part = distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=None)
                tensor.to_local().copy_(part.to_local())
            else:
                tensor.copy_(whole)
        self.source = None


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers; tied ones once."""
    return [*model.named_parameters(), *model.named_buffers()]


def _untouched(role: str, path: str, dtype: DtypeName, trust_remote_code: bool) -> PreTrainedModel:
    """A model whose parameters have an address and no pages yet: the system gives them when they are written."""
    with torch.random.fork_rng(devices=[]), no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            load_config(role, path, trust_remote_code),
            dtype=torch_dtype(dtype),
            trust_remote_code=trust_remote_code,
        )
    model.tie_weights()  # part of the initialisation that is left out
    return model
