"""Models over several ranks: whole parameters of a model that may be sharded, one at a time."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def full_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Each parameter by its name in the model, whole and detached; tied ones once, under their first name.

    Only one gathered parameter exists at a time unless the caller keeps it. Collective: when the model is sharded,
    every rank must walk through all of them.
    """
    for name, parameter in model.named_parameters():
        tensor = parameter.detach()
        yield name, tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
