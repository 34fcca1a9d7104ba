"""A drawn run whose texts are in many scripts, each with its translations."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lightning_tracin.config import View
from lightning_tracin.reporting.every_result import write_every_result
from lightning_tracin.run import TracInRun
from lightning_tracin.storage.sample_table import SampleTable
from tests.support.hand_made import run_directory

#: Language -> a sentence, and its subject for another one.
SENTENCES = {
    "ar": ("افتتح المتحف الجديد أبوابه أمام الزوار", "فاز الفريق بالمباراة"),
    "de": ("Das neue Museum hat heute eröffnet", "Die Mannschaft hat das Spiel gewonnen"),
    "en": ("The new museum opened its doors today", "The team won the match"),
    "he": ("המוזיאון החדש פתח את שעריו למבקרים", "הקבוצה ניצחה במשחק"),
    "hi": ("नया संग्रहालय आज खुल गया", "टीम ने मैच जीत लिया"),
    "ja": ("新しい博物館は今日開館しました", "チームは試合に勝ちました"),
    "ko": ("새 박물관이 오늘 문을 열었습니다", "팀이 경기에서 이겼습니다"),
    "zh": ("新博物馆今天向公众开放", "球队赢得了比赛"),
}


def samples(items: int) -> SampleTable:
    """Each item in every language, numbered; items alternate between two labels."""
    rows = [
        (language, str(item), f"{texts[item % 2]} {item}", ("culture", "sport")[item % 2])
        for item in range(items)
        for language, texts in SENTENCES.items()
    ]
    language, number, text, label = zip(*rows, strict=True)
    return SampleTable(language, number, text, label)


def written_run(path: Path) -> TracInRun:
    """A run of 12 items for training and 6 as probes, with all results."""
    run = TracInRun(run_directory(path, samples(12), samples(6), snapshots=3))
    drawn = np.random.default_rng(0)
    remedy = write_every_result(run, View(top_k=5), lambda: (drawn.random((96, 4)), drawn.random((48, 4)))).remedy
    assert remedy is None
    return run
