"""One hierarchy for everything a user can get wrong or a run can meet.

Each class also inherits the standard-library type that a caller would catch anyway. A message names the value,
what was expected and the fix. The command line prints it on one screen and exits with the class's `exit_code`.
"""

from __future__ import annotations

import difflib


class SimctError(Exception):
    """Base of all errors that simct_pl raises on purpose."""

    exit_code = 2


class RecipeError(SimctError, ValueError):
    """A recipe, or a combination of its values, cannot be run."""


class MissingFileError(SimctError, FileNotFoundError):
    """A path given by the user does not exist."""


class ModelFolderError(SimctError, ValueError):
    """A path exists but is not a model or tokenizer folder that can be loaded."""


class TokenizerError(SimctError, ValueError):
    """A tokenizer cannot be used."""


class UnsupportedTokenizerError(TokenizerError):
    """A tokenizer family whose tokens have no exact bytes (for example WordPiece)."""


class MissingStopTokenError(TokenizerError):
    """A model has no token that ends its turn."""


class AlignmentError(SimctError, ValueError):
    """An alignment breaks an invariant (ordered, disjoint, equal bytes, minimal)."""


class PromptDataError(SimctError, ValueError):
    """Prompts are missing, empty, malformed or too long."""


class UnsupportedModelError(SimctError, ValueError):
    """A model whose logits cannot be rebuilt from its hidden states."""


class ExportError(SimctError, OSError):
    """An output cannot be written where the recipe says."""


class RolloutError(SimctError, RuntimeError):
    """Rollouts are missing, are of another policy, or cannot be made."""


class MissingPackageError(SimctError, ImportError):
    """A component needs a package that only an extra installs."""


class CollapseError(SimctError, RuntimeError):
    """A collapse guard stopped the run."""


class CheckpointError(SimctError, RuntimeError):
    """A checkpoint is missing, broken, of another run, or would be mixed with another run's."""


class TrackingError(SimctError, RuntimeError):
    """What a run logged cannot be read, or cannot be sent to the tracking server."""


class SweepError(SimctError, RuntimeError):
    """Cells of a sweep failed."""


class ResponseError(SimctError, ValueError):
    """Sampled responses are of other settings, or cannot be used."""


class RunInterrupted(SimctError, InterruptedError):
    """The run was asked to end (SIGTERM) and can be continued."""

    exit_code = 75  # EX_TEMPFAIL: nothing is wrong, run it again (with --resume)


class SandboxError(SimctError, RuntimeError):
    """Code of a model cannot be run safely on this machine."""


class EvaluationError(SimctError, ValueError):
    """A benchmark cannot be scored, or what is in its folder is of another evaluation."""


def first_line(error: BaseException) -> str:
    """Of another library's error, for a message of ours: its first line, or its type if it says nothing."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def require_choice(label: str, value: str, choices: tuple[str, ...]) -> None:
    """Whether a value is one of the names that are known.

    Raises:
        RecipeError: with the choices and the nearest one, if it is not.
    """
    if value in choices:
        return
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise RecipeError(f"{label} is {value!r}; expected one of {', '.join(choices)}.{hint}")
