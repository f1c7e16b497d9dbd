"""What the published program calls datasets and questions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from culnig_fast.errors import CulnigError
from culnig_fast.scores import ScoreTable

_ID_PARTS: Mapping[str, slice] = {"blend": slice(-1, None), "worldvaluesbench": slice(0, 2)}
"""Parts, between slashes, of our question id that make the published program's id: BLEnD's country/MCQID ends in it, a
survey item's country/question is two of them, those of other benchmarks (item/wording/…) begin with it."""


def dataset_name(table: ScoreTable) -> str:
    """`blend`, `blendcontrol`, `countryrc`, …; CulnigError when the table does not say what it is of."""
    task = table.metadata.get("task")
    if not isinstance(task, str) or not task:
        raise CulnigError("the scores do not say which benchmark they are of; name the dataset")
    return task.replace("_", "") + ("control" if table.metadata.get("control") else "")


def base_id(task: str | None, question_id: str) -> str:
    """The published program's id of a question, one for all its wordings."""
    parts = question_id.split("/")
    return "/".join(parts[_ID_PARTS.get(task or "", slice(0, 1))])


def base_ids(task: str | None, ids: Iterable[str]) -> tuple[str, ...]:
    """Its unique ids, in the order of their first question."""
    return tuple(dict.fromkeys(base_id(task, name) for name in ids))
