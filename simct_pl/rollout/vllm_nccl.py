"""Rollouts by a vLLM server on GPUs of its own, refreshed over NCCL: weights go from GPU to GPU and through no folder.

In: the student, one whole parameter at a time. Out: as VLLMServerEngine. The transfer is vLLM's; here is what it asks
of a trainer: a stream of weights, and somebody who talks to the server. NO GPU HAS RUN IT YET: its tests have stand-ins
for the server and for vLLM's transfer. Imports vLLM, and only once it is used.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from simct_pl.errors import MissingPackageError, RecipeError, RolloutError
from simct_pl.models.merging import base_names
from simct_pl.models.ranks import rank
from simct_pl.rollout.engine import StudentSource
from simct_pl.rollout.vllm_client import VLLMClient
from simct_pl.rollout.vllm_server import ServerEngine
from simct_pl.rollout.vllm_weights import named_weights, weight_names


class VLLMNCCLEngine(ServerEngine):
    """Generates on a server that was started with `serve … --weight-transfer-config '{"backend": "nccl"}'`.

    A server that loses its weights cannot get them again within a batch, because all ranks would have to send them: the
    run ends, and goes on from its checkpoint.

    Args:
        url: of the server. address, port: where the trainer's first rank waits for the server's GPUs.
        num_server_gpus: tensor parallel size of the server.
        max_concurrency, timeout, retries, key_variable: see VLLMServerEngine.

    Raises:
        RecipeError: for a value outside its range.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        address: str = "127.0.0.1",
        port: int = 29_600,
        num_server_gpus: int = 1,
        max_concurrency: int = 128,
        timeout: float = 600.0,
        retries: int = 15,
        key_variable: str = "VLLM_API_KEY",
    ) -> None:
        super().__init__(url, max_concurrency, timeout, retries, key_variable)
        if num_server_gpus < 1:
            raise RecipeError(f"num_server_gpus is {num_server_gpus}; expected at least 1.")
        self.address, self.port, self.num_server_gpus = address, port, num_server_gpus
        # Half of a transfer must not be asked for twice.
        self._control = VLLMClient(url, key_variable, timeout, retries=0, connections=2)
        self._transfer: Any = None

    @override
    def check(self, student: StudentSource) -> None:
        if not torch.cuda.is_available():
            raise RecipeError("VLLMNCCLEngine sends weights from GPU to GPU, and there is none. Use VLLMServerEngine.")
        if importlib.util.find_spec("vllm") is None:
            raise MissingPackageError("VLLMNCCLEngine needs vLLM in the trainer too: pip install 'simct_pl[vllm]'.")
        super().check(student)

    @override
    @torch.no_grad()
    def _send(self, model: PreTrainedModel) -> None:
        if self._transfer is None:
            self._transfer = self._connect(model)
        self._transfer.send_weights()
        if rank() == 0:
            self._control.label_weights(self._label)
        if dist.is_initialized():
            dist.barrier()  # no rank asks before the label is there

    @override
    def _restore(self, held: str) -> None:
        raise RolloutError(
            f"The vLLM server holds weights {held!r} and not {self._label!r}; was it restarted? Weights that travel by "
            "NCCL cannot be sent again within a batch: start the run again with --resume."
        )

    def close(self) -> None:
        """Leave the server's group; the server stays as it is."""
        if self._transfer is not None:
            self._transfer.shutdown()
        self._transfer = self.policy_version = None

    def _connect(self, model: PreTrainedModel) -> Any:
        """vLLM's sender, on every rank: ranks but the first one only gather."""
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine

        where = NCCLTrainerInitInfo(self.address, self.port, 1 + self.num_server_gpus, rank=rank())
        return NCCLTrainerWeightTransferEngine.trainer_init(where, client=self._control, source=weight_source(model))


def weight_source(model: PreTrainedModel) -> Any:
    """The model's weights as vLLM's transfer reads them: what is to come, and then the whole tensors, in one order."""
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    class StudentWeights(WeightSource):
        def metadata(self) -> list[Any]:
            # Names and shapes in the order in which the stream below sends the tensors: the receiver allocates by them.
            base = base_names(model)
            parameters = {base[name]: p for name, p in model.named_parameters(remove_duplicate=False) if name in base}
            named = [(name, parameters[name]) for name in weight_names(model)]
            return [ParamMeta(name, parameter.dtype, tuple(parameter.shape)) for name, parameter in named]

        def __iter__(self) -> Iterator[tuple[str, Tensor]]:
            return named_weights(model)

    return StudentWeights()
