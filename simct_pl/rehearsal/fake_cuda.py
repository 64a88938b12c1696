"""The CPU build of torch, told that it has one CUDA device: tensors without values then live on "cuda".

In: a function by name, and its arguments; `call` runs it in a process of its own. In there autograd, checkpointing and
FSDP2 find a device guard and a stream for "cuda", none of which do anything, and no kernel for it: what would compute
there with values fails. It needs g++, which compiles a few lines of C++ once a version of torch.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SOURCE = Path(__file__).with_suffix(".cpp")
COMPILER = "g++"
CAPACITY = 80 * 10**9  # of the device that is pretended, bytes
RESULT = "result: "


def is_possible() -> bool:
    """Whether this machine has what it takes: a compiler, and a torch that knows no CUDA of its own."""
    folder = _torch_folder()
    return bool(shutil.which(COMPILER)) and not (folder / "lib/libtorch_cuda.so").exists()


def call(function: str, **arguments: Any) -> Any:
    """What function(**arguments) returns in a new process that has the device.

    function: "package.module:name". arguments, and what it returns: as JSON. Its stderr is this process's.

    Raises:
        RuntimeError: if it failed; what it said last is in the message.
    """
    command = [sys.executable, "-m", __name__, function, json.dumps(arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    lines = done.stdout.splitlines()
    if done.returncode or not lines or not lines[-1].startswith(RESULT):
        raise RuntimeError(f"{function} ended with {done.returncode}: {lines[-1] if lines else 'it said nothing'}")
    return json.loads(lines[-1].removeprefix(RESULT))


def load() -> None:
    """Make the device, before torch is imported."""
    assert "torch" not in sys.modules, "torch asks once, when it is imported, what devices there are"
    library = _compiled()
    libraries = _torch_folder() / "lib"
    for path in (libraries / "libc10.so", libraries / "libtorch_cpu.so", library):
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    import torch
    import torch._dynamo  # asks what CUDA can do when it is imported, and must not hear of this one

    for name, answer in _answers(torch).items():
        setattr(torch.cuda, name, answer)


def _torch_folder() -> Path:
    found = importlib.util.find_spec("torch")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


def _compiled() -> Path:
    """The library, compiled unless it has been before for this torch and this source."""
    folder = _torch_folder()
    key = hashlib.sha256(SOURCE.read_bytes() + (folder / "version.py").read_bytes()).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"simct_pl-fake-cuda-{os.getuid()}" / f"{key}.so"
    if not library.exists():
        library.parent.mkdir(mode=0o700, exist_ok=True)
        written = library.with_suffix(f".{os.getpid()}")
        command = [COMPILER, "-std=c++20", "-O0", "-shared", "-fPIC", f"-I{folder / 'include'}", str(SOURCE)]
        subprocess.run([*command, "-o", str(written), f"-L{folder / 'lib'}", "-lc10", "-ltorch_cpu"], check=True)
        written.replace(library)
    return library


class _Nothing:
    """A stream, or an event: of a device on which nothing happens."""

    cuda_stream = 0
    stream_id = device_index = 0

    def __init__(self, *_: object, **__: object) -> None: ...

    def __enter__(self) -> _Nothing:
        return self

    def __exit__(self, *_: object) -> None: ...

    def record(self, *_: object) -> None: ...

    def wait(self, *_: object) -> None: ...

    def wait_stream(self, *_: object) -> None: ...

    def wait_event(self, *_: object) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def record_event(self, event: _Nothing | None = None) -> _Nothing:
        return event or _Nothing()

    def elapsed_time(self, _: object) -> float:
        return 1.0


def _answers(torch: Any) -> dict[str, Any]:
    """What torch.cuda says of one H100."""
    properties = SimpleNamespace(
        name="NVIDIA H100 80GB HBM3",
        major=9,
        minor=0,
        total_memory=CAPACITY,
        multi_processor_count=132,
        L2_cache_size=50 * 2**20,
        is_integrated=False,
        warp_size=32,
        gcnArchName="",
    )
    stream = _Nothing()
    nothing = ("init", "_lazy_init", "set_device", "synchronize", "empty_cache", "manual_seed", "manual_seed_all")
    quiet = dict.fromkeys((*nothing, "set_rng_state", "reset_peak_memory_stats"), lambda *_: None)
    contexts = dict.fromkeys(("stream", "device"), lambda _: nullcontext())
    streams = dict.fromkeys(("current_stream", "default_stream"), lambda *_: stream)
    return {
        **quiet,
        **contexts,
        **streams,
        "Stream": _Nothing,
        "Event": _Nothing,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_capability": lambda *_: (9, 0),
        "get_device_name": lambda *_: properties.name,
        "get_device_properties": lambda *_: properties,
        "is_bf16_supported": lambda *_, **__: True,
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
        "is_current_stream_capturing": lambda: False,
        "mem_get_info": lambda *_: (CAPACITY, CAPACITY),
    }


def _run(function: str, arguments: str) -> None:
    """The other end of `call`."""
    load()
    module, _, name = function.partition(":")
    found = getattr(importlib.import_module(module), name)(**json.loads(arguments))
    print(f"{RESULT}{json.dumps(found)}")


if __name__ == "__main__":
    _run(*sys.argv[1:])
