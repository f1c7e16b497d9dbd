"""What a run looks at: the numbers of its csv files against plain recomputation from its other files, and its page."""

from __future__ import annotations

import html
import json
from pathlib import Path

import pytest
from small_run import config

import culnig_fast as cf
from culnig_fast.analysis.catalogue import PLOTS
from culnig_fast.analysis.frames import load_frame
from culnig_fast.errors import CulnigError
from culnig_fast.pipeline.run import run, seconds_spent
from culnig_fast.pipeline.workbench import Workbench
from culnig_fast.report.writing import write_report

KIN = [["Iran", "Azerbaijan"], ["US", "UK"]]


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("looked")
    wanted = {"resamples": 3, "summed": True, "kinship_share": 0.02, "shown": 2, "samples": 2, "kin": KIN}
    run(config(folder, analyses=wanted), progress=False)
    return folder / "out"


def test_every_analysis_has_its_csv_and_every_figure_is_drawn(looked_at: Path) -> None:
    names = {path.stem for path in (looked_at / "analysis").glob("*.csv")}
    assert names == {*PLOTS, "modules", "score-quantiles", "kin-recovery"}
    assert {path.name for path in (looked_at / "figures").iterdir()} == {
        f"{name}.{ending}" for name in PLOTS for ending in ("svg", "pdf")
    }


@pytest.mark.parametrize(("reduction", "name"), [("max", "instances"), ("sum", "instances-sum")])
def test_shares_of_samples_are_those_of_a_plain_count(looked_at: Path, reduction: str, name: str) -> None:
    """Each sample scored by itself with `attribute`, whose total of one sample is P · s."""
    folder = looked_at.parent
    bench = Workbench(config(folder), progress=False)
    questions = bench.questions("blend", "neur")[::4]
    table = cf.InstanceTable.load(looked_at / "instances" / f"{reduction}.safetensors")
    frame = load_frame(looked_at / "analysis" / f"{name}.csv")
    for question in questions:
        alone = cf.attribute(bench.model, bench.tokenizer, [question], reduction=reduction, progress=False)
        row = table.ids.index(question.id)
        flat = table.neurons.flat(alone.layout)
        expected = alone.totals[0, flat] / alone.probability[0]
        tolerance = 1e-5 * abs(expected).max()
        assert table.scores[row] == pytest.approx(expected, abs=tolerance)
    for place, share in enumerate(frame["positive_share"]):
        positive = sum(1 for score in table.scores[:, place] if score > 0)
        assert share == positive / len(table.ids)
    general = cf.NeuronSet.load(looked_at / "neurons/general.json")
    assert list(table.neurons)[: len(general)] == list(general)


def test_wider_sets_are_what_selection_chooses_and_kinship_is_read_off_their_results(looked_at: Path) -> None:
    tables = [cf.ScoreTable.load(looked_at / "scores" / f"{name}.safetensors") for name in ("neur", "control", "crc")]
    wide = cf.NeuronSet.load(looked_at / "neurons/kinship-Iran.json")
    assert wide == cf.select_specific(*tables, "Iran", share=0.02)
    assert len(wide) > len(cf.NeuronSet.load(looked_at / "neurons/specific-Iran.json"))
    frame = load_frame(looked_at / "analysis/kinship.csv").set_index(["suppressed", "country"])
    results = {
        name: cf.Evaluation.load(looked_at / "results" / name / "blend.jsonl") for name in ("original", "kinship-Iran")
    }
    for country in ("Iran", "Azerbaijan"):
        rows = [i for i, group in enumerate(results["original"].groups) if group == country]
        mean = {name: 100 * sum(result.correct[i] for i in rows) / len(rows) for name, result in results.items()}
        drop = mean["original"] - mean["kinship-Iran"]
        assert frame.loc[("Iran", country), "drop"] == pytest.approx(drop, abs=1e-9)
    assert not (looked_at / "results/kinship-Iran/country_rc.jsonl").exists()


def test_resampled_sets_are_chosen_of_resampled_tables(looked_at: Path) -> None:
    tables = [
        cf.ScoreTable.load(looked_at / "scores" / f"resampled-{name}.safetensors")
        for name in ("neur", "control", "crc")
    ]
    assert all(table.groups == ("0", "1", "2") for table in tables)
    full = {(n.module_name, n.layer_idx, n.neuron_idx) for n in cf.NeuronSet.load(looked_at / "neurons/general.json")}
    rows = [
        cf.ScoreTable(t.totals[1:2], ("1",), t.counts[1:2], t.probability[1:2], t.ids, t.layout, t.metadata)
        for t in tables
    ]
    drawn = {(n.module_name, n.layer_idx, n.neuron_idx) for n in cf.select_general(*rows)}
    frame = load_frame(looked_at / "analysis/stability-resamples.csv")
    assert frame["jaccard"][1] == pytest.approx(len(full & drawn) / len(full | drawn))


def test_facts_and_page(looked_at: Path, tmp_path: Path) -> None:
    facts = json.loads((looked_at / "run.json").read_text())
    assert facts["model"]["name"] == "demo"
    assert facts["samples"]["neur"] == cf.ScoreTable.load(looked_at / "scores/neur.safetensors").n_samples
    assert str(looked_at.parent) not in json.dumps(facts)
    page = write_report(looked_at, tmp_path / "page.html").read_text(encoding="utf-8")
    for plot in PLOTS.values():
        assert plot.title in html.unescape(page)
    logged = [json.loads(line)["seconds"] for line in (looked_at / "log.jsonl").read_text().splitlines()]
    assert seconds_spent(looked_at) == pytest.approx(sum(logged))


def test_bad_options_are_named(tmp_path: Path) -> None:
    for options, message in (
        ({"kin": [["Iran"]]}, "at least two countries"),
        ({"kin": [["Iran", "Atlantis"]]}, "Atlantis"),
        ({"resamples": -1}, "resamples"),
        ({"kinship_share": 2}, "kinship_share"),
        ({"pictures": True}, "pictures"),
    ):
        with pytest.raises(CulnigError, match=message):
            config(tmp_path, analyses=options)
