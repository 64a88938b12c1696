"""A teacher behind HTTP against the same teacher here: rows, losses, gradients; and what is refused before a run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from callbacks import RolloutCallback, TeacherRollout
from simct_pl import DSKDEta
from simct_pl.errors import RecipeError, RolloutError, TokenizerError
from simct_pl.rollout.engine import SamplingParams
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.training.listed_rows import Listed, ListedHead, pack_rows, unlisted_mass
from simct_pl.training.module import DistillModule
from simct_pl.training.teacher_server import TeacherServer, total_variation
from tests.json_server import serving
from tests.tiny import data, distill_module, sampled, trainer, unloaded_module
from tests.training.fake_teacher_server import FakeTeacherServer

ALL = -1


@pytest.fixture(scope="module")
def here() -> DistillModule:
    return distill_module(teacher_dtype="float32")


@pytest.fixture
def server(here: DistillModule) -> Iterator[FakeTeacherServer]:
    assert here.teacher is not None
    with serving(FakeTeacherServer(here.teacher.model, here.pair.teacher)) as found:
        yield found


def asking(server: FakeTeacherServer, top_k: int = ALL, retries: int = 2, **values: object) -> TeacherServer:
    return TeacherServer(server.url, top_k, key_variable=None, retries=retries, **values)  # type: ignore[arg-type]


def module_asking(server: FakeTeacherServer, top_k: int = ALL) -> DistillModule:
    return distill_module(teacher_dtype="float32", teacher_server=asking(server, top_k))


# ---- rows ----


def test_a_row_has_what_is_listed_and_the_rest_in_equal_parts() -> None:
    rows = [Listed((3, 0), (math.log(0.5), math.log(0.3))), Listed((1,), (math.log(0.9),))]
    packed_RX = pack_rows(rows, 5)
    head = ListedHead.over(5, torch.device("cpu"))
    found_RV = head.project(packed_RX, head.projection.weight, None, torch.empty(2, 5)).exp()
    expected_RV = [[0.3, 0.2 / 3, 0.2 / 3, 0.5, 0.2 / 3], [0.025, 0.9, 0.025, 0.025, 0.025]]
    torch.testing.assert_close(found_RV, torch.tensor(expected_RV))
    assert unlisted_mass(rows[1]) == pytest.approx(0.1)


def test_a_shorter_list_repeats_its_first_token() -> None:
    longer, shorter = Listed((3, 0), (-1.0, -2.0)), Listed((1,), (-0.5,))
    assert pack_rows([longer, shorter], 5)[1, 1:].tolist() == [-0.5, -0.5, 1, 1]


def test_a_whole_list_has_no_rest() -> None:
    row_V = torch.randn(7, dtype=torch.float64).log_softmax(-1)
    packed = pack_rows([Listed(tuple(range(7)), tuple(row_V.tolist()))], 7)
    head = ListedHead.over(7, torch.device("cpu"))
    found_V = head.project(packed, head.projection.weight, None, torch.empty(1, 7))[0]
    torch.testing.assert_close(found_V, row_V.float())


# ---- against the teacher that is here ----


def losses(module: DistillModule) -> tuple[float, torch.Tensor, list[torch.Tensor]]:
    rollouts = sampled(module)
    module.student.zero_grad()
    loss, stats = module.loss_sum(rollouts, module.align(rollouts))
    loss.backward()
    return loss.item(), stats.loss_U, [p.grad.clone() for p in module.student.parameters() if p.grad is not None]


def test_with_all_tokens_listed_losses_and_gradients_are_those_of_a_teacher_here(
    here: DistillModule, server: FakeTeacherServer
) -> None:
    expected, elsewhere = losses(here), losses(module_asking(server))
    assert elsewhere[0] == pytest.approx(expected[0], rel=1e-4)
    torch.testing.assert_close(elsewhere[1], expected[1], rtol=1e-3, atol=1e-5)
    for found, gradient in zip(elsewhere[2], expected[2], strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-4)


def test_the_unlisted_mass_falls_with_the_tokens_that_are_listed_and_the_loss_comes_near(
    here: DistillModule, server: FakeTeacherServer
) -> None:
    expected, distances, masses = losses(here)[0], [], []
    for top_k in (1, 4, 32, ALL):
        module = module_asking(server, top_k)
        distances.append(abs(losses(module)[0] - expected))
        masses.append(module.student_with_loss.metrics()["teacher/unlisted_mass"])
        with torch.no_grad():  # a validation's rows are none of a step's
            rollouts = sampled(module, num=1)
            module.loss_sum(rollouts, module.align(rollouts))
        assert module.student_with_loss.metrics() == {}
    assert masses == sorted(masses, reverse=True)
    assert masses[0] > 1e-3
    assert masses[-1] < 1e-6
    assert distances[-1] < distances[0]
    assert distances[-1] < 1e-3


def test_no_event_is_off_by_more_than_the_unlisted_mass(here: DistillModule, server: FakeTeacherServer) -> None:
    prompt, response = [here.pair.teacher.encode("1+2?")], [here.pair.teacher.encode("1+2= 3, total 3")]
    (exact,), (listed,) = asking(server, ALL).rows(prompt, response), asking(server, 2).rows(prompt, response)
    size = here.teacher.head.projection.out_features  # type: ignore[union-attr]
    head = ListedHead.over(size, torch.device("cpu"))
    true_RV, found_RV = (
        head.project(pack_rows(rows, size), head.projection.weight, None, torch.empty(len(rows), size)).exp()
        for rows in (exact, listed)
    )
    off_R = (true_RV - found_RV).abs().sum(-1) / 2
    for off, row in zip(off_R.tolist(), listed, strict=True):
        assert off <= unlisted_mass(row) + 1e-5


def test_a_fit_logs_the_unlisted_mass(server: FakeTeacherServer, tmp_path: Path) -> None:
    module = unloaded_module(teacher_dtype="float32", teacher_server=asking(server, 8))
    rollouts = RolloutCallback(SamplingParams(max_tokens=24))
    run = trainer(tmp_path, rollouts, max_steps=1, limit_val_batches=1)
    run.fit(module, datamodule=data())
    assert 0 <= run.callback_metrics["teacher/unlisted_mass"] < 0.5
    assert all(body["prompt_logprobs"] == 8 and body["model"] == "teacher" for body in server.asked)


# ---- before a run ----


def check(server: FakeTeacherServer, here: DistillModule, top_k: int = 4, **values: object) -> TeacherServer:
    found = asking(server, top_k, **values)
    found.check(here.first_lesson.path, here.pair.teacher, here.objective)
    return found


def test_a_server_with_the_teacher_passes(server: FakeTeacherServer, here: DistillModule) -> None:
    assert check(server, here).context == server.max_model_len - 1


def test_a_context_of_the_server_that_is_shorter_counts(server: FakeTeacherServer) -> None:
    server.max_model_len = 50
    assert unloaded_module(teacher_server=asking(server)).first_lesson.context == 49


def test_another_tokenizer_is_refused(server: FakeTeacherServer, here: DistillModule) -> None:
    server.tokenizer = here.pair.student
    with pytest.raises(TokenizerError, match="has to name the model that is served"):
        check(server, here)


def test_another_template_is_said(
    server: FakeTeacherServer, here: DistillModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ModelTokenizer(here.pair.teacher.hf)
    monkeypatch.setattr(other, "render_prompt", lambda messages: [1, 2, 3])
    server.tokenizer = other
    with pytest.warns(UserWarning, match="another chat template"):
        check(server, here)


def test_another_name_is_said(server: FakeTeacherServer, here: DistillModule) -> None:
    server.name = "somebody/else"
    with pytest.warns(UserWarning, match="serves 'somebody/else'"):
        check(server, here)


def test_a_model_that_is_not_served_is_refused(server: FakeTeacherServer, here: DistillModule) -> None:
    with pytest.raises(RecipeError, match="serves 'teacher'"):
        check(server, here, model="another")


def test_a_server_that_says_another_thing_each_time_is_refused(server: FakeTeacherServer, here: DistillModule) -> None:
    server.noise = 0.1
    with pytest.raises(RolloutError, match=r"differs by 0\.\d+ \(total variation\) on the same text"):
        check(server, here)
    check(server, here, tolerance=0.5)


def test_a_server_that_is_busy_for_a_while_is_asked_again(server: FakeTeacherServer, here: DistillModule) -> None:
    server.trouble = [503, 502]
    check(server, here)


def test_a_server_that_is_not_there_is_told_with_a_command(here: DistillModule) -> None:
    gone = TeacherServer("http://127.0.0.1:9", key_variable=None, retries=0)
    with pytest.raises(RolloutError, match="vllm serve TEACHER --max-logprobs 128"):
        gone.check(here.first_lesson.path, here.pair.teacher, here.objective)


def test_an_objective_of_hidden_states_is_refused(server: FakeTeacherServer, here: DistillModule) -> None:
    with pytest.raises(RecipeError, match="DSKDEta reads the teacher's hidden states"):
        asking(server).check(here.first_lesson.path, here.pair.teacher, DSKDEta())


def test_a_temperature_of_a_teacher_on_a_server_is_refused(server: FakeTeacherServer) -> None:
    module = unloaded_module(teacher_server=asking(server), teacher_temperature=0.5)
    with pytest.raises(RecipeError, match=r"teacher_temperature is 0\.5, and the teacher is on a server"):
        module.first_lesson.check(None, torch.device("cpu"))


def test_answers_of_a_teacher_on_a_server_are_refused(server: FakeTeacherServer, tmp_path: Path) -> None:
    module = unloaded_module(teacher_server=asking(server))
    with pytest.raises(RecipeError, match="they are on a server"):
        trainer(tmp_path, TeacherRollout()).fit(module, datamodule=data())


@pytest.mark.parametrize(
    "values",
    [{"url": "localhost:1"}, {"top_k": 0}, {"tolerance": 0.0}, {"max_concurrency": 0}, {"timeout": 0}, {"retries": -1}],
)
def test_values_out_of_range_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match=next(iter(values))):
        TeacherServer(**{"url": "http://h:1", **values})  # type: ignore[arg-type]


def test_total_variation_counts_what_only_one_lists_as_one_event() -> None:
    one = Listed((0, 1), (math.log(0.6), math.log(0.4)))
    two = Listed((0, 2), (math.log(0.5), math.log(0.5)))
    assert total_variation(one, two) == pytest.approx(0.1)
    assert total_variation(one, one) == 0
