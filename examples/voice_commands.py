"""The data of the task examples: voice commands in six languages, with intents and slots, parallel by item.

By default they are made from templates, and the examples fit small models with random weights. With `--data FOLDER` they are
read from xSID's files (`de.valid.conll`, ...; van der Goot et al. 2021, https://github.com/mainlp/xsid), and `--model NAME`
fine-tunes a pretrained model: `python examples/slots.py --model xlm-roberta-base --data xsid/data --items 300`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lightning_tracin import TracInRun
from lightning_tracin.studies.text_data import train_tokenizer

TRAINED = ("de", "en", "it", "nl")  # languages of the train samples
PROBED = (*TRAINED, "da", "id")  # the last two are zero-shot

#: The size of the small models, for the configuration of any BERT-like or decoder model.
SMALL: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}

_TEMPLATES = {
    "alarm/set_alarm": {
        "en": "wake me up {datetime}",
        "de": "wecke mich {datetime}",
        "it": "svegliami {datetime}",
        "nl": "maak me wakker {datetime}",
        "da": "væk mig {datetime}",
        "id": "bangunkan saya {datetime}",
    },
    "weather/find": {
        "en": "will it rain {datetime} in {location} ?",
        "de": "regnet es {datetime} in {location} ?",
        "it": "pioverà {datetime} a {location} ?",
        "nl": "gaat het {datetime} regenen in {location} ?",
        "da": "bliver det regn {datetime} i {location} ?",
        "id": "apakah {datetime} hujan di {location} ?",
    },
    "reminder/set_reminder": {
        "en": "remind me {datetime} to call {person}",
        "de": "erinnere mich {datetime} daran {person} anzurufen",
        "it": "ricordami {datetime} di chiamare {person}",
        "nl": "herinner me {datetime} eraan {person} te bellen",
        "da": "mind mig {datetime} om at ringe til {person}",
        "id": "ingatkan saya {datetime} untuk menelepon {person}",
    },
}
_TIMES = (
    {"en": "today", "de": "heute", "it": "oggi", "nl": "vandaag", "da": "i dag", "id": "hari ini"},
    {"en": "tomorrow", "de": "morgen", "it": "domani", "nl": "morgen", "da": "i morgen", "id": "besok"},
    {"en": "at seven", "de": "um sieben", "it": "alle sette", "nl": "om zeven", "da": "klokken syv", "id": "jam tujuh"},
    {"en": "on monday", "de": "am montag", "it": "lunedì", "nl": "op maandag", "da": "på mandag", "id": "hari senin"},
    {"en": "on sunday", "de": "am sonntag", "it": "domenica", "nl": "op zondag", "da": "på søndag", "id": "hari minggu"},
    {
        "en": "next week",
        "de": "nächste woche",
        "it": "la prossima settimana",
        "nl": "volgende week",
        "da": "næste uge",
        "id": "minggu depan",
    },
    {"en": "on friday", "de": "am freitag", "it": "venerdì", "nl": "op vrijdag", "da": "på fredag", "id": "hari jumat"},
)
_PLACES = ("rome", "new york", "aarhus", "jakarta", "berlin")
_PEOPLE = ("maria", "jan de vries", "budi", "anna rossi", "erik")


def load(folder: str | None, items: int) -> tuple[Dataset, Dataset]:
    """Train samples and probes: `items` commands in each language, of which every fifth is a probe, in no train sample.

    Columns: words, slots (BIO tags of the words), intent, language, item (the same for translations), text.
    """
    rows = [row for language in PROBED for row in (_made(language) if folder is None else _read(Path(folder), language))]
    rows = [{**row, "text": " ".join(row["words"])} for row in rows if row["item"] < items]
    train = [row for row in rows if row["item"] % 5 and row["language"] in TRAINED]
    return Dataset.from_list(train), Dataset.from_list([row for row in rows if row["item"] % 5 == 0])


def _made(language: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    made: set[tuple[str, ...]] = set()  # commands without a place or a person come once
    choices = [*product(_PLACES, _PEOPLE, _TIMES)]
    random.Random(0).shuffle(choices)  # noqa: S311 - an order, not a secret
    for place, name, when in choices:
        said = {"location": place, "person": name, "datetime": when[language]}
        for intent, template in _TEMPLATES.items():
            key = (intent, when["en"], *(said[slot] for slot in ("location", "person") if f"{{{slot}}}" in template["en"]))
            if key in made:
                continue
            made.add(key)
            words: list[str] = []
            slots: list[str] = []
            for word in template[language].split():
                slot = word.strip("{}")
                parts = said[slot].split() if slot in said else [word]
                words += parts
                slots += [f"{'I' if i else 'B'}-{slot}" if slot in said else "O" for i in range(len(parts))]
            rows.append({"words": words, "slots": slots, "intent": intent, "language": language, "item": len(rows)})
    return rows


def _read(folder: Path, language: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for block in (folder / f"{language}.valid.conll").read_text("utf-8").strip().split("\n\n"):
        lines = [line.split("\t") for line in block.splitlines() if not line.startswith("# ")]
        words, slots = [line[1] for line in lines], [line[3] for line in lines]
        rows.append({"words": words, "slots": slots, "intent": lines[0][2], "language": language, "item": len(rows)})
    return rows


def into_english(*parts: Dataset) -> list[Dataset]:
    """The samples in other languages, each with its English translation in a column `english`."""
    made = []
    for part in parts:
        english = {row["item"]: row["text"] for row in part if row["language"] == "en"}
        rows = [row for row in part if row["language"] != "en" and row["item"] in english]
        made.append(Dataset.from_list([{**row, "english": english[row["item"]]} for row in rows]))
    return made


def with_answers(*parts: Dataset) -> list[Dataset]:
    """The samples with a slot: a question for the first one (its name), and the answer's first and last word."""
    made = []
    for part in parts:
        rows = []
        for row in part:
            first = next((i for i, slot in enumerate(row["slots"]) if slot.startswith("B-")), None)
            if first is not None:
                inside = f"I-{row['slots'][first][2:]}"
                after = next((i for i, slot in enumerate(row["slots"]) if i > first and slot != inside), len(row["slots"]))
                rows.append({**row, "question": row["slots"][first][2:], "first": first, "last": after - 1})
        made.append(Dataset.from_list(rows))
    return made


