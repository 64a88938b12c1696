"""Log-probabilities of continuations that a response did not take: a tree of tokens read after its cached states.

In: responses that a model has read with a cache, and token paths that leave them. Out: log p(later tokens | first
token) of each path. All paths of all responses take ONE more forward, of the trees' nodes alone: each node sees the
prompt, the response up to where its path leaves it, its ancestors and itself. Gradients flow through the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from simct_pl.errors import UnsupportedModelError
from simct_pl.scoring.heads import LMHead, response_states
from simct_pl.scoring.side import at_least_fp32


class Path(NamedTuple):
    """Tokens that could follow the first `start` tokens of a response."""

    response: int
    start: int
    ids: tuple[int, ...]


class _Place(NamedTuple):
    """A token that has been read: of the response (-1: the prompt's last), or a node of its tree."""

    is_node: bool
    number: int


@dataclass
class TokenTree:
    """The nodes of one response (parents before children).

    ids: tokens. positions: where each stands, counted from the response's first token. anchors: how many tokens of the
    response it sees. parents: node before it, or -1.
    """

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    anchors: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def ancestors_PP(self) -> Tensor:
        """Whether a node (row) sees another (column), itself included; bool."""
        sees_PP = torch.eye(len(self), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                sees_PP[node] |= sees_PP[parent]
        return sees_PP


@dataclass(frozen=True)
class Forest:
    """The trees of some responses, and which state predicts which token of which path.

    Rows number the states of all response tokens, then those of all nodes. row_R: int64, the rows that are read.
    state_J, target_J, path_J: int64, sorted by state: row_R[state_J] predicts target_J, a later token of path_J.
    """

    trees: list[TokenTree]
    num_paths: int
    row_R: np.ndarray
    state_J: np.ndarray
    target_J: np.ndarray
    path_J: np.ndarray

    @property
    def num_nodes(self) -> int:
        return sum(map(len, self.trees))

    @classmethod
    def grow(cls, response_ids: Sequence[Sequence[int]], paths: Sequence[Path]) -> Forest:
        """Paths that begin alike share nodes; a path that follows the response for a while uses its own states."""
        growing = [_Growing(ids) for ids in response_ids]
        places = [growing[path.response].add(path.start, path.ids) for path in paths]
        states = np.cumsum([0, *map(len, response_ids)])
        nodes = states[-1] + np.cumsum([0, *(len(tree.tree) for tree in growing)])
        reads = [
            (
                int(nodes[path.response]) + place.number
                if place.is_node
                else int(states[path.response]) + place.number + 1
            )
            for path, found in zip(paths, places, strict=True)
            for place in found
        ]
        row_R, state_J = np.unique(np.asarray(reads, np.int64), return_inverse=True)
        targets = np.asarray([token for path in paths for token in path.ids[1:]], np.int64)
        owners = np.repeat(np.arange(len(paths)), np.asarray([len(path.ids) - 1 for path in paths], np.int64))
        order = np.argsort(state_J, kind="stable")
        trees = [tree.tree for tree in growing]
        return cls(trees, len(paths), row_R, state_J[order], targets[order], owners[order])


class _Growing:
    """A tree while paths are added to it."""

    def __init__(self, response_ids: Sequence[int]) -> None:
        self.response_ids = response_ids
        self.tree = TokenTree()
        self._nodes: dict[tuple[_Place, int], int] = {}

    def add(self, start: int, ids: Sequence[int]) -> list[_Place]:
        """After which tokens ids[1:] are predicted."""
        place, places = _Place(False, start - 1), []
        for depth, token in enumerate(ids[:-1]):
            place = self._step(place, start + depth, token)
            places.append(place)
        return places

    def _step(self, place: _Place, position: int, token: int) -> _Place:
        index = place.number
        # The state after the response's last token is not kept, so that one is read again as a node.
        if not place.is_node and index + 2 < len(self.response_ids) and self.response_ids[index + 1] == token:
            return _Place(False, index + 1)
        node = self._nodes.setdefault((place, token), len(self.tree))
        if node == len(self.tree):
            self.tree.ids.append(token)
            self.tree.positions.append(position)
            self.tree.anchors.append(self.tree.anchors[index] if place.is_node else index + 1)
            self.tree.parents.append(index if place.is_node else -1)
        return _Place(True, node)


def tree_states(
    model: PreTrainedModel, cache: Cache, prompt_lengths: Sequence[int], trees: Sequence[TokenTree]
) -> Tensor:
    """Hidden states of all nodes, [P, H], tree by tree.

    cache: what response_states filled while the model read the same sequences; used up by the call.
    """
    num_nodes = sum(map(len, trees))
    if num_nodes == 0:
        return model.get_output_embeddings().weight.new_empty(0, model.config.get_text_config().hidden_size)
    ids_BP = pad_sequence([torch.tensor(tree.ids, dtype=torch.int64) for tree in trees], batch_first=True)
    positions = [
        torch.tensor(tree.positions, dtype=torch.int64) + n for tree, n in zip(trees, prompt_lengths, strict=True)
    ]
    position_BP = pad_sequence(positions, batch_first=True)
    sees_BPA, distance_BPA = _visible(cache.get_seq_length(), prompt_lengths, trees, position_BP)
    output = model.get_decoder()(
        input_ids=ids_BP.to(model.device),
        position_ids=position_BP.to(model.device),
        attention_mask=_attention_mask(model, sees_BPA, distance_BPA),
        past_key_values=cache,
        use_cache=True,
    )
    node_P = pad_sequence([torch.ones(len(tree), dtype=torch.bool) for tree in trees], batch_first=True)
    row_P = node_P.flatten().nonzero().squeeze(1).to(model.device)
    return output.last_hidden_state.flatten(0, 1).index_select(0, row_P)


def _visible(
    num_cached: int, prompt_lengths: Sequence[int], trees: Sequence[TokenTree], position_BP: Tensor
) -> tuple[Tensor, Tensor]:
    """What each node sees of the cached positions and the nodes (A = both), and how far back that is."""
    num_nodes = position_BP.shape[1]
    sees_BPA = torch.zeros(len(trees), num_nodes, num_cached + num_nodes, dtype=torch.bool)
    cached = torch.arange(num_cached)
    for sees_PA, tree, prompt_length in zip(sees_BPA, trees, prompt_lengths, strict=True):
        anchors_P1 = torch.tensor(tree.anchors, dtype=torch.int64)[:, None]
        sees_PA[: len(tree), :num_cached] = cached < prompt_length + anchors_P1
        sees_PA[: len(tree), num_cached : num_cached + len(tree)] = tree.ancestors_PP()
        # Padding sees itself: a row that sees nothing would be NaN.
        sees_PA[len(tree) :, num_cached + len(tree) :] = torch.eye(num_nodes - len(tree), dtype=torch.bool)
    position_BA = torch.cat([cached.expand(len(trees), -1), position_BP], 1)
    return sees_BPA, position_BP[:, :, None] - position_BA[:, None]


def _attention_mask(model: PreTrainedModel, sees_BPA: Tensor, distance_BPA: Tensor) -> Tensor | dict[str, Tensor]:
    """In the form that the model takes: one mask, or one for each type of its layers."""
    config = model.config.get_text_config()
    window, layer_types = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    slides_BPA = sees_BPA if window is None else sees_BPA & (distance_BPA < window)
    if layer_types is not None and "sliding_attention" in layer_types:
        masks = {"full_attention": sees_BPA, "sliding_attention": slides_BPA}
        return {kind: _mask_values(model, sees) for kind, sees in masks.items()}
    # Without sliding layers among its types, a model of several types slides nowhere.
    return _mask_values(model, slides_BPA if layer_types is None else sees_BPA)


def _mask_values(model: PreTrainedModel, sees_BPA: Tensor) -> Tensor:
    sees_B1PA = sees_BPA[:, None].to(model.device)
    if model.config._attn_implementation == "sdpa":
        return sees_B1PA
    zeros = torch.zeros_like(sees_B1PA, dtype=model.dtype)
    return zeros.masked_fill(~sees_B1PA, torch.finfo(model.dtype).min)


def path_logprobs(hidden_RH: Tensor, forest: Forest, head: LMHead, chunk_tokens: int) -> Tensor:
    """log p(later tokens | context, first token) of each path, at least fp32, [number of paths]; 0 for one token.

    hidden_RH: states of all response tokens, then those of all nodes. At most chunk_tokens rows have logits at a time;
    with gradients, backward makes them again.
    """
    later = at_least_fp32(hidden_RH.new_zeros(forest.num_paths, dtype=head.projection.weight.dtype))
    device = hidden_RH.device
    for start in range(0, len(forest.row_R), chunk_tokens):
        rows = torch.from_numpy(forest.row_R[start : start + chunk_tokens]).to(device)
        inside = slice(*np.searchsorted(forest.state_J, [start, start + chunk_tokens]))
        state_J, target_J, path_J = (
            torch.from_numpy(array[inside]).to(device) for array in (forest.state_J, forest.target_J, forest.path_J)
        )
        arguments = hidden_RH.index_select(0, rows), state_J - start, target_J, head
        if torch.is_grad_enabled():
            picked_J = checkpoint(_picked_logprobs, *arguments, use_reentrant=False)
        else:
            picked_J = _picked_logprobs(*arguments)
        later = later.index_add(0, path_J, picked_J)
    return later


def _picked_logprobs(states_RH: Tensor, state_J: Tensor, target_J: Tensor, head: LMHead) -> Tensor:
    logp_RK = at_least_fp32(head(states_RH)).log_softmax(-1)
    return logp_RK[state_J, target_J]


PROBE_PROMPT, PROBE_RESPONSE = [1, 2, 3], [4, 5, 6, 7]
PROBE_PATHS = [Path(0, 0, (8, 9, 10)), Path(0, 0, (8, 11, 2)), Path(0, 2, (6, 3, 4)), Path(0, 3, (2, 2))]


@torch.no_grad()
def verify_tree(model: PreTrainedModel) -> None:
    """Compare a small tree with plain forwards of each continuation.

    Raises:
        UnsupportedModelError: if they differ by more than rounding, or the model takes no cache or no such mask.
    """
    was_training = model.training
    model.eval()
    cache, forest = DynamicCache(), Forest.grow([PROBE_RESPONSE], PROBE_PATHS)
    vocab_size = int(model.config.get_text_config().vocab_size)
    try:
        main = response_states(model, [PROBE_PROMPT], [PROBE_RESPONSE], cache)
        nodes = tree_states(model, cache, [len(PROBE_PROMPT)], forest.trees)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UnsupportedModelError(f"{type(model).__name__}: {_REFUSAL} It says: {error}") from error
    found = path_logprobs(torch.cat([main.hidden_NH, nodes]), forest, LMHead.of(model), vocab_size)
    expected = torch.stack([_plain_logprob(model, path) for path in PROBE_PATHS])
    model.train(was_training)
    tolerance = 1e-4 if model.dtype in (torch.float32, torch.float64) else 1e-1
    if not torch.allclose(found.to(expected), expected, rtol=tolerance, atol=tolerance):
        raise UnsupportedModelError(f"{type(model).__name__}: {_REFUSAL}")


_REFUSAL = (
    "a tree of continuations does not score as plain forwards of them do. Continuations need attention layers with an "
    "ordinary cache, and attn_implementation sdpa or eager. Use another objective for this pair."
)


def _plain_logprob(model: PreTrainedModel, path: Path) -> Tensor:
    ids = [*PROBE_PROMPT, *PROBE_RESPONSE[: path.start], *path.ids]
    inputs: dict[str, Any] = {"input_ids": torch.tensor([ids], device=model.device), "use_cache": False}
    logp_SK = at_least_fp32(model(**inputs).logits[0]).log_softmax(-1)
    first = len(ids) - len(path.ids)
    return torch.stack([logp_SK[i - 1, ids[i]] for i in range(first + 1, len(ids))]).sum()
