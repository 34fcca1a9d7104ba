"""Does influence name what a model needs? Whole studies on real text, and the page that shows what they found.

`python -m benchmarks.evidence --data_dir FOLDER` runs what is missing of the studies in `benchmarks/evidence_settings` (up to
some hundred fits each), and writes a page for each and docs/evidence.md, which is about all studies that have a page. FOLDER
holds sib200/, xsid-0.7/ and nusax-senti/. A study that was interrupted goes on where it stopped; `--only NAME ...` runs some.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

from benchmarks.evidence_page import COMPENSATED, HEADLINE, OF_NEED, evidence_page, read_study, write_study
from lightning_tracin.cli.main import settings_from
from lightning_tracin.storage.files import as_utf8, write_bytes
from lightning_tracin.studies.page import write_page
from lightning_tracin.studies.runner import run_study
from lightning_tracin.studies.settings import StudySettings

SETTINGS = Path(__file__).parent / "evidence_settings"
STUDIES = ("sib200", "sib200-second", "sib200-120", "xsid", "sib200-embeddings", "nusax")
#: Studies whose need is also predicted, in a study of its own with fewer seeds and more features.
PREDICTED = {f"{name}{OF_NEED}": name for name in ("sib200", "sib200-second", "sib200-120", "xsid")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", type=Path, default=Path(), help="the folder that the data sets' folders are in")
    parser.add_argument("--only", choices=[*STUDIES, *PREDICTED], nargs="+", default=[*STUDIES, *PREDICTED])
    parser.add_argument("--output", type=Path, default=Path("runs/evidence"), help="folder of the studies")
    parser.add_argument("--page", type=Path, default=Path("docs/evidence.md"))
    chosen = parser.parse_args()
    for name in chosen.only:
        start = time.monotonic()
        outcome = run_study(evidence_settings(name, chosen.data_dir, chosen.output))
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
        write_page(outcome)
        write_study(outcome, chosen.page)
    studies = [study for name in (*STUDIES, *PREDICTED) if (study := read_study(chosen.page, name)) is not None]
    write_bytes(chosen.page, as_utf8(evidence_page(studies)))


def evidence_settings(name: str, data_dir: Path, output: Path) -> StudySettings:
    """The settings of one of the studies, on data and into a folder of this machine."""
    settings = settings_from(SETTINGS / f"{PREDICTED.get(name, name)}.yaml")
    if name in PREDICTED:
        settings = dataclasses.replace(
            settings,
            name=name,
            scores=[HEADLINE[0], COMPENSATED[0]],
            seeds=4,
            influence_seeds=2,
            contribution_seeds=2,
            projection_dim=8192,
        )
    return dataclasses.replace(settings, fit=dataclasses.replace(settings.fit, data_dir=str(data_dir)), output=str(output))


if __name__ == "__main__":
    main()
