"""The trainer's process as vLLM finds it when it starts there, and as it must be afterwards. Needs no vLLM.

In: the trainer's process group and device. Out: what vLLM reads in the environment, whoever started the ranks; an
answer to whether its memory is there; the trainer's environment, threads and process group as they were.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from simct_pl.errors import RolloutError
from simct_pl.models.ranks import num_ranks, objects_of_ranks, rank

GIB = 2**30


@contextmanager
def undisturbed() -> Iterator[None]:
    """What vLLM reads when it starts; and the trainer's environment and thread count as they were, afterwards.

    Ranks are numbered as the trainer's group numbers them: Lightning's launcher, torchrun and SLURM set different
    variables, and none of them says which GPU a rank took. Collective.
    """
    before, set_num_threads, num_threads = dict(os.environ), torch.set_num_threads, torch.get_num_threads()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # an iterator of weights does not cross processes
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # it warns about the tokenizer that it was told to leave
    if num_ranks() > 1:
        os.environ |= {"RANK": str(rank()), "WORLD_SIZE": str(num_ranks()), "LOCAL_RANK": str(_place())}
        # Ranks of one host would all be bound to its first cores.
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    try:
        yield
    finally:
        torch.set_num_threads = set_num_threads  # the CPU backend replaces it by a function that does nothing
        torch.set_num_threads(num_threads)
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _place() -> int:
    """The trainer's GPU; on CPUs, how many ranks of this host come before this one."""
    hosts = objects_of_ranks(socket.gethostname())
    if torch.cuda.is_available():
        return torch.cuda.current_device()
    return hosts[: rank()].count(socket.gethostname())


@contextmanager
def kept_process_group() -> Iterator[None]:
    """vLLM ends the default process group when it shuts down; inside, that of the trainer stays."""
    destroy = dist.destroy_process_group

    def destroy_others(group: Any = None) -> None:
        if group is not None:
            destroy(group)

    dist.destroy_process_group = destroy_others
    try:
        yield
    finally:
        dist.destroy_process_group = destroy


# ---- memory ----


@dataclass(frozen=True)
class MemoryShare:
    """Bytes that one rank's engine would take, and those that are free and there at all on its device or host."""

    where: str
    wanted: float
    free: float
    total: float

    @classmethod
    def here(cls, share: float, weights_bytes: float, cache_bytes: float | None) -> MemoryShare:
        """share: of the memory, in (0, 1]. cache_bytes: of the KV cache where it is set, None where it gets the rest
        of the share.
        """
        needed = 0.0 if cache_bytes is None else weights_bytes + cache_bytes
        host = socket.gethostname()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # what the trainer has freed is free
            free, total = torch.cuda.mem_get_info()
            # vLLM wants the whole share free at its start, also where the cache has a size of its own.
            where = f"GPU {torch.cuda.current_device()} of rank {rank()}, {host}"
            return cls(where, max(share * total, needed), free, total)
        import psutil  # vLLM needs it too

        memory = psutil.virtual_memory()
        return cls(host, needed or share * memory.total, memory.available, memory.total)


def check_memory(own: MemoryShare) -> None:
    """Whether every rank's engine finds its memory, ranks of one host's CPUs together. Collective.

    Raises:
        RolloutError: on every rank, naming the place, the bytes, and what to lower.
    """
    together: dict[str, list[MemoryShare]] = {}
    for share in objects_of_ranks(own):
        together.setdefault(share.where, []).append(share)
    for where, shares in together.items():
        wanted, free = sum(share.wanted for share in shares), min(share.free for share in shares)
        if wanted > free:
            fits = int(100 * free / shares[0].total / len(shares)) / 100
            raise RolloutError(
                f"vLLM would take {wanted / GIB:.1f} GiB on {where} ({len(shares)} rank(s) together), and "
                f"{free / GIB:.1f} of {shares[0].total / GIB:.1f} GiB are free. Set gpu_memory_utilization to at most "
                f"{fits:.2f} or lower kv_cache_gib; or leave it more: shard the student (recipe fsdp2) and the teacher "
                "(sharding.shard_teacher)."
            )
