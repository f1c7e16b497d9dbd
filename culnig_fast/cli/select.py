"""`select`: neuron sets from score tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from culnig_fast.cli.app import app
from culnig_fast.cli.options import (
    Json,
    Overwrite,
    report,
)
from culnig_fast.errors import CulnigError
from culnig_fast.files import check_output, file_name, refuse_existing

select_app = typer.Typer(help="Choose neurons from score tables.", no_args_is_help=True)
app.add_typer(select_app, name="select")


Neur = Annotated[Path, typer.Argument(help="Scores on the identification half.")]
Control = Annotated[Optional[Path], typer.Option(help="Scores on the control set; left out: nothing is subtracted.")]
Surface = Annotated[Optional[Path], typer.Option(help="Scores on CountryRC; left out: nothing is dropped.")]
Out = Annotated[Path, typer.Option(help="Neuron set to write (.json); with --sweep, the table of settings (.csv).")]
SurfaceShare = Annotated[float, typer.Option(help="r: top share on CountryRC that is dropped.")]
Share = Annotated[float, typer.Option(help="t of the pool.")]
MinZ = Annotated[float, typer.Option(help="Least z-score over the countries.")]
SweepOption = Annotated[
    Optional[list[str]],
    typer.Option(
        "--sweep", metavar="NAME=V,V…", help="Try these values of a threshold, repeatable; every combination is a row."
    ),
]


@select_app.command(
    "general",
    epilog="Example: culnig-fast select general neur.safetensors --control ctrl.safetensors "
    "--surface crc.safetensors --out general.json; or, to see how much the choice hangs on the thresholds, "
    "--sweep mlp_share=0.005,0.01,0.02 --sweep surface_share=0.005,0.01 --out settings.csv",
)
def select_general_command(
    neur: Neur,
    out: Out,
    control: Control = None,
    surface: Surface = None,
    mlp_share: Annotated[float, typer.Option(help="t of the MLP pool.")] = 0.01,
    attention_share: Annotated[float, typer.Option(help="t of the attention pool.")] = 0.002,
    surface_share: SurfaceShare = 0.01,
    sweep: SweepOption = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Choose culture-general neurons."""
    from culnig_fast.selection.rules import select_general
    from culnig_fast.selection.sweep import sweep_general

    check_output(out, overwrite)
    shares = {"mlp_share": mlp_share, "attention_share": attention_share}
    thresholds: dict[str, Any] = {**shares, "surface_share": surface_share}
    if sweep:
        values = _values(sweep, thresholds)
        swept = sweep_general(*_tables(neur, control, surface), **values)
        _save_sweeps({"general": swept}, out, overwrite, as_json, _left_out(control, surface))
        return
    chosen = select_general(*_tables(neur, control, surface), **thresholds)
    _save_set(chosen, out, overwrite, as_json, _left_out(control, surface))


