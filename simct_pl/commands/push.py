"""`python -m simct_pl push`: an exported student in, a repository on the Hugging Face hub out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from simct_pl.commands.output import folder_size, report, user_path


def main(argv: Sequence[str]) -> int:
    """Upload one folder; see `--help`.

    Raises:
        SimctError: if the folder is no whole model, or the hub does not take it.
    """
    parser = argparse.ArgumentParser(
        prog="python -m simct_pl push",
        description="Upload an exported student to the Hugging Face hub, with the model card that the export wrote "
        "(README.md: pair, objective, figures, recipe). Read the card first: the recipe in it has your paths. The "
        "token is huggingface_hub's: `hf auth login`, or HF_TOKEN.",
    )
    parser.add_argument("--model", type=user_path, required=True, metavar="DIR", help="such as runs/quickstart/student")
    parser.add_argument("--repo", required=True, metavar="ORG/NAME", help="made if it is not there")
    parser.add_argument("--public", action="store_true", help="a repository that is made can be read by everybody")
    arguments = parser.parse_args(argv)
    from simct_pl.models.hub import check_folder, push_folder

    check_folder(arguments.model)
    if not (arguments.model / "README.md").is_file():
        report(f"{arguments.model} has no README.md: it goes without a model card.")
    report(f"Uploading {folder_size(arguments.model)} to {arguments.repo}")
    print(push_folder(arguments.model, arguments.repo, private=not arguments.public))
    return 0
