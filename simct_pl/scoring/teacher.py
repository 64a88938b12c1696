"""The frozen teacher: its own prompt, its own tokens, its own head; no gradients, and no place in the student's
checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from simct_pl.models import DtypeName, load_causal_lm
from simct_pl.scoring.heads import LMHead, ResponseStates, response_states, verify_head
from simct_pl.scoring.microbatch import pack_by_length


class FrozenTeacher:
    """Reads responses and hands out the hidden states that predict their tokens.

    Not an nn.Module on purpose: as a submodule of the student's LightningModule it would be saved, moved and optimised
    with it.

    Args:
        path: model folder or hub name. dtype: of the weights. max_batch_tokens: padded tokens a forward.
    """

    def __init__(
        self, path: str, dtype: DtypeName = "bfloat16", max_batch_tokens: int = 16_384, trust_remote_code: bool = False
    ) -> None:
        self.model = load_causal_lm("teacher", path, dtype, trust_remote_code).eval().requires_grad_(False)
        self.max_batch_tokens = max_batch_tokens
        verify_head(self.model)
        self._head = LMHead(self.model)

    def to(self, device: torch.device) -> FrozenTeacher:
        self.model.to(device)
        return self

    @torch.no_grad()
    def logits(self, hidden_MH: Tensor) -> Tensor:
        """The teacher's own logits, in its own dtype whatever the trainer's autocast says."""
        with torch.autocast(hidden_MH.device.type, enabled=False):
            return self._head(hidden_MH)

    @torch.no_grad()
    def states(self, prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]]) -> ResponseStates:
        """States of all responses in the order given, computed in batches of similar length."""
        lengths = [len(p) + len(r) for p, r in zip(prompt_ids, response_ids, strict=True)]
        rows_by_response: dict[int, Tensor] = {}
        for batch in pack_by_length(lengths, self.max_batch_tokens):
            with torch.autocast(self.model.device.type, enabled=False):
                found = response_states(self.model, [prompt_ids[i] for i in batch], [response_ids[i] for i in batch])
            for i, offset in zip(batch, found.offsets, strict=True):
                rows_by_response[i] = found.hidden_NH[offset : offset + len(response_ids[i])]
        ordered = [rows_by_response[i] for i in range(len(lengths))]
        offsets, total = [], 0
        for rows in ordered:
            offsets.append(total)
            total += len(rows)
        return ResponseStates(torch.cat(ordered), offsets)
