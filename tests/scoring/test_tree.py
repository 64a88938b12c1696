"""Branches off a response: the same states as when each is read by itself, in every family that takes a mask."""

from __future__ import annotations

import pytest
import torch
from transformers import Gemma2Config, LlamaConfig, Phi3Config, PreTrainedModel, Qwen2Config
from transformers.models.gemma2.modeling_gemma2 import Gemma2ForCausalLM
from transformers.models.llama.modeling_llama import LlamaForCausalLM
from transformers.models.phi3.modeling_phi3 import Phi3ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM

from simct_pl.errors import UnsupportedModelError
from simct_pl.scoring.heads import response_states
from simct_pl.scoring.tree import Branch, tree_states, verify_tree
from tests.scoring.test_heads import SHAPE, build
from tests.scoring.test_response_states import FAMILIES as PLAIN
from tests.scoring.test_response_states import PROMPTS, RESPONSES

FAMILIES = {
    "llama": lambda: build(LlamaForCausalLM, LlamaConfig(**SHAPE)),
    "eager": lambda: build(LlamaForCausalLM, LlamaConfig(**SHAPE, attn_implementation="eager")),
    "qwen2": lambda: build(Qwen2ForCausalLM, Qwen2Config(**SHAPE)),
    "gemma2": lambda: build(Gemma2ForCausalLM, Gemma2Config(**SHAPE, head_dim=8, sliding_window=64)),
    "phi3": lambda: build(Phi3ForCausalLM, Phi3Config(**SHAPE)),
    "gpt2": PLAIN["gpt2"],
}
# At the first place, in the middle, at the end; several at one place; of one token and of three.
BRANCHES = [[Branch(0, (7, 7, 7)), Branch(3, (1,)), Branch(3, (2, 4)), Branch(7, (5, 6))], [], [Branch(2, (9, 9))]]


def alone(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    return model.get_decoder()(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_each_branch_read_alone(family: str) -> None:
    model = FAMILIES[family]()
    verify_tree(model)
    with torch.no_grad():
        found = tree_states(model, PROMPTS, RESPONSES, BRANCHES)
        expected = [
            alone(model, [*prompt, *response[: branch.position], *branch.ids])[-len(branch.ids) :]
            for prompt, response, own in zip(PROMPTS, RESPONSES, BRANCHES, strict=True)
            for branch in own
        ]
        torch.testing.assert_close(found.branch_hidden_XH, torch.cat(expected), rtol=1e-4, atol=1e-4)
        plain = response_states(model, PROMPTS, RESPONSES)
    torch.testing.assert_close(found.responses.hidden_NH, plain.hidden_NH, rtol=1e-4, atol=1e-4)
    assert found.responses.offsets == plain.offsets


def test_without_branches_nothing_is_masked() -> None:
    """The ordinary forward, bit for bit, and the kernels that know no mask."""
    model = FAMILIES["llama"]()
    with torch.no_grad():
        found = tree_states(model, PROMPTS, RESPONSES, [[], [], []])
        assert torch.equal(found.responses.hidden_NH, response_states(model, PROMPTS, RESPONSES).hidden_NH)
    assert found.branch_hidden_XH.shape == (0, 16)


def test_gradients_reach_the_response_through_a_branch() -> None:
    model = FAMILIES["llama"]()
    tree_states(model, PROMPTS, RESPONSES, BRANCHES).branch_hidden_XH.pow(3).sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for prompt, response, own in zip(PROMPTS, RESPONSES, BRANCHES, strict=True):
        for branch in own:
            states = alone(model, [*prompt, *response[: branch.position], *branch.ids])
            states[-len(branch.ids) :].pow(3).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-4)


def test_a_window_shorter_than_the_sequence_is_refused() -> None:
    model = build(Gemma2ForCausalLM, Gemma2Config(**SHAPE, head_dim=8, sliding_window=4))
    with pytest.raises(UnsupportedModelError, match="window of 4"):
        tree_states(model, PROMPTS, RESPONSES, BRANCHES)


def test_a_model_that_ignores_the_tree_is_refused() -> None:
    class Deaf(LlamaForCausalLM):
        def get_decoder(self):  # type: ignore[no-untyped-def]
            return lambda input_ids, use_cache, position_ids=None, attention_mask=None: self.model(
                input_ids=input_ids, use_cache=use_cache
            )

    with pytest.raises(UnsupportedModelError, match="reads a branch"):
        verify_tree(build(Deaf, LlamaConfig(**SHAPE)))
