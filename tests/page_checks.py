"""What every page must stand in a browser: it fetches nothing, complains of nothing, and can be read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.browser import Browser

PHONE, DESK = (360, 740), (1280, 900)
OPEN_ALL = "document.querySelectorAll('details').forEach((one) => { one.open = true; });"
COLOURS = """
const parse = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
  .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
  .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
const contrast = (one, other) => {
  const [high, low] = [light(one), light(other)].sort((a, b) => b - a);
  return (high + 0.05) / (low + 0.05);
};
const behind = (element) => {
  const layers = [];
  for (let one = element; one; one = one.parentElement)
    layers.push(parse(getComputedStyle(one).backgroundColor));
  return layers.reverse().reduce((below, [r, g, b, a]) =>
    [r, g, b].map((c, i) => c * a + below[i] * (1 - a)), [255, 255, 255]);
};
"""
# What the eye gets: the colour of each text that is there, and the background that shines through behind it.
CONTRASTS = """
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement, text = walker.currentNode.data.trim();
  const range = document.createRange();
  range.selectNodeContents(walker.currentNode);
  if (!text || !element.checkVisibility() || !range.getClientRects().length) continue;
  if (element.closest("script, title")) continue;
  const style = getComputedStyle(element);
  const ink = parse(element.closest("svg") ? style.fill : style.color);
  found.push([contrast(ink, behind(element)), text, element.className.toString()]);
}
return found;
"""
HIDDEN = """
const hidden = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode, element = node.parentElement;
  if (!node.data.trim() || element.closest("script, button, nav, summary, .skip, title")) continue;
  const range = document.createRange();
  range.selectNodeContents(node);
  const box = range.getBoundingClientRect();
  const shown = element.checkVisibility() && box.width && getComputedStyle(element).clipPath === "none";
  if (!shown) hidden.push(node.data.trim());
}
return hidden;
"""
REACHABLE = """
return [...document.querySelectorAll("a[href], button, summary, [tabindex]")]
  .filter((one) => one.tabIndex >= 0 && one.checkVisibility())
"""
NAME = "((one) => one.outerHTML.slice(0, 80))"


@contextmanager
def opened(session: Browser, file: Path) -> Iterator[Browser]:
    """Show a page on a desk; in the end nothing may have been fetched or complained about."""
    session.media()
    session.window(*DESK)
    session.open(file)
    yield session
    assert session.messages() == []
    assert {address.partition("#")[0] for address in session.requests()} == {file.resolve().as_uri()}


def visible_panels(page: Browser) -> list[str]:
    return page.run(
        "return [...document.querySelectorAll('.panel')].filter(p => p.checkVisibility()).map(p => p.id)"
    )


def colour(page: Browser, selector: str = "body", what: str = "backgroundColor") -> str:
    return page.run(
        "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]", selector, what
    )


def faint_texts(page: Browser) -> tuple[list[Any], int]:
    """Return the texts that do not stand out from what is behind them, and how many were looked at."""
    seen = page.run(COLOURS + CONTRASTS)
    return [one for one in seen if one[0] < 4.5], len(seen)


def hidden_texts(page: Browser) -> list[str]:
    """Return the texts that cannot be seen."""
    return page.run(HIDDEN)


def tab_through(page: Browser) -> tuple[list[str], list[str]]:
    """Return all controls in the order of the page, and those the Tab key reaches; each has a ring."""
    wanted = page.run(f"{REACHABLE}.map({NAME})")
    reached = []
    for _ in wanted:
        page.press("Tab")
        reached.append(page.run(f"return {NAME}(document.activeElement)"))
        style = page.run(
            "const s = getComputedStyle(document.activeElement); return [s.outlineStyle, s.outlineWidth]"
        )
        assert style == ["solid", "2px"], f"no ring around {reached[-1]}"
    return wanted, reached
