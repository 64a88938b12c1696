"""Selection: filters, verdicts, the shortest right response, and a report in which every response appears once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from simct_pl.data.prompts import PromptStream
from simct_pl.data.source import PromptSource
from simct_pl.errors import MissingFileError, MissingPackageError, PromptDataError, RecipeError, ResponseError
from simct_pl.evaluation.grader import Grader, LastNumberGrader
from simct_pl.files.parquet import read_parquet, write_parquet
from simct_pl.types import Prompt
from simct_pl.warmup.response_filters import LengthBetween, NoReplacementCharacter, NotRepetitive, NotTruncated
from simct_pl.warmup.responses import SCHEMA, Response
from simct_pl.warmup.select import select


def response(text: str = "It is 7", prompt: int = 0, sample: int = 0, **changes: Any) -> Response:
    values: dict[str, Any] = {
        "prompt": prompt,
        "sample": sample,
        "messages": [{"role": "user", "content": "3+4?"}],
        "answer": "7",
        "domain": "maths",
        "response": text,
        "finish_reason": "stop",
        "seed": 0,
        "attempt": 0,
        "num_tokens": len(text),
        "response_ids": [1] * len(text),
    }
    return Response(**{**values, **changes})


def write(path: Path, responses: list[Response]) -> str:
    write_parquet(path, SCHEMA, [[vars(item) for item in responses]])
    return str(path)


def chosen(folder: Path) -> list[tuple[int, int]]:
    return [(row["prompt"], row["sample"]) for row in read_parquet(folder / "selected.parquet")]


def test_the_shortest_right_response_of_each_prompt_is_kept(tmp_path: Path) -> None:
    path = write(
        tmp_path / "r.parquet",
        [
            response("Let me see: 7", sample=0),
            response("So 7", sample=1),
            response("It is 8", sample=2),
            response("Is 7", sample=3),
            response("I do not know", prompt=1),
            response("7 I think, but cut", prompt=2, finish_reason="length"),
        ],
    )
    report = select(path, str(tmp_path / "out"), {"maths": LastNumberGrader()})
    assert chosen(tmp_path / "out") == [(0, 1)]
    assert report == json.loads((tmp_path / "out/report.json").read_text())
    maths = report["domains"]["maths"]
    assert maths["outcome"] == {"longer_than_another": 2, "selected": 1, "truncated": 1, "wrong": 2}
    assert sum(maths["outcome"].values()) == maths["responses"] == 6
    assert (maths["prompts"], maths["prompts_solved"], maths["mean_tokens_selected"]) == (3, 1, 4.0)


def test_several_responses_a_prompt_can_be_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "r.parquet", [response("7" + " " * i, sample=i) for i in range(5)])
    select(path, str(tmp_path / "out"), {"any": LastNumberGrader()}, filters=[], per_prompt=2)
    assert chosen(tmp_path / "out") == [(0, 0), (0, 1)]


@pytest.mark.parametrize(
    ("passes", "kept", "dropped"),
    [
        (NotTruncated(), response(), response(finish_reason="length")),
        (LengthBetween(2, 5), response(num_tokens=5), response(num_tokens=6)),
        (LengthBetween(2, 5), response(num_tokens=2), response(num_tokens=1)),
        (NotRepetitive(3, 2), response("a b c a b c"), response("a b c a b c a b c")),
        (
            NotRepetitive(),
            response(" ".join(map(str, range(500)))),
            response("it is 3 plus 4 and that is just 7 " * 4),
        ),
        (NoReplacementCharacter(), response("🙂"), response("\ufffd")),
    ],
)
def test_filters(passes: Any, kept: Response, dropped: Response) -> None:
    assert passes(kept)
    assert not passes(dropped)


class BrokenGold(Grader):
    @override
    def __call__(self, prompt: Prompt, response: str) -> float:
        raise PromptDataError(f"the gold of {prompt.index} cannot be read")


class NoPackage(Grader):
    @override
    def __call__(self, prompt: Prompt, response: str) -> float:
        raise MissingPackageError("pip install something")


def test_graders_go_by_domain_and_what_cannot_be_graded_is_counted(tmp_path: Path) -> None:
    path = write(
        tmp_path / "r.parquet", [response(), response(prompt=1, domain="odd"), response(prompt=2, domain=None)]
    )
    graders = {"maths": LastNumberGrader(), "odd": BrokenGold(), "any": LastNumberGrader()}
    report = select(path, str(tmp_path / "out"), graders)
    assert chosen(tmp_path / "out") == [(0, 0), (2, 0)]
    assert report["domains"]["odd"]["outcome"] == {"ungradable": 1}
    assert report["first_ungradable"] == "the gold of 1 cannot be read"


def test_what_makes_grading_impossible_ends_it(tmp_path: Path) -> None:
    path = write(tmp_path / "r.parquet", [response()])
    with pytest.raises(MissingPackageError):
        select(path, str(tmp_path / "out"), {"any": NoPackage()})
    assert not (tmp_path / "out/selected.parquet").exists()


def test_a_domain_without_a_grader_is_refused_before_anything_is_graded(tmp_path: Path) -> None:
    path = write(tmp_path / "r.parquet", [response(), response(prompt=1, domain="code")])
    with pytest.raises(RecipeError, match="domains code; it knows maths"):
        select(path, str(tmp_path / "out"), {"maths": BrokenGold()})


def test_files_that_are_no_responses_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="run `generate` to its end"):
        select(str(tmp_path), str(tmp_path / "out"), {"any": BrokenGold()})
    with pytest.raises(ResponseError, match="holds no response"):
        select(write(tmp_path / "e.parquet", []), str(tmp_path / "out"), {"any": BrokenGold()})
    mixed = write(tmp_path / "m.parquet", [response(), response(prompt=1), response(sample=1)])
    with pytest.raises(ResponseError, match="responses to prompt 0 do not stand together"):
        select(mixed, str(tmp_path / "out"), {"any": BrokenGold()})
    (tmp_path / "x.parquet").write_text("no parquet")
    with pytest.raises(PromptDataError, match="cannot be read as Parquet"):
        select(str(tmp_path / "x.parquet"), str(tmp_path / "out"), {"any": BrokenGold()})


def test_the_report_of_the_responses_is_not_replaced(tmp_path: Path) -> None:
    write(tmp_path / "responses.parquet", [response()])
    (tmp_path / "report.json").write_text('{"num_responses": 1}')
    for responses in (str(tmp_path), str(tmp_path / "responses.parquet")):
        with pytest.raises(RecipeError, match="is the folder of the responses"):
            select(responses, str(tmp_path), {"any": LastNumberGrader()})
    assert json.loads((tmp_path / "report.json").read_text()) == {"num_responses": 1}


def test_a_run_reads_what_was_selected(tmp_path: Path) -> None:
    path = write(tmp_path / "r.parquet", [response("Sieben: 7")])
    select(path, str(tmp_path / "out"), {"any": LastNumberGrader()})
    source = PromptSource(str(tmp_path / "out/selected.parquet"), prompt_field="messages", response_field="response")
    (prompt,) = PromptStream(source)
    assert (prompt.messages[0]["content"], prompt.response) == ("3+4?", "Sieben: 7")
