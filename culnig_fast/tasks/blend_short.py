"""BLEnD short answers: the same everyday questions, answered in a few words in English or the local language."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from culnig_fast.errors import CulnigError
from culnig_fast.files import parse_json
from culnig_fast.questions import Question
from culnig_fast.tasks.answer_text import first_answer, lemmatiser, normalised
from culnig_fast.tasks.base import Task
from culnig_fast.tasks.blend import NEUR_TOPICS, TOPICS_FILE, read_topics
from culnig_fast.tasks.countries import COUNTRIES, country_name
from culnig_fast.tasks.prompts import render
from culnig_fast.tasks.rows import read_rows, require_columns

PROMPTS = ("inst-4", "pers-3")
"""The two wordings that BLEnD's prompts files have for every country."""

SLOT = "{q}"

LANGUAGES = {
    "Algeria": "Arabic",
    "Assam": "Assamese",
    "Azerbaijan": "Azerbaijani",
    "China": "Chinese",
    "Ethiopia": "Amharic",
    "Greece": "Greek",
    "Indonesia": "Indonesian",
    "Iran": "Persian",
    "Mexico": "Spanish",
    "North Korea": "Korean",
    "Northern Nigeria": "Hausa",
    "South Korea": "Korean",
    "Spain": "Spanish",
    "UK": "English",
    "USA": "English",
    "West Java": "Sundanese",
}

_TRANSLATIONS = ("Translation", "G-Translation")


@dataclass(frozen=True)
class ShortItem:
    """One question in one language; `answers` are all that annotators gave, the most frequent first."""

    id: str
    country: str
    language: str
    messages: Mapping[str, str]
    answers: tuple[str, ...]
    half: str | None


@dataclass(frozen=True)
class BlendShort(Task):
    """Questions that annotators could answer, in English and, where another is spoken, in the local language.

    Groups are countries; a question's id is `country/ID/language/prompt`. The answer is generated and counts when,
    normalised, it equals any annotator's answer in either language. Splits neur and test need BLEnD's topics.
    """

    items: tuple[ShortItem, ...]
    unanswered: int = 0
    _accepted: Mapping[str, frozenset[str]] = field(default_factory=dict, repr=False, compare=False)

    name: ClassVar[str] = "blend_short"
    splits: ClassVar[tuple[str, ...]] = ("all", "neur", "test")
    generates: ClassVar[bool] = True
    wordings_each: ClassVar[int] = len(PROMPTS)
    files: ClassVar[Mapping[str, str]] = {
        "prompts": "folder with BLEnD's {country}_prompts.csv",
        "topics": f"{TOPICS_FILE} of BLEnD, for the splits neur and test",
    }

    def __post_init__(self) -> None:
        accepted = {item.id: frozenset(map(normalised, item.answers)) - {""} for item in self.items}
        object.__setattr__(self, "_accepted", accepted)

    @classmethod
    def load(
        cls,
        source: str | Path | None = None,
        prompts: str | Path | None = None,
        topics: str | Path | None = None,
        countries: Iterable[str] = COUNTRIES,
        languages: str = "both",
    ) -> BlendShort:
        """Read annotations, prompts and, where there is one, the topics file.

        Args:
            source: the folder with `{country}_data.json`, also gzipped, or the folder that holds `annotations`.
            prompts: the folder with `{country}_prompts.csv`; None means `prompts` beside or in the source.
            topics: `US_questions.csv`; None means the one beside the source's folder, if it is there.
            countries: which, in any spelling.
            languages: `english`, `local` or `both`.

        Raises:
            CulnigError: no source, a missing file or column, a prompt without its slot, a malformed annotation.
        """
        if source is None:
            raise CulnigError("task blend_short needs BLEnD's data folder with annotations and prompts; name it")
        if languages not in ("english", "local", "both"):
            raise CulnigError(f"unknown languages {languages!r}; choose from english, local, both")
        folder = Path(source)
        root = folder if (folder / "annotations").is_dir() else folder.parent
        annotations = root / "annotations" if root == folder else folder
        wordings = Path(prompts) if prompts is not None else root / "prompts"
        if topics is None and (root / TOPICS_FILE).is_file():
            topics = root / TOPICS_FILE
        half_of = None if topics is None else _halves(topics)
        items: list[ShortItem] = []
        unanswered = 0
        for country in dict.fromkeys(map(country_name, countries)):
            path = _country_file(annotations, country, ("_data.json", "_data.json.gz"))
            entries = _read_annotations(path)
            templates = _read_prompts(_country_file(wordings, country, ("_prompts.csv",)))
            for question_id, entry in entries.items():
                answers = _answers(entry, f"{path}: question {question_id}")
                if not answers:
                    unanswered += 1
                    continue
                half = None if half_of is None else half_of.get(question_id)
                items += _items(country, question_id, entry, templates, answers, half, languages)
        return cls(tuple(items), unanswered)

    def score(self, question_id: str, answer: str, prediction: str) -> float:
        """100 when the prediction's first line equals an annotator's answer, normalised, or by lemmas; else 0."""
        item_id, _, _ = question_id.rpartition("/")
        if item_id not in self._accepted:
            raise CulnigError(f"{question_id!r} is no question of this BLEnD; evaluate the task anew")
        accepted = self._accepted[item_id]
        given = normalised(first_answer(prediction))
        if not given:
            return 0.0
        if given in accepted:
            return 100.0
        lemmas, _ = lemmatiser(item_id.rpartition("/")[2])
        return 0.0 if lemmas is None else 100.0 * (lemmas(given) in {lemmas(text) for text in accepted})

    def notes(self) -> tuple[str, ...]:
        """Questions without an answer, and which languages have a lemmatiser."""
        notes = [f"{self.unanswered:,} questions have no answer on which annotators agreed and were left out"]
        languages = dict.fromkeys(item.language for item in self.items)
        return (*notes, *(lemmatiser(language)[1] for language in languages))

    def _questions(self, split: str, tokenizer: Any) -> list[Question]:
        if split != "all" and all(item.half is None for item in self.items):
            raise CulnigError(f"split {split!r} of {self.name} needs topics; give BLEnD's {TOPICS_FILE}")
        return [
            Question(f"{item.id}/{name}", item.country, render(tokenizer, message, answer_prefix=""), item.answers[0])
            for item in self.items
            if split in ("all", item.half)
            for name, message in item.messages.items()
        ]


