"""Figures: the same bytes from the csv, nothing cut or covered, no trace left in matplotlib."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="figures need the extra [report]")

from matplotlib.figure import Figure
from matplotlib.text import Text

from culnig_fast.analysis.catalogue import PLOTS
from culnig_fast.analysis.frames import load_frame, need, save_frame
from culnig_fast.analysis.plots.overlap import _short
from culnig_fast.analysis.plots.scores import _power
from culnig_fast.analysis.style import FILLS, save_figure, styled
from culnig_fast.errors import CulnigError
from culnig_fast.tasks.countries import COUNTRIES
from tests.analysis.made import frames

TASKS = ("blend", "culturalbench", "normad", "worldvaluesbench", "country_rc", "commonsenseqa", "qnli", "mrpc")


@pytest.fixture(scope="module")
def small() -> dict[str, Any]:
    return frames(4, ("UK", "South_Korea", "Iran"), ("blend", "pick"))


@pytest.fixture(scope="module")
def large() -> dict[str, Any]:
    """As many layers as the largest of the paper's models, every country and task."""
    return frames(62, COUNTRIES, TASKS, times=4)


@pytest.fixture(scope="module", params=["small", "large"])
def either(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module", params=list(PLOTS))
def picture(request: pytest.FixtureRequest, either: dict[str, Any]) -> tuple[Figure, Any]:
    """A figure, drawn, and its renderer."""
    figure = PLOTS[request.param].draw(either[request.param])
    return figure, drawn(figure)


def drawn(figure: Figure) -> Any:
    with styled():
        figure.canvas.draw()
        return figure.canvas.get_renderer()  # type: ignore[attr-defined]


def visible_texts(figure: Figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]


def test_nothing_is_cut_or_covered(picture: tuple[Figure, Any]) -> None:
    figure, renderer = picture
    page = figure.bbox
    texts = visible_texts(figure)
    assert texts
    for text in texts:
        box = text.get_window_extent(renderer)
        inside = page.x0 <= box.x0 and page.y0 <= box.y0 and box.x1 <= page.x1 and box.y1 <= page.y1
        # An axis keeps ticks just beyond its view; they are not drawn.
        on_axis = any(text in [*a.get_xticklabels(), *a.get_yticklabels()] for a in figure.axes)
        assert inside or (on_axis and not _in_view(figure, text)), f"{text.get_text()!r} leaves the page"
    for legend in figure.legends:
        box = legend.get_window_extent(renderer)
        for axes in figure.axes:
            assert not box.overlaps(axes.get_window_extent(renderer)), "a legend covers data"


def test_names_on_an_axis_do_not_run_into_each_other(picture: tuple[Figure, Any]) -> None:
    figure, renderer = picture
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            labels = [t for t in axis.get_ticklabels() if t.get_visible() and t.get_text() and _in_view(figure, t)]
            if any(t.get_rotation() % 90 for t in labels):
                continue  # slanted names overlap as boxes, not as letters
            boxes = [t.get_window_extent(renderer) for t in labels]
            for a, b in itertools.pairwise(boxes):
                shared = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
                assert min(shared) <= 0.5, [t.get_text() for t in labels]


def test_numbers_stay_in_their_cells(picture: tuple[Figure, Any]) -> None:
    figure, renderer = picture
    for axes in figure.axes:
        cell = axes.transData.transform([(0, 0), (1, 1)])
        width, height = abs(cell[1] - cell[0])
        for text in axes.texts:
            box = text.get_window_extent(renderer)
            assert box.width <= width and box.height <= height, f"{text.get_text()!r} leaves its cell"


@pytest.mark.parametrize("name", list(PLOTS))
def test_same_csv_same_bytes(name: str, small: dict[str, Any], tmp_path: Path) -> None:
    frame = small[name]
    save_frame(frame, tmp_path / "a.csv")
    again = load_frame(tmp_path / "a.csv")
    assert again.to_csv() == frame.to_csv()
    assert PLOTS[name].describe(again) == PLOTS[name].describe(frame)
    svg, pdf = save_figure(PLOTS[name].draw(frame), tmp_path, "a")
    svg_again, pdf_again = save_figure(PLOTS[name].draw(again), tmp_path, "b")
    assert svg.read_bytes() == svg_again.read_bytes()
    assert pdf.read_bytes() == pdf_again.read_bytes()
    assert b"<image" not in svg.read_bytes() and b"/Subtype /Image" not in pdf.read_bytes()  # vectors all through
    assert b"<dc:date>" not in svg.read_bytes() and b"/CreationDate" not in pdf.read_bytes()
    assert b"/FontFile2" in pdf.read_bytes() and b"<text" not in svg.read_bytes()  # fonts inside
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.pdf", "a.svg", "b.pdf", "b.svg"]


@pytest.mark.parametrize("name", list(PLOTS))
def test_words_say_what_is_seen(name: str, either: dict[str, Any]) -> None:
    plot = PLOTS[name]
    words = plot.describe(either[name])
    assert plot.name == name and plot.title and plot.caption.endswith(".")
    assert words.endswith(".") and "nan" not in words and "_" not in words
    assert len(words) < 700


@pytest.mark.parametrize("name", list(PLOTS))
def test_another_csv_is_refused(name: str, small: dict[str, Any]) -> None:
    frame = small[name]
    for use in (PLOTS[name].draw, PLOTS[name].describe):
        with pytest.raises(CulnigError, match="has no rows, so there is nothing to draw"):
            use(frame.iloc[:0])
        with pytest.raises(CulnigError, match="has no column"):
            use(frame.rename(columns=lambda column: f"x{column}"))


def test_numbers_said_are_those_of_the_frame(small: dict[str, Any]) -> None:
    frame = small["kinship"]
    own = frame[frame["own"]]
    words = PLOTS["kinship"].describe(frame)
    assert f"costs that country {own['drop'].mean():.1f} points" in words
    assert f"For {(own['rank'] == 1).sum()} of 3 sets" in words
    overlap = small["overlap"]
    pairs = overlap[overlap["a"] != overlap["b"]]
    assert f"{pairs['jaccard'].mean():.3f} on average" in PLOTS["overlap"].describe(overlap)


def test_bars_are_as_high_as_the_numbers(small: dict[str, Any]) -> None:
    frame = small["parts"]
    heights = [bar.get_height() for bar in PLOTS["parts"].draw(frame).axes[0].patches]
    assert heights == pytest.approx(frame["lost"].tolist())
    layers = small["layers"]
    panels = PLOTS["layers"].draw(layers).axes
    for axes, module in zip(panels, ("mlp.gate_proj", "self_attn.q_proj"), strict=False):
        own = layers[(layers["set"] == "general") & (layers["module"] == module)]
        assert [bar.get_height() for bar in axes.patches] == pytest.approx(own["neurons"].tolist())


def test_a_grey_print_tells_bars_apart() -> None:
    def grey(colour: str) -> float:
        red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        return 0.299 * red + 0.587 * green + 0.114 * blue

    shades = sorted(grey(colour) for colour, _ in FILLS)
    assert min(b - a for a, b in itertools.pairwise(shades)) > 0.1
    assert len({hatch for _, hatch in FILLS}) == len(FILLS)


def test_drawing_leaves_matplotlib_as_it_was(small: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.rcParams["font.size"] = 31.0
    try:
        before = dict(matplotlib.rcParams)
        figure = PLOTS["instances"].draw(small["instances"])
        assert dict(matplotlib.rcParams) == before
        assert max(text.get_fontsize() for text in visible_texts(figure)) < 10  # nor does the user's size matter
    finally:
        matplotlib.rcdefaults()
    assert "pyplot" not in {name.rpartition(".")[2] for name in _modules_after("catalogue.PLOTS['kin']")}


def test_threads_draw_the_same(small: dict[str, Any], tmp_path: Path) -> None:
    names = ["instances", "kin", "stability-neurons"]

    def work(name: str) -> None:
        save_figure(PLOTS[name].draw(small[name]), tmp_path, f"{name}-thread")

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in names:
        save_figure(PLOTS[name].draw(small[name]), tmp_path, name)
        for ending in ("svg", "pdf"):
            assert (tmp_path / f"{name}.{ending}").read_bytes() == (tmp_path / f"{name}-thread.{ending}").read_bytes()


def test_the_catalogue_imports_neither_matplotlib_nor_torch() -> None:
    loaded = _modules_after("catalogue.PLOTS")
    assert "culnig_fast.analysis.plots.layers" in loaded
    assert not {"matplotlib", "pandas", "torch", "transformers", "scipy"} & loaded


def test_existing_figures_are_kept(small: dict[str, Any], tmp_path: Path) -> None:
    figure = PLOTS["instances"].draw(small["instances"])
    (tmp_path / "a.pdf").write_text("mine")
    with pytest.raises(CulnigError, match="a.pdf exists already"):
        save_figure(figure, tmp_path, "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pdf"]
    save_figure(figure, tmp_path, "a", overwrite=True)
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")


def test_names_from_data_are_written_as_they_are(small: dict[str, Any]) -> None:
    frame = small["kinship"].replace({"UK": "<b>$x_1$ & Co"})
    figure = PLOTS["kinship"].draw(frame)
    drawn(figure)
    assert "<b>$x 1$ & Co" in {text.get_text() for text in visible_texts(figure)}


def test_frames_keep_every_bit(tmp_path: Path) -> None:
    import pandas as pd

    frame = pd.DataFrame({"name": ["NA", "a,b"], "value": [0.1 + 0.2, float("nan")], "n": [1, 2]})
    save_frame(frame, tmp_path / "a.csv")
    again = load_frame(tmp_path / "a.csv")
    pd.testing.assert_frame_equal(again, frame, check_exact=True)
    with pytest.raises(CulnigError, match="exists already"):
        save_frame(frame, tmp_path / "a.csv")
    with pytest.raises(CulnigError, match="cannot read"):
        load_frame(tmp_path / "none.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(CulnigError, match="is not a csv file of an analysis"):
        load_frame(tmp_path / "empty.csv")
    need(frame, ["n"], "x")


def test_short_numbers() -> None:
    assert [_short(v) for v in (0, 0.01, 0.06, 4.23, 9.97, 30.2)] == ["0", "<0.1", "0.1", "4.2", "10", "30"]
    assert [_power(v) for v in (0.0, 1e-7, -0.01, 100.0)] == ["0", "10⁻⁷", "−10⁻²", "10²"]


def _in_view(figure: Figure, text: Text) -> bool:
    """Whether a tick label belongs to a tick that is drawn."""
    for axes in figure.axes:
        for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if text in (tick.label1, tick.label2):
                    return bool(min(low, high) <= tick.get_loc() <= max(low, high))
    return True


def _modules_after(use: str) -> set[str]:
    code = f"import sys; from culnig_fast.analysis import catalogue; {use}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
