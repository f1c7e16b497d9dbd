"""Drawings: what may stand in the page, what is refused, and that a picture stays the same picture."""

from __future__ import annotations

import re

import pytest
from report_run import DRAWING

from culnig_fast.report.svg import UnsafeSvgError, inline_svg

REFUSED = [
    ("<script>1</script>", "element 'script'"),
    ("<foreignObject><p/></foreignObject>", "element 'foreignObject'"),
    ('<a href="#m1"><path/></a>', "element 'a'"),
    ('<set attributeName="href"/>', "element 'set'"),
    ('<animate attributeName="x"/>', "element 'animate'"),
    ('<html xmlns="http://www.w3.org/1999/xhtml"/>', "element '{http://www.w3.org/1999/xhtml}html'"),
    ('<path onload="1"/>', "attribute 'onload'"),
    ('<path ONCLICK="1"/>', "attribute 'ONCLICK'"),
    ('<path xml:base="http://x/"/>', "attribute"),
    ('<use xlink:href="http://x/#a"/>', "outside"),
    ('<use href="other.svg#a"/>', "outside"),
    ('<use href="#nowhere"/>', "outside"),
    ('<use href="javascript:1"/>', "outside"),
    ('<image href="http://x/a.png"/>', "outside"),
    ('<image href="data:image/svg+xml;base64,AAAA"/>', "outside"),
    ('<image href="data:text/html,x"/>', "outside"),
    ('<path fill="url(http://x/#a)"/>', "outside"),
    ('<path style="fill: url( //x/a#m1 )"/>', "outside"),
    ('<path style="fill: url(#nowhere)"/>', "outside"),
    ('<path style="fill: u\\72l(#m1)"/>', "hides"),
    ('<path style="fill: red/**/"/>', "hides"),
    ('<path style="behavior: none"/>', "style 'behavior'"),
    ('<path style="background-image: none"/>', "style 'background-image'"),
    ("<style>path{fill:red}</style>", "more than one rule"),
    ("<style>@import 'x';</style>", "more than one rule"),
    ("<style>*{fill: url(http://x)}</style>", "outside"),
    ('<g id="u"><use href="#m1"/></g><use href="#u"/>', "reuses"),
    ("<path>", "well-formed"),
]


@pytest.mark.parametrize(("part", "words"), REFUSED)
def test_more_than_a_drawing_is_refused(part: str, words: str) -> None:
    with pytest.raises(UnsafeSvgError, match=re.escape(words)):
        inline_svg(DRAWING.replace("</svg>", f"{part}</svg>"), "f-", "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('<!DOCTYPE svg [<!ENTITY a "b">]><svg xmlns="http://www.w3.org/2000/svg"/>', "entities"),
        ("<html/>", "not an svg"),
        ("", "well-formed"),
        ('<svg xmlns="http://www.w3.org/2000/svg"/>', "no view box"),
        ('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1e9 2"/>', "no view box"),
        ('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9">' + "<g>" * 5_000 + "</g>" * 5_000 + "</svg>",
         "nested too deeply"),
    ],
)  # fmt: skip
def test_other_files_are_refused(text: str, words: str) -> None:
    with pytest.raises(UnsafeSvgError, match=words):
        inline_svg(text, "f-", "")


def test_a_drawing_keeps_its_parts_under_names_of_its_own() -> None:
    drawing = inline_svg(DRAWING, "f7-", 'A "line" & <more>')
    assert (drawing.width, drawing.height) == (320, 160)
    assert re.findall(r'id="([^"]+)"', drawing.markup) == ["f7-c1", "f7-m1", "f7-axes_1"]
    for part in (
        'role="img" aria-label="A &#34;line&#34; &amp; &lt;more&gt;"',
        'viewBox="0 0 240 120"',
        'stroke-linejoin="round" stroke-linecap="butt"',
        '<path d="M 10 10 L 200 90" clip-path="url(#f7-c1)" fill="none" stroke="#0072b2" stroke-width="2">',
        '<use href="#f7-m1" x="20" y="40" stroke="#000000">',
        'font-size="10px" font-family="&#39;DejaVu Sans&#39;, sans-serif" text-anchor="start">0 &lt; 1</text>',
    ):
        assert part in drawing.markup
    assert "style" not in drawing.markup
    assert "example.org" not in drawing.markup


def test_numbers_are_cut_to_five_digits() -> None:
    path = '<path d="M 210.798979 -0.000123456 L 1.5 1.234567e-05" transform="scale(0.0123456789)"/>'
    markup = inline_svg(DRAWING.replace("</svg>", f"{path}</svg>"), "f-", "").markup
    assert '<path d="M 210.8 -0.00012346 L 1.5 1.2346e-05" transform="scale(0.0123456789)">' in markup


def test_an_id_that_is_there_twice_stays_at_its_first_element() -> None:
    twice = DRAWING.replace("</svg>", '<rect id="m1" width="1" height="1"/><g id=" "/></svg>')
    assert inline_svg(twice, "f-", "").markup.count('id="f-m1"') == 1


def test_pictures_of_data_pass() -> None:
    picture = (
        '<image xlink:href="data:image/png;base64,iVBORw0K\nGgo=" width="4" height="4" preserveAspectRatio="none"/>'
    )
    markup = inline_svg(DRAWING.replace("</svg>", f"{picture}</svg>"), "f-", "").markup
    assert 'href="data:image/png;base64,iVBORw0KGgo="' in markup


@pytest.mark.parametrize("fonttype", ["path", "none"])
def test_what_matplotlib_draws_passes(fonttype: str) -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="figures need matplotlib: pip install 'culnig_fast[report]'")
    import io

    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": fonttype, "svg.hashsalt": "x"}):
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots(2, 2).ravel()
        axes[0].bar([0, 1], [1, 2], hatch="//", edgecolor="w", label="bars é")
        axes[0].errorbar([0, 1], [1, 2], [0.1, 0.2], marker="o", ls="--")
        axes[0].legend()
        figure.colorbar(axes[1].imshow([[0.0, 1.0], [1.0, 0.5]]), ax=axes[1])
        axes[1].text(0, 0, r"$\Sigma_q$ 0.5", rotation=45, ha="center", weight="bold", alpha=0.5)
        axes[2].scatter([1, 2, 3], [1, 2, 3], c=[1, 2, 3], marker="^")
        axes[2].fill_between([1, 2], [1, 2], alpha=0.3)
        axes[3].pcolormesh([[1, 2], [3, 4]])
        axes[3].annotate("here", (0, 0), (1, 1), arrowprops={"arrowstyle": "->"})
        file = io.StringIO()
        figure.savefig(file, format="svg")
    drawing = inline_svg(file.getvalue(), "f-", "all kinds")
    assert (drawing.width, drawing.height) == (576, 384)
    assert drawing.markup.count("<path") > 30
