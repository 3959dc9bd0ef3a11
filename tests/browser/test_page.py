"""The page of `mega demo` as visitors use it, in a headless Chromium."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright", reason="these tests need playwright")

from playwright.sync_api import expect

expect.set_options(timeout=30_000)
Visit = Callable[..., Any]
TABS = {"Fill masks": "Fill masks", "Write": "Write", "Convert": "Convert", "Long text": "Read"}
WHOLE = re.compile(r"^[\d,]+ tokens in")
# keeps every state of the text
WATCH = """() => {
  window.seen = new Set();
  const look = () => document.querySelectorAll('.answer .text').forEach(text => window.seen.add(text.innerText));
  new MutationObserver(look).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""


def panel(page: Any) -> Any:
    """What the chosen tab shows."""
    return page.get_by_role("tabpanel").filter(visible=True)


def answer(page: Any) -> Any:
    return panel(page).locator(".prose.answer")


def type_text(page: Any, text: str) -> None:
    """Types into the tab's text box, again where gradio put the tab's example over it: it does so once, soon after
    the tab is first seen.
    """
    box = panel(page).get_by_role("textbox").first
    for _ in range(10):
        box.fill(text)
        page.wait_for_timeout(300)
        if box.input_value() == text:
            return
    raise AssertionError(f"{box.input_value()!r} stays in the text box instead of {text!r}")


def ask(page: Any, tab: str, text: str | None = None) -> Any:
    """Chooses a tab, types a text and presses the button; what answers."""
    page.get_by_role("tab", name=tab).click()
    if text is not None:
        type_text(page, text)
    panel(page).get_by_role("button", name=TABS[tab], exact=True).click()
    return answer(page)


def test_a_click_puts_a_candidate_in_and_fills_the_rest(visit: Visit) -> None:
    page = visit()
    shown = ask(page, "Fill masks", "The <mask> of the United States gave a <mask>.")
    expect(shown.locator("section")).to_have_count(2)
    candidate = shown.locator("button[data-mask='0']").nth(1)
    word = candidate.locator("b").inner_text()
    candidate.click()
    expect(shown.locator("section")).to_have_count(1)
    box = page.get_by_role("textbox").first
    assert word in box.input_value()
    assert box.input_value().count("<mask>") == 1
    last = shown.locator("button").first
    second = last.locator("b").inner_text()
    last.click()
    expect(shown).to_contain_text("All masks are filled")
    assert re.sub(r"\s+", "", box.input_value()) == f"The{word}oftheUnitedStatesgavea{second}."


def test_text_comes_as_it_is_made_and_stops(visit: Visit) -> None:
    page = visit()
    page.get_by_role("tab", name="Write").click()
    page.evaluate(WATCH)
    shown = ask(page, "Write", "The ship")
    expect(shown).to_contain_text("tokens per second")
    seen = sorted(page.evaluate("[...window.seen]"), key=len)
    assert len(seen) > 2
    assert all(text.startswith("The ship") for text in seen)

    panel(page).get_by_role("spinbutton").first.fill("500")
    panel(page).get_by_role("spinbutton").nth(1).fill("1.9")  # hardly ever ends by itself
    shown = ask(page, "Write", "A stop")
    expect(shown).to_contain_text("A stop")
    panel(page).get_by_role("button", name="Stop").click()
    page.wait_for_timeout(1000)
    before = shown.inner_text()
    page.wait_for_timeout(1500)
    assert shown.inner_text() == before
    assert "500 tokens in" not in before
    expect(ask(page, "Write", "Again")).to_contain_text("Again")


@pytest.mark.parametrize("tab", ["Fill masks", "Write"])
def test_why_is_told_in_colours(visit: Visit, tab: str) -> None:
    page = visit()
    text = "The <mask> of the <b>ship</b>" if tab == "Fill masks" else "The <b>ship</b>"
    page.get_by_role("tab", name=tab).click()
    type_text(page, text)
    panel(page).get_by_role("button", name="Why?").click()
    shown = panel(page).locator(".prose.why")
    expect(shown).to_contain_text("completeness error")
    expect(shown).to_contain_text(text)  # its markup is shown
    assert shown.locator("b").count() == 0
    assert shown.locator("span[title][style*=rgba]").count() > 2
    type_text(page, "")
    panel(page).get_by_role("button", name="Why?").click()
    expect(shown.get_by_role("alert")).to_have_text("There is no text yet; type one, or choose an example.")


def test_words_become_phonemes(visit: Visit) -> None:
    page = visit()
    shown = ask(page, "Convert", "moving average")
    expect(shown.locator("th")).to_have_text(["moving", "average"])
    for phonemes in shown.locator("td").all_inner_texts():
        assert re.fullmatch(r"[A-Z]+( [A-Z]+)*", phonemes)
    page.get_by_role("button", name="A whale of a tale!").click()  # an example
    expect(shown.locator("th")).to_have_text(["A", "whale", "of", "a", "tale!"])


@pytest.mark.parametrize("tab", ["Fill masks", "Write", "Convert"])
def test_what_is_typed_is_text(visit: Visit, tab: str) -> None:
    bad = "<img src=x onerror=window.ran=1><script>window.ran=1</script>{{value}}${window.ran=1}\u202eevil <mask>"
    page = visit()
    shown = ask(page, tab, bad)
    expect(shown).to_contain_text("<script>window.ran=1</script>{{value}}${window.ran=1}\\u202eevil")
    assert shown.locator("img, script").count() == 0
    assert page.evaluate("window.ran") is None


def test_everything_by_keyboard(visit: Visit) -> None:
    page = visit()

    def tab_to(wanted: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("wanted => document.activeElement.matches(wanted)", wanted):
                outline = "parseFloat(getComputedStyle(document.activeElement).outlineWidth)"
                assert page.evaluate(outline) > 0  # the focus is seen
                return
        pytest.fail(f"{wanted} is out of reach")

    tab_to("[role=tab]")
    tab_to("textarea")
    page.keyboard.press("Control+A")
    page.keyboard.type("The <mask> gave a <mask>.")
    page.keyboard.press("Enter")
    expect(answer(page).locator("section")).to_have_count(2)
    tab_to("button[data-token]")
    page.keyboard.press("Enter")
    expect(answer(page).locator("section")).to_have_count(1)
    expect(answer(page).locator("button").first).to_be_focused()
    page.keyboard.press("Space")
    expect(answer(page)).to_contain_text("All masks are filled")


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_screen(visit: Visit, width: int) -> None:
    page = visit(viewport={"width": width, "height": 844})
    for tab in TABS:
        shown = ask(page, tab)
        expect(shown.locator("p, table").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == width, tab
    panel(page).get_by_role("button", name="Stop").click()


def test_five_visitors_at_once(visit: Visit) -> None:
    texts = [f"The <mask> of the {name} gave a <mask>." for name in ("ship", "king", "city", "war", "book")]
    alone = visit()
    expected = []
    for text in texts:
        shown = ask(alone, "Fill masks", text)
        expect(shown.locator(".text")).to_contain_text(text.split()[4])
        expected.append(shown.locator("button").evaluate_all("all => all.map(each => each.ariaLabel)"))
    pages = [visit() for _ in texts]
    for page, text in zip(pages, texts):
        page.get_by_role("textbox").first.fill(text)
    for page in pages:
        panel(page).get_by_role("button", name="Fill masks", exact=True).click()
    for page, labels in zip(pages, expected):
        expect(answer(page).locator("button")).to_have_count(len(labels))
        assert answer(page).locator("button").evaluate_all("all => all.map(each => each.ariaLabel)") == labels


def test_mistakes_are_sentences(visit: Visit) -> None:
    page = visit()
    shown = ask(page, "Fill masks", "no mask here")
    expect(shown.get_by_role("alert")).to_have_text("No mask in 'no mask here': write <mask> in place of a word.")
    shown = ask(page, "Fill masks", "long " * 5000 + "<mask>")
    expect(shown.get_by_role("alert")).to_have_text(
        "The text has 25,006 characters, but the page takes at most 20,000; shorten it."
    )
    expect(ask(page, "Fill masks", "<mask> " * 9).get_by_role("alert")).to_contain_text("has 9 masks")
    expect(ask(page, "Convert", " ").get_by_role("alert")).to_contain_text("There is no text yet")


def test_a_long_text_is_read(visit: Visit, tmp_path: Path) -> None:
    page = visit()
    page.get_by_role("tab", name="Long text").click()
    panel(page).get_by_label("A text of mine").check()
    shown = ask(page, "Long text", "The captain of the ship gave an order.\n" * 200)
    expect(shown.locator("svg")).to_have_count(2)
    expect(shown).to_contain_text(WHOLE)
    panel(page).get_by_label("mega-prose-5m").check()
    panel(page).get_by_label("A file").check()
    expect(ask(page, "Long text").get_by_role("alert")).to_contain_text("There is no file yet")
    file = tmp_path / "book.txt"
    file.write_text("Nobody had seen the whale before.\n" * 300, "utf-8")
    panel(page).locator("input[type=file]").set_input_files(file)
    expect(panel(page)).to_contain_text("book.txt")
    expect(ask(page, "Long text")).to_contain_text(WHOLE)
