"""The scripts of pages: shipped with their licences, allowed by digest, and harmless inside a page."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest

from lightning_tracin.reporting.page_scripts import FOR_EXPLORING, FOR_TABLES, asset, page_scripts
from tests.support.pages import ASSETS

SCRIPTS = (*FOR_TABLES, *FOR_EXPLORING)


def test_every_script_is_used_and_every_library_has_its_licence() -> None:
    assert {path.relative_to(ASSETS).as_posix() for path in ASSETS.rglob("*.js")} == set(SCRIPTS)
    for path in (ASSETS / "vendor").glob("*.js"):
        licence = path.with_name(f"{path.name.partition('.')[0]}.LICENSE").read_text(encoding="utf-8")
        assert re.search("permission", licence, re.IGNORECASE)
        assert "Copyright" in licence


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_script_can_end_its_element(name: str) -> None:
    text = asset(name)
    assert not re.search("</script|<!--|\r", text, re.IGNORECASE)


@pytest.mark.parametrize("name", SCRIPTS)
def test_versions_are_those_that_the_package_names(name: str) -> None:
    if name.startswith("vendor/"):
        (version,) = re.findall(r"\d+\.\d+\.\d+", asset(name)[:200])[:1]
        source = (ASSETS.parent / "page_scripts.py").read_text(encoding="utf-8")
        assert f"{version} (" in source


def test_the_policy_allows_these_scripts_and_nothing_from_elsewhere() -> None:
    policy = page_scripts(FOR_TABLES).policy
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives["default-src"] == "'none'"
    assert directives["img-src"] == "data:"
    digests = [base64.b64encode(hashlib.sha256((ASSETS / name).read_bytes()).digest()).decode() for name in FOR_TABLES]
    assert directives["script-src"] == " ".join(f"'sha256-{digest}'" for digest in digests)
