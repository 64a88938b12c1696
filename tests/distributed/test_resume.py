"""Two ranks with a sharded student, ended by SIGTERM between two steps and continued: exit code 75, and the same
weights as left alone.
"""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from safetensors.torch import load_file

from tests import warm

SAVES = "trainer: {callbacks+: [{class_path: callbacks.Checkpoint, init_args: {every_n_steps: 4}}]}\n"
NUM_STEPS = 10
SHARDED = ("--recipe=fsdp2", "--trainer.accelerator=cpu", "--model.init_args.sharding.param_dtype=float32")


def command(folder: Path) -> list[str]:
    """Of a fit in the folder, new or continued."""
    folder.mkdir(exist_ok=True)
    (folder / "saves.yaml").write_text(SAVES)
    return [
        *("simct_pl", "fit", "--recipe", "quickstart", "--recipe", "saves.yaml", "--resume", *SHARDED),
        *("--trainer.logger=false", "--trainer.devices=2"),
        *(f"--trainer.max_steps={NUM_STEPS}", "--data.init_args.num_val_prompts=4"),
        *("--data.init_args.batch_size=4", "--data.init_args.num_train_batches=4"),
    ]


def fit_by_two(folder: Path) -> str:
    """Fit with ranks that are started from outside, as torchrun does; what the first of them printed."""
    arguments, outputs = command(folder), [folder / f"rank{rank}.txt" for rank in range(2)]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port())}
    with ExitStack() as ranks:
        processes = [
            ranks.enter_context(warm.start(arguments, folder, output, LOCAL_RANK=str(rank), **place))
            for rank, output in enumerate(outputs)
        ]
        codes = [process.wait(timeout=300) for process in processes]
    assert codes == [0, 0], outputs[0].read_text()[-3000:]
    return outputs[0].read_text()


@pytest.mark.slow
def test_a_sigterm_to_one_rank_ends_both_and_the_run_goes_on_exactly(tmp_path: Path) -> None:
    """The run that is ended has its second rank from Lightning, which watches how that ends."""
    alone, ended = tmp_path / "alone", tmp_path / "ended"
    fit_by_two(alone)
    printed = ended / "printed.txt"
    with warm.start(command(ended), ended, printed) as process:
        while process.poll() is None and not list(ended.glob("runs/quickstart+saves*/checkpoints/step-*")):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=300) == 75, printed.read_text()[-3000:]
    assert "Continue it with --resume" in printed.read_text()
    assert "Continuing after step" in fit_by_two(ended)
    first, second = (load_file(folder / "runs/quickstart/student/model.safetensors") for folder in (alone, ended))
    assert all((first[name] == second[name]).all() for name in first)
