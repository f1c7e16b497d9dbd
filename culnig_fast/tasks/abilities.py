"""The abilities of the embedded model that have nothing to do with culture, one task each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from culnig_fast.errors import CulnigError
from culnig_fast.models import embedded_folder
from culnig_fast.questions import Question
from culnig_fast.tasks.base import Task
from culnig_fast.tasks.plain import Plain


@dataclass(frozen=True)
class Ability(Task):
    """The rows of one group of the embedded model's ability file are `test`; `train` is made anew from its world.

    No prompt is in both.
    """

    rows: Plain

    splits: ClassVar[tuple[str, ...]] = ("test", "train")
    file: ClassVar[str] = "abilities.jsonl"

    @classmethod
    def load(cls, source: str | Path | None = None) -> Ability:
        """Read the group named like the task from a file as `plain` takes it; None means the embedded one.

        Raises:
            CulnigError: the file is broken or has no such group.
        """
        source = embedded_folder("data") / cls.file if source is None else source
        rows = tuple(row for row in Plain.load(source).rows if row.group == cls.name)
        if not rows:
            raise CulnigError(f"{source} has no rows of the group {cls.name}; is it the embedded model's {cls.file}?")
        return cls(Plain(rows))

    def _questions(self, split: str, tokenizer: Any) -> list[Question]:
        return (self._training() if split == "train" else self.rows).questions("all", tokenizer)

    def _training(self) -> Plain:
        from culnig_fast.demo.world import make_world, training_rows

        shown = {row.prompt for row in self.rows.rows}
        rows = training_rows(self.name, make_world(), shown)
        return Plain(tuple(Question(row["id"], row["group"], row["prompt"], row["answer"]) for row in rows))


class Pick(Ability):
    """Which letter stands before a named word."""

    name: ClassVar[str] = "pick"


class Membership(Ability):
    """Is a word in a list."""

    name: ClassVar[str] = "membership"


class Equality(Ability):
    """Are two lists the same."""

    name: ClassVar[str] = "equality"


class MembershipLong(Ability):
    """Is a word in a list twice as long as those that the embedded model knows."""

    name: ClassVar[str] = "membership_long"
    file: ClassVar[str] = "membership_long.jsonl"
