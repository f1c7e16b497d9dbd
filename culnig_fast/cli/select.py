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
from culnig_fast.files import refuse_existing

select_app = typer.Typer(help="Choose neurons from score tables.", no_args_is_help=True)
app.add_typer(select_app, name="select")


@select_app.command(
    "general",
    epilog="Example: culnig-fast select general neur.safetensors --control ctrl.safetensors "
    "--surface crc.safetensors --out general.json",
)
def select_general_command(
    neur: Annotated[Path, typer.Argument(help="Scores on the identification half.")],
    control: Annotated[Path, typer.Option(help="Scores on the control set.")],
    surface: Annotated[Path, typer.Option(help="Scores on CountryRC.")],
    out: Annotated[Path, typer.Option(help="Neuron set to write (.json).")],
    mlp_share: Annotated[float, typer.Option(help="t of the MLP pool.")] = 0.01,
    attention_share: Annotated[float, typer.Option(help="t of the attention pool.")] = 0.002,
    surface_share: Annotated[float, typer.Option(help="r: top share on CountryRC that is dropped.")] = 0.01,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Choose culture-general neurons."""
    from culnig_fast.scores import ScoreTable
    from culnig_fast.selection import select_general

    refuse_existing(out, overwrite)
    scores = ScoreTable.load(neur), ScoreTable.load(control), ScoreTable.load(surface)
    chosen = select_general(*scores, mlp_share=mlp_share, attention_share=attention_share, surface_share=surface_share)
    _save_set(chosen, out, overwrite, as_json)


@select_app.command(
    "specific",
    epilog="Example: culnig-fast select specific neur.safetensors --control ctrl.safetensors "
    "--surface crc.safetensors --country Mexico --out mexico.json",
)
def select_specific_command(
    neur: Annotated[Path, typer.Argument(help="Scores on the identification half.")],
    control: Annotated[Path, typer.Option(help="Scores on the control set.")],
    surface: Annotated[Path, typer.Option(help="Scores on CountryRC.")],
    country: Annotated[str, typer.Option(help="Target country, in any of BLEnD's spellings.")],
    out: Annotated[Path, typer.Option(help="Neuron set to write (.json).")],
    share: Annotated[float, typer.Option(help="t of the pool.")] = 0.003,
    surface_share: Annotated[float, typer.Option(help="r: top share on CountryRC that is dropped.")] = 0.01,
    min_z: Annotated[float, typer.Option(help="Least z-score over the countries.")] = 0.5,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Choose the neurons of one country."""
    from culnig_fast.scores import ScoreTable
    from culnig_fast.selection import select_specific

    refuse_existing(out, overwrite)
    scores = ScoreTable.load(neur), ScoreTable.load(control), ScoreTable.load(surface)
    chosen = select_specific(*scores, country, share=share, surface_share=surface_share, min_z=min_z)
    _save_set(chosen, out, overwrite, as_json)


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
    from culnig_fast.neurons import NeuronSet
    from culnig_fast.scores import ScoreTable
    from culnig_fast.selection import select_random

    refuse_existing(out, overwrite)
    if (count is None) == (like is None):
        raise CulnigError("say how many neurons to draw: give either --count or --like")
    wanted = len(NeuronSet.load(like)) if like is not None else count or 0
    _save_set(select_random(ScoreTable.load(scores).layout, wanted, seed=seed), out, overwrite, as_json)


def _save_set(chosen: Any, out: Path, overwrite: bool, as_json: bool) -> None:
    chosen.save(out, overwrite)
    counts = {name: len(chosen.where([name])) for name in sorted(set(chosen.module_names))}
    detail = ", ".join(f"{count:,} {name}" for name, count in counts.items()) or "none"
    summary = {"out": str(out), "neurons": len(chosen), "modules": counts, "info": chosen.info}
    report(as_json, summary, f"{out}: {len(chosen):,} neurons ({detail})")
