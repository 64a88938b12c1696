"""build_mixture(): a recipe's sources and test prompts in; mixture.parquet, manifest.json and a table out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from simct_pl.data.mixture import MixtureBuilder, MixtureSource, SourceReport, index_of_tests
from simct_pl.data.source import PromptSource
from simct_pl.errors import MissingFileError, PromptDataError, RecipeError
from simct_pl.files.fingerprint import FileFingerprint
from simct_pl.files.lock import sole_writer
from simct_pl.files.outputs import check_parent
from simct_pl.files.parquet import write_json
from simct_pl.progress import progress
from simct_pl.tracking.run_info import installed_versions

logger = logging.getLogger(__name__)
Source = TypeVar("Source", PromptSource, MixtureSource)
MIXTURE, MANIFEST = "mixture.parquet", "manifest.json"


def build_mixture(
    sources: dict[str, MixtureSource],
    output: str,
    test_prompts: dict[str, PromptSource] | None = None,
    decontaminate_words: int = 13,
    mask_numbers: bool = False,
    duplicate_words: int = 30,
    seed: int = 0,
    allow_missing: bool = False,
) -> dict[str, Any]:
    """Build a mixture of prompts.

    Args:
        sources: by name, drawn from in this order: a prompt that two of them have comes from the first.
        output: folder of mixture.parquet and manifest.json.
        test_prompts: data sets, by name, that no training prompt may overlap.
        decontaminate_words: a training prompt that shares a run of so many words with a test prompt is contaminated.
        mask_numbers: all numbers are the same when test prompts are looked for, so that renumbered copies are found.
        duplicate_words: rows of two sources that share a run of so many words are one.
        seed: of the draw; the same seed and sources give the same file.
        allow_missing: build from what is there, without the sources and test prompts that are not.

    Returns:
        the manifest.

    Raises:
        MissingFileError: naming all that is missing. RecipeError, PromptDataError: for what cannot be read.
    """
    tests = test_prompts or {}
    if not sources:
        raise RecipeError("sources are empty; name at least one.")
    folder = Path(output).expanduser()
    # What cannot be opened is found before anything is read, and told all at once.
    there, missing = available(sources)
    there_tests, missing_tests = available(tests)
    if missing_all := {**missing, **{f"{name} (test prompts)": why for name, why in missing_tests.items()}}:
        _refuse_or_warn(missing_all, allow_missing and bool(there))
    check_parent(folder / MIXTURE)
    with sole_writer(folder, "data"):
        with progress("rows read", total=None) as bar:
            # Test prompts first: every row of every source is held against them. Then source by source, in the
            # recipe's order, because a row belongs to the first source that has it.
            test_index = index_of_tests(there_tests, decontaminate_words, mask_numbers)
            builder = MixtureBuilder(test_index, duplicate_words, seed, bar.advance)
            for name, source in there.items():
                bar.describe(name)
                builder.add(name, source)
        num_rows = builder.write(folder / MIXTURE)
        # The manifest is written last: where it is, the mixture beside it is whole.
        manifest = {
            "mixture": MIXTURE,
            "num_rows": num_rows,
            "sha256": FileFingerprint.of(folder / MIXTURE).sha256,
            "test_prompts": {name: _identity(source) for name, source in there_tests.items()},
            "missing": missing_all,
            "versions": installed_versions(),
            **builder.manifest(),
        }
        write_json(folder / MANIFEST, manifest)
    print_mixture(builder.reports, folder, num_rows)
    return manifest


def available(sources: Mapping[str, Source]) -> tuple[dict[str, Source], dict[str, str]]:
    """(sources that can be opened, why the others cannot)."""
    there: dict[str, Source] = {}
    missing: dict[str, str] = {}
    for name, source in sources.items():
        try:
            (source.rows if isinstance(source, MixtureSource) else source).open()
            there[name] = source
        except (MissingFileError, PromptDataError) as error:
            missing[name] = str(error)
    return there, missing


def _refuse_or_warn(missing: Mapping[str, str], go_on: bool) -> None:
    """All that is missing at once, so that nobody finds out one by one."""
    listed = "\n".join(f"  {name}: {why}" for name, why in missing.items())
    if not go_on:
        raise MissingFileError(
            f"{len(missing)} data sets cannot be opened:\n{listed}\n"
            "Put them there, correct their paths, or build from what is there with --allow_missing true."
        )
    logger.warning("Built without %d data sets:\n%s", len(missing), listed)


def _identity(source: PromptSource) -> dict[str, str | None]:
    return {"path": source.path, "split": source.split, "sha256": source.sha256()}


def print_mixture(reports: Mapping[str, SourceReport], folder: Path, num_rows: int) -> None:
    """What came from where, and what stayed out why."""
    table = Table(title=f"{folder / MIXTURE}: {num_rows} prompts")
    for column in ("source", "read", "wanted", "taken"):
        table.add_column(column, justify="left" if column == "source" else "right")
    table.add_column("left out", overflow="fold")
    for name, report in reports.items():
        dropped = ", ".join(f"{reason} {count}" for reason, count in sorted(report.dropped.items()))
        wanted = "all" if report.wanted is None else str(report.wanted)
        table.add_row(name, str(report.num_rows), wanted, str(report.taken), dropped)
    Console().print(table)
