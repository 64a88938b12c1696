"""How prompts with their responses are laid out for one forward: padded side by side, or packed end to end.

In: token ids. Out: the hidden states that predict response tokens, in the order of the responses; the same ones, to
rounding, from either layout.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from simct_pl.errors import UnsupportedModelError
from simct_pl.models.lm_head import PROBE_TOKENS, ResponseStates, response_states
from simct_pl.models.microbatch import pack_by_length


class Layout(ABC):
    """Cuts a batch into forwards, and runs one."""

    @abstractmethod
    def groups(self, lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
        """Indices of the sequences of each forward, which has at most max_tokens positions unless one is longer."""

    @abstractmethod
    def states(
        self, model: PreTrainedModel, prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]]
    ) -> ResponseStates:
        """Hidden states that predict response tokens; see response_states, also for a forward without any response."""

    def verify(self, model: PreTrainedModel) -> None:  # noqa: B027 - most have nothing to prove
        """Refuse a model that reads sequences otherwise in this layout. By default, nothing.

        Raises:
            UnsupportedModelError: if it does.
        """


class PaddedRows(Layout):
    """A sequence a row, filled up to the longest. Without a mask, so that every attention kernel can run it."""

    @override
    def groups(self, lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
        return pack_by_length(lengths, max_tokens)

    @override
    def states(
        self, model: PreTrainedModel, prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]]
    ) -> ResponseStates:
        return response_states(model, prompt_ids, response_ids)


class PackedRow(Layout):
    """All sequences in one row, end to end, nothing of it padding. Positions begin anew with each.

    transformers sees from the positions where sequences begin, and lets none attend to another: FlashAttention by their
    lengths, other kernels by a mask of [tokens x tokens], which pays while rows are short or lengths very unequal.
    """

    @override
    def groups(self, lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
        """First fit, longest first."""
        groups: list[list[int]] = []
        room: list[int] = []
        for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            # The first group that has room for it; the longest are placed first, so that short ones fill what is left.
            place = next((g for g, left in enumerate(room) if lengths[i] <= left), None)
            if place is None:
                groups.append([i])
                room.append(max_tokens - lengths[i])
            else:
                groups[place].append(i)
                room[place] -= lengths[i]
        return groups

    @override
    def states(
        self, model: PreTrainedModel, prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]]
    ) -> ResponseStates:
        if not prompt_ids:
            return response_states(model, prompt_ids, response_ids)
        ids, positions, offsets = list[int](), list[int](), list[int]()
        rows = list[range]()
        for prompt, response in zip(prompt_ids, response_ids, strict=True):
            offsets.append(sum(map(len, rows)))
            first = len(ids) + len(prompt) - 1  # the last prompt token predicts the first of the response
            rows.append(range(first, first + len(response)))
            ids += [*prompt, *response]
            positions += range(len(prompt) + len(response))
        hidden_NH = _body(model, ids, positions)
        row_N = torch.tensor([row for part in rows for row in part], dtype=torch.int64, device=hidden_NH.device)
        return ResponseStates(hidden_NH.index_select(0, row_N), offsets, len(ids), len(ids))

    @override
    @torch.no_grad()
    def verify(self, model: PreTrainedModel) -> None:
        """Compare two sequences in one row with each by itself."""
        was_training = model.training
        model.eval()
        vocab_size = int(model.config.get_text_config().vocab_size)
        parts = [[(7 * i + j) % vocab_size for i in range(PROBE_TOKENS)] for j in (1, 2)]
        # Two sequences, once each in a row of its own and once end to end in one: no state may differ.
        alone = torch.cat([_body(model, ids, list(range(PROBE_TOKENS))) for ids in parts]).float()
        packed = _body(model, parts[0] + parts[1], [*range(PROBE_TOKENS)] * 2).float()
        model.train(was_training)
        tolerance = 1e-4 if model.dtype in (torch.float32, torch.float64) else 5e-2
        if not torch.allclose(packed, alone, rtol=tolerance, atol=tolerance * float(alone.abs().max())):
            raise UnsupportedModelError(
                f"{type(model).__name__} reads packed sequences otherwise than each by itself: one sees the other. "
                "Set layout: simct_pl.models.packing.PaddedRows."
            )


def _body(model: PreTrainedModel, ids: list[int], positions: list[int]) -> Tensor:
    """Hidden states of one row, [tokens, H]."""
    device = model.device
    output = model.get_decoder()(
        input_ids=torch.tensor([ids], device=device),
        position_ids=torch.tensor([positions], device=device),
        use_cache=False,
    )
    hidden_NH: Tensor = output.last_hidden_state[0]
    return hidden_NH