def _halves(topics: str | Path) -> dict[str, str]:
    return {name: "neur" if topic in NEUR_TOPICS else "test" for name, topic in read_topics(topics, topics).items()}


def _items(
    country: str,
    question_id: str,
    entry: Mapping[str, Any],
    templates: Mapping[str, tuple[str, str]],
    answers: tuple[str, ...],
    half: str | None,
    languages: str,
) -> Iterable[ShortItem]:
    local = LANGUAGES[country]
    # Where English is spoken, `question` is the wording that annotators saw.
    english = entry["question"] if local == "English" else entry["en_question"]
    texts = {"English": (0, english)} if languages in ("english", "both") or local == "English" else {}
    if local != "English" and languages in ("local", "both"):
        texts[local] = (1, entry["question"])
    for language, (place, question) in texts.items():
        messages = {name: template[place].replace(SLOT, question.strip()) for name, template in templates.items()}
        yield ShortItem(f"{country}/{question_id}/{language}", country, language, messages, answers, half)


def _country_file(folder: Path, country: str, endings: tuple[str, ...]) -> Path:
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        for ending in endings:
            if path.name.endswith(ending) and _is(path.name[: -len(ending)], country):
                return path
    raise CulnigError(f"no {country.replace(' ', '_')}{endings[0]} in {folder}; give BLEnD's folder")


def _is(spelling: str, country: str) -> bool:
    try:
        return country_name(spelling) == country
    except CulnigError:
        return False


def _read_annotations(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
        entries = parse_json(text, "no JSON")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise CulnigError(f"{path} is not a readable file of annotations ({error}); was it cut off?") from error
    if not isinstance(entries, dict) or not entries:
        raise CulnigError(f"{path} is not an object of questions; is it BLEnD's?")
    for name, entry in entries.items():
        kinds = {"question": str, "en_question": str, "annotations": list, "idks": dict}
        given = entry if isinstance(entry, dict) else {}
        lacks = [key for key, kind in kinds.items() if not isinstance(given.get(key), kind)]
        if lacks or not name:
            raise CulnigError(f"{path}: question {name} has no {', '.join(lacks) or 'id'}; is it BLEnD's?")
    return entries


def _answers(entry: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """All answers, most frequent first; none where five did not know, or three found no answer or none fit."""
    try:
        unknown, *none = (int(entry["idks"].get(name, 0)) for name in ("idk", "no-answer", "not-applicable"))
        if unknown >= 5 or sum(none) >= 3:
            return ()
        groups = sorted(entry["annotations"], key=lambda group: -int(group["count"]))
        texts = [str(text).strip() for group in groups for text in (*group["answers"], *group["en_answers"])]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CulnigError(f"{where} has a malformed annotation ({error!r}); was the file edited?") from error
    return tuple(dict.fromkeys(text for text in texts if text))


def _read_prompts(path: Path) -> dict[str, tuple[str, str]]:
    """Prompt id → its English and its local wording; of two rows with one id the first counts."""
    rows = read_rows(path)
    require_columns(rows, ("id", "English", "Translation"), path)
    found: dict[str, tuple[str, str]] = {}
    for row in rows:
        if row["id"] not in PROMPTS or row["id"] in found:
            continue
        local = next((row[name] for name in _TRANSLATIONS if SLOT in row.get(name, "")), None)
        if local is None or SLOT not in row["English"]:
            raise CulnigError(f"{path}: prompt {row['id']} has no wording with {SLOT}; repair the row")
        found[row["id"]] = (row["English"], local)
    missing = [name for name in PROMPTS if name not in found]
    if missing:
        raise CulnigError(f"{path} has no prompt {', '.join(missing)}; is it BLEnD's?")
    return found
