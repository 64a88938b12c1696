"""`push` against a hub of our own, which speaks HTTP as huggingface_hub's client expects it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from simct_pl.commands.main import main
from simct_pl.errors import ExportError, MissingFileError, ModelFolderError, RecipeError
from simct_pl.models import hub as hub_module
from simct_pl.models.hub import push_folder
from tests.json_server import JsonServer, serving


class Hub(JsonServer):
    """Repositories that were made, and the files of their commits."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.is_closed = False

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if self.is_closed:
            return (403, {"error": "You may not write there."}) if method == "POST" else (404, {"error": "not found"})
        if path == "/api/repos/create":
            self.made.append(json.loads(body))
            return 200, {"url": f"https://huggingface.co/org/{self.made[-1]['name']}"}
        if path == "/api/validate-yaml":  # the model card's head
            return 200, {"errors": [], "warnings": []}
        if path.endswith("/preupload/main"):
            paths = [file["path"] for file in json.loads(body)["files"]]
            return 200, {"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]}
        if path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            address = "https://huggingface.co/org/student/commit/1"
            return 200, {"commitUrl": address, "commitOid": "1", "success": True}
        return (200, {"siblings": [], "id": "org/student"}) if method == "GET" else (404, {"error": f"no {path}"})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(Hub()) as server:
        api, url = hub_module.HfApi, server.url
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # which the suite sets, so that nothing is downloaded
        monkeypatch.setattr(hub_module, "HfApi", lambda: api(endpoint=url, token="hf_test"))
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "student"
    made.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors", "README.md"):
        (made / name).write_text(f"content of {name}")
    return made


def test_a_folder_arrives_whole(hub: Hub, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", "--model", str(folder), "--repo", "org/student"]) == 0
    assert capsys.readouterr().out == "https://huggingface.co/org/student/commit/1\n"
    (made,) = hub.made
    assert (made["name"], made["organization"], made["visibility"]) == ("student", "org", "private")
    assert hub.keys == {"Bearer hf_test"}
    assert {name: content.decode() for name, content in hub.files.items()} == {
        name: f"content of {name}" for name in ("config.json", "tokenizer.json", "model.safetensors", "README.md")
    }


def test_it_is_public_only_when_asked(hub: Hub, folder: Path) -> None:
    assert main(["push", "--model", str(folder), "--repo", "org/student", "--public"]) == 0
    assert hub.made[0]["visibility"] == "public"


def test_a_folder_without_a_card_is_named(hub: Hub, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "README.md").unlink()
    assert main(["push", "--model", str(folder), "--repo", "org/student"]) == 0
    assert "without a model card" in capsys.readouterr().err


def test_a_hub_that_refuses_is_told_with_its_reason(hub: Hub, folder: Path) -> None:
    hub.is_closed = True
    with pytest.raises(ExportError, match=r"403(.|\n)*hf auth whoami"):
        push_folder(folder, "org/student")


def test_a_hub_that_is_not_there_is_told(hub: Hub, folder: Path) -> None:
    hub.shutdown()
    hub.server_close()
    with pytest.raises(ExportError, match="Check the network"):
        push_folder(folder, "org/student")


def test_what_is_no_model_folder_is_refused_before_anything_is_sent(hub: Hub, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelFolderError, match=r"lacks \*.safetensors"):
        push_folder(folder, "org/student")
    with pytest.raises(MissingFileError, match="no folder"):
        push_folder(folder / "missing", "org/student")
    assert hub.keys == set()


def test_offline_is_said(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ExportError, match="HF_HUB_OFFLINE is set"):
        push_folder(folder, "org/student")


@pytest.mark.parametrize("repo", ["org/a/b", "org/na me", "", "org/--"])
def test_a_name_that_the_hub_does_not_take_is_refused(hub: Hub, folder: Path, repo: str) -> None:
    with pytest.raises(RecipeError, match="repo is"):
        push_folder(folder, repo)
    assert hub.keys == set()