@select_app.command(
    "specific",
    epilog="Example: culnig-fast select specific neur.safetensors --control ctrl.safetensors "
    "--surface crc.safetensors --country Mexico --out mexico.json",
)
def select_specific_command(
    neur: Neur,
    country: Annotated[str, typer.Option(help="Target country, in any of BLEnD's spellings.")],
    out: Out,
    control: Control = None,
    surface: Surface = None,
    share: Share = 0.003,
    surface_share: SurfaceShare = 0.01,
    min_z: MinZ = 0.5,
    sweep: SweepOption = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Choose the neurons of one country."""
    from culnig_fast.selection.rules import select_specific
    from culnig_fast.selection.sweep import sweep_specific

    check_output(out, overwrite)
    thresholds: dict[str, Any] = {"share": share, "surface_share": surface_share, "min_z": min_z}
    if sweep:
        values = _values(sweep, thresholds)
        found = sweep_specific(*_tables(neur, control, surface), (country,), **values)
        _save_sweeps(found, out, overwrite, as_json, _left_out(control, surface))
        return
    chosen = select_specific(*_tables(neur, control, surface), country, **thresholds)
    _save_set(chosen, out, overwrite, as_json, _left_out(control, surface))


@select_app.command(
    "specific-all",
    epilog="Example: culnig-fast select specific-all neur.safetensors --control ctrl.safetensors "
    "--surface crc.safetensors --out-dir specific",
)
def select_specific_all_command(
    neur: Neur,
    out_dir: Annotated[Path, typer.Option(help="Folder for a neuron set a country; made if it is not there.")],
    control: Control = None,
    surface: Surface = None,
    country: Annotated[
        Optional[list[str]], typer.Option(help="Target country, repeatable; left out: the method's eight.")
    ] = None,
    share: Share = 0.003,
    surface_share: SurfaceShare = 0.01,
    min_z: MinZ = 0.5,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Choose the neurons of each country, in one sweep over the tables."""
    from culnig_fast.selection.rules import select_specific_all
    from culnig_fast.tasks.countries import TARGET_COUNTRIES

    found = select_specific_all(
        *_tables(neur, control, surface),
        tuple(country or TARGET_COUNTRIES),
        share=share,
        surface_share=surface_share,
        min_z=min_z,
    )
    paths = {name: out_dir / f"{file_name(name.lower().replace(' ', '_'))}.json" for name in found}
    if len(set(paths.values())) != len(paths):
        raise CulnigError(f"two of the countries {', '.join(paths)} would be one file; select them one by one")
    for path in paths.values():
        refuse_existing(path, overwrite)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CulnigError(f"cannot make folder {out_dir} ({error.strerror}); choose another --out-dir") from error
    for name, chosen in found.items():
        chosen.save(paths[name], overwrite)
    sizes = {name: {"out": str(paths[name]), "neurons": len(chosen)} for name, chosen in found.items()}
    note = _left_out(control, surface)
    report(as_json, sizes, "\n".join(f"{one['out']}: {one['neurons']:,} neurons{note}" for one in sizes.values()))


@select_app.command(
    "random",
    epilog="Example: culnig-fast select random neur.safetensors --like general.json --out random.json",
)
def select_random_command(
    scores: Annotated[Path, typer.Argument(help="Any score table of the model.")],
    out: Annotated[Path, typer.Option(help="Neuron set to write (.json).")],
    count: Annotated[Optional[int], typer.Option(min=0, help="How many neurons.")] = None,
    like: Annotated[Optional[Path], typer.Option(help="As many as in this set.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Draw as many neurons at random, for a baseline."""
    from culnig_fast.neuron_sets import NeuronSet
    from culnig_fast.scores import ScoreTable
    from culnig_fast.selection.rules import select_random

    check_output(out, overwrite)
    if (count is None) == (like is None):
        raise CulnigError("say how many neurons to draw: give either --count or --like")
    wanted = len(NeuronSet.load(like)) if like is not None else count or 0
    _save_set(select_random(ScoreTable.load(scores).layout, wanted, seed=seed), out, overwrite, as_json)


def _save_set(chosen: Any, out: Path, overwrite: bool, as_json: bool, note: str = "") -> None:
    chosen.save(out, overwrite)
    counts = {name: len(chosen.where([name])) for name in sorted(set(chosen.module_names))}
    detail = ", ".join(f"{count:,} {name}" for name, count in counts.items()) or "none"
    summary = {"out": str(out), "neurons": len(chosen), "modules": counts, "info": chosen.info}
    report(as_json, summary, f"{out}: {len(chosen):,} neurons ({detail}){note}")


def _tables(neur: Path, control: Path | None, surface: Path | None) -> tuple[Any, Any, Any]:
    """The tables; None for one that was not given."""
    from culnig_fast.scores import ScoreTable

    less, dropped = (None if path is None else ScoreTable.load(path) for path in (control, surface))
    return ScoreTable.load(neur), less, dropped


def _left_out(control: Path | None, surface: Path | None) -> str:
    """What the result says of tables that were not given; a set's `info` names its sources too."""
    said = ["no --control: nothing was subtracted"] if control is None else []
    said += ["no --surface: nothing was dropped"] if surface is None else []
    return "".join(f"; {one}" for one in said)


def _values(sweep: list[str], thresholds: dict[str, float]) -> dict[str, Any]:
    """The values to try of each threshold: those of --sweep, or the one option."""
    values = {name: [value] for name, value in thresholds.items()}
    for text in sweep:
        name, _, listed = text.partition("=")
        if name not in values:
            raise CulnigError(f"--sweep {text!r}: there is no threshold {name!r}; choose from {', '.join(values)}")
        try:
            values[name] = [float(value) for value in listed.split(",")]
        except ValueError:
            raise CulnigError(f"--sweep {text!r}: give numbers, as in {name}=0.005,0.01") from None
    return values


def _save_sweeps(sweeps: Any, out: Path, overwrite: bool, as_json: bool, note: str) -> None:
    from culnig_fast.files import write_text
    from culnig_fast.selection.sweep import as_csv

    write_text(out, as_csv(sweeps), overwrite)
    lines = []
    for name, sweep in sweeps.items():
        names = list(sweep.settings[0])
        numbers = [str(i + 1) for i in range(len(sweep.settings))]
        lines.append("  ".join([f"{name:>4s}", *(f"{n:>15s}" for n in names), "neurons  Jaccard with", *numbers]))
        for i, (setting, chosen) in enumerate(zip(sweep.settings, sweep.sets, strict=True)):
            cells = [f"{setting[n]:>15g}" for n in names]
            overlaps = "  ".join(f"{value:.2f}" for value in sweep.jaccard[i])
            lines.append("  ".join([f"{i + 1:>{max(4, len(name))}d}", *cells, f"{len(chosen):>7,}", overlaps]))
    report(
        as_json,
        {name: sweep.rows() for name, sweep in sweeps.items()},
        "\n".join([*lines, f"{out} holds it all{note}"]),
    )
