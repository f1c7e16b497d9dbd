"""The page as text: what it says, that it holds together, and that nothing from data becomes markup."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_outline import Outline, colours, contrast, outline
from report_run import DRAWING, GENERAL, HOSTILE, PICTURE, PLOTS, SCRIPT, bare_run, instances, whole_run

import culnig_fast as cf
from culnig_fast.report import limits
from culnig_fast.report.inert import script_json
from culnig_fast.report.limits import shares
from culnig_fast.report.neurons import neuron_data
from culnig_fast.report.page import duration, file_size, p_value, render
from culnig_fast.report.reading import RunFiles, read_run
from culnig_fast.report.writing import write_report


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = whole_run(tmp_path_factory.mktemp("page") / "run")
    return write_report(run, plots=PLOTS).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text: str) -> Outline:
    return outline(text)


def data_of(page: Outline) -> Any:
    (script,) = [e for e in page.all("script") if e.attributes.get("type") == "application/json"]
    return json.loads(script.text)


def test_headings_go_down_one_level_at_a_time(page: Outline) -> None:
    levels = [int(element.tag[1]) for element in page.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    sections = [e.text for e in page.all("h2")]
    assert sections == [
        "Result", "Further tables", "Figures", "Neurons", "A neuron and its samples", "What was run", "Downloads",
    ]  # fmt: skip


def test_ids_are_unique_and_references_lead_somewhere(page: Outline) -> None:
    ids = [e.attributes["id"] for e in page.elements if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    # The heading of a neuron is made when one is chosen.
    made_later = {"neuron-title"}
    for element in page.elements:
        for name in ("aria-labelledby", "aria-controls", "data-get"):
            target = element.attributes.get(name)
            assert target is None or target in {*ids, *made_later}, (element.tag, target)
        href = element.attributes.get("href") or ""
        if href.startswith("#"):
            assert href[1:] in ids, href


def test_landmarks_names_and_captions(page: Outline) -> None:
    assert [len(page.all(tag)) for tag in ("main", "nav", "header", "footer")] == [1, 1, 1, 1]
    first = next(e for e in page.all("a"))
    assert first.attributes["class"] == "skip"
    for table in page.all("table"):
        captions = [e for e in page.all("caption") if e.parents[-1] is table]
        assert len(captions) == 1
        assert captions[0].text.strip()
        assert table.parents[-1].attributes["class"] == "scroll"
        assert table.parents[-1].attributes["tabindex"] == "0"
    assert all(e.attributes.get("scope") in ("row", "col") for e in page.all("th"))
    for control in page.all("select", "input"):
        assert control.inside("label")
    for drawing in page.all("svg"):
        assert drawing.attributes["role"] == "img"
    labels = [drawing.attributes["aria-label"] for drawing in page.all("svg")]
    assert labels == ["Neurons by layer. 3 layers with 13 neurons.", "Scores. 3 layers with 13 neurons."]


def test_texts_from_data_stay_texts(text: str, page: Outline) -> None:
    assert not page.all("img")
    assert len(page.all("script")) == 2  # the data and ours
    for element in page.elements:
        assert not [name for name in element.attributes if name.startswith("on") or name == "style"], element.tag
    assert page.all("h1")[0].text == f"tiny {PICTURE}"
    assert f"Accuracy {PICTURE}" in page.words("caption")
    assert SCRIPT in [e.text for e in page.all("th")]
    assert SCRIPT in [e.text for e in page.all("td")]
    prompts = [row[3] for row in data_of(page)["questions"]]
    assert prompts[0] == f"Question 0?\n{HOSTILE}"
    (data,) = [e.text for e in page.all("script") if e.attributes.get("id") == "data"]
    assert not set("<>&\u2028") & set(data)


def test_json_in_a_script_is_inert_and_comes_back() -> None:
    value = {"a": ["</ScRiPt>", "<!--", "]]>", "\u2028\u2029", "\udc80", "é한", 0.1, None]}
    inert = script_json(value)
    assert not re.search("[<>&\u2028\u2029\ud800-\udfff]", inert)
    assert "é한" in inert
    assert json.loads(inert) == value
    with pytest.raises(ValueError, match="JSON"):
        script_json(float("nan"))


def test_only_our_style_and_script_may_work(text: str, page: Outline) -> None:
    policies = [e for e in page.all("meta") if e.attributes.get("http-equiv") == "Content-Security-Policy"]
    content = str(policies[0].attributes["content"])
    assert content.startswith("default-src 'none'; ")
    assert "unsafe" not in content
    for tag, element in (("style", page.all("style")[0]), ("script", page.all("script")[1])):
        digest = base64.b64encode(hashlib.sha256(element.text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in content
    first_style = text.index("<style")
    assert text.index("Content-Security-Policy") < first_style
    # Nothing is fetched: every address is within the page or holds its own data.
    for element in page.elements:
        for name in ("href", "src", "action", "srcset", "poster", "data"):
            address = element.attributes.get(name)
            assert address is None or address.startswith(("#", "data:")), address
    assert "@import" not in text
    assert "innerHTML" not in page.all("script")[1].text


def test_what_was_run_and_found(page: Outline) -> None:
    texts, rows = page.words("dl"), page.words("tr")
    assert f"name tiny {PICTURE} number format float32 layers 4" in texts
    assert "identification 1,536 country names (CRC) 800" in texts
    assert "blend blend x.jsonl test 1,536 2" in rows
    assert "scoring 1 1 min 2 s" in rows
    assert "evaluation 2 3.0 s" in rows  # of the stage done twice, the last time counts
    assert "ours 1,234 60.25 [58.00, 62.00] p < 0.001 61.00 p = 0.500" in rows
    assert "random 1,234 79.50 ± 0.50 60.50 ± 0.25" in rows
    assert "original – –" in rows
    assert "original, published 64.22" in rows
    assert "all 5 1.00 −2.50" in rows
    keys = [e for e in page.all("li") if e.parents[-1].attributes.get("class") == "keys"]
    assert " ".join(keys[0].text.split()) == "blend −19.75 80.00 → 60.25random 79.50p < 0.001"
    assert " ".join(keys[1].text.split()).endswith("+1.00 60.00 → 61.00random 60.50p = 0.500")


def test_neuron_rows_are_the_sets(page: Outline) -> None:
    data = data_of(page)
    names = [entry["name"] for entry in data["sets"]]
    assert names == ["general", "specific-Mexico", "specific-South_Korea", "lape", "random-2", "random-10"]
    general = data["sets"][0]
    rows = [(data["modules"][m], layer, column) for m, layer, column, _, _ in general["rows"]]
    assert rows == [row[:3] for row in GENERAL]
    assert [row[3] for row in general["rows"]] == pytest.approx([row[3] for row in GENERAL], rel=1e-5)
    assert [row[4] for row in general["rows"][:4]] == [0.25, 0.375, 0.5, None]
    assert data["sets"][2]["country"] == "South Korea"
    module, layer, column, _ = GENERAL[0]
    top, bottom = data["samples"][f"{layer}/{module}/{column}"]
    assert [data["questions"][i][0] for i, _, _ in top] == ["q0", "q1"]
    assert bottom == [[2, -0.5, 0.125]]


def test_downloads_hold_the_files_bytes(page: Outline, tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    found = {e.attributes["aria-label"]: e for e in page.all("a") if "download" in e.attributes}
    assert len(found) == 6
    for part in ("tables", "analysis"):
        for path in (run / part).glob("*.csv"):
            link = found[f"Save {part}/{path.name}"]
            assert link.attributes["download"] == path.name
            head, _, code = str(link.attributes["href"]).partition(",")
            assert head == "data:text/csv;charset=utf-8;base64"
            assert base64.b64decode(code) == path.read_bytes()


def test_same_files_same_bytes(tmp_path: Path) -> None:
    first = write_report(whole_run(tmp_path / "a" / "run"), plots=PLOTS).read_bytes()
    second = write_report(whole_run(tmp_path / "b" / "run"), tmp_path / "b.html", plots=PLOTS).read_bytes()
    assert first == second
    assert str(tmp_path).encode() not in first


def test_what_is_missing_is_left_out_in_a_sentence(tmp_path: Path) -> None:
    page = outline(write_report(bare_run(tmp_path / "run"), plots=PLOTS).read_text())
    sentences = page.missing()
    for words in ("no main table", "no further tables", "no figures", "no neuron sets", "no scores of single samples",
                  "no run.json", "no log.jsonl", "no csv files"):  # fmt: skip
        assert len([s for s in sentences if words in s]) == 1, words
    assert "pip install 'culnig_fast[report]'" in " ".join(sentences)
    assert not page.all("table", "svg", "dl")


def test_without_run_json_the_sets_say_what_they_remember(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    (run / "run.json").unlink()
    metadata = {"model": "demo", "dtype": "float32", "torch": "2.13.0", "device": "cpu"}
    info = {"thresholds": {"mlp_share": 0.02}, "sources": {"neur": {"samples": 77, "metadata": metadata}}}
    value = json.loads((run / "neurons/general.json").read_text())
    value.pop("content")  # of what was written
    (run / "neurons/general.json").write_text(json.dumps({**value, "info": info}))
    page = outline(write_report(run, plots=PLOTS).read_text())
    assert page.all("h1")[0].text == "demo"
    texts = " ".join(page.words("dl"))
    for words in ("identification 77", "MLP pool, share taken 0.02", "torch 2.13.0", "culture-general 120"):
        assert words in texts


def test_a_drawing_that_holds_more_is_left_out_and_named(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    (run / "figures/layers.svg").write_text(DRAWING.replace("</svg>", "<script>window.ran = 3</script></svg>"))
    (run / "figures/odd one.svg").write_text(DRAWING)
    (run / "figures/scores.svg").unlink()
    (run / "analysis/numbers_alone.csv").write_text("name,value\na,1\n")
    page = outline(write_report(run, plots=PLOTS).read_text())
    assert len(page.all("script")) == 2
    assert page.missing() == [
        "figures/layers.svg was left out: it holds an element 'script', which no drawing needs.",
        "The figure is not in the folder; its numbers are below.",
    ]
    titles = [e.text for e in page.all("h3") if e.inside("main")][3:7]
    assert titles == ["Neurons by layer", "Scores", "numbers alone", "odd one"]
    assert "a 1" in page.words("tr")


def test_a_large_run_stays_small(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)

    def drawn(count: int) -> cf.NeuronSet:
        flat = generator.choice(62 * 20_000, count, replace=False)
        return cf.NeuronSet(("mlp.gate_proj",) * count, flat // 20_000, flat % 20_000, generator.random(count))

    sets = {"general": drawn(8_000), **{f"specific-C{i:02}": drawn(4_000) for i in range(16)}, "random-0": drawn(8_000)}
    questions = {f"q{i}": {"prompt": "x" * 3_000, "answer": "A", "group": "G"} for i in range(4_000)}
    given = instances()["neurons"][0]
    neurons = [
        {**given, **neuron._asdict(), "sets": [name], "top": [{"id": f"q{i}", "score": 1.0, "probability": 1.0}],
         "bottom": []}
        for name, chosen in (("general", sets["general"]), ("specific-C00", sets["specific-C00"]))
        for i, neuron in zip(range(1_500), chosen, strict=False)
    ]  # fmt: skip
    csvs, figures = {}, {}
    for i in range(30):
        csvs[f"tables/{i}.csv"] = tmp_path / f"{i}.csv"
        csvs[f"tables/{i}.csv"].write_text("0123456789" * (4_000 + 2_000 * i))
        figures[f"f{i}"] = tmp_path / f"f{i}.svg"
        figures[f"f{i}"].write_text(DRAWING.replace("</svg>", f'<path d="{"M 0 0 " * 20_000}"/></svg>'))
    run = RunFiles(tmp_path, None, sets, (), {}, (), figures, {}, csvs, {"neurons": neurons, "questions": questions})
    text = render(run, {})
    assert len(text.encode()) < 5_000_000
    data = neuron_data(run)
    counts = [len(entry["rows"]) for entry in data["sets"]]
    assert sum(counts) == limits.NEURON_ROWS
    assert counts == [8_000, *[750] * 16, 0]  # the general set first; random neurons get what the others leave
    assert len(data["samples"]) == limits.SAMPLED_NEURONS
    for part in (neurons[:1_500], neurons[1_500:]):  # both sets have their best neurons there
        best = max(part, key=lambda entry: entry["attribute_score"])
        assert f"{best['layer_idx']}/{best['module_name']}/{best['neuron_idx']}" in data["samples"]
    page = outline(text)
    notes = " ".join(e.text for e in page.all("p") if e.attributes.get("class") == "notes")
    assert "17 of 18 sets are cut to their best neurons, specific to C00 to 750 of 4,000" in notes
    known = {(entry["layer_idx"], entry["neuron_idx"]) for entry in neurons}  # the two sets may share some
    assert f"the samples of {limits.SAMPLED_NEURONS} of {len(known):,} neurons" in notes
    links = [e for e in page.all("a") if "download" in e.attributes]
    assert 0 < len(links) < 30
    assert page.elements[0].tag == "html"
    assert "too large for this page" in text
    assert 0 < len(page.all("svg")) < 30
    assert "the figures before it fill the page" in text


def test_shares_of_a_limit() -> None:
    assert shares([5, 100, 0, 7], 1_000) == [5, 100, 0, 7]
    assert shares([5, 100, 90, 7], 100) == [5, 44, 44, 7]
    assert shares([3, 3], 0) == [0, 0]
    assert shares([], 9) == []
    generator = np.random.default_rng(1)
    for _ in range(50):
        sizes, limit = generator.integers(0, 40, 6).tolist(), int(generator.integers(0, 150))
        given = shares(sizes, limit)
        assert sum(given) <= limit
        assert all(0 <= got <= size for got, size in zip(given, sizes, strict=True))
        cut = [got for got, size in zip(given, sizes, strict=True) if got < size]
        assert not cut or min(cut) >= max(given) - 1
        assert not cut or sum(given) > limit - len(cut) - 1


@pytest.mark.parametrize("dark", [False, True])
def test_texts_stand_out(text: str, dark: bool) -> None:
    named = colours(text, dark)
    assert len(named) == 8
    for ink in ("text", "muted", "accent"):
        for paper in ("page", "raised", "mark"):
            assert contrast(named[ink], named[paper]) >= 4.5, (ink, paper)
    for paper in ("page", "raised"):
        assert contrast(named["strong-rule"], named[paper]) >= 3, paper  # edges of controls
    assert contrast((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)) == pytest.approx(21)


def test_both_dark_pages_are_the_same(text: str) -> None:
    system = text[text.index("(prefers-color-scheme: dark)") :]
    chosen = text[text.index(':root[data-theme="dark"]') :]
    blocks = [re.findall(r"--[a-z-]+: #[0-9a-f]{6};", block[: block.index("}")]) for block in (system, chosen)]
    assert blocks[0] == blocks[1]
    assert len(blocks[0]) == 8


def test_figures_of_speech() -> None:
    assert [p_value(p) for p in (0.0001, 0.02, 1.0)] == ["p < 0.001", "p = 0.020", "p = 1.000"]
    assert [duration(s) for s in (0.04, 59.9, 61.5, 7384)] == ["0.0 s", "59.9 s", "1 min 2 s", "2 h 3 min"]
    assert [file_size(n) for n in (12, 9_999, 123_456)] == ["12 bytes", "9,999 bytes", "123 kB"]


def test_reading_passes_over_what_it_does_not_know(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    (run / "tables/other.csv").write_text("a,b\n1,2\n")
    files = read_run(run)
    assert [table.name for table in files.tables] == ["main", "enhanced", "countries-blend", "published"]
    assert "tables/other.csv" in files.csvs
    assert dict(files.stages) == {"scores/neur": 61.5, "results/a/blend": 1.0, "results/b/blend": 2.0}
