"""What every test runs in: offline, on one thread, with caches and tracking in a folder of its own.

torch is imported where it is used: the process that only hands tests to pytest-xdist's workers needs none.

Two fixtures fail a test that leaves something behind for the next one: environment variables, or a process group.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

# Read when transformers and torch are first imported, so before anything else.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # pytest-xdist runs one worker a core; child processes inherit it
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # the command line sets it too
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # the same

import hypothesis
import pytest

from tests import warm

# Examples have no deadline of their own: other processes may have the machine.
hypothesis.settings.register_profile("shared machine", deadline=None)
hypothesis.settings.load_profile("shared machine")

RUN_SEED = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")  # set by lightning.seed_everything; no test starts with another's

# Set by libraries when they are first used, and harmless to the next test.
ENVIRONMENT_SET_BY_LIBRARIES = frozenset(
    {
        "PYTEST_CURRENT_TEST",
        *RUN_SEED,
        "PYTORCH_NVML_BASED_CUDA_CHECK",  # Lightning, when it is imported
        "TORCHINDUCTOR_CACHE_DIR",
        "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR",
        "TRITON_CACHE_DIR",
        "LD_LIBRARY_PATH",  # OpenCV, which vLLM brings, sets it when it is imported
        # TRL imports vLLM where there is one.
        "TILELANG_CLEANUP_TEMP_FILES",
        "TORCHINDUCTOR_COMPILE_THREADS",
        "TRITON_CACHE_AUTOTUNING",
        "VLLM_LOGGING_LEVEL",
        "KMP_INIT_AT_FORK",
        "KMP_DUPLICATE_LIB_OK",
        "CUDA_MODULE_LOADING",
        "AITER_SITUV2_A4W4",
        "CRC32C_SW_MODE",
        "MATPLOTLIBRC",
        "GIT_PYTHON_REFRESH",
    }
)


def pytest_configure(config: pytest.Config) -> None:
    """One server of warm processes for a run: workers inherit its address."""
    if warm.ADDRESS not in os.environ:
        config.add_cleanup(warm.Server().close)


@pytest.fixture(scope="session", autouse=True)
def isolated_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Send caches and tracking to a temporary folder, and keep torch to one thread."""
    import torch

    folder = tmp_path_factory.mktemp("session")
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIMCT_PL_CACHE", str(folder / "cache"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        yield


@pytest.fixture(autouse=True)
def no_leaked_environment(isolated_session: None) -> Iterator[None]:
    """Fail a test that leaves environment variables changed, and put them back for the next one."""
    for name in RUN_SEED:
        os.environ.pop(name, None)
    before = dict(os.environ)
    yield
    after = dict(os.environ)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    leaked = sorted(changed - ENVIRONMENT_SET_BY_LIBRARIES)
    for name in leaked:
        if name in before:
            os.environ[name] = before[name]
        else:
            del os.environ[name]
    assert not leaked, f"the test left environment variables changed: {leaked}; use monkeypatch.setenv"


@pytest.fixture(autouse=True)
def no_leaked_process_group() -> Iterator[None]:
    """Fail a test that leaves torch.distributed initialised, and end the group for the next one.

    A fixture of a whole module may hold one: vLLM in this process does.
    """
    import torch

    before = torch.distributed.is_initialized()
    yield
    leaked = torch.distributed.is_initialized() and not before
    if leaked:
        torch.distributed.destroy_process_group()
    assert not leaked, "the test left a process group initialised; call torch.distributed.destroy_process_group()"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, by marker. Files with slow tests go first, so that no worker is left alone
    with one of them at the end (with xdist's --no-loadscope-reorder).
    """
    import torch

    slow = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("vllm")}
    items.sort(key=lambda item: item.path not in slow)
    missing = {}
    if not torch.cuda.is_available():
        missing["gpu"] = "no CUDA device"
    if importlib.util.find_spec("vllm") is None:
        missing["vllm"] = "vLLM is not installed"
    for item in items:
        for marker, reason in missing.items():
            if marker in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))
