"""A page as a program reads it: elements, headings, tables, texts; no browser."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = frozenset({"meta", "link", "input", "br", "img", "hr"})


@dataclass
class Element:
    """An element with its attributes, parents (outermost first) and text, its descendants' included."""

    tag: str
    attributes: dict[str, str | None]
    parents: tuple[Element, ...]
    text: str = ""

    def inside(self, tag: str) -> bool:
        """Whether an element of that name is among its parents."""
        return any(parent.tag == tag for parent in self.parents)


@dataclass
class Outline(HTMLParser):
    """Every element of a page, in order; a tag that closes nothing open is an error."""

    elements: list[Element] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._open: list[Element] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag} has an attribute twice: {names}"
        element = Element(tag, dict(attrs), tuple(self._open))
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open[-1].tag == tag, f"</{tag}> while {self._open[-1].tag} is open"
        self._open.pop()
        if tag in ("td", "th", "dt", "dd", "li", "span"):  # shown apart, whether or not a space is between them
            self.handle_data(" ")

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.text += data

    def words(self, tag: str) -> list[str]:
        """The texts of the elements of that name, each run of spaces as one."""
        return [" ".join(element.text.split()) for element in self.all(tag)]

    def missing(self) -> list[str]:
        """The sentences that say what the folder lacks; those for readers without scripts are not among them."""
        return [e.text for e in self.all("p") if e.attributes.get("class") == "missing" and not e.inside("noscript")]

    def all(self, *tags: str) -> list[Element]:
        """The elements of these names."""
        return [element for element in self.elements if element.tag in tags]


def outline(text: str) -> Outline:
    """Read a page; everything opened must be closed."""
    found = Outline()
    found.feed(text)
    found.close()
    assert not found._open, f"never closed: {[element.tag for element in found._open]}"
    return found


def colours(css: str, dark: bool) -> dict[str, tuple[float, float, float]]:
    """The named colours of the light or the dark page, 0…1."""
    start = css.index(':root[data-theme="dark"]' if dark else ":root {")
    block = css[start : css.index("}", start)]
    return {
        name: (int(code[:2], 16) / 255, int(code[2:4], 16) / 255, int(code[4:], 16) / 255)
        for name, code in re.findall(r"--([a-z-]+): #([0-9a-f]{6});", block)
    }


def contrast(first: tuple[float, float, float], second: tuple[float, float, float]) -> float:
    """WCAG's contrast ratio of two colours, 1…21."""

    def luminance(colour: tuple[float, float, float]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
