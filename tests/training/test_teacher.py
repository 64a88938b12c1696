"""The frozen teacher: the same states in any batch, as tensors that the loss may use."""

from __future__ import annotations

import pytest
import torch

from simct_pl.training.teacher import FrozenTeacher
from tests.tiny import ASSETS

PROMPTS = [[3, 1, 4], [1, 5], [9, 2, 6, 5, 3], [5]]
RESPONSES = [[5, 8, 9, 7, 9, 3, 2], [3], [8, 4, 6], [6, 4]]


def teacher(max_batch_tokens: int) -> FrozenTeacher:
    return FrozenTeacher(str(ASSETS / "teacher"), "float32", max_batch_tokens)


@pytest.mark.parametrize("max_batch_tokens", [1, 12, 1000])
def test_states_do_not_depend_on_the_batch_size(max_batch_tokens: int) -> None:
    reader = teacher(max_batch_tokens)
    found = reader.states(PROMPTS, RESPONSES)
    assert found.offsets == [0, 7, 8, 11]
    with torch.no_grad():
        for offset, prompt, response in zip(found.offsets, PROMPTS, RESPONSES, strict=True):
            alone = reader.model.get_decoder()(input_ids=torch.tensor([prompt + response])).last_hidden_state[0]
            rows = found.hidden_NH[offset : offset + len(response)]
            torch.testing.assert_close(rows, alone[len(prompt) - 1 : -1], rtol=1e-5, atol=1e-5)


def test_padding_of_all_batches_is_counted() -> None:
    assert teacher(1).states(PROMPTS, RESPONSES).num_positions == 10 + 3 + 8 + 3
    together = teacher(1000).states(PROMPTS[:2], RESPONSES[:2])
    assert (together.num_tokens, together.num_positions) == (13, 20)


def test_autograd_may_save_what_is_made_of_the_states() -> None:
    hidden_MH = teacher(1000).states(PROMPTS, RESPONSES).hidden_NH
    assert not hidden_MH.is_inference()
    assert not hidden_MH.requires_grad
    weight = torch.ones(hidden_MH.shape[1], requires_grad=True)
    (hidden_MH * weight).sum().backward()  # saves hidden_MH, which an inference tensor would refuse
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, hidden_MH.sum(0))


def test_states_can_be_made_inside_inference_mode() -> None:
    expected = teacher(1000).states(PROMPTS, RESPONSES).hidden_NH
    with torch.inference_mode():
        torch.testing.assert_close(teacher(1000).states(PROMPTS, RESPONSES).hidden_NH, expected)
