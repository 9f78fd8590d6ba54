"""Who gets anything from the server of the editor: nobody without the secret, from elsewhere, or from another page."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image

pytest.importorskip("waitress")
pytest.importorskip("werkzeug")

from support.editor import Editor

SELDOM = 5.5  # seconds in which a picture's file is looked at again
JSON = {"Content-Type": "application/json"}
WORDS = b"words of somebody else"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with pictures of which one is a link out, and one a link to another inside; secrets lie beside it."""
    place = tmp_path_factory.mktemp("gate")
    folder = place / "set/5_cat"
    folder.mkdir(parents=True)
    for name in ("a.png", "b.png", "d.png"):
        Image.new("RGB", (64, 48), "teal").save(folder / name)
        (folder / name).with_suffix(".txt").write_text("cat, hat\n")
    (place / "secret.txt").write_bytes(WORDS)
    Image.new("RGB", (32, 32), "red").save(place / "secret.png")
    if sys.platform != "win32":
        (folder / "out.png").symlink_to(place / "secret.png")
        (folder / "out.txt").symlink_to(place / "secret.txt")
        (folder / "in.png").symlink_to(folder / "a.png")
    return place


@pytest.fixture(scope="module")
def editor(place: Path) -> Iterator[Editor]:
    with Editor(place / "set") as editor:
        yield editor


def host_of(editor: Editor) -> str:
    return f"127.0.0.1:{editor.port}"


def test_the_page_has_all_it_needs(editor: Editor, place: Path) -> None:
    reply = editor.get()
    assert reply.status == 200
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert (reply.headers["referrer-policy"], reply.headers["cache-control"]) == ("no-referrer", "no-store")
    assert reply.headers["x-content-type-options"] == "nosniff"
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'; img-src 'self' data:;" in policy
    assert "'unsafe-inline'" not in policy.partition("script-src")[2]
    assert not [name for name in reply.headers if name.startswith("access-control-") or name == "server"]
    # Nothing of the machine but the folder.
    assert str(place).encode() not in reply.body
    assert WORDS not in reply.body
    assert len(editor.base) > 30
    assert editor.record["path"] == str(place / "set")


def test_only_this_machine_is_answered(editor: Editor) -> None:
    with socket.create_connection(("127.0.0.1", editor.port), timeout=5):
        pass
    others = {"127.0.0.2"} if sys.platform == "linux" else set()
    with suppress(OSError):  # a machine whose own name is nobody's
        others |= {str(row[4][0]) for row in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for address in others - {"127.0.0.1"}:
        with pytest.raises(OSError), socket.create_connection((address, editor.port), timeout=5):
            pass


SECRETS = {
    "none": lambda base: "/",
    "none before the path": lambda base: "/api/state",
    "another": lambda base: f"/{'A' * (len(base) - 2)}/api/state",
    "a part": lambda base: f"{base[:-2]}/api/state",
    "more": lambda base: f"{base[:-1]}x/api/state",
    "no slash behind": lambda base: base[:-1],
    "letters that are none of ASCII": lambda base: f"/{quote('ключ')}/api/state",
    "in the query": lambda base: f"/?{base[1:-1]}",
    "in the second place": lambda base: f"/x{base}api/state",
}


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_nothing_without_the_secret(editor: Editor, kind: str, method: str) -> None:
    reply = editor.ask(method, SECRETS[kind](editor.base), b"{}" if method == "POST" else None, JSON)
    assert (reply.status, reply.body) == (404, b"")


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:{}",
        "127.0.0.1",
        "127.0.0.1:1",
        "127.0.0.1.evil.example:{}",
        "[::1]:{}",
        "0.0.0.0:{}",
        "",
    ],
)
def test_nothing_for_another_host(editor: Editor, host: str) -> None:
    """A name that a stranger's server has made point to this machine."""
    for method, body in (("GET", None), ("POST", b"{}")):
        headers = {**JSON, "Host": host.format(editor.port)}
        reply = editor.ask(method, f"{editor.base}api/{'state' if body is None else 'undo'}", body, headers)
        assert (reply.status, reply.body) == (403, b"")
    assert editor.ask("GET", editor.base, headers={"Host": f"localhost:{editor.port}"}).status == 200


