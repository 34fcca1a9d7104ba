"""Take the picture of the README, and its numbers, from a run of the demo: `python -m docs.scripts.readme_picture runs/cldr`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
from jsonargparse import auto_cli

DOCS = Path(__file__).parents[1]
PICTURE = DOCS / "influence.png"
TABLE = DOCS / "influence.csv"


def drawn_numbers(run: Path) -> pd.DataFrame:
    """The numbers of a run's heat map: the influence of each train language on each probe language in the whole fit.

    Args:
        run: the folder of the run, with its results.

    Returns:
        Columns `probe_language`, `train_language`, `value` and `contrast`, the last two in nats.
    """
    table = pd.read_csv(run / "results" / "reliance.csv", keep_default_na=False, na_values=[""])
    whole = table[(table["measure"] == "sum") & (table["sign"] == "positive") & table["cumulative"]]
    last = whole[whole["snapshot"] == whole["snapshot"].max()]
    drawn: pd.DataFrame = last[["probe_language", "train_language", "value", "contrast"]].reset_index(drop=True)
    return drawn


def main(run: Path) -> None:
    """Write the picture and its numbers.

    Args:
        run: the folder of a run of the demo without options.
    """
    drawn_numbers(run).round(3).to_csv(TABLE, index=False)
    shutil.copyfile(run / "results" / "heat_map.png", PICTURE)


if __name__ == "__main__":
    auto_cli(main)
