"""Writes docs/report-wide.png and docs/report-narrow.png: the page of a drawn run. `python -m tests.support.screenshots`."""

from __future__ import annotations

import io
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from tests.support.browsers import browser, opened
from tests.support.many_scripts import written_run

DOCS = Path(__file__).parents[2] / "docs"


def main() -> None:
    with TemporaryDirectory() as folder, browser() as started:
        page_of = written_run(Path(folder) / "run").path / "results" / "report.html"
        for name, width, height in (("wide", 1280, 3000), ("narrow", 400, 3400)):
            with opened(started, page_of, width, fragment="#probe/2") as page:
                page.wait_for_selector(".explorer:not([hidden]) .found a")
                page.evaluate("window.scrollTo(0, 0)")
                page.wait_for_timeout(500)  # charts are drawn when the page has a width
                whole = page.screenshot(full_page=True)
            picture = Image.open(io.BytesIO(whole)).convert("RGB")
            picture = picture.crop((0, 0, width, min(height, picture.height)))
            picture.quantize(128).save(DOCS / f"report-{name}.png", optimize=True)


if __name__ == "__main__":
    main()
