"""The page in a process of its own, and a browser that reports whatever it asks of anybody else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from running import CHROMIUM, running_browser, running_page


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """The address of the page of the bundled models."""
    pytest.importorskip("gradio", reason="the page needs gradio")
    with running_page() as address:
        yield address


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    pytest.importorskip("playwright", reason="these tests need playwright")
    if CHROMIUM is None:
        pytest.skip("there is no chromium; install it, or name it in CHROMIUM")
    with running_browser() as browser:
        yield browser


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens the page as another visitor, with `new_context`'s options.

    At the end of a test no visitor's browser may have asked another server for anything, failed, or run a script
    that was typed.
    """
    contexts, outside, errors = [], [], []

    def route(route: Any) -> None:
        if route.request.url.startswith((address + "/", "data:", "blob:")):
            route.continue_()
        else:
            outside.append(route.request.url)
            route.abort()

    def open_page(**options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        context.route("**/*", route)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: (errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.goto(address)
        page.get_by_role("button", name="Fill masks", exact=True).wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert outside == []
    assert errors == []
