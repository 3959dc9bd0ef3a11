"""`mega publish`: what it prints, and a message for every mistake."""

from __future__ import annotations

import huggingface_hub
import pytest
from huggingface_hub import ModelCard
from typer.testing import CliRunner, Result

from mega_transformers.assets import DEFAULT_MODEL
from mega_transformers.cli import app


def mega(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["publish", *map(str, arguments)], env={"COLUMNS": "160"})


def refused(result: Result, *parts: str, code: int = 1) -> None:
    assert result.exit_code == code
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    message = " ".join(result.stderr.replace("│", " ").split())
    for part in parts:
        assert part in message


def test_a_folder_for_the_hub(tiny_checkpoint, tmp_path):
    output = tmp_path / "output"
    result = mega(
        tiny_checkpoint, output, "--standalone", "--license", "mit", "--language", "en", "--repo-id", "me/small"
    )
    assert result.exit_code == 0, result.output
    shown = " ".join(result.stdout.split())
    for part in (
        "MegaForMaskedLM",
        "model.safetensors",
        "model card",
        "files *.py",
        "Added to the card: library_name, pipeline_tag, license, language",
        f"hf upload me/small {output} .",
    ):
        assert part in shown
    assert result.stderr == ""
    card = ModelCard.load(output / "README.md")
    assert card.data.license == "mit" and "trust_remote_code=True" in card.text and '"me/small"' in card.text
    filled = CliRunner().invoke(app, ["fill-mask", "--model", str(output), "The <mask>."])
    assert filled.exit_code == 0
    refused(mega(tiny_checkpoint, output), "exists already", "--force")
    assert mega(tiny_checkpoint, output, "--force", "--license", "mit").exit_code == 0
    assert not list(output.glob("*.py"))


def test_defaults(tmp_path, monkeypatch):
    """A bundled model, written to the folder one is in."""
    monkeypatch.chdir(tmp_path)
    result = mega(DEFAULT_MODEL)
    assert result.exit_code == 0, result.output
    (folder,) = tmp_path.iterdir()
    assert folder.name == f"{DEFAULT_MODEL}-hub" and (folder / "model.safetensors").is_file()


def test_mistakes(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    output = tmp_path / "output"
    refused(mega(tmp_path / "none", output), "there is no such folder")
    (tmp_path / "empty").mkdir()
    refused(mega(tmp_path / "empty", output), "holds no config.json", "mega convert")
    refused(mega(tiny_checkpoint, output, "--push"), "--push needs --repo-id")
    refused(mega(tiny_checkpoint, output, "--push", "--repo-id", "me/small"), "hf auth login")
    refused(mega(tiny_checkpoint, output, "--private"), "--private needs --push")
    refused(mega(tiny_checkpoint, output, "--license", "My own"), "not a licence id")
    refused(mega(), "Missing argument 'FOLDER'", code=2)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize("private", [False, True])
def test_push(private, tiny_checkpoint, tmp_path, monkeypatch):
    asked = {}

    class Hub:
        def create_repo(self, repo_id, *, private=None, exist_ok=False):
            asked["private"] = private
            return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

        def repo_info(self, repo_id):
            return type("Info", (), {"private": private})

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            asked["uploaded"] = repo_id

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "made up")
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    options = ["--private"] if private else []
    result = mega(tiny_checkpoint, tmp_path / "output", "--push", "--repo-id", "me/small", *options)
    assert result.exit_code == 0, result.output
    assert "Uploaded to https://huggingface.co/me/small" in result.stdout and "no licence" in result.stderr
    assert asked == {"private": private or None, "uploaded": "me/small"}
