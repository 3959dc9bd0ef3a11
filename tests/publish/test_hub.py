"""Uploading, to a hub that is made up."""

from __future__ import annotations

from types import SimpleNamespace

import huggingface_hub
import pytest
from folders import make, save
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from mega_transformers.publish import PublishError, publish_folder


class FakeHub:
    """Stands in for `HfApi`: remembers what it is asked for."""

    private = False
    error: Exception | None = None
    calls: list = []  # noqa: RUF012

    def create_repo(self, repo_id, *, private=None, exist_ok=False):
        self.calls.append(("create", repo_id, private, exist_ok))
        if self.error is not None:
            raise self.error
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def repo_info(self, repo_id):
        return SimpleNamespace(private=self.private)

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.calls.append(("upload", repo_id, sorted(path.name for path in folder_path.iterdir()), commit_message))


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_made_up")
    monkeypatch.setattr(FakeHub, "calls", [])
    return monkeypatch


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save(make("MegaForMaskedLM"), tmp_path_factory.mktemp("hub") / "source")


def test_push(hub, source, tmp_path):
    report = publish_folder(source, tmp_path / "out", repo_id="me/small", push=True, license="mit")
    (_, *created), (_, repo_id, files, _) = FakeHub.calls
    assert created == ["me/small", None, True] and repo_id == "me/small"
    assert files == ["README.md", "config.json", "model.safetensors"]
    assert report.url == "https://huggingface.co/me/small"
    assert 'from_pretrained("me/small")' in (tmp_path / "out" / "README.md").read_text()


def test_nothing_is_uploaded_unasked(hub, source, tmp_path):
    assert publish_folder(source, tmp_path / "out", repo_id="me/small").url is None
    assert FakeHub.calls == []


def test_private(hub, source, tmp_path):
    hub.setattr(FakeHub, "private", True)
    publish_folder(source, tmp_path / "out", repo_id="me/small", push=True, private=True)
    assert FakeHub.calls[0] == ("create", "me/small", True, True) and FakeHub.calls[1][0] == "upload"


def test_private_is_not_made_public(hub, source, tmp_path):
    with pytest.raises(PublishError, match="me/small exists already and is public; nothing was uploaded"):
        publish_folder(source, tmp_path / "out", repo_id="me/small", push=True, private=True)
    assert [call[0] for call in FakeHub.calls] == ["create"]


@pytest.mark.parametrize(
    ("repo_id", "token", "message"),
    [
        (None, "x", "--push needs --repo-id"),
        ("a/b/c", "x", "--repo-id a/b/c"),
        ("me/small", None, "hf auth login"),
    ],
)
def test_what_is_refused_before_any_work(repo_id, token, message, hub, source, tmp_path):
    hub.setattr(huggingface_hub, "get_token", lambda: token)
    with pytest.raises(PublishError, match=message):
        publish_folder(source, tmp_path / "out", repo_id=repo_id, push=True)
    assert FakeHub.calls == [] and not (tmp_path / "out").exists()


def refusal() -> HfHubHTTPError:
    response = SimpleNamespace(headers={}, request=None, status_code=403)
    return HfHubHTTPError("403 Forbidden", response=response, server_message="You have no rights to me")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OfflineModeIsEnabled("offline mode is enabled"), "cannot be reached: offline mode is enabled"),
        (ConnectionError("[Errno -2] Name or service not known"), "cannot be reached: .*not known"),
        (refusal, "refuses: You have no rights to me"),
    ],
)
def test_failures(error, message, hub, source, tmp_path):
    hub.setattr(FakeHub, "error", error() if callable(error) else error)
    with pytest.raises(PublishError, match=message) as told:
        publish_folder(source, tmp_path / "out", repo_id="me/small", push=True)
    assert f"hf upload me/small {tmp_path / 'out'} ." in str(told.value)
    assert (tmp_path / "out" / "model.safetensors").is_file()
