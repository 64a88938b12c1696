"""A run of two ranks with an engine on each, whose first rank is killed: the second one ends too, and --resume goes on
to the weights of a run of one rank that nobody touched. Ranks are started by Lightning, and to resume as by torchrun.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from safetensors.torch import load_file

from tests import warm
from tests.rollout.tiny_student import write_student

PARTS = '''
import os, signal
from pathlib import Path
import lightning as L


class Death(L.Callback):
    """Kills the first of two ranks once, in the step after the checkpoint."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        pids = trainer.strategy.broadcast(os.getpid()), os.getpid()
        if trainer.world_size == 2 and trainer.global_step == 3 and not Path("killed").exists():
            trainer.strategy.barrier()
            if trainer.global_rank == 1:
                Path("second").write_text(str(pids[1]))
            trainer.strategy.barrier()
            if trainer.global_rank == 0:
                Path("killed").touch()
                os.kill(pids[0], signal.SIGKILL)
'''
OVERLAY = """
model: {{init_args: {{student: {student}}}}}
trainer:
  callbacks:
    - class_path: callbacks.RolloutCallback
      init_args:
        sampling: {{max_tokens: 24}}
        engine:
          class_path: simct_pl.rollout.vllm.VLLMEngine
          init_args: {{dtype: float32, kv_cache_gib: 0.125, enforce_eager: true}}
    - {{class_path: callbacks.Checkpoint, init_args: {{every_n_steps: 2}}}}
    - {{class_path: callbacks.HFExport, init_args: {{output: student}}}}
    - parts.Death
"""
SHARDED = ("--recipe=fsdp2", "--trainer.accelerator=cpu", "--model.init_args.sharding.param_dtype=float32")


def command(folder: Path, student: Path, num_ranks: int) -> list[str]:
    folder.mkdir(exist_ok=True)
    (folder / "parts.py").write_text(PARTS)
    (folder / "overlay.yaml").write_text(OVERLAY.format(student=student))
    return [
        *("simct_pl", "fit", "--recipe", "quickstart", "--recipe", "overlay.yaml", "--resume"),
        *(SHARDED if num_ranks > 1 else ()),
        *("--trainer.logger=false", f"--trainer.devices={num_ranks}", "--trainer.max_steps=4"),
        *("--data.init_args.num_val_prompts=4", f"--data.init_args.batch_size={8 // num_ranks}"),
        "--data.init_args.num_train_batches=4",
    ]


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="reads /proc")
def test_a_killed_rank_ends_the_other_and_the_run_goes_on_exactly(tmp_path: Path) -> None:
    student = write_student(tmp_path / "tiny")
    (student / "generation_config.json").unlink()  # no export takes what it says
    folder, alone = tmp_path / "two", tmp_path / "one"
    asked, path = command(folder, student, 2), f"{warm.ROOT}{os.pathsep}{folder}"
    # By Lightning, which starts the second rank.
    printed = folder / "killed.txt"
    with warm.start(asked, folder, printed, PYTHONPATH=path) as process:
        assert process.wait(timeout=300) == -signal.SIGKILL, printed.read_text()[-3000:]
        second, deadline = int((folder / "second").read_text()), time.monotonic() + 60
        while not has_ended(second) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert has_ended(second)
    # As by torchrun, which starts both.
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port()), "WORLD_SIZE": "2"}
    outputs = [folder / f"rank{rank}.txt" for rank in range(2)]
    with ExitStack() as ranks:
        processes = [
            ranks.enter_context(
                warm.start(
                    asked, folder, output, RANK=str(rank), LOCAL_RANK=str(rank), TORCHELASTIC_RUN_ID="none", **place
                )
            )
            for rank, output in enumerate(outputs)
        ]
        codes = [process.wait(timeout=300) for process in processes]
    assert codes == [0, 0], outputs[0].read_text()[-3000:]
    assert "Continuing after step 2" in outputs[0].read_text()
    done = warm.run(command(alone, student, 1), alone)
    assert done.returncode == 0, done.stderr[-3000:]
    before, found, expected = (
        load_file(where / "model.safetensors") for where in (student, folder / "student", alone / "student")
    )
    for name, weight in expected.items():
        assert (found[name] - weight).norm() <= 1e-3 * (weight - before[name]).norm(), name
