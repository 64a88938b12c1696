"""Rollouts by transformers' own `generate`, on the student itself: nothing to synchronise, works everywhere, slow for
long responses. A sharded student cannot generate on each rank by itself: each rank then has a whole copy for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from simct_pl.errors import RolloutError
from simct_pl.models.merging import base_name, merged_parameters
from simct_pl.models.sharding import is_sharded
from simct_pl.rollout.engine import Generation, RolloutEngine, SamplingParams

NUCLEUS_CANDIDATES = 1024


class HFEngine(RolloutEngine):
    """Batched generation with a KV cache; prompts are sorted by length and left-padded.

    Args:
        batch_size: responses generated together.
    """

    placement = "student"

    def __init__(self, batch_size: int = 64) -> None:
        self.batch_size = batch_size
        self._model: PreTrainedModel | None = None

    def refresh(self, model: PreTrainedModel, policy_version: int) -> None:
        """Collective when the model is sharded."""
        if is_sharded(model):
            self._model = _copied(model, self._model)
        else:
            self._model = model
        self.policy_version = policy_version

    @torch.no_grad()
    def generate(
        self, prompts_ids: list[list[int]], seeds: list[int], sampling: SamplingParams, stop_ids: tuple[int, ...]
    ) -> list[Generation]:
        if self._model is None:
            raise RolloutError("HFEngine has no weights yet; call refresh() before generate().")
        # Similar lengths together, so that little is padding; answers go back to their prompts by index.
        order = sorted(range(len(prompts_ids)), key=lambda i: len(prompts_ids[i]))
        generations: dict[int, Generation] = {}
        with _generation_mode(self._model) as model:
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                found = _generate_batch(
                    model, [prompts_ids[i] for i in batch], [seeds[i] for i in batch], sampling, stop_ids
                )
                generations.update(zip(batch, found, strict=True))
        return [generations[i] for i in range(len(prompts_ids))]


@torch.no_grad()
def _copied(model: PreTrainedModel, copy: PreTrainedModel | None) -> PreTrainedModel:
    """A whole, frozen model with the weights of a sharded one, adapters merged into them; the copy of an earlier call
    is written over.
    """
    for name, weight in merged_parameters(model):
        copy = copy or _same_shape(model, weight.device)
        copy.get_parameter(name).copy_(weight)
    assert copy is not None
    # Buffers are not sharded, and no parameters.
    for name, buffer in model.named_buffers():
        copy.get_buffer(base_name(name)).copy_(buffer)
    return copy


def _same_shape(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    with device, torch.random.fork_rng():
        return type(model)._from_config(deepcopy(model.config), dtype=model.dtype).requires_grad_(False)


def _generate_batch(
    model: PreTrainedModel,
    prompts_ids: list[list[int]],
    seeds: list[int],
    sampling: SamplingParams,
    stop_ids: tuple[int, ...],
) -> list[Generation]:
    width = max(map(len, prompts_ids))
    # Padding on the left: all prompts end in the same column, behind which generate appends. Masked ids are not read.
    ids_BS = torch.zeros(len(prompts_ids), width, dtype=torch.int64)
    mask_BS = torch.zeros_like(ids_BS)
    for b, ids in enumerate(prompts_ids):
        ids_BS[b, width - len(ids) :] = torch.tensor(ids)
        mask_BS[b, width - len(ids) :] = 1
    sampler = SeededSampler(seeds, sampling)
    config = GenerationConfig(
        do_sample=False,  # the sampler leaves one token a row
        max_new_tokens=sampling.max_tokens,
        eos_token_id=list(stop_ids),
        pad_token_id=stop_ids[0],
        use_cache=True,
    )
    output_BS = model.generate(  # type: ignore[operator]
        input_ids=ids_BS.to(model.device),
        attention_mask=mask_BS.to(model.device),
        generation_config=config,
        logits_processor=LogitsProcessorList([sampler]),
    )
    return _cut_at_stop(output_BS[:, width:].cpu(), sampler.logprobs_BS().cpu(), stop_ids)


def _cut_at_stop(response_BS: Tensor, logprobs_BS: Tensor, stop_ids: tuple[int, ...]) -> list[Generation]:
    """Drop what follows the first stop (generate pads finished rows)."""
    is_stop_BS = torch.isin(response_BS, torch.tensor(stop_ids))
    generations = []
    for ids_S, logprobs_S, is_stop_S in zip(response_BS, logprobs_BS, is_stop_BS, strict=True):
        stopped = bool(is_stop_S.any())
        # argmax of a row of 0 and 1 is the place of its first 1.
        length = int(is_stop_S.int().argmax()) + 1 if stopped else len(ids_S)
        generations.append(
            Generation(ids_S[:length].tolist(), logprobs_S[:length].tolist(), "stop" if stopped else "length")
        )
    return generations


class SeededSampler(LogitsProcessor):
    """Draws one token a row from that row's own random stream, and records its log-probability.

    `generate` with do_sample=True draws a whole batch from one global generator, so a sample depends on its neighbours.
    Here each row owns a stream of uniforms and a token is found by inverting the cumulative distribution; all other
    logits become -inf, and `generate` "greedily" takes what is left.
    """

    def __init__(self, seeds: list[int], sampling: SamplingParams) -> None:
        self.greedy = sampling.temperature == 0
        self.warpers: list[LogitsProcessor] = []
        if not self.greedy:
            if sampling.temperature != 1:
                self.warpers.append(TemperatureLogitsWarper(sampling.temperature))
            if sampling.top_k is not None:
                self.warpers.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self.warpers.append(NucleusWarper(sampling.top_p))
            # A row's whole stream is drawn ahead: its n-th number is the same whoever its neighbours are and when they
            # stop.
            streams = [torch.Generator().manual_seed(seed) for seed in seeds]
            self.uniform_BS = torch.stack(
                [torch.rand(sampling.max_tokens, generator=stream, dtype=torch.float64) for stream in streams]
            )
        self._logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores_BV = scores.float()
        chosen_B = scores_BV.argmax(-1) if self.greedy else self._draw(input_ids, scores_BV)
        # Of the raw scores: at temperature 1 and before truncation, as the trainer will see them.
        logprob_B = scores_BV.gather(-1, chosen_B[:, None]).squeeze(-1) - scores_BV.logsumexp(-1)
        self._logprobs.append(logprob_B)
        return torch.full_like(scores, -torch.inf).scatter(-1, chosen_B[:, None], 0.0)

    def _draw(self, input_ids: Tensor, scores_BV: Tensor) -> Tensor:
        warped_BV = scores_BV
        for warper in self.warpers:
            warped_BV = warper(input_ids, warped_BV)
        # The first token whose cumulative probability exceeds the uniform. In float64: over 150k tokens, fp32 sums
        # would be off by more than many tokens have. The last sum stands for 1, and the clamp for a uniform that rounds
        # up to it.
        cumulative_BV = warped_BV.double().softmax(-1).cumsum(-1)
        step = len(self._logprobs)
        target_B = self.uniform_BS[:, step].to(scores_BV.device) * cumulative_BV[:, -1]
        chosen_B1 = torch.searchsorted(cumulative_BV, target_B[:, None], right=True)
        return chosen_B1.squeeze(-1).clamp_max(cumulative_BV.shape[-1] - 1)

    def logprobs_BS(self) -> Tensor:
        """[B, steps], float32."""
        return torch.stack(self._logprobs, 1)


class NucleusWarper(LogitsProcessor):
    """Keeps the likeliest tokens that together hold top_p, as transformers' TopPLogitsWarper does, without sorting the
    whole vocabulary (most of the time of a step, at 150k tokens) when the first thousand are enough.
    """

    def __init__(self, top_p: float) -> None:
        self.top_p = top_p
        self._by_sorting = TopPLogitsWarper(top_p)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        top_BK, id_BK = scores.topk(min(NUCLEUS_CANDIDATES, scores.shape[-1]))
        p_BK = (top_BK - scores.logsumexp(-1, keepdim=True)).exp()
        cumulative_BK = p_BK.cumsum(-1)
        # The mass in front of a token decides, so that the one which crosses top_p stays.
        kept_BK = top_BK.masked_fill(cumulative_BK - p_BK >= self.top_p, -torch.inf)
        kept_BV = torch.full_like(scores, -torch.inf).scatter_(-1, id_BK, kept_BK)
        # Rows so flat that a thousand tokens do not hold top_p are sorted whole.
        flat = torch.nonzero(cumulative_BK[:, -1] < self.top_p).squeeze(-1)
        if len(flat):
            kept_BV[flat] = self._by_sorting(input_ids[flat], scores[flat])
        return kept_BV


@contextmanager
def _generation_mode(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Eval mode, cache on, and none of the checkpoint's own sampling defaults; everything is put back afterwards."""
    was_training, own_config = model.training, model.generation_config
    checkpointing = model.is_gradient_checkpointing
    if checkpointing:
        model.gradient_checkpointing_disable()  # it forces the KV cache off
    model.generation_config = GenerationConfig()
    model.eval()
    try:
        yield model
    finally:
        model.train(was_training)
        model.generation_config = own_config
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
