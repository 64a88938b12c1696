"""Reading what was not written: continuations that branch off a response, in one forward with the response itself.

In: responses, and branches of each. Out: hidden states of both. Branch tokens stand behind the response in the same
row, at the positions that they would have had, and attend to the prompt, to the response up to where they branch off,
and to their own branch: a tree, flattened. The response's states are what they are without branches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from simct_pl.errors import UnsupportedModelError
from simct_pl.scoring.heads import ResponseStates, response_states


@dataclass(frozen=True)
class Branch:
    """Tokens to be read as if they followed the first `position` tokens of a response."""

    position: int
    ids: tuple[int, ...]


@dataclass(frozen=True)
class TreeStates:
    """States of the responses, and of every branch token [X, H], sequence by sequence and branch by branch. A branch
    token's state predicts what follows it.
    """

    responses: ResponseStates
    branch_hidden_XH: Tensor


def tree_states(
    model: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    response_ids: Sequence[Sequence[int]],
    branches: Sequence[Sequence[Branch]],
) -> TreeStates:
    """As response_states, with the states of branches.

    Raises:
        UnsupportedModelError: if a sequence is longer than a sliding attention window, which a tree's mask replaces.
    """
    if not any(branches):
        states = response_states(model, prompt_ids, response_ids)
        return TreeStates(states, states.hidden_NH.new_zeros(0, states.hidden_NH.shape[1]))
    rows = [_Row.of(*row) for row in zip(prompt_ids, response_ids, branches, strict=True)]
    ids_BS = pad_sequence([row.ids_S for row in rows], batch_first=True)
    positions_BS = pad_sequence([row.positions_S for row in rows], batch_first=True)
    _check_window(model, int(positions_BS.max()) + 1)
    mask_BSS = torch.stack([_padded(row.sees_SS, ids_BS.shape[1]) for row in rows])
    dtype, device = model.dtype, model.device
    bias_B1SS = torch.zeros(mask_BSS.shape, dtype=dtype, device=device)
    bias_B1SS = bias_B1SS.masked_fill(~mask_BSS.to(device), torch.finfo(dtype).min)[:, None]
    output = model.get_decoder()(
        input_ids=ids_BS.to(device), position_ids=positions_BS.to(device), attention_mask=bias_B1SS, use_cache=False
    )
    hidden_BSH = output.last_hidden_state
    responses = [hidden_BSH[b, row.num_prompt - 1 : row.num_main - 1] for b, row in enumerate(rows)]
    branched = [hidden_BSH[b, row.num_main : len(row.ids_S)] for b, row in enumerate(rows)]
    offsets = [0]
    for response in responses[:-1]:
        offsets.append(offsets[-1] + len(response))
    num_tokens = sum(len(row.ids_S) for row in rows)
    return TreeStates(ResponseStates(torch.cat(responses), offsets, num_tokens, ids_BS.numel()), torch.cat(branched))


@dataclass(frozen=True)
class _Row:
    """One sequence: prompt, response, branches. sees_SS: bool, row i attends to column j."""

    ids_S: Tensor
    positions_S: Tensor
    sees_SS: Tensor
    num_prompt: int
    num_main: int

    @classmethod
    def of(cls, prompt: Sequence[int], response: Sequence[int], branches: Sequence[Branch]) -> _Row:
        num_main = len(prompt) + len(response)
        ids, positions = [*prompt, *response], list(range(num_main))
        total = num_main + sum(len(branch.ids) for branch in branches)
        sees_SS = torch.zeros(total, total, dtype=torch.bool)
        sees_SS[:num_main, :num_main] = torch.ones(num_main, num_main, dtype=torch.bool).tril()
        for branch in branches:
            start, read = len(ids), len(prompt) + branch.position
            end = start + len(branch.ids)
            sees_SS[start:end, :read] = True
            sees_SS[start:end, start:end] = torch.ones(end - start, end - start, dtype=torch.bool).tril()
            ids += branch.ids
            positions += range(read, read + len(branch.ids))
        return cls(torch.tensor(ids), torch.tensor(positions), sees_SS, len(prompt), num_main)


def _padded(sees_SS: Tensor, size: int) -> Tensor:
    """With rows for padding, which see only themselves: a row that sees nothing would be NaN."""
    padded_SS = torch.eye(size, dtype=torch.bool)
    padded_SS[: len(sees_SS), : len(sees_SS)] = sees_SS
    return padded_SS


def _check_window(model: PreTrainedModel, length: int) -> None:
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    if window is not None and getattr(model.config.get_text_config(), "use_sliding_window", True) and length > window:
        raise UnsupportedModelError(
            f"{type(model).__name__} attends within a window of {window} tokens, and a response with branches has "
            f"{length}. Continuations off the sampled path need full attention: shorten the responses."
        )


@torch.no_grad()
def verify_tree(model: PreTrainedModel) -> None:
    """Compare a tree with its branches read one by one, on a few tokens.

    Raises:
        UnsupportedModelError: if they differ by more than rounding: a model that takes no mask or no positions.
    """
    was_training = model.training
    model.eval()
    vocab_size = int(model.config.get_text_config().vocab_size)
    ids = [i * 7 % vocab_size for i in range(1, 9)]
    prompt, response, branches = ids[:2], ids[2:6], [Branch(1, (ids[6], ids[7])), Branch(3, (ids[0],))]
    try:
        found = tree_states(model, [prompt], [response], [branches]).branch_hidden_XH.float()
    except TypeError as error:  # a forward without position_ids
        raise UnsupportedModelError(f"{type(model).__name__} cannot read branches: {error}.") from error
    alone = []
    for branch in branches:
        whole = torch.tensor([[*prompt, *response[: branch.position], *branch.ids]], device=model.device)
        alone.append(model.get_decoder()(input_ids=whole, use_cache=False).last_hidden_state[0, -len(branch.ids) :])
    model.train(was_training)
    tolerance = 1e-3 if model.dtype in (torch.float32, torch.float64) else 5e-2
    if not torch.allclose(found, torch.cat(alone).float(), rtol=tolerance, atol=tolerance):
        raise UnsupportedModelError(
            f"{type(model).__name__} reads a branch off the response differently from the same tokens by themselves; "
            "continuations off the sampled path cannot be scored with it."
        )
