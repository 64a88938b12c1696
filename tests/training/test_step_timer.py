"""The timer, against clocks that tick when they are told to."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch

from simct_pl.training.step_timer import PHASES, PhaseTimer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    hands = SimpleNamespace(now=100.0)
    monkeypatch.setattr("simct_pl.training.step_timer.perf_counter", lambda: hands.now)
    return hands


def test_phases_add_up_and_an_inner_phase_is_not_counted_twice(clock: SimpleNamespace) -> None:
    timer = PhaseTimer()
    timer.start(torch.device("cpu"))
    clock.now += 1
    with timer("loss"):
        clock.now += 2
        with timer("teacher"):
            clock.now += 4
        clock.now += 8
    with timer("teacher"):
        clock.now += 16
    clock.now += 32
    lap = timer.lap()
    assert lap.seconds == {**dict.fromkeys(PHASES, 0.0), "loss": 10.0, "teacher": 20.0, "other": 33.0}
    assert lap.total_seconds == 63.0
    clock.now += 5
    assert timer.lap().seconds == {**dict.fromkeys(PHASES, 0.0), "other": 5.0}


def test_a_pause_is_in_no_lap(clock: SimpleNamespace) -> None:
    timer = PhaseTimer()
    timer.start(torch.device("cpu"))
    clock.now += 1
    timer.pause()
    with timer("teacher"):
        clock.now += 50
    timer.count_forward("teacher", 5, 10)
    timer.count_worker(3.0)
    timer.resume()
    with timer("teacher"):
        clock.now += 2
    lap = timer.lap()
    assert lap.seconds == {**dict.fromkeys(PHASES, 0.0), "other": 1.0, "teacher": 2.0}
    assert (lap.worker_seconds, lap.padding_share("teacher")) == (0.0, 0.0)


def test_counts_belong_to_their_lap(clock: SimpleNamespace) -> None:
    timer = PhaseTimer()
    timer.start(torch.device("cpu"))
    timer.count_forward("student", 30, 40)
    timer.count_forward("student", 15, 20)
    timer.count_forward("teacher", 9, 10)
    timer.count_worker(0.5)
    lap = timer.lap()
    assert lap.padding_share("student") == pytest.approx(0.25)
    assert lap.padding_share("teacher") == pytest.approx(0.1)
    assert lap.worker_seconds == 0.5
    timer.count_forward("student", 5, 20)
    second = timer.lap()
    assert second.padding_share("student") == pytest.approx(0.75)
    total = lap + second
    assert total.padding_share("student") == pytest.approx(30 / 80)
    assert total.padding_share("teacher") == pytest.approx(0.1)
    assert total.worker_seconds == 0.5


def test_an_exception_closes_its_phase(clock: SimpleNamespace) -> None:
    timer = PhaseTimer()
    timer.start(torch.device("cpu"))

    def broken() -> None:
        with timer("loss"):
            clock.now += 1
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        broken()
    clock.now += 2
    lap = timer.lap()
    assert (lap.seconds["loss"], lap.seconds["other"]) == (1.0, 2.0)


def test_nothing_is_kept_while_nobody_listens() -> None:
    timer = PhaseTimer()
    for _ in range(3):
        with timer("loss"):
            timer.count_forward("student", 1, 1)
    timer.pause()
    timer.resume()
    assert timer._marks == []
    assert not timer._num_tokens
    assert not timer.is_listening
    timer.start(torch.device("cpu"))
    assert timer.is_listening
    timer.stop()
    with timer("loss"):
        pass
    assert timer._marks == []


def test_nobody_listens_to_a_copy() -> None:
    timer = PhaseTimer()
    timer.start(torch.device("cpu"))
    for copied in (copy.deepcopy(timer), pickle.loads(pickle.dumps(timer))):
        assert not copied.is_listening
        assert copied._marks == []
    assert timer.is_listening


def test_on_cuda_events_are_read_after_one_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream's clock, not the host's: events of a device that is 1000 s behind."""
    waits: list[float] = []
    stream = SimpleNamespace(milliseconds=0.0)

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = stream.milliseconds

        def synchronize(self) -> None:
            waits.append(self.at)

        def elapsed_time(self, end: Event) -> float:
            assert waits, "read before it has happened"
            return end.at - self.at

    monkeypatch.setattr("torch.cuda.Event", Event)
    timer = PhaseTimer()
    timer.start(torch.device("cuda"))
    with timer("student_forward"):
        stream.milliseconds += 250
    assert waits == []
    stream.milliseconds += 500
    lap = timer.lap()
    assert (lap.seconds["student_forward"], lap.seconds["other"]) == (0.25, 0.5)
    assert waits == [750.0]
