"""Through the command line: killed and resumed, refused where it must be, ended by SIGTERM."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from scripts import kill_test
from simct_pl.commands.main import main
from tests import warm

FIT = (
    *("simct_pl", "fit", "--recipe", "quickstart", "--recipe", "saves.yaml", "--trainer.max_steps=6"),
    *("--data.init_args.batch_size=4", "--data.init_args.num_val_prompts=4"),
)
SAVES = "trainer: {callbacks+: [{class_path: callbacks.Checkpoint, init_args: {every_n_steps: 2}}]}\n"


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_as_one_left_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(command: list[str], folder: Path) -> warm.Process | subprocess.Popen[bytes]:
        return warm.start(command[2:], folder, folder / "output.txt", MLFLOW_TRACKING_URI=None)

    monkeypatch.setattr(kill_test, "start", start)
    code = kill_test.main(["--kills", "1", "--steps", "8"])
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "ok: 1 kills in 8 steps" in printed


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return warm.run(arguments, folder, MLFLOW_TRACKING_URI=None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run's folder, with checkpoints."""
    folder = tmp_path_factory.mktemp("resume")
    (folder / "saves.yaml").write_text(SAVES)
    done = run(folder, *FIT)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_old_checkpoints_and_other_recipes_are_refused(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")

    def refused(*arguments: str) -> str:
        assert main([*arguments]) == 2
        message = capsys.readouterr().err
        assert "Traceback" not in message
        return message

    message = refused(*FIT[1:])
    assert "step 6" in message
    assert "--resume" in message
    message = refused(*FIT[1:], "--resume", "--seed_everything=3", "--model.init_args.optimizer.lr=1e-4")
    assert "seed_everything: 0 → 3" in message
    assert "optimizer.lr" in message
    assert "goes with fit" in refused("validate", "--recipe", "quickstart", "--resume")


@pytest.mark.slow
def test_a_truncated_checkpoint_gives_way_to_the_one_before(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    checkpoints = folder / "runs/quickstart+saves/checkpoints"
    state = checkpoints / "step-00000006/state.ckpt"
    state.write_bytes(state.read_bytes()[:-100])
    done = run(folder, *FIT, "--resume")
    assert done.returncode == 0, done.stderr
    assert "step-00000006/state.ckpt has" in done.stderr
    assert "step-00000004 instead" in done.stderr
    weights = "runs/quickstart/student/model.safetensors"
    assert (folder / weights).read_bytes() == (finished / weights).read_bytes()


@pytest.mark.slow
def test_a_run_goes_on_from_what_a_bad_disk_has_left(finished: Path, tmp_path: Path) -> None:
    """A byte of the journal, the receipt and the newest manifest: metrics are warned about, a checkpoint is skipped."""
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    root = folder / "runs/quickstart+saves"
    (journal,) = (root / "tracking").glob("*.jsonl")
    content = bytearray(journal.read_bytes())
    content[content.index(b'"kind": "metrics"') + 9] = 0xFF
    journal.write_bytes(content)
    journal.with_suffix(".json").write_text("[]")
    manifest = root / "checkpoints/step-00000006/manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "recipe": "a: ["}))
    done = run(folder, *FIT, "--resume")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    for expected in (
        f"{journal.name} is damaged: 1 of its",
        "sent again",
        "the recipe in manifest.json",
        "step-00000004",
    ):
        assert expected in done.stderr
    weights = "runs/quickstart/student/model.safetensors"
    assert (folder / weights).read_bytes() == (finished / weights).read_bytes()


@pytest.mark.slow
def test_a_run_has_its_folder_for_itself_and_sigterm_ends_it_with_its_own_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "saves.yaml").write_text(SAVES)
    arguments = [*FIT, "--trainer.max_steps=400", "--trainer.logger=false"]
    root = tmp_path / "runs/quickstart+saves"
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with warm.start(arguments, tmp_path, tmp_path / "output.txt") as process:
        while process.poll() is None and not (root / ".in_use").exists():
            time.sleep(0.02)
        for resume in ((), ("--resume",)):  # before there is any checkpoint to stop at
            assert main([*FIT[1:], *resume, "--trainer.logger=false"]) == 2
            message = capsys.readouterr().err
            assert f"in use by `fit`, process {process.pid}" in message
            assert "trainer.default_root_dir" in message
        while process.poll() is None and not list((root / "checkpoints").glob("step-*")):
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 75
    output_text = (tmp_path / "output.txt").read_text()
    assert "RunInterrupted: SIGTERM: the run ended after step" in output_text
    assert "Traceback" not in output_text
