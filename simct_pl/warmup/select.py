"""select(): sampled responses in; those that verify, the shortest of each prompt, out: what a student is warmed up on.

A response passes the filters, which are cheap, before it is graded. Graders are those of the evaluation, chosen by the
domain of the prompt. Every response that stays out is counted by reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from simct_pl.errors import MissingFileError, RecipeError, ResponseError, SimctError
from simct_pl.evaluation.grader import Grader
from simct_pl.files.lock import sole_writer
from simct_pl.files.outputs import check_parent
from simct_pl.files.parquet import read_parquet, schema_of, with_tools, write_json, write_parquet
from simct_pl.progress import Bar, progress
from simct_pl.types import Prompt
from simct_pl.warmup.response_filters import LengthBetween, NoReplacementCharacter, NotRepetitive, NotTruncated
from simct_pl.warmup.response_filters import ResponseFilter as Filter
from simct_pl.warmup.responses import SCHEMA, Response

ANY_DOMAIN = "any"
SELECTED, WRONG, UNGRADABLE, LONGER = "selected", "wrong", "ungradable", "longer_than_another"
PROMPTS_AT_A_TIME = 64


def select(
    responses: str,
    output: str,
    graders: dict[str, Grader],
    filters: list[Filter] | None = None,
    per_prompt: int = 1,
    num_workers: int = 8,
) -> dict[str, Any]:
    """Keep the responses that a student should learn from.

    Args:
        responses: folder of `generate`, or a Parquet file of the same columns.
        output: folder of selected.parquet and report.json.
        graders: by the prompts' domain; "any" grades what is of no other. A response is right at a score of 1.
        filters: a response must pass all; by default: not truncated, 2 to 4096 tokens, not repetitive, whole UTF-8.
        per_prompt: right responses kept of each prompt, the shortest first.
        num_workers: responses graded at a time; a grader that runs code or another process must stand that.

    Returns:
        the report.

    Raises:
        SimctError: if there are no responses, or a domain has no grader.
    """
    if per_prompt < 1 or num_workers < 1:
        raise RecipeError(f"per_prompt={per_prompt}, num_workers={num_workers}; expected at least 1.")
    path, folder = _responses_file(responses), Path(output).expanduser()
    check_parent(folder / "selected.parquet")
    if path.parent.resolve() == folder.resolve():
        raise RecipeError(f"output {output!r} is the folder of the responses, whose report would be replaced.")
    judges = (
        filters if filters is not None else [NotTruncated(), LengthBetween(), NotRepetitive(), NoReplacementCharacter()]
    )
    # A first pass over two columns: a domain without a grader must not show after an hour of grading.
    num_prompts, domains = _census(path)
    if missing := sorted(domains - graders.keys()) if ANY_DOMAIN not in graders else []:
        raise RecipeError(
            f"graders has none for the domains {', '.join(missing)}; it knows {', '.join(sorted(graders)) or 'none'}. "
            f"Add one for each, or one for {ANY_DOMAIN!r}."
        )
    schema = with_tools(SCHEMA) if "tools" in schema_of(path).names else SCHEMA
    with sole_writer(folder, "select"):
        with progress("prompts graded", num_prompts) as bar, ThreadPoolExecutor(num_workers) as pool:
            selection = Selection(graders, judges, per_prompt, pool, bar)
            num_selected = write_parquet(folder / "selected.parquet", schema, selection.run(path))
        report = selection.report(num_selected)
        write_json(folder / "report.json", report)
    print_selection(report, folder)
    return report


@dataclass
class DomainCounts:
    """What became of a domain's responses, by reason, and of its prompts."""

    responses: Counter[str] = field(default_factory=Counter)
    num_prompts: int = 0
    num_prompts_solved: int = 0
    tokens_selected: int = 0


