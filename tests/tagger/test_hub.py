"""Models by name: the table, folders, and a hub that stands on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lorapipe_tagger.models.adapters import (
    ANIMETIMM,
    CAMIE,
    CL,
    CL_2,
    PIXAI,
    PIXAI_1,
    WD,
    Z3D,
    choose_adapter,
)
from lorapipe_tagger.models.known import HUB, HubModel, hub_model

from .making import MODEL, PICTURES

NEWEST = {"z3d", "cl-v2", "animetimm"}  # of which no commit is known; a line says so
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a client needs to list and download a repository's files."""

    def __init__(self, files: dict[str, bytes], asked: list[str], *args: Any) -> None:
        self.files, self.asked = files, asked
        super().__init__(*args)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        self.asked.append(f"{self.command} {self.path}")
        path = self.path.split("?")[0]
        if path.startswith("/api/models/someone/tagger"):
            tree = [{"type": "file", "path": n, "size": len(d), "oid": "0"} for n, d in self.files.items()]
            siblings = [{"rfilename": name} for name in self.files]
            info = {"id": "someone/tagger", "sha": COMMIT, "siblings": siblings}
            self.send(json.dumps(tree if "/tree/" in path else info).encode(), body)
            return
        name = path.rpartition("/")[2]
        if path.startswith("/someone/tagger/resolve/") and name in self.files:
            self.send(self.files[name], body)
            return
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send(self, data: bytes, body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def hub(asked: list[str]) -> Iterator[str]:
    files = {name: (MODEL / name).read_bytes() for name in ("model.onnx", "selected_tags.csv")}
    files["model.safetensors"] = b"other weights"
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, files, asked))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def run(endpoint: str, home: Path, *words: object, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **more}
    command = [
        sys.executable,
        "-m",
        "lorapipe_tagger",
        "--no-txt",
        "--device",
        "cpu",
        str(PICTURES / "rgba.png"),
    ]
    return subprocess.run(
        [*command, *map(str, words)], capture_output=True, text=True, check=False, env=environment
    )


@pytest.mark.slow
def test_downloaded_once_then_offline(hub: str, tmp_path: Path, asked: list[str]) -> None:
    first = run(hub, tmp_path, "--model", "someone/tagger")
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["model"] == "tagger"
    assert "downloading someone/tagger (model.onnx, selected_tags.csv) at main" in first.stderr
    assert not any("safetensors" in line for line in asked)
    asked.clear()
    again = run(hub, tmp_path, "--model", "someone/tagger", "--no-cache")
    assert again.returncode == 0, again.stderr
    assert asked == []
    for more in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:1"}):
        assert run(hub, tmp_path, "--model", "someone/tagger", **more).returncode == 0


@pytest.mark.slow
def test_a_folder_for_models(hub: str, tmp_path: Path, asked: list[str]) -> None:
    words = ["--model", "someone/tagger", "--model-dir", tmp_path / "models"]
    assert run(hub, tmp_path / "home", *words).returncode == 0
    assert (tmp_path / "models" / "tagger" / "model.onnx").is_file()
    asked.clear()
    assert run("http://127.0.0.1:1", tmp_path / "other", *words).returncode == 0
    assert run(hub, tmp_path / "other", "--model", tmp_path / "models" / "tagger").returncode == 0
    assert asked == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "more", "expected"),
    [
        (["--model", "someone/tagger"], {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        (["--model", "someone/tagger", "--offline"], {}, "not to be had from the hub (--offline)"),
        (["--model", "someone/else"], {}, "someone/else: is not on this disk and not to be had from the hub"),
        (["--model", "someone/tagger/v2"], {}, "someone/tagger/v2: has no model.onnx with selected_tags.csv"),
        (["--model", "vit-v3"], {"HF_ENDPOINT": "http://127.0.0.1:1"}, "no connection to 127.0.0.1"),
    ],
)
def test_one_line_where_a_model_cannot_be_had(
    hub: str, tmp_path: Path, words: list[str], more: dict[str, str], expected: str
) -> None:
    result = run(hub, tmp_path, *words, **more)
    assert result.returncode == 2
    assert expected in result.stderr
    assert len(result.stderr.splitlines()) == 1


def known(word: str) -> HubModel:
    """The model that a word names, which must be one."""
    model = hub_model(word)
    assert model is not None, word
    return model


def test_short_names() -> None:
    wanted = {
        "vit": "wd-vit-tagger-v3",
        "swinv2": "wd-swinv2-tagger-v3",
        "convnext": "wd-convnext-tagger-v3",
        "vit-large": "wd-vit-large-tagger-v3",
        "eva02": "wd-eva02-large-tagger-v3",
        "eva02-large": "wd-eva02-large-tagger-v3",
        "moat": "wd-v1-4-moat-tagger-v2",
        "convnextv2": "wd-v1-4-convnextv2-tagger-v2",
        "wd14-vit": "wd-v1-4-vit-tagger-v2",
        "v1.4-swinv2": "wd-v1-4-swinv2-tagger-v2",
        "vit-v1": "wd-v1-4-vit-tagger",
        "wd-v1-4-moat-tagger-v2": "wd-v1-4-moat-tagger-v2",
        "SmilingWolf/wd-vit-tagger-v3": "wd-vit-tagger-v3",
    }
    for word, name in wanted.items():
        assert known(word).repository == f"SmilingWolf/{name}"
        assert len(known(word).revision) == 40
    others = {
        "pixai": "deepghs/pixai-tagger-v0.9-onnx",
        "pixai-v1": "Mexes/pixai-tagger-v1.0-onnx-fp32-fp16-int8",
        "camie": "Camais03/camie-tagger-v2",
        "camie-v1": "Camais03/camie-tagger",
        "cl": "cella110n/cl_tagger",
        "cl_v2": "cella110n/cl_tagger_v2",
        "animetimm": "animetimm/caformer_b36.dbv4-full",
    }
    for word, repository in others.items():
        assert known(word).repository == repository
    assert hub_model("nonsense") is None
    deep = hub_model("someone/tagger/sub/folder")
    assert deep is not None
    assert (deep.repository, deep.folder, deep.revision) == ("someone/tagger", "sub/folder", "main")


def test_every_row_has_its_own_commit() -> None:
    commits = [row.revision for name, row in HUB.items() if name not in NEWEST]
    assert all(len(commit) == 40 and set(commit) <= set("0123456789abcdef") for commit in commits)
    assert len(set(commits)) == len(commits)


@pytest.mark.parametrize(
    ("network", "labels", "text", "adapter"),
    [
        ("model.onnx", "selected_tags.csv", "tag_id,name,category,count\n", WD),
        ("model.onnx", "selected_tags.csv", "id,tag_id,name,category,count,ips\n", PIXAI),
        ("model.onnx", "tag_mapping.json", "{}", CL),
        ("model.onnx", "model_vocabulary.json", "{}", CL_2),
        ("model.onnx", "tags-selected.csv", "tag_id,name,category,count\n", Z3D),
        ("model_fp16.onnx", "selected_tags.csv", "name,category\na,1\nb,3\nc,5\n", PIXAI_1),
        ("model.onnx", "selected_tags.csv", "name,category,best_threshold\na,0,0.3\n", ANIMETIMM),
        ("camie-tagger-v2.onnx", "camie-tagger-v2-metadata.json", "{}", CAMIE),
    ],
)
def test_families_by_their_files(
    tmp_path: Path, network: str, labels: str, text: str, adapter: object
) -> None:
    (tmp_path / network).write_bytes(b"")
    (tmp_path / labels).write_text(text)
    assert choose_adapter(tmp_path)[0] is adapter
