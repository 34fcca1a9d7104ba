"""Does influence name what a model needs? Two whole studies on real text, and the page that shows what they found.

`python -m benchmarks.evidence --data_dir FOLDER` runs what is missing of the studies in `benchmarks/evidence_settings` (some
hundred fits each) and writes docs/evidence.md with its figures. FOLDER holds nusax-senti/ and pawsx-dev/.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from pathlib import Path

from lightning_tracin.cli.main import settings_from
from lightning_tracin.storage.files import as_utf8, write_bytes
from lightning_tracin.studies.page import markdown, write_page
from lightning_tracin.studies.runner import Outcome, run_study
from lightning_tracin.studies.settings import StudySettings

SETTINGS = Path(__file__).parent / "evidence_settings"
STUDIES = ("nusax", "pawsx")
#: Figures that the page shows; the others are in the studies' own folders.
SHOWN = (
    "reliance-shares",
    "reliance-heat_map",
    "reliance-curves",
    "reinforcement-reinforcement",
    "changes-changes",
    "imbalance-imbalance",
    "masks-masks",
    "removal-curve",
    "removal-areas",
    "left_out-left_out",
    "left_out-agreement",
    "lds-lds",
)
_START = """# Evidence: does influence name what a model needs?

Written by `python -m benchmarks.evidence --data_dir FOLDER`; do not edit. Each part is a study of `lightning-tracin study` with
the settings in `benchmarks/evidence_settings`. A small XLM-R is pre-trained for some minutes on the data's own unlabelled text
and then fine-tuned. It is then fine-tuned again without some of its train samples, from the same first weights, in the same
order and with the same schedule.

## What this can say, and what it cannot

- This is a small encoder on small data: a result here is no finding about XLM-R base on XNLI. It shows what the scores are
  worth where every claim can be checked by fitting again, and how to check it for your own model.
- A section that only one study has was not fitted in the other (PAWS-X: zero-shot and masks).
- On PAWS-X, accuracy on test samples is no better than that of the most frequent label: the model has learned its train samples
  and not the task. Influence and refits then agree, or disagree, about what it has memorised.
- Removal and halves are refits of one or two seeds. Intervals are over items (and halves), not over other data.
- Probes are samples that the fits of all seeds get right, so almost any change of the train samples lowers their probability:
  compare with random removals, not with zero.
- Scores are compared with baselines that look at no gradient. If a baseline wins, its line is above influence's.
- Shares of the top k say which language's samples are there. Whether the language is *needed* is another question, which
  leaving it out answers. The two agree only as far as the last sections say.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", type=Path, default=Path(), help="the folder that nusax-senti/ and pawsx-dev/ are in")
    parser.add_argument("--only", choices=STUDIES, nargs="+", default=list(STUDIES))
    parser.add_argument("--output", type=Path, default=Path("runs/evidence"), help="folder of the studies")
    parser.add_argument("--page", type=Path, default=Path("docs/evidence.md"))
    chosen = parser.parse_args()
    parts = []
    for name in chosen.only:
        outcome = run_study(evidence_settings(name, chosen.data_dir, chosen.output))
        write_page(outcome)
        parts.append(part(outcome, chosen.page))
    write_bytes(chosen.page, as_utf8("\n".join([_START, *parts])))


def evidence_settings(name: str, data_dir: Path, output: Path) -> StudySettings:
    """The settings of one of the studies, on data and into a folder of this machine."""
    settings = settings_from(SETTINGS / f"{name}.yaml")
    return dataclasses.replace(settings, fit=dataclasses.replace(settings.fit, data_dir=str(data_dir)), output=str(output))


def part(outcome: Outcome, page: Path) -> str:
    """A study's part of the page; copies its figures beside the page."""
    folder = page.with_suffix("") / outcome.settings.name
    folder.mkdir(parents=True, exist_ok=True)
    for name in SHOWN:
        found = outcome.folder / "results" / f"{name}.png"
        if found.exists():
            shutil.copyfile(found, folder / found.name)
    return markdown(outcome, f"{page.stem}/{outcome.settings.name}/", level=2, shown=SHOWN)


if __name__ == "__main__":
    main()