class Selection:
    """Grades responses prompt by prompt, and counts."""

    def __init__(
        self,
        graders: Mapping[str, Grader],
        filters: Sequence[Filter],
        per_prompt: int,
        pool: ThreadPoolExecutor,
        bar: Bar,
    ) -> None:
        self.graders, self.filters, self.per_prompt = graders, filters, per_prompt
        self.pool, self.bar = pool, bar
        self.counts: dict[str, DomainCounts] = {}
        self.first_ungradable: str | None = None

    def run(self, path: Path) -> Iterator[list[dict[str, Any]]]:
        """The selected rows, some prompts at a time."""
        # groupby sees neighbours only; _census has made sure that a prompt's responses stand together.
        groups = groupby((Response(**row) for row in read_parquet(path)), key=lambda response: response.prompt)
        waiting: list[list[Response]] = []
        for _, group in groups:
            waiting.append(list(group))
            if len(waiting) == PROMPTS_AT_A_TIME:
                yield self._select(waiting)
                waiting = []
        yield self._select(waiting)

    def _select(self, prompts: list[list[Response]]) -> list[dict[str, Any]]:
        """The selected responses to some prompts. All of theirs are graded side by side."""
        verdicts = iter(list(self.pool.map(self.verdict, [response for group in prompts for response in group])))
        selected = []
        for group in prompts:
            counts = self.counts.setdefault(group[0].domain or ANY_DOMAIN, DomainCounts())
            judged = [(response, next(verdicts)) for response in group]
            # The shortest first; of equals the first sampled, so that a second run selects the same.
            right = sorted(
                (response for response, verdict in judged if verdict == SELECTED),
                key=lambda response: (response.num_tokens, response.sample),
            )
            chosen, longer = right[: self.per_prompt], right[self.per_prompt :]
            counts.responses.update(verdict for _, verdict in judged if verdict != SELECTED)
            counts.responses.update({SELECTED: len(chosen), LONGER: len(longer)})
            counts.num_prompts += 1
            counts.num_prompts_solved += bool(right)
            counts.tokens_selected += sum(response.num_tokens for response in chosen)
            selected += [asdict(response) for response in chosen]
        self.bar.advance(len(prompts))
        return selected

    def verdict(self, response: Response) -> str:
        """SELECTED if it is right, or why it stays out."""
        for passes in self.filters:
            if not passes(response):
                return passes.reason
        grader = self.graders.get(response.domain or ANY_DOMAIN) or self.graders[ANY_DOMAIN]
        prompt = Prompt(response.prompt, tuple(response.messages), answer=response.answer)
        try:
            return SELECTED if grader(prompt, response.response) >= 1 else WRONG
        except SimctError as error:
            if not isinstance(error, ValueError):  # a missing package, a sandbox that does not start
                raise
            self.first_ungradable = self.first_ungradable or str(error)
            return UNGRADABLE

    def report(self, num_selected: int) -> dict[str, Any]:
        """Plain values: what was selected, and what became of the rest, by domain."""
        domains = {
            name: {
                "prompts": counts.num_prompts,
                "prompts_solved": counts.num_prompts_solved,
                "responses": counts.responses.total(),
                "outcome": dict(sorted((+counts.responses).items())),
                "mean_tokens_selected": counts.tokens_selected / max(counts.responses[SELECTED], 1),
            }
            for name, counts in sorted(self.counts.items())
        }
        return {"num_selected": num_selected, "domains": domains, "first_ungradable": self.first_ungradable}


def print_selection(report: Mapping[str, Any], folder: Path) -> None:
    """What survived, and why the rest did not."""
    table = Table(title=f"{folder / 'selected.parquet'}: {report['num_selected']} responses")
    table.add_column("domain")
    for column in ("prompts", "solved", "responses", "selected", "mean tokens"):
        table.add_column(column, justify="right")
    table.add_column("left out", overflow="fold")
    for name, found in report["domains"].items():
        outcome = found["outcome"]
        left_out = ", ".join(f"{reason} {count}" for reason, count in outcome.items() if reason != SELECTED)
        numbers = found["prompts"], found["prompts_solved"], found["responses"], outcome.get(SELECTED, 0)
        table.add_row(name, *map(str, numbers), f"{found['mean_tokens_selected']:.1f}", left_out)
    Console().print(table)
    if report["first_ungradable"]:
        Console().print(f"The first response that could not be graded: {report['first_ungradable']}")


def _responses_file(responses: str) -> Path:
    path = Path(responses).expanduser()
    if not path.is_dir():
        return path
    file = path / "responses.parquet"
    if not file.is_file():
        raise MissingFileError(f"{str(file)!r} does not exist: run `generate` to its end first; it goes on by itself.")
    return file


def _census(path: Path) -> tuple[int, set[str]]:
    """(number of prompts, their domains), from two columns.

    Raises:
        ResponseError: if columns are missing, the responses of a prompt do not stand together, or there are none.
    """
    if missing := sorted(set(SCHEMA.names) - set(schema_of(path).names)):
        raise ResponseError(f"{str(path)!r} has no {', '.join(missing)}; expected the responses of `generate`.")
    domains: set[str] = set()
    seen: set[int] = set()
    rows = ((row["prompt"], row["domain"]) for row in read_parquet(path, ["prompt", "domain"]))
    for prompt, group in groupby(rows, key=lambda row: row[0]):
        if prompt in seen:
            raise ResponseError(
                f"{str(path)!r}: the responses to prompt {prompt} do not stand together; sort the file."
            )
        seen.add(prompt)
        domains |= {domain or ANY_DOMAIN for _, domain in group}
    if not seen:
        raise ResponseError(f"{str(path)!r} holds no response.")
    return len(seen), domains
