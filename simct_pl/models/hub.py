"""A model folder to the Hugging Face hub, by huggingface_hub's own client."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,  # of the client's HTTP library; a network that fails is one of them
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id

from simct_pl.errors import ExportError, MissingFileError, ModelFolderError, RecipeError, first_line

NEEDED = ("config.json", "tokenizer.json")


def push_folder(folder: Path, repo: str, private: bool = True, message: str = "Upload the student") -> str:
    """Upload a model folder, with what is in it, in one commit; returns the commit's address.

    Args:
        folder: that HFExport or `transplant` wrote. repo: `organisation/name`; made if it is not there.
        private: of a repository that is made; one that is there stays as it is.

    Raises:
        MissingFileError, ModelFolderError: if the folder is missing or is no whole model. RecipeError: for a name that
            the hub does not take. ExportError: if the hub cannot be reached or refuses; nothing is half uploaded.
    """
    check_folder(folder)
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise RecipeError(f"repo is {repo!r}; expected organisation/name: {first_line(error)}") from error
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message).commit_url)
    except LocalTokenNotFoundError as error:
        raise ExportError("No token for the hub is here. Run `hf auth login`, or set HF_TOKEN.") from error
    except OfflineModeIsEnabled as error:
        raise ExportError("HF_HUB_OFFLINE is set, so that nothing can be uploaded. Unset it.") from error
    except (HTTPError, OSError) as error:
        raise ExportError(
            f"The hub did not take {folder} as {repo!r}: {first_line(error)} Check the network, the name, and that the "
            "token (`hf auth whoami`) may write there."
        ) from error


def check_folder(folder: Path) -> None:
    """See that a folder is a whole model, with a tokenizer.

    Raises:
        MissingFileError, ModelFolderError: naming what it lacks.
    """
    if not folder.is_dir():
        raise MissingFileError(f"{folder} is no folder; expected the model folder of a finished run.")
    lacking = [name for name in NEEDED if not (folder / name).is_file()]
    if not any(folder.glob("*.safetensors")):
        lacking.append("*.safetensors")
    if lacking:
        raise ModelFolderError(f"{folder} lacks {', '.join(lacking)}; expected a model folder as HFExport writes it.")
