"""The command line: `fit | validate | test` go to commands.trainer, the others to a module of their own.

Imports nothing heavy, so that `--help`, usage errors and recipes that are not there are answered at once. Every
SimctError ends on one screen with its exit code: 2 for what the user can put right, 75 for a run that was asked to end
and can be continued.
"""

from __future__ import annotations

import difflib
import importlib
import sys

from simct_pl.errors import SimctError

COMMANDS = {
    "align": ("simct_pl.commands.align", "cut texts into aligned units and show what was lost"),
    "preflight": ("simct_pl.commands.preflight", "look at a recipe's models and data before GPU time: go or stop"),
    "quickstart": ("simct_pl.commands.quickstart", "train the embedded example and show the result"),
    "data": ("simct_pl.commands.data", "build a mixture of prompts from several sources"),
    "generate": ("simct_pl.commands.generate", "let a model answer prompts, several times each"),
    "select": ("simct_pl.commands.select", "keep the responses that verify, and the shortest of them"),
    "evaluate": ("simct_pl.commands.evaluate", "score a model folder on benchmarks: GSM8K, MATH500, MBPP, …"),
    "push": ("simct_pl.commands.push", "upload an exported student to the Hugging Face hub"),
    "convert-gguf": ("simct_pl.commands.convert_gguf", "turn a GGUF file into an ordinary model folder"),
    "sweep": ("simct_pl.commands.sweep", "run a grid of methods, seeds and recipe values"),
    "report": ("simct_pl.commands.report", "compare the runs of a sweep: table, pictures, one page"),
    "serve": ("simct_pl.commands.serve", "start a vLLM server that rollouts can be asked of"),
    "upload-metrics": ("simct_pl.commands.upload_metrics", "send what a run's tracking server has not received"),
    "transplant": ("simct_pl.commands.transplant", "put a model's body onto another family's tokenizer"),
}
TRAINER_COMMANDS = {
    "fit": "train by a recipe: --recipe R [--recipe OVERLAY] [--key value] [--resume] [--dry_run [GPU]]",
    "validate": "score held-out prompts by a recipe",
    "test": "score a recipe's student on the benchmarks of callbacks.BenchmarkCallback",
}
# Of COMMANDS, those whose --recipe is read as `fit` reads it.
TAKE_RECIPES = ("preflight", "quickstart", "data", "generate", "select", "evaluate")


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, 2 for anything the user can put right, 75 for "continue later"."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    command, rest = arguments[0], arguments[1:]
    try:
        if command in TRAINER_COMMANDS:
            return int(importlib.import_module("simct_pl.commands.trainer").run(arguments))
        if command in COMMANDS:
            if command in TAKE_RECIPES:
                importlib.import_module("simct_pl.config.recipes").check_recipes(rest)
            return int(importlib.import_module(COMMANDS[command][0]).main(rest))
    except SimctError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    near = difflib.get_close_matches(command, [*TRAINER_COMMANDS, *COMMANDS], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    print(f"Unknown command {command!r}.{hint}\n\n{usage()}", file=sys.stderr)
    return 2


def usage() -> str:
    """What `--help` prints."""
    lines = ["usage: python -m simct_pl COMMAND [options]", "", "commands:"]
    described = {**TRAINER_COMMANDS, **{name: text for name, (_, text) in COMMANDS.items()}}
    lines += [f"  {name:<15} {text}" for name, text in described.items()]
    return "\n".join([*lines, "", "COMMAND --help tells more."])
