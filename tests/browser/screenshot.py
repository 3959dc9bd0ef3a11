"""The picture of the page for the README: `python -m tests.browser.screenshot docs/demo.png`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from .running import running_browser, running_page

WHOLE = re.compile(r"^[\d,]+ tokens in")
SECONDS, WIDTH = 600, 1040


def take(file: Path) -> None:
    """Has the page read its example, and writes what it then looks like."""
    from playwright.sync_api import expect

    with running_page() as address, running_browser() as browser:
        page = browser.new_page(viewport={"width": WIDTH, "height": 600}, color_scheme="light")
        page.goto(address)
        page.get_by_role("tab", name="Long text").click()
        page.get_by_role("button", name="Read", exact=True).click()
        result = page.get_by_role("tabpanel").filter(visible=True).locator(".result")
        expect(result).to_have_text(WHOLE, timeout=1000 * SECONDS)
        page.mouse.move(0, 0)
        page.wait_for_timeout(1000)
        bottom = page.locator(".charts").evaluate("charts => charts.getBoundingClientRect().bottom")
        page.screenshot(path=file, full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": bottom + 12})


if __name__ == "__main__":
    take(Path(sys.argv[1]))
