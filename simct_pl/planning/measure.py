"""What a model takes, by its own code: parameters, and the bytes that its body holds while it trains, reads, samples.

In: a configuration of any architecture that transformers can build. Out: ModelSize, and bytes of one forward and
backward. The model is built without storage and its code runs on tensors that have sizes and no values: no weights
load, and 7 billion parameters take seconds. Sizes are those of PyTorch's CPU operators; what a kernel allocates for
itself, and what an allocator keeps, is not among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, UnsupportedOperatorException
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from simct_pl.errors import UnsupportedModelError, first_line
from simct_pl.models.lm_head import LMHead
from simct_pl.models.sharding import decoder_blocks
from simct_pl.planning.live_bytes import NEEDS_VALUES, SizesOnly, TooManyOperators


@dataclass(frozen=True)
class ModelSource:
    """What a model is built from. trust_remote_code: whether its own Python code may run."""

    config: PretrainedConfig
    trust_remote_code: bool = False


@dataclass(frozen=True)
class ModelSize:
    """Parameters of a model and of its parts; what is tied counts once.

    blocks: of each decoder block; empty where the architecture does not name its blocks. head: of the output
    projection. width, vocab: of the states that it reads, and of the logits that it writes.
    """

    parameters: int
    blocks: tuple[int, ...]
    head: int
    width: int
    vocab: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> ModelSize:
        """Count a model that may be without storage.

        Raises:
            UnsupportedModelError: if it does not end as a causal language model does.
        """
        weight_KH = LMHead.of(model).projection.weight
        try:
            blocks = decoder_blocks(model)
        except UnsupportedModelError:  # it can train all the same, unsharded
            blocks = []
        return cls(
            sum(parameter.numel() for parameter in model.parameters()),
            tuple(sum(parameter.numel() for parameter in block.parameters()) for block in blocks),
            weight_KH.numel(),
            weight_KH.shape[1],
            weight_KH.shape[0],
        )

    @property
    def outside(self) -> int:
        """Parameters that are in no block."""
        return self.parameters - sum(self.blocks)


@dataclass(frozen=True)
class WorkBytes:
    """Of one forward and backward beside weights and gradients. kept: what backward needs of the forward, and the
    result. most: alive at once, in forward or backward.
    """

    kept: int
    most: int


class SizedModel:
    """A model without storage.

    Args:
        source: of any architecture. dtype: of the weights.

    Raises:
        UnsupportedModelError: if transformers cannot build a causal language model of it.
    """

    def __init__(self, source: ModelSource, dtype: torch.dtype) -> None:
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        try:
            with self.fake, no_init_weights():
                self.model: PreTrainedModel = AutoModelForCausalLM.from_config(
                    deepcopy(source.config), dtype=dtype, trust_remote_code=source.trust_remote_code
                )
                self.model.tie_weights()  # part of the initialisation that is left out
        except (ValueError, KeyError, ImportError, *NEEDS_VALUES) as error:
            raise UnsupportedModelError(
                f"transformers builds no causal language model of model_type {source.config.model_type!r}: "
                f"{first_line(error)}"
            ) from error

    @property
    def size(self) -> ModelSize:
        return ModelSize.of(self.model)

    def training(self, run: Callable[[], Tensor], *, checkpointing: bool, autocast: bool = False) -> WorkBytes:
        """One forward and backward in training mode; run: the forward, whose result backward starts from.

        autocast: to bf16; its copies of weights are among the bytes kept.

        Raises:
            UnsupportedModelError: if the forward depends on values.
        """
        self.model.train().requires_grad_(True)
        if checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        with self.fake:  # there already, so that backward adds to them
            for parameter in self.model.parameters():
                parameter.grad = torch.zeros_like(parameter)
        with self._sizes() as sizes, torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            result = run()
            kept, forward = sizes.live, sizes.forget_peak()
            result.backward(torch.zeros_like(result))
            return WorkBytes(kept, max(forward, sizes.most))

    @torch.no_grad()
    def reading(self, run: Callable[[], Tensor]) -> int:
        """Most bytes alive in a forward without gradients.

        Raises:
            UnsupportedModelError: if the forward depends on values.
        """
        self.model.eval()
        with self._sizes() as sizes:
            run()
            return sizes.most

    @torch.no_grad()
    def cache(self, length: int) -> int:
        """Bytes that generation keeps of one sequence: keys and values, or what an architecture has in their place.

        Raises:
            UnsupportedModelError: if the forward depends on values.
        """
        self.model.eval()
        with self._sizes():
            output = self.model.get_decoder()(input_ids=torch.ones(1, length, dtype=torch.int64), use_cache=True)
            # A sliding layer's part is a view of more, until the next token is appended: its own size counts.
            found = {id(tensor): tensor.nbytes for tensor in _held_tensors(output.get("past_key_values"), set())}
        return sum(found.values())

    @contextmanager
    def _sizes(self) -> Iterator[SizesOnly]:
        try:
            with SizesOnly(self.fake) as sizes:
                yield sizes
        except TooManyOperators as error:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} runs more than {error} operators, as models that read token by token do: "
                "following its memory would take too long."
            ) from error
        except (*NEEDS_VALUES, UnsupportedOperatorException) as error:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} decides by values what it computes ({first_line(error)}), so that the "
                "memory of its forward cannot be told without running it."
            ) from error


def _held_tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Tensors that an object of transformers' caches refers to."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _held_tensors(item, seen)
    elif isinstance(value, dict):
        yield from _held_tensors(list(value.values()), seen)
    elif hasattr(value, "__dict__") and type(value).__module__.startswith("transformers") and id(value) not in seen:
        seen.add(id(value))
        if not isinstance(value, PretrainedConfig):
            yield from _held_tensors(vars(value), seen)