def tokenizer_of(model: str | None, train: Dataset) -> PreTrainedTokenizerBase:
    """A pretrained model's tokenizer, or one trained on the commands."""
    return train_tokenizer(train["text"], 1000) if model is None else AutoTokenizer.from_pretrained(model)


def names_in(column: list[str] | list[list[str]]) -> dict[str, int]:
    """The number of each name in a column of names, or of lists of names."""
    names = {name for entry in column for name in ([entry] if isinstance(entry, str) else entry)}
    return {name: number for number, name in enumerate(sorted(names))}


def loaders(
    train: Dataset, probes: Dataset, encode: Callable[[dict[str, Any]], dict[str, Any]], collate: Callable[[list[Any]], Any]
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Padded batches of encoded samples; the columns that the model does not take are hidden from it."""

    def loader(samples: Dataset) -> DataLoader[Any]:
        encoded = samples.map(encode)
        encoded.set_format(columns=sorted(set(encoded.column_names) - set(samples.column_names)))
        return DataLoader(encoded, batch_size=16, shuffle=samples is train, collate_fn=collate)

    return loader(train), loader(probes)


def report(folder: str) -> None:
    """Print the influence of each train language on each probe language, and where the page is."""
    run = TracInRun.open(folder)
    table = run.reliance(cumulative=True)
    last = table[table["snapshot"] == table["snapshot"].max()]
    print(f"Influence of the train languages (columns) on the probe languages (rows), {last['unit'].iloc[0]}")
    print(last.pivot(index="probe_language", columns="train_language", values="value").round(3).to_string())
    print(f"The page: {run.path / 'results' / 'report.html'}")
