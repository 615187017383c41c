"""The Hub, with a stand-in for the network alone: a server on this machine that speaks its language."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub")

import huggingface_hub.constants
import huggingface_hub.file_download
import huggingface_hub.hf_api

from loopwright.agents.controllers.bundle import load_policy
from loopwright.agents.controllers.hub import load_from_hub, push_to_hub
from loopwright.envs.loop.errors import BundleError, LoopwrightError


class Hub(BaseHTTPRequestHandler):
    """One repository, me/tuner, that takes commits and gives files."""

    files: dict[str, bytes]

    def _answer(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _commit(self) -> str:
        return hashlib.sha1(b"".join(self.files[name] for name in sorted(self.files))).hexdigest()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            assert json.loads(body)["name"] == "tuner"
            found = {"url": "https://huggingface.co/me/tuner"}
        elif self.path == "/api/validate-yaml":
            found = {"errors": [], "warnings": []}
        elif "/preupload/" in self.path:
            asked = [file["path"] for file in json.loads(body)["files"]]
            found = {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in asked]}
        else:
            assert self.path.startswith("/api/models/me/tuner/commit/main")
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            commit = self._commit()
            found = {
                "commitUrl": f"https://huggingface.co/me/tuner/commit/{commit}",
                "commitOid": commit,
                "success": True,
            }
        self._answer(json.dumps(found).encode(), Content_Type="application/json")

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/me/tuner/revision/"):
            self._answer(json.dumps({"id": "me/tuner", "sha": self._commit(), "xetEnabled": False}).encode())
            return
        name = self.path.rpartition("/")[2]
        if name not in self.files or not self.path.startswith("/me/tuner/resolve/"):
            self._answer(b"", 404, X_Error_Code="EntryNotFound")
            return
        content = self.files[name]
        self._answer(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=self._commit())

    do_HEAD = do_GET

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """What the repository holds."""
    Hub.files = {}
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        for module in (huggingface_hub.constants, huggingface_hub.file_download):  # the latter before version 1
            template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield Hub.files
        server.shutdown()
        thread.join()


def test_a_policy_comes_back_from_the_hub(files: dict[str, bytes]) -> None:
    policy = load_policy("core")
    assert push_to_hub(policy, "me/tuner", token="hf_mine").startswith("https://huggingface.co/me/tuner/commit/")
    assert sorted(files) == ["README.md", "policy.safetensors"]
    card = files["README.md"].decode()
    assert 'loopwright.load_from_hub("me/tuner")' in card
    assert "lr, momentum, second_momentum" in card
    assert "| suite | `train` |" in card
    assert load_from_hub("me/tuner").fingerprint == policy.fingerprint
    push_to_hub(replace(policy, training={"algorithm": "PPO"}), "me/tuner", token="hf_mine")
    assert load_from_hub("me/tuner").training == {"algorithm": "PPO"}


def test_what_is_not_there_or_altered_is_a_line(files: dict[str, bytes]) -> None:
    with pytest.raises(BundleError, match=r"cannot load policy\.safetensors from me/tuner: "):
        load_from_hub("me/tuner")
    files["policy.safetensors"] = b"something else, of a few bytes"
    with pytest.raises(BundleError, match="not a readable policy bundle"):
        load_from_hub("me/tuner")
    with pytest.raises(LoopwrightError, match="cannot upload to me/ tuner: "):
        push_to_hub(load_policy("core"), "me/ tuner", token="hf_mine")
