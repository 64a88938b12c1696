"""A causal language model in two halves: body (ids → hidden states) and head (hidden states → logits).

The head repeats what the model's own forward does after its last hidden state: the output projection (tied or not, with
or without bias, padded or not), a logit scale, and soft-capping. `verify_head` proves it on the loaded model, so that
an architecture with something else up its sleeve is refused instead of giving wrong losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from simct_pl.errors import UnsupportedModelError

PROBE_TOKENS = 8


@dataclass(frozen=True)
class LMHead:
    """Hidden states [..., H] → logits [..., vocabulary]: what a model's own forward puts after its last hidden state.

    projection: the matrix product; its rows may outnumber the tokenizer's ids. scale, softcap: what follows it.
    temperature: what all is divided by at last, 1 in a model's own forward.
    """

    projection: nn.Linear
    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    @classmethod
    def of(cls, model: PreTrainedModel) -> LMHead:
        """The head of a causal language model.

        Raises:
            UnsupportedModelError: if it does not end with an nn.Linear of floating-point weights.
        """
        config = model.config.get_text_config()
        projection = model.get_output_embeddings()
        if not isinstance(projection, nn.Linear) or not projection.weight.is_floating_point():
            raise UnsupportedModelError(
                f"{type(model).__name__} has {type(projection).__name__} for output embeddings; expected a causal "
                "language model that ends with an nn.Linear of floating-point weights. Merge adapters into it, and "
                "leave it out of quantisation."
            )
        # Cohere multiplies by logit_scale, Granite divides by logits_scaling.
        scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
        return cls(projection, scale, getattr(config, "final_logit_softcapping", None))

    def __call__(self, hidden: Tensor) -> Tensor:
        return self.finish(self.projection(hidden))

    def project(self, states: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
        """The matrix product alone, of rows [R, H] with a copy of the projection's weight and bias, into `out`."""
        if bias is None:
            return torch.mm(states, weight.T, out=out)
        return torch.addmm(bias, states, weight.T, out=out)

    def finish(self, projected: Tensor) -> Tensor:
        """Scale, soft-cap and temperature."""
        if self._first_factor != 1.0:
            projected = projected * self._first_factor
        if self.softcap is not None:
            projected = torch.tanh(projected / self.softcap) * (self.softcap / self.temperature)
        return projected

    @property
    def _first_factor(self) -> float:
        """What the product is scaled by; without a soft-cap the temperature can be in it."""
        return self.scale if self.softcap is not None else self.scale / self.temperature

    # The same in two parts, of which the first needs no memory of its own, and its gradient neither.

    def squash_(self, projected: Tensor) -> Tensor:
        """All but the last factor, in place; finish(x) = expand(squash_(x))."""
        if self._first_factor != 1.0:
            projected.mul_(self._first_factor)
        return projected if self.softcap is None else projected.div_(self.softcap).tanh_()

    def expand(self, squashed: Tensor) -> Tensor:
        """The last factor."""
        return squashed if self.softcap is None else squashed * (self.softcap / self.temperature)

    def squash_backward_(self, squashed: Tensor, gradient: Tensor) -> None:
        """Write the gradient of what was projected over what it was squashed to. gradient: of the latter."""
        if self.softcap is None:
            squashed.copy_(gradient)
        else:
            torch.ops.aten.tanh_backward.grad_input(gradient, squashed, grad_input=squashed)
        factor = self._first_factor / (self.softcap or 1.0)
        if factor != 1.0:
            squashed.mul_(factor)


def input_embedding(model: PreTrainedModel) -> Tensor:
    """The rows that a model looks its input tokens up in, [vocabulary, H], detached."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight.detach()


@torch.no_grad()
def verify_head(model: PreTrainedModel) -> None:
    """Compare body + LMHead with the model's own forward on a few tokens.

    Raises:
        UnsupportedModelError: if they differ by more than rounding.
    """
    was_training = model.training
    model.eval()
    vocab_size = int(model.config.get_text_config().vocab_size)
    ids_BS = torch.arange(PROBE_TOKENS, device=model.device)[None] * 7 % vocab_size
    expected = model(input_ids=ids_BS, use_cache=False).logits.float()
    found = LMHead.of(model)(model.get_decoder()(input_ids=ids_BS, use_cache=False).last_hidden_state).float()
    model.train(was_training)
    tolerance = 1e-4 if model.dtype in (torch.float32, torch.float64) else 5e-2
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=tolerance, atol=tolerance):
        raise UnsupportedModelError(
            f"{type(model).__name__}: logits rebuilt from the last hidden state differ from the model's own forward. "
            "Its head does more than projection, scale and soft-capping; teach simct_pl.models.lm_head.LMHead that "
            "step."
        )


@dataclass(frozen=True)
class ResponseStates:
    """Hidden states that predict response tokens.

    hidden_NH: rows of all responses. offsets: first row of each response. num_tokens, num_positions: what the body
    read, without and with padding.
    """

    hidden_NH: Tensor
    offsets: list[int]
    num_tokens: int
    num_positions: int


def response_states(
    model: PreTrainedModel, prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]]
) -> ResponseStates:
    """Run the body over prompt + response, right-padded, and keep the states that predict response tokens.

    Row offsets[b] + i predicts token i of response b: no state of a prompt-only or padded position is kept. Without any
    response, one token is read and none kept: ranks that share a model run the same number of forwards. Attention is
    causal and padding is on the right, so no kept state sees padding, and no attention mask is needed: without one,
    kernels that know no mask but the causal one can run, and nothing of [sequences x length x length] is made.
    """
    sequences = [torch.tensor([*p, *r]) for p, r in zip(prompt_ids, response_ids, strict=True)]
    ids_BS = pad_sequence(sequences, batch_first=True) if sequences else torch.zeros(1, 1, dtype=torch.int64)
    lengths_B1 = torch.tensor([len(sequence) for sequence in sequences], dtype=torch.int64)[:, None]
    responses_B1 = torch.tensor([len(response) for response in response_ids], dtype=torch.int64)[:, None]
    # The state at a position predicts the token behind it: from the last token of the prompt to the last but one of
    # all.
    position_S = torch.arange(ids_BS.shape[1])
    predicts_BS = (position_S >= lengths_B1 - responses_B1 - 1) & (position_S < lengths_B1 - 1)
    row_N = predicts_BS.flatten().nonzero().squeeze(1)
    output = model.get_decoder()(input_ids=ids_BS.to(model.device), use_cache=False)
    hidden_NH = output.last_hidden_state.flatten(0, 1).index_select(0, row_N.to(model.device))
    offsets = (responses_B1.cumsum(0) - responses_B1).flatten().tolist()
    return ResponseStates(hidden_NH, offsets, int(lengths_B1.sum()), ids_BS.numel())
