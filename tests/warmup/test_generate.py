"""Generation: what is written, what is asked again, and that a run that is killed goes on as if it had not been."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from simct_pl.data.source import PromptSource
from simct_pl.errors import PromptDataError, RecipeError, ResponseError, RolloutError, TokenizerError
from simct_pl.files.parquet import read_parquet, write_parquet
from simct_pl.rollout.engine import Generation, SamplingParams
from simct_pl.rollout.hf import HFEngine
from simct_pl.rollout.inference_model import InferenceModel
from simct_pl.tasks.arithmetic import Problem, distinct_problems
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.warmup.generate import generate
from simct_pl.warmup.response_sampler import ResponseSampler, SampleRequest
from simct_pl.warmup.responses import ResponseStore
from tests import warm
from tests.tiny import ASSETS
from tests.warmup.engines import ScriptedEngine

TEACHER = str(ASSETS / "teacher")
SAMPLING = SamplingParams(temperature=0.6, top_p=0.95, max_tokens=48)


def questions(path: Path, count: int) -> PromptSource:
    problems = distinct_problems(0, count, 3, 50, held_out=False)
    rows = [{"text": p.question, "total": p.total, "kind": "sums"} for p in problems]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return PromptSource(str(path), prompt_field="text", answer_field="total")


def run(folder: Path, **options: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    folder.mkdir(exist_ok=True)
    defaults: dict[str, Any] = {
        "model": TEACHER,
        "prompts": questions(folder / "default.jsonl", 10),
        "output": str(folder / "out"),
        "sampling": SAMPLING,
        "num_samples": 3,
        "batch_size": 4,
        "dtype": "float32",
    }
    report = generate(**{**defaults, **options})
    return report, list(read_parquet(Path({**defaults, **options}["output"]) / "responses.parquet"))


def test_a_model_answers_each_prompt_several_times(tmp_path: Path) -> None:
    report, rows = run(tmp_path, engine=HFEngine(), domain_field="kind")
    assert [(row["prompt"], row["sample"]) for row in rows] == [(p, s) for p in range(10) for s in range(3)]
    assert len({row["seed"] for row in rows}) == 30
    right = 0
    for row in rows:
        problem = Problem(tuple(map(int, row["messages"][0]["content"].rstrip("?").split("+"))))
        assert row["answer"] == str(problem.total)
        assert (row["domain"], row["attempt"], row["num_tokens"]) == ("sums", 0, len(row["response_ids"]))
        right += row["response"] == problem.response
    assert right >= 27  # the teacher can add
    assert report["num_responses"] == report["finish_reasons"]["stop"] == 30
    assert report["num_tokens"] == sum(row["num_tokens"] for row in rows)
    assert not (tmp_path / "out/parts").exists()
    again, _ = run(tmp_path, engine=ScriptedEngine(bad_prompt=0, fail_first=99), domain_field="kind")
    assert again == report  # complete: nobody is asked


def test_empty_responses_are_asked_again_with_another_seed_and_never_written(tmp_path: Path) -> None:
    report, rows = run(tmp_path, engine=ScriptedEngine(empty_share=3))
    assert all(row["response"].strip() for row in rows)
    again = [row for row in rows if row["attempt"] > 0]
    assert again
    assert report["num_asked_again"] >= len(again)
    assert len(rows) + len(report["given_up"]) == 30
    missing = {(p, s) for p in range(10) for s in range(3)} - {(row["prompt"], row["sample"]) for row in rows}
    assert {tuple(pair) for pair in report["given_up"]} == missing
    assert report["finish_reasons"]["given_up"] == len(missing)


def test_a_request_that_stays_empty_is_given_up(tmp_path: Path) -> None:
    report, rows = run(tmp_path, engine=ScriptedEngine(empty_share=1), max_retries=2)
    assert rows == []
    assert len(report["given_up"]) == 30
    assert report["failures_since_the_last_start"] == {"empty": 90, "given_up_empty": 30}


def test_a_row_of_a_padded_embedding_is_no_text_and_stops_nothing(tmp_path: Path) -> None:
    class Padded(ScriptedEngine):
        def _answer(self, seed: int, sampling: SamplingParams, stop_ids: tuple[int, ...]) -> Generation:
            answer = super()._answer(seed, sampling, stop_ids)
            return Generation([100_000, *answer.response_ids], [0.0, *answer.logprobs], answer.finish_reason)

    _, padded = run(tmp_path / "padded", engine=Padded())
    _, plain = run(tmp_path / "plain", engine=ScriptedEngine())
    assert [row["response"] for row in padded] == [row["response"] for row in plain]


def sampler(engine: ScriptedEngine, max_retries: int = 2) -> ResponseSampler:
    def reset() -> None:
        engine.num_refreshed += 1

    def text_of(ids: list[int]) -> str:
        return "".join(map(str, ids[:-1]))

    return ResponseSampler(engine, reset, text_of, SAMPLING, (3,), seed=0, max_retries=max_retries, wait_seconds=0.0)


def test_a_failed_batch_is_asked_again_after_a_fresh_start_and_gives_the_same() -> None:
    requests = [SampleRequest(i, 0, [1] * (i + 1)) for i in range(5)]
    engine = ScriptedEngine(fail_first=2)
    failing, calm = sampler(engine), sampler(ScriptedEngine())
    assert failing.answers(requests) == calm.answers(requests)
    assert failing.counts["failed_batches"] == 2
    assert engine.num_refreshed == 2


def test_one_bad_request_does_not_take_the_others_along() -> None:
    requests = [SampleRequest(i, 0, [1] * (i + 1)) for i in range(5)]
    patient = sampler(ScriptedEngine(bad_prompt=3))
    found = {request.prompt: generation for request, generation in patient.answers(requests)}
    calm = {request.prompt: generation for request, generation in sampler(ScriptedEngine()).answers(requests)}
    assert found == {**calm, 2: None}
    assert patient.counts["given_up_failed"] == 1


def test_an_engine_that_answers_nothing_ends_the_run() -> None:
    with pytest.raises(RolloutError, match="failed 3 times: out of memory"):
        sampler(ScriptedEngine(fail_first=10**6)).answers([SampleRequest(i, 0, [1]) for i in range(3)])


def test_prompts_without_room_for_a_response_are_counted(tmp_path: Path) -> None:
    tokenizer = ModelTokenizer.from_pretrained(TEACHER)
    problems = [Problem((1, 2)), Problem((10, 20, 30)), Problem((1, 2, 3)), Problem((11, 12, 13, 14))]
    lengths = [len(tokenizer.render_prompt([{"role": "user", "content": p.question}])) for p in problems]
    assert len(set(lengths)) == 4
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"text": p.question}) + "\n" for p in problems))
    context = json.loads((ASSETS / "teacher/config.json").read_text())["max_position_embeddings"]
    sampling = SamplingParams(max_tokens=context - sorted(lengths)[1])  # two of them fit, one of these exactly
    source = PromptSource(str(path), prompt_field="text")
    report, rows = run(tmp_path, prompts=source, engine=ScriptedEngine(), sampling=sampling)
    assert {row["prompt"] for row in rows} == {0, 2}
    assert report["prompts_too_long"] == 2


def test_no_room_for_any_response_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PromptDataError, match="leaves room"):
        run(tmp_path, engine=ScriptedEngine(), sampling=SamplingParams(max_tokens=100_000))


def test_other_settings_do_not_mix(tmp_path: Path) -> None:
    run(tmp_path, engine=ScriptedEngine())
    with pytest.raises(ResponseError, match="seed = 0; this run has 1"):
        run(tmp_path, engine=ScriptedEngine(), seed=1)
    with pytest.raises(ResponseError, match="prompts"):
        run(tmp_path, engine=ScriptedEngine(), prompts=questions(tmp_path / "prompts.jsonl", 9))


def test_other_weights_under_the_same_path_do_not_mix(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(TEACHER, model)
    run(tmp_path, engine=ScriptedEngine(), model=str(model))
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ResponseError, match="weights = "):
        run(tmp_path, engine=ScriptedEngine(), model=str(model))


def test_a_field_that_is_not_there_is_refused_before_weights_load(tmp_path: Path) -> None:
    with pytest.raises(PromptDataError, match="has no 'topic'"):
        run(tmp_path, engine=ScriptedEngine(), domain_field="topic")
    with pytest.raises(RecipeError, match="num_samples=0"):
        run(tmp_path, engine=ScriptedEngine(), num_samples=0)


def test_killed_at_any_moment_it_goes_on(tmp_path: Path) -> None:
    """SIGKILL while it writes; a second start asks for what is missing, and ends with the file of a run left alone."""
    source = questions(tmp_path / "prompts.jsonl", 12)
    _, expected = run(tmp_path, prompts=source, output=str(tmp_path / "alone"), engine=ScriptedEngine(), batch_size=2)
    log = tmp_path / "asked.jsonl"
    command = ["simct_pl", "generate", f"--model={TEACHER}", f"--prompts.path={source.path}"]
    command += ["--prompts.prompt_field=text", "--prompts.answer_field=total", f"--output={tmp_path / 'cut'}"]
    command += ["--num_samples=3", "--batch_size=2", "--dtype=float32", "--sampling.temperature=0.6"]
    command += ["--sampling.top_p=0.95", "--sampling.max_tokens=48", "--engine=tests.warmup.engines.ScriptedEngine"]
    command += [f"--engine.log={log}", "--engine.delay=0.3"]
    parts = tmp_path / "cut/parts"
    with warm.start(command, tmp_path, tmp_path / "printed.txt") as process:
        while len(list(parts.glob("[0-9]*.parquet"))) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "cut/responses.parquet").exists()
    num_done = len(list(parts.glob("[0-9]*.parquet")))
    num_asked = len(log.read_text().splitlines())
    _, rows = run(
        tmp_path, prompts=source, output=str(tmp_path / "cut"), engine=ScriptedEngine(log=str(log)), batch_size=2
    )
    asked_again = len(log.read_text().splitlines()) - num_asked
    assert asked_again == 36 - 6 * num_done  # only what was not on disk
    assert rows == expected


@pytest.mark.parametrize("damage", ["cut", "empty", "binary", "other columns"])
def test_a_damaged_part_is_asked_again_and_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    _, calm = run(tmp_path / "calm", engine=ScriptedEngine())
    with monkeypatch.context() as patch:
        patch.setattr(ResponseStore, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "hurt", engine=ScriptedEngine())
    part = sorted((tmp_path / "hurt/out/parts").iterdir())[1]
    content = part.read_bytes()
    if damage == "other columns":
        write_parquet(part, pa.schema([("prompt", pa.int64())]), [[{"prompt": 4}]])
    else:
        part.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "binary": os.urandom(500)}[damage])
    _, mended = run(tmp_path / "hurt", engine=ScriptedEngine())
    assert mended == calm
    assert part.name in caplog.text
    assert "asked again" in caplog.text


def test_arguments_of_the_template_reach_the_prompts_and_the_settings(tmp_path: Path) -> None:
    shutil.copytree(TEACHER, tmp_path / "model")
    with (tmp_path / "model/chat_template.jinja").open("a") as template:
        template.write("{% if hurry %}{{ '=' }}{% endif %}")
    for folder, values in (("calm", None), ("hurried", {"hurry": True})):
        run(tmp_path / folder, model=str(tmp_path / "model"), template=values)
    with pytest.raises(ResponseError, match="tokenizer"):
        run(tmp_path / "calm", model=str(tmp_path / "model"), template={"hurry": True})
    with pytest.raises(TokenizerError, match="does not use the argument 'worry'; it has hurry"):
        run(tmp_path / "other", model=str(tmp_path / "model"), template={"worry": True})
    asked = InferenceModel.check(str(tmp_path / "model"), None, "float32", template={"hurry": True})
    question = [{"role": "user", "content": "1+2?"}]
    plain = ModelTokenizer.from_pretrained(TEACHER).render_prompt(question)
    assert asked.tokenizer.render_prompt(question) == [*plain, *asked.tokenizer.encode("=")]


def test_what_rows_show_a_teacher_is_refused_where_there_is_none(tmp_path: Path) -> None:
    source = replace(questions(tmp_path / "q.jsonl", 2), teacher_field="total")
    with pytest.raises(RecipeError, match=r"teacher_field is 'total'; `generate` has one model.*Drop it"):
        run(tmp_path / "run", prompts=source)