def test_nothing_for_two_hosts_or_none(editor: Editor) -> None:
    def answer(lines: list[str]) -> bytes:
        with socket.create_connection(("127.0.0.1", editor.port), timeout=5) as link:
            text = "".join(f"{line}\r\n" for line in (f"GET {editor.base}api/state HTTP/1.0", *lines, ""))
            link.sendall(text.encode())
            return b"".join(iter(lambda: link.recv(65536), b""))

    assert answer([f"Host: {host_of(editor)}"]).split()[1] == b"200"
    for lines in (
        [],
        ["Host: evil.example", f"Host: {host_of(editor)}"],
        [f"Host: {host_of(editor)}", "Host: evil.example"],
    ):
        assert answer(lines).split()[1] in (b"400", b"403")
    whole = answer([f"Host: {host_of(editor)}"])
    assert b"cat, hat" in whole


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "https://127.0.0.1:{}",
        "http://127.0.0.1",
        "http://localhost:{}",
        "http://127.0.0.1:{}.evil.example",
    ],
)
def test_nothing_for_another_origin(editor: Editor, origin: str) -> None:
    """A page that the same browser has open."""
    headers = {**JSON, "Origin": origin.format(editor.port)}
    for method, body in (("GET", None), ("POST", b"{}")):
        reply = editor.ask(method, f"{editor.base}api/{'state' if body is None else 'undo'}", body, headers)
        assert (reply.status, reply.body) == (403, b"")
    own = {**JSON, "Origin": f"http://{host_of(editor)}"}
    assert editor.ask("GET", f"{editor.base}api/state", headers=own).status == 200


@pytest.mark.parametrize(
    "path",
    [
        "../secret.txt",
        "picture/../../secret.txt",
        "picture/..%2f..%2fsecret.txt",
        "picture/%2e%2e/%2e%2e/secret.txt",
        "picture/%252e%252e%252fsecret.txt",
        "picture/..%5c..%5csecret.txt",
        "picture/%c0%ae%c0%ae/secret.txt",
        "picture/0/../../../secret.txt",
        "picture/0%00.txt",
        "picture/secret.txt",
        "picture//etc/passwd",
        "picture/-1",
        "picture/99",
        "picture/99999999999999999999",
        "picture/0/",
        "thumb/../../secret.png",
        "thumb/0x0",
        "5_cat/a.txt",
        "api/../picture/99",
        "api/",
        "static/page.js",
        "//evil.example/",
    ],
)
def test_no_path_leads_anywhere(editor: Editor, path: str) -> None:
    reply = editor.get(path)
    assert (reply.status, reply.body) == (404, b"")


def test_what_is_no_request_of_the_page(editor: Editor, place: Path) -> None:
    """Another method, form data as any page may send it, a huge body, and JSON that is none."""
    for method in ("PUT", "DELETE", "OPTIONS", "PATCH"):
        reply = editor.ask(method, f"{editor.base}api/state")
        assert (reply.status, reply.body) == (405, b"")
    assert editor.ask("POST", f"{editor.base}api/state", b"{}", JSON).status == 405
    assert editor.get("api/undo").status == 405
    body = json.dumps({"action": "remove", "tags": ["hat"], "ids": [0], "versions": {"0": None}}).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        headers = {"Content-Type": kind} if kind else {}
        reply = editor.ask("POST", f"{editor.base}api/edit", body, headers)
        assert (reply.status, reply.body) == (415, b"")
    huge = {**JSON, "Content-Length": str(1 << 30)}
    assert editor.ask("POST", f"{editor.base}api/edit", b"{}", huge).status == 413
    for words in (b"", b"{", b"[]", b"\xff{}", b'{"a": NaN}', b"[" * 5000):
        reply = editor.ask("POST", f"{editor.base}api/edit", words, JSON)
        assert reply.status == 400
        assert "\n" not in reply.json["error"]
    assert (place / "set/5_cat/a.txt").read_text() == "cat, hat\n"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "action: one of add, remove"),
        ({"action": "delete"}, "action: one of add, remove"),
        ({"action": "remove", "tags": ["hat"]}, "ids: a list"),
        ({"action": "remove", "tags": ["hat"], "ids": ["0"]}, "ids: '0' is no picture"),
        ({"action": "remove", "tags": ["hat"], "ids": [True]}, "ids: 'True' is no picture"),
        ({"action": "remove", "tags": ["hat"], "ids": [-1]}, "ids: '-1' is no picture"),
        ({"action": "remove", "tags": ["hat"], "ids": [0]}, "versions: an object"),
        ({"action": "remove", "tags": ["hat"], "ids": [0], "versions": {}}, "picture 0 has none"),
        ({"action": "remove", "tags": "hat", "ids": [0], "versions": {"0": None}}, "tags: a list"),
        ({"action": "remove", "tags": [" , "], "ids": [0], "versions": {"0": None}}, "there is none"),
        ({"action": "add", "tags": ["a\nb"], "ids": [0], "versions": {"0": None}}, "texts of one line"),
        ({"action": "add", "tags": ["|||"], "ids": [0], "versions": {"0": None}}, "a mark between tags"),
        (
            {"action": "add", "tags": ["a"], "where": "up", "ids": [0], "versions": {"0": None}},
            "where: front or end",
        ),
        (
            {"action": "rename", "from": "hat", "to": "a, b", "ids": [0], "versions": {"0": None}},
            "to: one tag",
        ),
        ({"action": "rename", "from": "hat", "to": "", "ids": [0], "versions": {"0": None}}, "to: one tag"),
        ({"action": "caption", "text": 5, "ids": [0], "versions": {"0": None}}, "text: a text"),
        (
            {"action": "caption", "text": "a", "ids": [0, 1], "versions": {"0": None, "1": None}},
            "one picture",
        ),
        ({"action": "out", "ids": [0], "out": "yes"}, "out: true or false"),
    ],
)
def test_wrong_use_is_one_clear_line(editor: Editor, place: Path, body: object, said: str) -> None:
    reply = editor.ask("POST", f"{editor.base}api/edit", json.dumps(body).encode(), JSON)
    assert reply.status == 400
    assert said in reply.json["error"]
    assert "\n" not in reply.json["error"]
    assert (place / "set/5_cat/a.txt").read_text() == "cat, hat\n"


