"""The page's server: tabs by model, headers, stops and visitors who leave. No browser."""

from __future__ import annotations

import json
import socket
import threading
import time
import uuid
from collections.abc import Iterator

import pytest

pytest.importorskip("gradio", reason="the page needs gradio")

import httpx
import uvicorn
from fastapi.testclient import TestClient

from mega_transformers.cli.runtime import UserError
from mega_transformers.demo import answers, tabs
from mega_transformers.demo.app import VISITORS, make_app
from mega_transformers.demo.models import Served


@pytest.fixture(scope="module")
def app(served: list[Served]) -> object:
    return make_app(served)


def titles(app: object) -> list[str]:
    config = TestClient(app).get("/config").json()
    return [part["props"]["label"] for part in config["components"] if part["type"] == "tabitem"]


def test_tabs_are_those_that_the_models_serve(app: object, served: list[Served]) -> None:
    assert titles(app) == ["Fill masks", "Write", "Convert", "Classify", "Long text"]
    assert titles(make_app(served[2:3])) == ["Convert"]
    assert titles(make_app(served[:1])) == ["Fill masks", "Long text"]


def test_the_page_asks_nobody_else(app: object) -> None:
    response = TestClient(app).get("/")
    assert response.headers["content-security-policy"].startswith("default-src 'self'; ")
    assert "fonts.googleapis" not in response.text
    config = TestClient(app).get("/config").json()
    assert not config["analytics_enabled"]
    assert not config["run_history"]
    assert config["footer_links"] == []


def test_mistakes_become_sentences() -> None:
    def wrong(error: Exception) -> str:
        @tabs.told
        def answer(text: str) -> str:
            raise error

        @tabs.told
        def stream(text: str) -> Iterator[str]:
            yield "so far"
            raise error

        assert list(stream("a")) == ["so far", answer("a")]
        return answer("a")

    assert wrong(UserError("no <mask>")) == '<p class="mistake" role="alert">No &lt;mask&gt;.</p>'
    assert "There is not enough memory" in wrong(MemoryError())
    assert "There is not enough memory" in wrong(RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes"))
    with pytest.raises(ZeroDivisionError):
        wrong(ZeroDivisionError())


@pytest.fixture(scope="module")
def address(app: object) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


class Visitor:
    """Somebody with the page open, by what their browser sends."""

    def __init__(self, address: str) -> None:
        self.client = httpx.Client(base_url=address, timeout=30)
        self.session = uuid.uuid4().hex
        self.functions = {each["api_name"]: each["id"] for each in self.client.get("/config").json()["dependencies"]}

    def ask(self, name: str, *data: object) -> Iterator[str]:
        """Answers as they come; the connection closes with the iterator."""
        body = {"data": data, "fn_index": self.functions[name], "session_hash": self.session}
        self.client.post("/gradio_api/queue/join", json=body).raise_for_status()
        with self.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as response:
            for line in response.iter_lines():
                message = json.loads(line.removeprefix("data: ")) if line else {}
                if message.get("msg") in ("process_generating", "process_completed"):
                    assert message["success"], message
                    yield message["output"]["data"][0]
                if message.get("msg") == "process_completed":
                    return


def test_five_visitors_at_once(address: str, served: list[Served]) -> None:
    texts = [f"The <mask> of {name} gave a <mask>." for name in ("ship", "whale", "truth", "speech", "captain")]
    expected = [answers.fill(served[0], text)[1][0][0].token for text in texts]
    found: list[str] = [""] * 5

    def ask(index: int) -> None:
        *_, found[index] = Visitor(address).ask("fill", served[0].name, texts[index])

    visitors = [threading.Thread(target=ask, args=(index,)) for index in range(5)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    assert [f'data-mask="0" data-token="{token}"' in html for token, html in zip(expected, found)] == [True] * 5


def test_visitors_who_leave_free_their_places(
    address: str, served: list[Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = 0

    def endless(*_: object) -> Iterator[str]:
        nonlocal running
        running += 1
        try:
            while True:
                time.sleep(0.05)
                yield "word "
        finally:
            running -= 1

    def wait_for(number: int) -> None:
        until = time.monotonic() + 20
        while running != number and time.monotonic() < until:
            time.sleep(0.05)
        assert running == number

    monkeypatch.setattr(answers, "write", endless)
    question = ("write", served[1].name, "The ship", 10, 0.8, 0.95)
    streams = [Visitor(address).ask(*question) for _ in range(VISITORS)]
    for stream in streams:
        next(stream)
    wait_for(VISITORS)
    *_, answer = Visitor(address).ask("fill", served[0].name, "A <mask>.")  # other tabs answer meanwhile
    assert "data-token" in answer
    for stream in streams:
        stream.close()
    wait_for(0)
    stream = Visitor(address).ask(*question)
    assert "The ship" in next(stream)
    stream.close()
    wait_for(0)
