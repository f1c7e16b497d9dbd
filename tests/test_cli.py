"""The command line on a tiny checkpoint: every subcommand, refusals, exit codes, and a light start."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
from command_line import invoke
from transformers import AutoModelForCausalLM
from wordlevel import make_questions, make_tokenizer

import culnig_fast as cf


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, questions, and score tables made by the command itself."""
    path = tmp_path_factory.mktemp("cli")
    families.build("llama").save_pretrained(path / "model")
    make_tokenizer().save_pretrained(path / "model")
    with (path / "questions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "group", "prompt", "answer"])
        groups = ("Spain", "Mexico", "US")
        for i, question in enumerate(make_questions(9)):
            writer.writerow([question.id, groups[i % 3], question.prompt, question.answer])
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    """Run a command in this process with --json; returns what it printed."""
    code = invoke(*arguments, "--json")
    output = capsys.readouterr()
    assert code == 0, output.err
    return json.loads(output.out)


def scores(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> Path:
    path = folder / f"{name}.safetensors"
    if not path.exists():
        data = ("--task", "plain", "--data", folder / "questions.csv", "--split", "all")
        kind = ("--control", "--no-clamp-control") if name == "control" else ()
        run(capsys, "score", folder / "model", *data, *kind, "--out", path, "--quiet", "--device", "cpu")
    return path


def test_the_whole_chain(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    neur, control, crc = (scores(folder, name, capsys) for name in ("neur", "control", "crc"))
    table = cf.ScoreTable.load(neur)
    assert table.n_samples == 9
    assert table.metadata["task"] == "plain"
    tables = (neur, "--control", control, "--surface", crc)
    shares = ("--surface-share", 0)
    general = run(capsys, "select", "general", *tables, "--mlp-share", 0.1, *shares, "--out", folder / "general.json")
    assert general["neurons"] == 9
    chosen = cf.NeuronSet.load(folder / "general.json")
    subtracted = cf.ScoreTable.load(control)
    assert np.array_equal(subtracted.totals, table.totals)
    assert chosen == cf.select_general(table, subtracted, table, mlp_share=0.1, surface_share=0)
    run(capsys, "select", "specific", *tables, "--country", "US", *shares, "--share", 0.1,
        "--min-z", -10, "--out", folder / "usa.json")  # fmt: skip
    assert len(cf.NeuronSet.load(folder / "usa.json")) == 22
    run(capsys, "select", "random", neur, "--like", folder / "general.json", "--out", folder / "random.json")
    assert len(cf.NeuronSet.load(folder / "random.json")) == 9
    data = (
        "--task",
        "plain",
        "--data",
        folder / "questions.csv",
        "--split",
        "all",
        "--quiet",
        "--device",
        "cpu",
    )
    run(capsys, "evaluate", folder / "model", *data, "--out", folder / "plain.jsonl")
    suppressed = run(capsys, "evaluate", folder / "model", *data, "--neurons", folder / "general.json",
                     "--against", folder / "plain.jsonl", "--out", folder / "suppressed.jsonl")  # fmt: skip
    assert suppressed["questions"] == 9
    assert suppressed["neurons"] == 9
    assert set(suppressed["groups"]) == {"Spain", "Mexico", "US"}
    assert set(suppressed["against"]) == {"difference", "low", "high", "p_value"}
    run(capsys, "bake", folder / "model", "--neurons", folder / "general.json", "--out", folder / "baked")
    reloaded = AutoModelForCausalLM.from_pretrained(folder / "baked")
    for neuron in chosen:
        module = reloaded.model.layers[neuron.layer_idx].get_submodule(neuron.module_name)
        assert not module.weight[neuron.neuron_idx].any()
    baked = run(capsys, "evaluate", folder / "baked", *data)
    assert baked["accuracy"] == suppressed["accuracy"]


def test_a_baked_checkpoint_is_an_ordinary_one(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What another program finds: the original's files and configuration, and a processor's where there is one."""
    shutil.copytree(folder / "model", tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").write_text('{"image_size": 28}', encoding="utf-8")
    cf.NeuronSet(("mlp.gate_proj",), [0], [3], [0.0]).save(tmp_path / "set.json")
    run(capsys, "bake", tmp_path / "model", "--neurons", tmp_path / "set.json", "--out", tmp_path / "baked")
    there, here = ({file.name: file.read_bytes() for file in (tmp_path / n).iterdir()} for n in ("model", "baked"))
    assert here.keys() == there.keys()
    for name in ("config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json"):
        assert here[name] == there[name], name
    assert here["model.safetensors"] != there["model.safetensors"]


def test_all_countries_and_a_sweep_of_thresholds(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    neur, control, crc = (scores(folder, name, capsys) for name in ("neur", "control", "crc"))
    tables = (neur, "--control", control, "--surface", crc)
    loose = ("--share", 0.1, "--surface-share", 0, "--min-z", -10)
    sizes = run(capsys, "select", "specific-all", *tables, "--country", "US", "--country", "Mexico", *loose,
                "--out-dir", tmp_path / "sets")  # fmt: skip
    assert {name: one["neurons"] for name, one in sizes.items()} == {"US": 22, "Mexico": 22}
    run(capsys, "select", "specific", *tables, "--country", "US", *loose, "--out", tmp_path / "one.json")
    one, other = (cf.NeuronSet.load(path) for path in (tmp_path / "one.json", sizes["US"]["out"]))
    assert one == other
    assert invoke("select", "specific-all", *tables, "--country", "US", "--out-dir", tmp_path / "sets") == 1
    assert "exists already" in capsys.readouterr().err

    swept = run(capsys, "select", "general", *tables, "--surface-share", 0, "--sweep", "mlp_share=0.05,0.1",
                "--sweep", "attention_share=0,0.1", "--out", tmp_path / "settings.csv")["general"]  # fmt: skip
    assert [(row["mlp_share"], row["attention_share"], row["neurons"]) for row in swept] == [
        (0.05, 0.0, 4), (0.05, 0.1, 16), (0.1, 0.0, 9), (0.1, 0.1, 21)]  # fmt: skip
    assert swept[0]["jaccard"] == pytest.approx([1, 4 / 16, 4 / 9, 4 / 21])
    with (tmp_path / "settings.csv").open() as file:
        assert [row["neurons"] for row in csv.DictReader(file)] == ["4", "16", "9", "21"]
    assert invoke("select", "general", *tables, "--sweep", "t=1", "--out", tmp_path / "no.csv") == 1
    assert "there is no threshold 't'" in capsys.readouterr().err


def test_tables_that_are_left_out_are_said(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    neur = scores(folder, "neur", capsys)
    table = cf.ScoreTable.load(neur)
    found = run(capsys, "select", "general", neur, "--mlp-share", 0.1, "--out", tmp_path / "general.json")
    assert found["info"]["sources"]["control"] is found["info"]["sources"]["surface"] is None
    assert cf.NeuronSet.load(tmp_path / "general.json") == cf.select_general(table, None, None, mlp_share=0.1)
    specific = ("specific", neur, "--country", "US", "--out", tmp_path / "us.json")
    sweep = ("general", neur, "--sweep", "mlp_share=0.1", "--out", tmp_path / "s.csv")
    for command in (specific, ("specific-all", neur, "--country", "US", "--out-dir", tmp_path / "sets"), sweep):
        assert invoke("select", *command) == 0
        printed = capsys.readouterr().out
        assert "no --control: nothing was subtracted; no --surface: nothing was dropped" in printed
    with_crc = (neur, "--surface", scores(folder, "crc", capsys), "--out", tmp_path / "one.json")
    assert invoke("select", "general", *with_crc) == 0
    assert "nothing was dropped" not in capsys.readouterr().out


def test_a_table_given_as_what_it_is_not_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    neur, control = scores(folder, "neur", capsys), scores(folder, "control", capsys)
    for tables, words in (
        ((neur, "--control", neur), "the control scores were not scored as a control set"),
        ((control,), "the neur scores are a control set's"),
        ((neur, "--surface", control), "the surface scores are a control set's"),
    ):
        assert invoke("select", "general", *tables, "--out", tmp_path / "x.json") == 1
        assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("way", [(), ("--stream",)])
def test_only_some_questions_of_each_group(
    way: tuple[str, ...], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ("--task", "plain", "--data", folder / "questions.csv", "--split", "all", "--device", "cpu", "--quiet")
    out = tmp_path / "few.safetensors"
    found = run(capsys, "score", folder / "model", *data, *way, "--limit", 2, "--out", out)
    assert found["groups"] == {"Spain": 2, "Mexico": 2, "US": 2}
    table = cf.ScoreTable.load(out)
    assert table.ids == ("q0", "q1", "q2", "q3", "q4", "q5")
    assert table.metadata["limit"] == 2


def test_info_names_sites(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, "info", folder / "model")
    assert found["layer_class"] == "LlamaDecoderLayer"
    assert found["neurons"] == 320
    assert [site["total"] for site in found["sites"]] == [64, 32, 32, 96, 96, 96]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("score", "nowhere/at/all", "--out", "x.safetensors"), "no checkpoint folder"),
        (("score", "{model}", "--task", "plain", "--data", "no.csv", "--split", "all", "--out", "x.st"), "no.csv"),
        (("score", "{model}", "--task", "nothing", "--out", "x.st"), "unknown task"),
        (("score", "{model}", "--task", "plain", "--data", "{data}", "--split", "neur", "--out", "x.st"), "no split"),
        (("score", "{model}", "--device", "tpu9", "--out", "x.st"), "tpu9"),
        (("score", "{model}", "--dtype", "int3", "--out", "x.st"), "int3"),
        (("score", "{model}", "--task", "plain", "--data", "{data}", "--split", "all", "--site", "mlp.x", "--out",
          "x.st"), "mlp.x"),
        (("score", "{broken}", "--out", "x.st"), "cannot load"),
        (("select", "random", "{data}", "--count", 1, "--out", "x.json"), "questions.csv"),
        (("evaluate", "{model}", "--task", "plain", "--data", "{data}", "--split", "all", "--neurons", "{data}"),
         "not a JSON file"),
        (("info", "{data}"), "cannot load"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_exit_code_1(
    arguments: tuple[object, ...], words: str, folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in (folder / "model").iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    monkeypatch.chdir(tmp_path)
    names = {"model": folder / "model", "data": folder / "questions.csv", "broken": broken}
    given = [argument.format(**names) if isinstance(argument, str) else argument for argument in arguments]
    assert invoke(*given) == 1
    output = capsys.readouterr()
    message = output.err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert words in message
    assert "Traceback" not in output.err
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_an_existing_output_is_refused_before_any_work(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("score", "evaluate"):
        assert invoke(command, "nowhere/at/all", "--out", folder / "questions.csv") == 1
        assert "exists already" in capsys.readouterr().err


OUTPUTS = [
    ("score", "nowhere/at/all"),
    ("evaluate", "nowhere/at/all"),
    ("answer", "nowhere/at/all", "--task", "blend_short"),
    ("ablate", "nowhere/at/all", "--random", 3),
    ("modules", "nowhere/at/all", "--neurons", "no.json"),
    ("baseline", "activations", "nowhere/at/all"),
    ("baseline", "lape", "no.safetensors"),
    ("baseline", "mean-activation", "no.safetensors", "--like", "no.json"),
    ("baseline", "weight-norm", "nowhere/at/all", "--like", "no.json"),
    ("select", "general", "no.safetensors", "--control", "no.safetensors", "--surface", "no.safetensors"),
    ("select", "specific", "no.safetensors", "--control", "no.safetensors", "--surface", "no.safetensors",
     "--country", "US"),
    ("select", "random", "no.safetensors", "--count", 3),
]  # fmt: skip


@pytest.mark.parametrize("arguments", OUTPUTS, ids=lambda arguments: " ".join(map(str, arguments[:2])))
def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    arguments: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """None of what these name is there, so whoever looks at the output last complains of something else."""
    suffix = {"evaluate": ".csv", "answer": ".csv", "ablate": ".csv", "modules": ".csv"}.get(str(arguments[0]), ".x")
    (tmp_path / f"folder{suffix}").mkdir()
    for out, words in ((tmp_path / f"folder{suffix}", "is a folder"), (tmp_path / "absent" / f"x{suffix}", "absent")):
        assert invoke(*arguments, "--out", out, "--overwrite") == 1
        assert words in capsys.readouterr().err


def test_results_of_no_known_kind_are_refused_before_any_work(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("evaluate", "answer"):
        assert invoke(command, "nowhere/at/all", "--out", "x.txt") == 1
        assert "must end in .csv or .jsonl" in capsys.readouterr().err


def test_messages_say_how_the_command_line_says_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "q.csv").write_text("id,group,prompt,answer\n1,x,A B,no such word\n", encoding="utf-8")
    data = ("--task", "plain", "--data", tmp_path / "q.csv", "--split", "all", "--device", "cpu")
    assert invoke("evaluate", folder / "model", *data) == 1
    assert "(--skip-unusable, in Python on_unusable='skip')" in capsys.readouterr().err
    assert invoke("evaluate", folder / "model", *data, "--out", folder / "questions.csv") == 1
    assert "(--overwrite, in Python overwrite=True)" in capsys.readouterr().err


def test_a_model_with_nan_weights_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = families.build("llama")
    model.model.layers[0].mlp.up_proj.weight.data[3, 3] = float("nan")
    model.save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    data = (
        "--task",
        "plain",
        "--data",
        folder / "questions.csv",
        "--split",
        "all",
        "--quiet",
        "--device",
        "cpu",
    )
    assert invoke("score", tmp_path / "model", *data, "--out", tmp_path / "x.safetensors") == 1
    assert "NaN" in capsys.readouterr().err
    assert not (tmp_path / "x.safetensors").exists()


def test_prompts_in_plain_text_are_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ("--task", "plain", "--data", folder / "questions.csv", "--split", "all", "--device", "cpu")
    assert invoke("evaluate", folder / "model", *data) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "chat template" in line]
    assert len(said) == 1
    assert said[0].startswith("warning: this tokenizer has no chat template, so its model sees")
    assert invoke("evaluate", folder / "model", *data, "--quiet") == 0
    assert "chat template" not in capsys.readouterr().err


def test_help_comes_up_without_torch() -> None:
    code = (
        "import sys, runpy\nsys.argv = ['culnig-fast', 'score', '--help']\n"
        "try:\n    runpy.run_module('culnig_fast.cli', run_name='__main__')\n"
        "except SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'transformers', 'numpy', 'pandas') if name in sys.modules])\n"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Example: culnig-fast score" in done.stdout
    assert done.stdout.rstrip().endswith("[]")
    assert time.perf_counter() - start < 30, "help took half a minute; something heavy is imported"


@pytest.mark.parametrize("name", ["culnig_fast", "culnig_fast.cli"])
def test_the_package_runs_as_a_program(name: str) -> None:
    done = subprocess.run([sys.executable, "-m", name, "--help"], capture_output=True, text=True, check=True)
    assert "Find the neurons behind" in done.stdout


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, culnig_fast; print('torch' in sys.modules, sorted(culnig_fast.__all__)[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "ActivationTable"]
    for name in cf.__all__:
        assert getattr(cf, name) is not None
    with pytest.raises(AttributeError):
        cf.nothing  # noqa: B018
