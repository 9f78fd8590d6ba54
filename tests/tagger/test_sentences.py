"""``lora-tag --caption-url``: sentences by a server of the user's."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from .making import MODEL, Tag, save_picture
from .serving import SENTENCE, Answer, Server, answer, as_json

ALONE = ("--caption-style", "sentence", "--no-hints")


def test_tags_and_a_sentence_in_captions_and_records(tag: Tag, folder: Path, server: Server) -> None:
    server.say = lambda _number, _question: answer("A girl\n in a white hoodie\tholds a book.\n")
    result = tag(folder, "--max-tags", 2, "--trigger", "mina", "--caption-url", server.url)
    assert result.code == 0, result.err
    assert (folder / "exif.txt").read_text() == f"mina, k-on! logo, <o>_<o>, {SENTENCE}\n"
    first = result.records[0]
    assert first["sentence"] == SENTENCE
    assert first["caption"] == f"mina, k-on! logo, <o>_<o>, {SENTENCE}"
    assert first["model"] == "model"
    assert server.asked == [("GET", "/v1/models"), *[("POST", "/v1/chat/completions")] * 3]
    assert {question["model"] for question in server.questions} == {"first-model"}
    assert any("Tags of the picture, which may help: k-on! logo, <o>_<o>." in words for words in server.words)
    assert "sentences: 3 asked for" in result.err
    undone = tag("--undo", folder, model=None)
    assert undone.code == 0
    assert not list(folder.glob("*.txt"))


def test_the_picture_is_sent_upright_and_small(tag: Tag, tmp_path: Path, server: Server) -> None:
    place = tmp_path / "imgs"
    place.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (2000, 500), (200, 30, 90)).save(place / "a.jpg", exif=exif)
    Image.new("RGBA", (30, 20), (0, 0, 0, 0)).save(place / "b.png")
    assert tag(place, *ALONE, "--caption-url", server.url, "--caption-jobs", 1, model=None).code == 0
    sent = [question["messages"][0]["content"][1]["image_url"]["url"] for question in server.questions]
    assert [address.partition(",")[0] for address in sent] == ["data:image/jpeg;base64"] * 2
    large, clear = (Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) for address in sent)
    assert large.size == (256, 1024)
    assert clear.size == (30, 20)
    assert clear.convert("L").getextrema() == (255, 255)


@pytest.mark.parametrize(
    ("style", "wanted"),
    [
        ("both", "mina, ;), hands on own face, {}\n"),
        ("sentence", "mina, {}\n"),
        ("two-lines", "mina, ;), hands on own face\nmina, {}\n"),
    ],
)
def test_styles(tag: Tag, folder: Path, server: Server, style: str, wanted: str) -> None:
    words = (folder / "rgba.png", "--max-tags", 2, "--character", "off", "--trigger", "mina")
    result = tag(*words, "--caption-url", server.url, "--caption-style", style)
    assert result.code == 0, result.err
    assert (folder / "rgba.txt").read_text() == wanted.format(SENTENCE)


def test_hints_are_not_called_tags_of_the_captions(tag: Tag, tmp_path: Path, server: Server) -> None:
    for number in range(10):
        save_picture(tmp_path / f"{number}.png")
    words = (tmp_path, "--trigger", "mina", "--caption-url", server.url)
    assert "note: in over 90% of the captions:" in tag(*words).err
    alone = tag(*words, "--caption-style", "sentence", "--existing", "replace")
    assert "of the captions:" not in alone.err
    assert "Tags of the picture" in server.words[-1]


def test_a_trigger_that_the_sentence_has_is_not_said_twice(tag: Tag, folder: Path, server: Server) -> None:
    server.say = lambda _number, _question: answer("mina (smiling) holds a book.")
    words = (folder / "rgba.png", *ALONE, "--trigger", "mina", "--escape", "--caption-url", server.url)
    assert tag(*words, model=None).code == 0
    assert (folder / "rgba.txt").read_text() == "mina \\(smiling\\) holds a book.\n"


def test_without_hints_no_tagger_is_loaded(tag: Tag, folder: Path, server: Server) -> None:
    result = tag(folder, *ALONE, "--offline", "--caption-url", server.url, model=None)
    assert result.code == 2
    assert "--offline has no use here, for no tagger is loaded" in result.error
    result = tag(folder, *ALONE, "--caption-url", f"{server.url}/chat/completions", model=None)
    assert result.code == 0, result.err
    assert "3 captioned" in result.err
    assert result.records[0] == {
        "path": str(folder / "exif.jpg"),
        "sentence": SENTENCE,
        "caption": SENTENCE,
    }
    assert {"Tags" in words for words in server.words} == {False}


def test_a_question_of_ones_own(tag: Tag, folder: Path, tmp_path: Path, server: Server) -> None:
    file = tmp_path / "ask.txt"
    file.write_text("Of {trigger} in {name}: {tags} {and so} on.\n", encoding="utf-8")
    words = (folder / "rgba.png", "--max-tags", 1, "--character", "off", "--trigger", "mina")
    asked = ("--caption-url", server.url, "--caption-prompt", f"@{file}", "--caption-model", "other")
    assert tag(*words, *asked, "--caption-tokens", 33).code == 0
    assert server.words == ["Of mina in rgba: ;) {and so} on."]
    assert server.asked == [("POST", "/v1/chat/completions")]
    assert (server.questions[0]["model"], server.questions[0]["max_tokens"]) == ("other", 33)


def test_a_dry_run_sends_nothing(tag: Tag, folder: Path, server: Server) -> None:
    words = (folder / "rgba.png", "--max-tags", 1, "--character", "off", "-n", "--caption-url", server.url)
    result = tag(*words, "--text", "--caption-prompt", "Look: {tags}")
    assert result.code == 0
    assert f"would ask the first model at {server.url}: Look: ;)" in result.text
    assert tag(*words, "--caption-prompt", "Look: {tags}").records[0]["question"] == "Look: ;)"
    assert server.asked == []
    assert not list(folder.glob("*.txt"))


def test_what_has_its_sentence_is_not_asked_for_again(tag: Tag, folder: Path, server: Server) -> None:
    (folder / "rgba.txt").write_text("my own words")
    words = (folder, *ALONE, "--caption-url", server.url)
    assert tag(*words, model=None).code == 0
    assert len(server.questions) == 2
    again = tag(*words, model=None)
    assert "3 had captions already" in again.err
    assert len(server.asked) == 3  # not even the name of the model
    # The same question was answered already: the caption that has the sentence stays as it is.
    appended = tag(*words, "--existing", "append", model=None)
    assert appended.code == 0
    assert len(server.questions) == 3
    assert "1 asked for, 2 from the cache" in appended.err
    assert (folder / "rgba.txt").read_text() == f"my own words, {SENTENCE}\n"
    assert (folder / "exif.txt").read_text() == f"{SENTENCE}\n"
    assert tag(*words, "--existing", "replace", "--no-cache", model=None).code == 0
    assert len(server.questions) == 6


def test_a_sentence_of_a_record_is_looked_at(tag: Tag, folder: Path, server: Server) -> None:
    record = json.dumps({"path": str(folder / "rgba.png"), "sentence": "one\u202etwo"})
    result = tag("-", *ALONE, "--caption-url", server.url, model=None, stdin=record.encode())
    assert result.code == 1
    assert "the sentence in its record has control or directional characters" in result.err
    assert not (folder / "rgba.txt").exists()


def test_records_that_come_with_a_sentence(tag: Tag, folder: Path, server: Server) -> None:
    words = (*ALONE, "--no-txt", "--jsonl", "--caption-url", server.url)
    first = tag(folder, *words, model=None)
    assert [record["sentence"] for record in first.records] == [SENTENCE] * 3
    server.say = lambda _number, _question: answer("Another one.")
    again = tag("-", *words, "--no-cache", model=None, stdin=first.text.encode())
    assert [record["sentence"] for record in again.records] == [SENTENCE] * 3
    assert len(server.questions) == 3
    assert not list(folder.glob("*.txt"))


@pytest.mark.table
@pytest.mark.parametrize(
    ("said", "told"),
    [
        (answer(""), "the answer is empty"),
        (answer(None), "the answer is empty"),
        (answer("A girl in a", "length"), "cut off after 200 tokens; give --caption-tokens 400"),
        (answer("I'm sorry, but I can't help with that."), "the model refuses (I'm sorry, but I can't"),
        (answer(None, message={"refusal": "No."}), "the model refuses (No.)"),
        (answer("A girl.", "content_filter"), "the model refuses (content_filter)"),
        (answer("A girl ||| a book."), "which training takes for a mark"),
        (answer("one\u202etwo"), "control or directional characters"),
        (as_json({"error": {"message": "out of slots"}}), "(out of slots)"),
        (as_json([1]), "not an answer as OpenAI's chat completions have it"),
        ((200, {}, b"hello"), "the answer is no JSON (hello)"),
        ((200, {}, b""), "the answer is no JSON (nothing)"),
        (as_json({"detail": "too long"}, 400), "refuses the question (status 400): too long"),
    ],
)
def test_answers_of_no_use(tag: Tag, folder: Path, server: Server, said: Answer, told: str) -> None:
    server.say = lambda number, _question: said if number == 0 else answer()
    words = (folder, *ALONE, "--caption-jobs", 1, "--caption-url", server.url)
    result = tag(*words, model=None)
    assert result.code == 1
    assert "Traceback" not in result.err
    (line,) = (line for line in result.err.splitlines() if "no sentence" in line)
    assert str(folder / "exif.jpg") in line
    assert told in line
    assert "2 captioned, 1 failed" in result.err
    assert not (folder / "exif.txt").exists()
    assert "no sentence" in result.records[0]["error"]
    # The next run asks for the one that is missing.
    assert tag(*words, model=None).code == 0
    assert (folder / "exif.txt").read_text() == f"{SENTENCE}\n"
    assert len(server.questions) == 4


@pytest.mark.table
@pytest.mark.parametrize(
    ("said", "told"),
    [
        ((200, {"Content-Type": "text/html"}, b"<!doctype html><p>hi"), "is an HTML page, not JSON"),
        (as_json({"error": "no route"}, 404), "(status 404: no route); is the address right"),
        (
            as_json({"error": {"message": "bad key"}}, 401),
            "wants a key (status 401: bad key); see --caption-key",
        ),
        (
            (307, {"Location": "http://elsewhere.example/v1"}, b""),
            "leads on to http://elsewhere.example/v1, which",
        ),
        (
            as_json({"error": {"message": "image input is not supported, provide the mmproj"}}, 500),
            "the model takes no pictures",
        ),
    ],
)
def test_what_no_other_question_would_mend_ends_the_run(
    tag: Tag, folder: Path, server: Server, said: Answer, told: str
) -> None:
    server.say = lambda _number, _question: said
    words = (folder, *ALONE, "--caption-model", "m", "--caption-jobs", 1, "--caption-url", server.url)
    result = tag(*words, model=None)
    assert result.code == 2
    (line,) = (line for line in result.err.splitlines() if "error:" in line)
    assert told in line
    assert "Traceback" not in result.err
    assert 1 <= len(server.questions) <= 3
    assert not list(folder.glob("*.txt"))


def test_what_is_done_stays_where_the_run_ends(tag: Tag, folder: Path, server: Server) -> None:
    server.say = lambda number, _question: answer() if number == 0 else as_json({}, 404)
    result = tag(folder, *ALONE, "--caption-jobs", 1, "--caption-url", server.url, model=None)
    assert result.code == 1
    assert "what is done stays, and the same command goes on" in result.err
    assert "1 captioned" in result.err
    assert [path.name for path in folder.glob("*.txt")] == ["exif.txt"]


@pytest.mark.slow
def test_a_run_that_ends_tells_how_to_take_back_what_it_wrote(tag: Tag, folder: Path, server: Server) -> None:
    """Though what was written stands behind the picture that ended it."""

    def say(_number: int, question: dict[str, Any]) -> Answer:
        if question["messages"][0]["content"][0]["text"] != "exif":
            return answer()
        time.sleep(1)
        return as_json({}, 404)

    server.say = say
    result = tag(folder, *ALONE, "--caption-prompt", "{name}", "--caption-url", server.url, model=None)
    assert result.code == 1
    assert "to take it back: lora-tag --undo" in result.err
    assert sorted(path.name for path in folder.glob("*.txt")) == ["gray16.txt", "rgba.txt"]


def test_a_connection_that_breaks_off_is_asked_again(tag: Tag, folder: Path, server: Server) -> None:
    status, headers, body = answer()
    short = (status, {**headers, "Content-Length": str(len(body) + 10), "Connection": "close"}, body)
    server.say = lambda number, _question: short if number == 0 else answer()
    result = tag(folder / "rgba.png", *ALONE, "--caption-url", server.url, model=None)
    assert result.code == 0, result.err
    assert len(server.questions) == 2


def test_pictures_that_are_none_are_not_sent(tag: Tag, folder: Path, server: Server) -> None:
    (folder / "b.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    result = tag(folder, *ALONE, "--caption-url", server.url, model=None)
    assert result.code == 1
    assert "b.png: " in result.err
    assert "3 captioned, 1 failed" in result.err
    assert len(server.questions) == 3


@pytest.mark.slow
def test_a_busy_server_is_asked_again(tag: Tag, folder: Path, server: Server) -> None:
    told = [as_json({}, 429), as_json({}, 503), answer()]
    server.say = lambda number, _question: told[min(number, 2)]
    begun = time.monotonic()
    result = tag(folder / "rgba.png", *ALONE, "--caption-url", server.url, model=None)
    assert result.code == 0, result.err
    assert len(server.questions) == 3
    assert time.monotonic() - begun >= 0.5 + 1
    assert (folder / "rgba.txt").read_text() == f"{SENTENCE}\n"


@pytest.mark.slow
def test_retries_are_bounded(tag: Tag, tmp_path: Path, server: Server) -> None:
    place = tmp_path / "imgs"
    place.mkdir()
    for number in range(8):
        save_picture(place / f"{number}.png")
    server.say = lambda _number, _question: as_json({"error": "broken"}, 500)
    words = (*ALONE, "--caption-jobs", 1, "--caption-url", server.url)
    one = tag(place / "0.png", *words, "--caption-retries", 1, model=None)
    assert one.code == 1
    assert "in trouble (status 500, tried 2 times): broken" in one.err
    assert len(server.questions) == 2
    result = tag(place, *words, "--caption-retries", 0, model=None)
    assert result.code == 2
    assert "5 pictures in a row got no answer" in result.err
    assert len(server.questions) < 2 + 8


@pytest.mark.slow
def test_a_server_that_is_not_there(tag: Tag, folder: Path, server: Server) -> None:
    url = server.url
    server.server_close()
    result = tag(folder, "--caption-url", url, "--caption-retries", 1, model=None)
    assert result.code == 2
    assert "cannot be reached (" in result.error
    assert "tried 2 times); is the server running?" in result.error
    result = tag(folder, "--caption-url", url, "--caption-retries", 0, model=None)
    assert "tried once); is the server running?" in result.error


@pytest.mark.slow
def test_an_answer_that_does_not_come_in_time(tag: Tag, folder: Path, server: Server) -> None:
    def say(number: int, _question: object) -> Answer:
        time.sleep(3 if number == 0 else 0)
        return answer()

    server.say = say
    words = (folder, *ALONE, "--caption-jobs", 1, "--caption-timeout", 0.5, "--caption-url", server.url)
    result = tag(*words, model=None)
    assert result.code == 1
    assert "exif.jpg: no sentence: no answer within 0.5 s; give --caption-timeout more" in result.err
    assert sorted(path.name for path in folder.glob("*.txt")) == ["gray16.txt", "rgba.txt"]


@pytest.mark.parametrize("jobs", [1, 3])
def test_no_more_questions_together_than_asked_for(
    tag: Tag, tmp_path: Path, server: Server, jobs: int
) -> None:
    place = tmp_path / "imgs"
    place.mkdir()
    for number in range(9):
        save_picture(place / f"{number}.png", colour=(number, 0, 0))

    def say(_number: int, _question: object) -> Answer:
        time.sleep(0.1)
        return answer()

    server.say = say
    assert tag(place, *ALONE, "--caption-jobs", jobs, "--caption-url", server.url, model=None).code == 0
    assert server.most == jobs


def test_keys_go_to_the_server_and_nowhere_else(
    tag: Tag, folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, picture = "a-key-of-this-test", folder / "rgba.png"
    again = (picture, *ALONE, "--existing", "replace", "--no-cache")
    server.say = lambda _number, question: as_json({"error": f"no {key}"}, 400)
    shown = tag(*again, "--caption-url", server.url, "--caption-key", key, model=None)
    assert shown.code == 1
    assert key not in shown.err
    assert key not in shown.text
    monkeypatch.setenv("LORA_TAG_CAPTION_KEY", "another-key-of-it")
    monkeypatch.setenv("OPENAI_API_KEY", "not-to-be-sent")
    tag(*again, "--caption-url", server.url, model=None)
    monkeypatch.delenv("LORA_TAG_CAPTION_KEY")
    tag(*again, "--caption-url", server.url, model=None)
    login = server.url.replace("://", "://me:password-of-it@")
    hidden = tag(*again, "--caption-url", login, model=None)
    assert "password-of-it" not in hidden.err
    basic = f"Basic {base64.b64encode(b'me:password-of-it').decode()}"
    wanted = [f"Bearer {key}", "Bearer another-key-of-it", None, basic]
    assert [headers.get("Authorization") for headers in server.headers] == wanted


def test_no_proxy_is_used(tag: Tag, folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert tag(folder, *ALONE, "--caption-url", server.url, model=None).code == 0
    assert len(server.questions) == 3


def test_long_answers_are_told(tag: Tag, folder: Path, server: Server) -> None:
    long = " ".join(["word"] * 80)
    server.say = lambda _number, _question: answer(
        f"<think>Well,\nnow.</think>\n{long}", usage={"completion_tokens": 300}
    )
    result = tag(folder / "rgba.png", *ALONE, "--caption-url", server.url, model=None)
    assert result.code == 0
    assert (folder / "rgba.txt").read_text() == f"{long}\n"
    assert "an answer of 300 tokens, more than --caption-tokens 200 allows" in result.err
    assert "1 of the sentences have more than 75 words" in result.err


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_ended_leaves_nothing_half_written(
    folder: Path, server: Server, tmp_path: Path, sent: signal.Signals, status: int
) -> None:
    waits = threading.Event()

    def say(number: int, _question: object) -> Answer:
        if number:
            waits.set()
            time.sleep(20)
        return answer()

    server.say = say
    words = [str(folder), *ALONE, "--caption-jobs", "1", "--caption-url", server.url]
    command = [sys.executable, "-m", "lorapipe_tagger", *words]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
    ) as process:
        assert waits.wait(30)
        begun = time.monotonic()
        process.send_signal(sent)
        _, said = process.communicate(timeout=30)
    assert process.returncode == status, said.decode()
    assert time.monotonic() - begun < 10
    assert b"Traceback" not in said
    assert [path.name for path in folder.glob("*.txt")] == ["exif.txt"]
    assert (folder / "exif.txt").read_text() == f"{SENTENCE}\n"
    assert not list(folder.rglob("*.tmp"))
    server.say = lambda _number, _question: answer()
    before = len(server.questions)
    done = subprocess.run(
        command, capture_output=True, check=False, env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr.decode()
    assert len(server.questions) == before + 2
    assert len(list(folder.glob("*.txt"))) == 3


@pytest.mark.slow
def test_nothing_is_imported_for_it_without_the_option(folder: Path, tmp_path: Path) -> None:
    program = (
        "import sys\nfrom lorapipe_tagger.cli import lora_tag\n"
        "try:\n    lora_tag.main(sys.argv[1:])\nexcept SystemExit as end:\n    code = end.code\n"
        "print([name for name in sys.modules if 'tagger.sentences' in name])\nsys.exit(code)"
    )
    words = [
        str(folder / "rgba.png"),
        "--model",
        str(MODEL),
        "--device",
        "cpu",
        "--quiet",
        "--no-txt",
        "--text",
    ]
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        capture_output=True,
        check=False,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
