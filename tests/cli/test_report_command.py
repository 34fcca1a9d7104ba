"""`lightning-tracin report`: where the page of a run is, and opening it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_tracin.cli.main import main


def page_of(folder: Path) -> Path:
    page = folder / "my run" / "results" / "report.html"
    page.parent.mkdir(parents=True)
    page.write_text("<p>a page</p>")
    return page


def test_the_page_of_a_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = page_of(tmp_path)
    for named in (["--run", str(tmp_path / "my run")], [str(tmp_path / "my run")], [str(tmp_path / "my run"), "--open", "false"]):
        main(["report", *named])
        assert capsys.readouterr().out == f"{page}\n"


def opening(run: str, cwd: Path, browser: str, **more: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, because a browser is looked for once in a process."""
    environment = {**os.environ, "BROWSER": browser, "PYTHONPATH": str(Path(__file__).parents[2]), **more}
    code = "from lightning_tracin.cli.main import main; main()"
    arguments = [sys.executable, "-c", code, "report", run, "--open"]
    return subprocess.run(arguments, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_the_page_is_opened_by_its_whole_address(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    script = tmp_path / "browser.sh"
    script.write_text(f'#!/bin/sh\nprintf %s "$1" > "{tmp_path}/opened"\n')
    script.chmod(0o755)
    done = opening("my run", tmp_path, f"{script} %s")
    assert (done.returncode, done.stdout) == (0, "my run/results/report.html\n"), done.stderr
    assert (tmp_path / "opened").read_text() == page.as_uri()
    assert "my%20run" in page.as_uri()


def test_without_a_browser_the_page_is_named(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    done = opening("my run", tmp_path, "no-such-browser", PATH="")
    assert done.returncode == 1
    assert done.stderr.strip() == f"Error: No browser could be started; open {page} yourself, or name a browser in $BROWSER."


def test_without_a_page_the_command_that_writes_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["report", str(tmp_path / "my run"), "--open"])
    run = f"{tmp_path}/my run"
    said = f"Error: There is no {run}/results/report.html; `lightning-tracin results --run '{run}'` writes it."
    assert str(caught.value) == said


def test_a_page_elsewhere_is_not_opened() -> None:
    import fsspec

    with fsspec.open("memory://report_command/results/report.html", "wb") as file:
        file.write(b"<p>a page</p>")
    with pytest.raises(
        SystemExit, match=r"report.html is not on this machine, and browsers open files of it; copy the page first\."
    ):
        main(["report", "memory://report_command", "--open"])


def test_an_option_that_is_yes_or_no_needs_no_value(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="is missing"):
        main(["reliance", "--run", str(tmp_path / "none"), "--cumulative", "--output", "csv"])
