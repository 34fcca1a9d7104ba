"""The scripts of pages: libraries that are shipped with the package, and our own, put into the page itself.

A page asks no network for anything. Its content security policy lets a browser run the scripts that were put in, known by their
digests, and no other: neither one from elsewhere nor one that a text of a data set tries to smuggle in.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

#: Libraries, in `assets/vendor`, each with its licence beside it: D3 7.9.2 (ISC), Observable Plot 0.6.17 (ISC), which needs D3,
#: and DataTables 3.1.5 (MIT): the files dist/d3.min.js of the npm package d3, dist/plot.umd.min.js of @observablehq/plot,
#: and js/dataTables.min.js of datatables.net, unchanged.
D3, PLOT, DATA_TABLES = "vendor/d3.min.js", "vendor/plot.min.js", "vendor/datatables.min.js"

#: What makes tables sort and filter, and what draws charts and the explorer.
FOR_TABLES = (DATA_TABLES, "tables.js")
FOR_EXPLORING = (D3, PLOT, "page.js", "charts.js", "explorer.js")


@dataclass(frozen=True)
class PageScripts:
    """Scripts to put into a page, and the policy that allows them alone.

    Example:
        >>> scripts = PageScripts(("alert(1)",))
        >>> scripts.policy.partition("script-src ")[2]
        "'sha256-bhHHL3z2vDgxUt0W3dWQOrprscmda2Y5pLsLg4GF+pI='"
    """

    contents: tuple[str, ...]

    @property
    def policy(self) -> str:
        """The content of the policy's `meta` element."""
        digests = (base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in self.contents)
        allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
        return (
            "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
            f"script-src {allowed}"
        )


@lru_cache
def asset(name: str) -> str:
    """The text of a file in `reporting/assets`.

    Example:
        >>> asset("page.css").startswith("/*")
        True
    """
    return files("lightning_tracin.reporting").joinpath("assets", *name.split("/")).read_text(encoding="utf-8")


def page_scripts(names: Sequence[str]) -> PageScripts:
    """These files as scripts, in this order."""
    return PageScripts(tuple(asset(name) for name in names))
