"""SVG files made safe to stand inside a page: only what drawings need, ids of their own, no style attributes.

The folder of a run may be written by others, and an svg can hold scripts and fetch from the network. Everything that is
not on the lists below is refused, not repaired.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass

from markupsafe import Markup, escape

_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ELEMENTS = _words(
    "svg g defs symbol use path rect circle ellipse line polyline polygon text tspan clipPath mask pattern marker "
    "linearGradient radialGradient stop image title desc"
)
_PROPERTIES = _words(
    "clip-path clip-rule color display dominant-baseline fill fill-opacity fill-rule font-family font-size "
    "font-stretch font-style font-variant font-weight image-rendering letter-spacing marker-end marker-mid "
    "marker-start mask opacity overflow paint-order shape-rendering stop-color stop-opacity stroke stroke-dasharray "
    "stroke-dashoffset stroke-linecap stroke-linejoin stroke-miterlimit stroke-opacity stroke-width text-anchor "
    "text-rendering vector-effect visibility white-space writing-mode"
)
_ATTRIBUTES = _PROPERTIES | _words(
    "cx cy d dx dy fx fy gradientTransform gradientUnits height id markerHeight markerUnits markerWidth offset orient "
    "patternContentUnits patternTransform patternUnits points preserveAspectRatio r refX refY rotate rx ry "
    "spreadMethod textLength lengthAdjust transform version viewBox width x x1 x2 y y1 y2 clipPathUnits "
    "maskUnits"
)
_URL = re.compile(r"url\(\s*(['\"]?)#([^'\")\s]+)\1\s*\)")
_PICTURE = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/=\s]+")
_FONT = re.compile(r"(?:(italic|oblique|normal)\s+)?(?:(bold|normal|\d{3})\s+)?([\d.]+(?:px|pt))\s+([^;]+)")
_DIGITS = re.compile(r"\d+\.\d{3,}(?:e[-+]?\d+)?")
_EVERYTHING = re.compile(r"\s*\*\s*\{([^{}]*)\}\s*")


class UnsafeSvgError(ValueError):
    """The reason why a drawing cannot stand in a page: a phrase to follow the file's name."""


@dataclass(frozen=True)
class Drawing:
    """A drawing that may stand in a page.

    Attributes:
        markup: the `svg` element.
        width, height: in a page's units, at which its letters have the size that they were drawn for.
    """

    markup: Markup
    width: float
    height: float


def inline_svg(text: str, prefix: str, alt: str) -> Drawing:
    """An svg file's drawing as an element of a page.

    Args:
        text: of the file.
        prefix: put before every id, so that several drawings do not refer to each other's parts.
        alt: what it shows, for readers who do not see it.

    Raises:
        UnsafeSvgError: it is not svg, has no view box, or holds anything but a drawing.
    """
    try:
        return _drawing(_parse(text), prefix, alt)
    except RecursionError as error:
        raise UnsafeSvgError("is nested too deeply") from error


def _drawing(root: ET.Element, prefix: str, alt: str) -> Drawing:
    ids = _unique_ids(root)
    _check_uses(root)
    everything = _take_out_styles(root)
    box = _view_box(root)
    attributes = {name: value for name, value in everything.items() if name not in root.attrib}
    attributes |= {"viewBox": " ".join(f"{number:g}" for number in box), "role": "img", "aria-label": alt}
    scale = 4 / 3 if root.get("width", "").endswith("pt") else 1.0  # a point is 4/3 of a page's unit
    width, height = scale * box[2], scale * box[3]
    attributes |= {"width": f"{width:g}", "height": f"{height:g}", "class": "drawing"}
    inner = "".join(_element(child, prefix, ids) for child in root)
    return Drawing(Markup(f"<svg{_written(attributes)}>{inner}</svg>"), width, height)


def _parse(text: str) -> ET.Element:
    # Entities could repeat themselves to gigabytes; a plain document type, which matplotlib writes, declares none.
    if re.search(r"<!ENTITY|<!DOCTYPE[^>]*\[", text, re.IGNORECASE):
        raise UnsafeSvgError("declares entities")
    try:
        root = ET.fromstring(text)
    except (ET.ParseError, ValueError) as error:
        raise UnsafeSvgError(f"is not well-formed ({error})") from error
    if root.tag != f"{_SVG}svg":
        raise UnsafeSvgError("is not an svg drawing")
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{_SVG}metadata":
                parent.remove(child)
    return root


def _unique_ids(root: ET.Element) -> set[str]:
    """The ids of the drawing; one that is there twice stays where a browser would look for it, at its first element."""
    ids: set[str] = set()
    for element in root.iter():
        name = element.get("id")
        if name is not None and (not name or name in ids or len(name.split()) != 1):
            del element.attrib["id"]
        elif name is not None:
            ids.add(name)
    return ids


