"""A headless Chromium that is already there, watched for errors and for requests to a network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def chromium() -> str:
    """The path of a Chromium; without one, or without Playwright, the test is skipped."""
    pytest.importorskip("playwright", reason="Playwright is not installed, so no page is opened in a browser")
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"none of {', '.join(NAMES)} is on the PATH, so no page is opened in a browser")
    return found


@contextmanager
def browser() -> Iterator[Any]:
    """A started browser; it is closed at the end."""
    path = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])  # tests also run as root
        try:
            yield started
        finally:
            started.close()


@contextmanager
def opened(started: Any, path: Path, width: int = 1280, fragment: str = "", **options: Any) -> Iterator[Any]:
    """A page from its file; at the end, there must be no error and no request but for the file itself."""
    context = started.new_context(viewport={"width": width, "height": 900}, **options)
    errors: list[str] = []
    requests: list[str] = []
    try:
        page = context.new_page()
        page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(f"{path.resolve().as_uri()}{fragment}")
        yield page
        assert errors == []
        assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
        assert len({url.partition("#")[0] for url in requests if url.startswith("file:")}) == 1
    finally:
        context.close()
