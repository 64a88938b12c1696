"""One process writes a folder; its lock ends with it, however that ends."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simct_pl.commands.sweep import run as run_sweep
from simct_pl.data.build import build_mixture
from simct_pl.data.mixture import MixtureSource
from simct_pl.data.source import PromptSource
from simct_pl.errors import ExportError
from simct_pl.evaluation.evaluate import evaluate
from simct_pl.evaluation.grader import LastNumberGrader
from simct_pl.files.lock import NAME, sole_writer
from simct_pl.files.parquet import write_parquet
from simct_pl.lab.sweep_file import Cell, SweepFile
from simct_pl.rollout.engine import SamplingParams
from simct_pl.tasks.benchmark import ArithmeticBenchmark
from simct_pl.warmup.generate import generate
from simct_pl.warmup.responses import SCHEMA
from simct_pl.warmup.select import select
from tests.tiny import ASSETS

SHORT = SamplingParams(max_tokens=24)
HOLD = """
import os, sys, time
from pathlib import Path
from simct_pl.files.lock import sole_writer
with sole_writer(Path(sys.argv[1]), "fit"):
    forks = sys.argv[2] == "fork"
    if not forks or os.fork() == 0:  # the child speaks for itself, when it is all there
        print(os.getpid(), flush=True)
    time.sleep(100)
"""


def start_holder(folder: Path, how: str) -> tuple[subprocess.Popen[str], int]:
    """A process that has the folder, and the id of the child that it forked, or its own."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), how], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_a_second_process_is_told_who_is_there(tmp_path: Path) -> None:
    holder, _ = start_holder(tmp_path / "run", "alone")
    try:
        with (
            pytest.raises(ExportError, match=rf"run is in use by `fit`, process {holder.pid} on .* set output to"),
            sole_writer(tmp_path / "run", "generate"),
        ):
            pass
        with sole_writer(tmp_path / "other", "fit"):  # any other folder is free
            pass
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.parametrize("how", ["alone", "fork"])
def test_the_lock_ends_with_the_process_even_if_its_children_live_on(tmp_path: Path, how: str) -> None:
    holder, child = start_holder(tmp_path, how)
    try:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with sole_writer(tmp_path, "fit"):
            assert how == "alone" or Path(f"/proc/{child}").exists()
    finally:
        if how == "fork":
            os.kill(child, signal.SIGKILL)


def test_a_fork_does_not_end_the_lock_of_its_parent(tmp_path: Path) -> None:
    with sole_writer(tmp_path, "fit"):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(ExportError, match="in use by `fit`"), sole_writer(tmp_path, "fit"):
            pass
    with sole_writer(tmp_path, "fit"):
        pass


@pytest.mark.parametrize("note", [b"", b"\xff", b"[]", b"{}"])
def test_a_note_that_cannot_be_read_is_no_matter(tmp_path: Path, note: bytes) -> None:
    with sole_writer(tmp_path, "fit"):
        (tmp_path / NAME).write_bytes(note)
        with pytest.raises(ExportError, match="in use by another process"), sole_writer(tmp_path, "fit"):
            pass


def test_without_locks_there_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="file system without locks"), sole_writer(tmp_path, "fit"):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="file/run cannot be written to"), sole_writer(tmp_path / "file/run", "fit"):
        pass


def build_data(folder: Path) -> None:
    (folder.parent / "a.jsonl").write_text('{"prompt": "x"}\n')
    build_mixture({"a": MixtureSource(PromptSource(str(folder.parent / "a.jsonl")))}, str(folder))


def generate_responses(folder: Path) -> None:
    (folder.parent / "a.jsonl").write_text('{"prompt": "1+2?"}\n')
    generate(str(ASSETS / "student"), PromptSource(str(folder.parent / "a.jsonl")), str(folder), sampling=SHORT)


def select_responses(folder: Path) -> None:
    values: dict[str, Any] = {"prompt": 0, "sample": 0, "messages": [], "response": "x", "response_ids": []}
    row = {name: values.get(name, 0 if name in ("seed", "attempt", "num_tokens") else "x") for name in SCHEMA.names}
    write_parquet(folder.parent / "in/responses.parquet", SCHEMA, [[row]])
    select(str(folder.parent / "in"), str(folder), {"any": LastNumberGrader()})


def evaluate_model(folder: Path) -> None:
    evaluate(str(ASSETS / "student"), [ArithmeticBenchmark()], str(folder), tracking_uri=None)


def sweep(folder: Path) -> None:
    cell = Cell("a", 0, (), folder / "a/seed0", "")
    run_sweep(SweepFile("s", (), {}, (0,)), folder / "s.yaml", [cell], 1, 1, 1)


@pytest.mark.parametrize("write", [build_data, generate_responses, select_responses, evaluate_model, sweep])
def test_every_command_that_writes_a_folder_asks_for_it(tmp_path: Path, write: Callable[[Path], None]) -> None:
    with (
        sole_writer(tmp_path / "out", "the other"),
        pytest.raises(ExportError, match="out is in use by `the other`"),
    ):
        write(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [NAME]  # nothing was written
