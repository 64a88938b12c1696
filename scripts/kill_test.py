"""Kills a tiny quickstart at random moments, resumes it each time, and compares it bit for bit with one left alone.

    python scripts/kill_test.py --kills 20

Compared: every byte of the exported student's weights, and every metric in MLflow (steps, values, no step twice; what
the clock measures is left out). Exits with 1 when anything differs.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.progress import Progress

ROOT = Path(__file__).resolve().parent.parent
RUN = Path("runs/quickstart+checkpoints")
CLOCK = "timing/"
LATE = 0.8  # share of the kills that wait for the first new step; the others may strike during set-up
POLL = 0.005  # seconds

History = dict[str, list[tuple[int, float]]]


def fit_command(scratch: Path, num_steps: int, every_n_steps: int) -> list[str]:
    """The command of both runs; --resume also begins one."""
    saves = f"{{class_path: callbacks.Checkpoint, init_args: {{every_n_steps: {every_n_steps}}}}}"
    recipe = scratch / "checkpoints.yaml"
    recipe.write_text(f"trainer: {{callbacks+: [{saves}]}}\n", encoding="utf-8")
    return [
        *(sys.executable, "-m", "simct_pl", "fit", "--recipe", "quickstart", "--recipe", str(recipe), "--resume"),
        *(f"--trainer.max_steps={num_steps}", "--trainer.val_check_interval=5"),
        *("--data.init_args.batch_size=4", "--data.init_args.num_val_prompts=4", "--data.init_args.val_batch_size=4"),
        f"--data.init_args.num_train_batches={max(num_steps * 2 // 3, 1)}",  # so that a second pass is resumed too
    ]


def start(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """The command in a folder of its own, its output beside it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    with open(folder / "output.txt", "ab") as output:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)


def num_logged(folder: Path) -> int:
    """Bytes that the run has journalled so far: they grow with every step."""
    return sum(path.stat().st_size for path in (folder / RUN / "tracking").glob("*.jsonl"))


def kill_once(command: list[str], folder: Path, rng: random.Random, longest_wait: float) -> bool:
    """Start or continue the run and kill it at a random moment; False if it ended before that."""
    process, before = start(command, folder), num_logged(folder)
    if rng.random() < LATE:
        while process.poll() is None and num_logged(folder) == before:
            time.sleep(POLL)
    deadline = time.monotonic() + rng.uniform(0, longest_wait)
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(POLL)
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def finish(command: list[str], folder: Path) -> None:
    if start(command, folder).wait() != 0:
        sys.exit(f"The run failed:\n{(folder / 'output.txt').read_text(errors='replace')[-3000:]}")


def metrics_of(folder: Path) -> History:
    """Every metric of the folder's only run, but what the clock measured: (step, value) in order of the steps."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("simct_pl")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    if len(runs) != 1:
        sys.exit(f"FAILED: {folder} has {len(runs)} runs in MLflow; expected the same one after each kill.")
    names = [name for name in runs[0].data.metrics if not name.startswith(CLOCK)]
    return {
        name: sorted((point.step, point.value) for point in client.get_metric_history(runs[0].info.run_id, name))
        for name in names
    }


def differences(alone: Path, killed: Path) -> list[str]:
    """What differs between the two runs, in words."""
    found = []
    weights = [(folder / "runs/quickstart/student/model.safetensors").read_bytes() for folder in (alone, killed)]
    if weights[0] != weights[1]:
        found.append("the students' weights differ")
    first, second = metrics_of(alone), metrics_of(killed)
    for name in sorted(first.keys() | second.keys()):
        if repr(first.get(name)) != repr(second.get(name)):  # repr: NaN is equal to itself
            found.append(f"{name}: {first.get(name)} alone, {second.get(name)} killed")
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, help="of the run; by default three for each kill")
    parser.add_argument("--every-n-steps", type=int, default=2, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--longest-wait", type=float, default=1.5, help="seconds that a resumed run lives at most")
    options = parser.parse_args(arguments)
    num_steps, rng, num_killed = options.steps or 3 * options.kills, random.Random(options.seed), 0
    with tempfile.TemporaryDirectory() as scratch, Progress() as progress:
        alone, killed = Path(scratch, "alone"), Path(scratch, "killed")
        alone.mkdir()
        killed.mkdir()
        command = fit_command(Path(scratch), num_steps, options.every_n_steps)
        task = progress.add_task("kills", total=options.kills + 2)
        finish(command, alone)
        progress.advance(task)
        for _ in range(options.kills):
            num_killed += kill_once(command, killed, rng, options.longest_wait)
            progress.advance(task)
        finish(command, killed)
        progress.advance(task)
        found = differences(alone, killed)
    for difference in found:
        print(difference)
    verdict = "FAILED" if found else "ok"
    print(
        f"{verdict}: {num_killed} kills in {num_steps} steps, a checkpoint every {options.every_n_steps}: "
        f"{len(found)} differences in weights and metrics"
    )
    return 1 if found or num_killed == 0 else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