@pytest.mark.slow
def test_pictures_are_served_by_their_numbers(editor: Editor, place: Path) -> None:
    picture = editor.pictures()["a.png"]
    whole, small = editor.get(picture["link"]), editor.get(picture["image"])
    assert (whole.headers["content-type"], small.headers["content-type"]) == ("image/png", "image/jpeg")
    assert whole.body == (place / "set/5_cat/a.png").read_bytes()
    assert small.body.startswith(b"\xff\xd8")
    # Kept by the browser for as long as it is this file, and by nobody else.
    assert small.headers["cache-control"].startswith("private, max-age=")
    assert editor.get("thumb/0?v=old").headers["cache-control"] == "no-store"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="links need a right of their own there")
def test_no_link_out_of_the_folder_is_followed(editor: Editor, place: Path) -> None:
    pictures = editor.pictures()
    assert editor.get(pictures["in.png"]["link"]).status == 200
    out = pictures["out.png"]
    assert (out["caption"], out["trouble"]) == (None, "a link out of the dataset")
    for path in (out["link"], out["image"]):
        assert (editor.get(path).status, editor.get(path).body) == (404, b"")
    answer = editor.edit("add", "out.png", tags=["new"])
    assert "a link out of the dataset" in answer["errors"][0]["text"]
    assert (answer["changed"], (place / "secret.txt").read_bytes()) == ([], WORDS)
    assert (place / "set/5_cat/out.txt").is_symlink()

    # A link that comes into a picture's place, or into its folder's, later.
    for name in ("b.png", "b.txt"):
        (place / "set/5_cat" / name).unlink()
        (place / "set/5_cat" / name).symlink_to(place / f"secret{Path(name).suffix}")
    late = pictures["b.png"]
    assert [editor.get(path).status for path in (late["link"], late["image"], "thumb/1", "picture/1")] == [
        404
    ] * 4
    assert WORDS not in editor.get("api/state").body
    answer = editor.post("api/edit", action="add", tags=["x"], ids=[1], versions={1: late["version"]}).json
    assert (place / "secret.txt").read_bytes() == WORDS
    assert answer["changed"] == [] or answer["changed"][0]["caption"] is None

    # A pipe is not waited for.
    (place / "set/5_cat/b.png").unlink()
    os.mkfifo(place / "set/5_cat/b.png")
    time.sleep(SELDOM)
    assert editor.get("api/state").json["pictures"][1]["size"] is None
    assert editor.get("picture/1").status == 404

    (place / "elsewhere").mkdir()
    Image.new("RGB", (32, 32), "red").save(place / "elsewhere/d.png")
    (place / "elsewhere/d.txt").write_bytes(WORDS)
    (place / "set/5_cat").rename(place / "moved")
    (place / "set/5_cat").symlink_to(place / "elsewhere")
    try:
        other = pictures["d.png"]
        assert [editor.get(path).status for path in (other["link"], other["image"])] == [404, 404]
        assert WORDS not in editor.get("api/state").body
        number = other["id"]
        answer = editor.post("api/edit", action="add", tags=["x"], ids=[number], versions={number: None}).json
        assert (place / "elsewhere/d.txt").read_bytes() == WORDS
    finally:
        (place / "set/5_cat").unlink()
        (place / "moved").rename(place / "set/5_cat")
