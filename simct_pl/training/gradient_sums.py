"""Gradients of a chunked loss, added up while its chunks run: of hidden states, and of the student's head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GradientSums:
    """Gradients of the loss sum so far, None where none is needed. Over chunks they add up in at least fp32."""

    weight_KH: Tensor | None
    bias_K: Tensor | None
    states: list[Tensor | None]

    @classmethod
    def zeros(
        cls, weight_KH: Tensor, bias_K: Tensor | None, states: Sequence[Tensor], needed: Sequence[bool]
    ) -> GradientSums:
        sum_dtype = torch.promote_types(weight_KH.dtype, torch.float32)
        return cls(
            torch.zeros_like(weight_KH, dtype=sum_dtype) if needed[0] else None,
            torch.zeros_like(bias_K, dtype=sum_dtype) if needed[1] and bias_K is not None else None,
            [torch.zeros_like(one) if need else None for one, need in zip(states, needed[2:], strict=True)],
        )

    def wanted(self) -> list[bool]:
        """Whether each source's logits need a gradient."""
        trains_head = self.weight_KH is not None or self.bias_K is not None
        return [one is not None or (i == 0 and trains_head) for i, one in enumerate(self.states)]

    def add(self, source: int, grad_RK: Tensor, states_RH: Tensor, row_R: Tensor, weight_KH: Tensor) -> None:
        """A chunk's part, given the gradient of one source's logits. No row of states belongs to two chunks."""
        states = self.states[source]
        # logits = states Wᵀ + b, so d states = d logits W, d W = d logitsᵀ states, and d b is the sum over rows.
        if states is not None:
            states.index_copy_(0, row_R, (grad_RK @ weight_KH).to(states.dtype))
        if source > 0:
            return
        if self.weight_KH is not None:
            # Added in place where dtypes allow it, without a [vocabulary x width] temporary for each chunk.
            if self.weight_KH.dtype == grad_RK.dtype:
                self.weight_KH.addmm_(grad_RK.T, states_RH)
            else:
                self.weight_KH.add_(grad_RK.T @ states_RH)
        if self.bias_K is not None:
            self.bias_K.add_(grad_RK.sum(0, dtype=self.bias_K.dtype))
