"""A causal language model in two halves: body (ids → hidden states) and head (hidden states → logits).

The head repeats what the model's own forward does after its last hidden state: the output projection (tied or not, with
or without bias, padded or not), a logit scale, and soft-capping. `verify_head` proves it on the loaded model, so that
an architecture with something else up its sleeve is refused instead of being graded wrongly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from simct_pl.errors import UnsupportedModelError

PROBE_TOKENS = 8


class LMHead:
    """Callable [..., H] → [..., vocabulary]: exactly what the model's own forward puts after its last hidden state."""

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config.get_text_config()
        projection = model.get_output_embeddings()
        if projection is None:
            raise UnsupportedModelError(
                f"{type(model).__name__} has no output embeddings; expected a causal language model."
            )
        self.projection: nn.Module = projection
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        # Cohere multiplies by logit_scale, Granite divides by logits_scaling.
        self.scale: float = getattr(config, "logit_scale", None) or 1.0 / (
            getattr(config, "logits_scaling", None) or 1.0
        )

    def __call__(self, hidden: Tensor) -> Tensor:
        logits = self.projection(hidden)
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


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
    found = LMHead(model)(model.get_decoder()(input_ids=ids_BS, use_cache=False).last_hidden_state).float()
    model.train(was_training)
    tolerance = 1e-4 if model.dtype in (torch.float32, torch.float64) else 5e-2
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=tolerance, atol=tolerance):
        raise UnsupportedModelError(
            f"{type(model).__name__}: logits rebuilt from the last hidden state differ from the model's own forward. "
            "Its head does more than projection, scale and soft-capping; teach simct_pl.scoring.heads.LMHead that step."
        )


@dataclass(frozen=True)
class ResponseStates:
    """Hidden states that predict response tokens. hidden_NH: rows of all responses; offsets: first row of each
    response.
    """

    hidden_NH: Tensor
    offsets: list[int]


def response_states(
    model: PreTrainedModel, prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]]
) -> ResponseStates:
    """Run the body over prompt + response, right-padded, and keep the states that predict response tokens.

    Row offsets[b] + i predicts token i of response b: no state of a prompt-only or padded position is kept, and causal
    attention with right padding means that padding cannot change any kept state.
    """
    device = model.device
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompt_ids, response_ids, strict=True)]
    # The last token predicts nothing that is graded, but a body needs at least one token.
    width = max(lengths)
    ids_BS = torch.zeros(len(lengths), width, dtype=torch.int64)
    mask_BS = torch.zeros(len(lengths), width, dtype=torch.int64)
    row_index: list[Tensor] = []
    offsets, num_rows = [], 0
    for b, (prompt, response) in enumerate(zip(prompt_ids, response_ids, strict=True)):
        ids_BS[b, : lengths[b]] = torch.tensor([*prompt, *response])
        mask_BS[b, : lengths[b]] = 1
        row_index.append(b * width + torch.arange(len(prompt) - 1, lengths[b] - 1))
        offsets.append(num_rows)
        num_rows += len(response)
    output = model.get_decoder()(input_ids=ids_BS.to(device), attention_mask=mask_BS.to(device), use_cache=False)
    hidden = output.last_hidden_state
    return ResponseStates(hidden.flatten(0, 1)[torch.cat(row_index).to(device)], offsets)
