"""The page in headless Chromium, from its file: what readers do with it, and that nothing else happens."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_run import GENERAL, HOSTILE, PICTURE, PLOTS, whole_run

from culnig_fast.report.writing import write_report

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright; the tests' extra [dev] brings it")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; Debian's package is called chromium")

DESKTOP = {"width": 1200, "height": 900}
PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = whole_run(tmp_path_factory.mktemp("browser") / "run")
    write_report(folder, plots=PLOTS)
    return folder


@pytest.fixture
def open_page(browser: Any, run: Path) -> Iterator[Any]:
    """Opens the page as a reader with these settings would; at the end nothing was fetched, said or run."""
    seen: list[str] = []
    contexts = []

    def opened(path: Path = run / "report.html", fragment: str = "", **settings: Any) -> Any:
        context = browser.new_context(**{"viewport": DESKTOP, "reduced_motion": "reduce", **settings})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: seen.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: seen.append(f"error: {error}"))
        page.on("dialog", lambda dialog: seen.append(f"dialog: {dialog.message}"))
        address = path.as_uri()
        allowed = (address, "data:", "blob:")
        page.on("request", lambda r: None if r.url.startswith(allowed) else seen.append(f"request: {r.url}"))
        page.goto(address + fragment)
        return page

    yield opened
    for context in contexts:
        for page in context.pages:
            assert page.evaluate("window.ran") is None
        context.close()
    assert seen == []


def rows(page: Any) -> list[list[str]]:
    """The neuron table as it is shown."""
    found: list[list[str]] = page.eval_on_selector_all(
        "#neuron-rows tr", "found => found.map(row => [...row.children].map(cell => cell.textContent))"
    )
    return found


def heads(page: Any) -> dict[str, str]:
    found: dict[str, str] = page.eval_on_selector_all(
        "#neuron-head th", "found => Object.fromEntries(found.map(h => [h.textContent, h.getAttribute('aria-sort')]))"
    )
    return found


def test_it_opens_quietly_and_shows_something(open_page: Any) -> None:
    page = open_page()
    assert page.title() == f"tiny {PICTURE}: report of a run"
    assert page.locator("h1").inner_text() == f"tiny {PICTURE}"
    assert len(page.screenshot(full_page=True)) > 20_000
    distinct = page.evaluate(
        "() => new Set([...document.querySelectorAll('main *')].map(e => getComputedStyle(e).color)).size"
    )
    assert distinct > 2  # the style works
    fills = page.eval_on_selector_all("svg text, svg path", "e => e.map(x => getComputedStyle(x).stroke)")
    assert "rgb(0, 114, 178)" in fills  # so do a drawing's colours, without style attributes


def test_the_policy_stops_a_script_that_got_in(browser: Any, run: Path, tmp_path: Path) -> None:
    text = (run / "report.html").read_text()
    (tmp_path / "page.html").write_text(text.replace("</main>", "<script>window.ran = 1</script></main>"))
    context = browser.new_context()
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto((tmp_path / "page.html").as_uri())
    assert page.evaluate("window.ran") is None
    assert any("Content Security Policy" in text for text in said)
    context.close()


def test_sorting(open_page: Any) -> None:
    page = open_page()
    assert set(heads(page).values()) == {"none"}
    assert [int(row[1]) for row in rows(page)] == list(range(1, 51))
    score = page.get_by_role("button", name="Score")
    score.click()
    assert heads(page)["Score"] == "descending"
    page.get_by_role("button", name="Neuron", exact=True).click()
    assert heads(page) == {**dict.fromkeys(heads(page), "none"), "Neuron": "ascending"}
    assert [int(row[4]) for row in rows(page)] == sorted(row[2] for row in GENERAL)[:50]
    page.get_by_role("button", name="Neuron", exact=True).press("Enter")
    assert heads(page)["Neuron"] == "descending"
    assert [int(row[4]) for row in rows(page)] == sorted((row[2] for row in GENERAL), reverse=True)[:50]
    share = page.get_by_role("button", name="Positive share")
    for direction, shares in (("descending", ["50.0 %", "37.5 %", "25.0 %"]), ("ascending", None)):
        share.click()
        shown = [row[6] for row in rows(page)]
        assert heads(page)["Positive share"] == direction
        assert shown[:3] == (shares or ["25.0 %", "37.5 %", "50.0 %"])
        assert set(shown[3:]) == {"–"}  # what is missing comes last both ways


def test_pages_of_the_table(open_page: Any) -> None:
    page = open_page()
    assert page.locator("#found").inner_text() == "Rows 1–50 of 120"
    assert page.locator("#previous").is_disabled()
    for _ in range(2):
        page.locator("#next").click()
    assert page.locator("#found").inner_text() == "Rows 101–120 of 120"
    assert [int(row[1]) for row in rows(page)] == list(range(101, 121))
    assert page.locator("#next").is_disabled()
    page.locator("#previous").click()
    assert page.locator("#page-number").inner_text() == "Page 2 of 3"


def test_choosing_and_searching(open_page: Any) -> None:
    page = open_page()

    def expected(wanted: Any) -> list[list[Any]]:
        return [
            [str(layer), module, str(column)] for module, layer, column, _ in GENERAL if wanted(module, layer, column)
        ]

    def shown() -> list[list[str]]:
        assert len(rows(page)) < 50
        return [row[2:5] for row in rows(page)]

    page.select_option("#choose-layer", "2")
    assert shown() == expected(lambda module, layer, column: layer == 2)
    page.select_option("#choose-site", "self_attn.k_proj")
    assert shown() == expected(lambda module, layer, column: layer == 2 and module == "self_attn.k_proj")
    page.select_option("#choose-layer", "")
    page.select_option("#choose-site", "")
    page.fill("#search", "GATE 3")
    assert shown() == expected(lambda module, layer, column: "gate" in module and 3 in (layer, column))
    page.fill("#search", "gate nowhere")
    assert shown() == []
    assert page.locator("#found").inner_text() == "No neuron matches."
    page.fill("#search", "")
    page.select_option("#choose-country", "Mexico")
    assert [row[7] for row in rows(page)] == ["Mexico", "Mexico"]
    page.select_option("#choose-country", "")
    page.select_option("#choose-set", label="specific to Mexico (3)")
    assert [row[2:5] for row in rows(page)] == [
        ["0", "self_attn.k_proj", "0"],
        ["1", "mlp.gate_proj", "7"],
        ["3", "mlp.gate_proj", "5"],
    ]
    page.select_option("#choose-set", "")
    page.fill("#search", "south korea")
    assert [row[:6] for row in rows(page)] == [
        ["specific to South Korea", "1", "1", "self_attn.q_proj", "1", "−0.1250"]
    ]


def test_a_neuron_and_its_samples(open_page: Any) -> None:
    page = open_page()
    assert page.locator("#neuron").is_hidden()
    button = page.locator("#neuron-rows button").first
    button.press("Enter")
    title = page.locator("#neuron-title")
    assert title.inner_text() == "Neuron 0 of self_attn.k_proj, layer 0"
    assert page.evaluate("document.activeElement.id") == "neuron-title"
    text = page.locator("#neuron").inner_text()
    for words in ("positive on 25.0 % of the samples", "Highest scores", "Lowest scores", "P 0.750", "gold B", "q3"):
        assert words in text
    prompts = page.locator("#neuron .prompt").all_text_contents()
    assert prompts == [f"Question 0?\n{HOSTILE}", "Question 1?\n", "Question 3?\n"]
    sets = page.locator("#neuron tbody tr").all_text_contents()
    assert sets == ["culture-general1 of 1200.5000", "specific to Mexico1 of 30.5000"]
    page.get_by_role("button", name="Back to the table").click()
    assert page.evaluate("document.activeElement.textContent") == "0"
    page.locator("#neuron-rows button").nth(10).click()
    assert "The page holds no samples of this neuron." in page.locator("#neuron").inner_text()
    page.go_back()
    page.wait_for_function("document.getElementById('neuron-title').textContent.startsWith('Neuron 0 ')")


def test_an_address_leads_to_a_neuron(open_page: Any) -> None:
    page = open_page(fragment="#neuron=1/mlp.gate_proj/7")
    assert page.locator("#neuron-title").inner_text() == "Neuron 7 of mlp.gate_proj, layer 1"
    assert open_page(fragment="#neuron=1/<img>/7").locator("#neuron").is_hidden()


def test_tabs_by_keyboard(open_page: Any) -> None:
    page = open_page()
    tabs = page.get_by_role("tab")
    assert tabs.all_inner_texts() == ["Doubled", "blend by country", "Published figures"]

    def state() -> tuple[str, list[str], list[str]]:
        chosen = [t.inner_text() for t in tabs.all() if t.get_attribute("aria-selected") == "true"]
        shown = [panel.get_attribute("id") for panel in page.get_by_role("tabpanel").all()]
        return page.evaluate("document.activeElement.textContent"), chosen, shown

    tabs.first.focus()
    for key, name, panel in (
        ("ArrowRight", "blend by country", "table-countries-blend"),
        ("End", "Published figures", "table-published"),
        ("ArrowRight", "Doubled", "table-enhanced"),
        ("ArrowLeft", "Published figures", "table-published"),
        ("Home", "Doubled", "table-enhanced"),
    ):
        page.keyboard.press(key)
        assert state() == (name, [name], [panel])
    assert [tab.get_attribute("tabindex") for tab in tabs.all()] == ["0", "-1", "-1"]
    page.keyboard.press("Tab")  # out of the tabs, into the panel's table
    assert page.evaluate("document.activeElement.closest('[role=tabpanel]').id") == "table-enhanced"
    tabs.nth(1).click()
    assert state()[1:] == (["blend by country"], ["table-countries-blend"])


def test_downloads_are_the_files(open_page: Any, run: Path) -> None:
    page = open_page()
    links = page.locator("#downloads a")
    assert links.count() == 6
    for part, name in (("tables", "main"), ("analysis", "layers")):
        with page.expect_download() as waiting:
            page.get_by_role("link", name=f"Save {part}/{name}.csv").click()
        assert waiting.value.suggested_filename == f"{name}.csv"
        assert waiting.value.path().read_bytes() == (run / part / f"{name}.csv").read_bytes()
    with page.expect_download() as waiting:  # the link beside the table leads to the same bytes
        page.get_by_role("link", name="Download main.csv").click()
    assert waiting.value.path().read_bytes() == (run / "tables/main.csv").read_bytes()


def test_the_rows_shown_can_be_saved(open_page: Any) -> None:
    page = open_page()
    page.select_option("#choose-country", "Mexico")
    with page.expect_download() as waiting:
        page.locator("#save-rows").click()
    saved = list(csv.DictReader(io.StringIO(waiting.value.path().read_text())))
    assert [(row["site"], int(row["layer"]), int(row["column"]), float(row["score"])) for row in saved] == GENERAL[:2]
    assert [row["countries"] for row in saved] == ["Mexico", "Mexico"]


def test_light_and_dark(open_page: Any) -> None:
    def paper(page: Any) -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    light, dark = open_page(color_scheme="light"), open_page(color_scheme="dark")
    assert (paper(light), paper(dark)) == ("rgb(251, 251, 249)", "rgb(20, 24, 28)")
    assert (light.locator("#theme").inner_text(), dark.locator("#theme").inner_text()) == ("Dark page", "Light page")
    for page, other in ((light, "rgb(20, 24, 28)"), (dark, "rgb(251, 251, 249)")):
        before = paper(page)
        page.locator("#theme").click()
        assert paper(page) == other
        page.locator("#theme").click()
        assert paper(page) == before
    # A drawing keeps its white ground: it was drawn for paper.
    card = "getComputedStyle(document.querySelector('.card')).backgroundColor"
    assert dark.evaluate(card) == "rgb(255, 255, 255)"


def test_on_a_phone_tables_scroll_and_the_page_does_not(open_page: Any) -> None:
    page = open_page(viewport=PHONE, fragment="#neuron=0/self_attn.k_proj/0")
    for tab in page.get_by_role("tab").all():
        tab.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    outside = page.eval_on_selector_all(
        "main *",
        "found => found.filter(e => !e.closest('.scroll, .card') && e.getBoundingClientRect().right > innerWidth + 1)"
        ".map(e => e.tagName + '.' + e.className)",
    )
    assert outside == []
    assert page.evaluate("[...document.querySelectorAll('.scroll')].some(e => e.scrollWidth > e.clientWidth)")


def test_the_keyboard_reaches_the_content_first_and_sees_where_it_is(open_page: Any) -> None:
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert page.evaluate("document.activeElement.getBoundingClientRect().top") >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    page.keyboard.press("Tab")
    style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert style == "solid"


def test_without_scripts_everything_but_the_neurons_is_there(open_page: Any, run: Path) -> None:
    page = open_page(java_script_enabled=False)
    assert page.locator(".panel").count() == 3
    assert all(panel.is_visible() for panel in page.locator(".panel").all())
    assert page.locator("noscript >> nth=0").inner_text().startswith("The tables of neurons need JavaScript.")
    with page.expect_download() as waiting:
        page.locator("#downloads a").first.click()
    assert waiting.value.path().read_bytes() == (run / "tables/countries-blend.csv").read_bytes()


def test_in_print_everything_is_there_on_white(open_page: Any) -> None:
    page = open_page(color_scheme="dark")
    page.emulate_media(media="print")
    assert all(panel.is_visible() for panel in page.locator(".panel").all())
    assert page.locator("nav").is_hidden()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert [row[4] for row in rows(page)][:2] == ["0", "7"]
    assert page.locator("#neuron-rows button").first.is_visible()