def _check_uses(root: ET.Element) -> None:
    """Refuse a `use` of something that holds a `use`: nested, they double to a drawing that never ends."""
    links = (use.get(name, "") for use in root.iter(f"{_SVG}use") for name in (_LINK, "href"))
    targets = {link.strip().removeprefix("#") for link in links}
    for element in root.iter():
        if element.get("id") in targets and next(element.iter(f"{_SVG}use"), None) is not None:
            raise UnsafeSvgError("reuses a part that reuses another")


def _take_out_styles(root: ET.Element) -> dict[str, str]:
    """Remove style sheets; the one rule allowed is for everything, and its properties go to the root."""
    found: dict[str, str] = {}
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{_SVG}style":
                rule = _EVERYTHING.fullmatch(child.text or "")
                if rule is None or len(child):
                    raise UnsafeSvgError("has a style sheet of more than one rule")
                found |= _properties(rule[1])
                parent.remove(child)
    return {name: _references(value, "", set()) for name, value in found.items()}


def _view_box(root: ET.Element) -> list[float]:
    try:
        box = [float(number) for number in re.split(r"[\s,]+", root.get("viewBox", "").strip())]
    except ValueError:
        box = []
    if len(box) != 4 or not (0 < box[2] < 1e5 and 0 < box[3] < 1e5):
        raise UnsafeSvgError("has no view box")
    return box


def _element(element: ET.Element, prefix: str, ids: set[str]) -> str:
    name = str(element.tag).removeprefix(_SVG)
    if name not in _ELEMENTS:
        raise UnsafeSvgError(f"holds an element {name[:40]!r}, which no drawing needs")
    attributes: dict[str, str] = {}
    for key, value in element.attrib.items():
        if key == "style":
            attributes |= {name: _references(text, prefix, ids) for name, text in _properties(value).items()}
        elif key in (_LINK, "href"):
            attributes["href"] = _target(name, value.strip(), prefix, ids)
        elif key == "id":
            attributes["id"] = prefix + value
        elif key in _ATTRIBUTES:
            text = _references(value, prefix, ids)
            attributes.setdefault(key, _shortened(text) if key in ("d", "points", "x", "y") else text)
        elif key != "{http://www.w3.org/XML/1998/namespace}space" and key not in ("class", "type"):
            raise UnsafeSvgError(f"holds an attribute {key[:60]!r}, which no drawing needs")
    inner = "".join(_element(child, prefix, ids) + str(escape(_tail(child, name))) for child in element)
    return f"<{name}{_written(attributes)}>{escape(_text(element, name))}{inner}</{name}>"


def _shortened(coordinates: str) -> str:
    """Five digits a number: a hundredth of a point on a printed page, and a third less to load."""
    return _DIGITS.sub(lambda found: f"{float(found[0]):.5g}", coordinates)


def _text(element: ET.Element, name: str) -> str:
    return element.text or "" if name in ("text", "tspan", "title", "desc") else ""


def _tail(child: ET.Element, parent: str) -> str:
    return child.tail or "" if parent in ("text", "tspan") else ""


def _target(name: str, value: str, prefix: str, ids: set[str]) -> str:
    if name == "image" and _PICTURE.fullmatch(value):
        return "".join(value.split())
    if not value.startswith("#") or value[1:] not in ids:
        raise UnsafeSvgError("refers to something outside the drawing")
    return f"#{prefix}{value[1:]}"


def _references(value: str, prefix: str, ids: set[str]) -> str:
    """A property's value with its references renamed; CSS comments and escapes could hide others, and are refused."""
    if "\\" in value or "/*" in value or "@" in value:
        raise UnsafeSvgError("hides part of a value")
    if any(found[2] not in ids for found in _URL.finditer(value)):
        raise UnsafeSvgError("refers to something outside the drawing")
    if re.search(r"(url|image|image-set|src|attr|var|expression)\s*\(", _URL.sub("", value), re.IGNORECASE):
        raise UnsafeSvgError("refers to something outside the drawing")
    return _URL.sub(lambda found: f"url(#{prefix}{found[2]})", " ".join(value.split()))


def _properties(style: str) -> dict[str, str]:
    """A style attribute's properties, as attributes can hold them too: the page allows no style attributes."""
    found: dict[str, str] = {}
    for part in style.split(";"):
        name, _, value = (piece.strip() for piece in part.partition(":"))
        if name == "font" and (font := _FONT.fullmatch(value)):
            names = ("font-style", "font-weight", "font-size", "font-family")
            found |= {name: text for name, text in zip(names, font.groups(), strict=True) if text}
        elif name in _PROPERTIES:
            found[name] = value
        elif name:
            raise UnsafeSvgError(f"has a style {name[:40]!r}, which no drawing needs")
    return found


def _written(attributes: dict[str, str]) -> str:
    return "".join(f' {name}="{escape(value)}"' for name, value in attributes.items())
