"""Contrast: what one train language is to one probe language in particular.

Some train languages help every probe language, and some probe languages profit from everything. A table of probe languages
(rows) and train languages (columns) is full of such effects. The contrast of a cell is what remains after they are taken out.
Effects are fitted to the cells of *other* languages only, because a probe language's own train language stands out and would
distort them. A cell that is unknown (NaN or infinite) is left out, too: it has no contrast, and the others keep theirs.
"""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_TINY = 1e-9


def contrast_of(values: npt.ArrayLike, own: npt.ArrayLike) -> Floats:
    """Subtract row and column effects from tables.

    Args:
        values: [..., rows, columns].
        own: which cells are of a probe language and its own train language; effects are fitted to the others: [rows, columns].

    Returns:
        [..., rows, columns]. NaN where nothing can be said: the cell is unknown; an effect is unknown (two languages have one
        other cell each); or an effect follows from this cell alone, so that nothing would remain of it.

    Example:
        >>> own = np.eye(3, dtype=bool)
        >>> additive = np.array([[9.0, 1.0, 2.0], [2.0, 9.0, 4.0], [1.0, 2.0, 9.0]])  # other cells: row effect + column effect
        >>> (contrast_of(additive, own).round(6) + 0.0).tolist()
        [[9.0, 0.0, 0.0], [0.0, 6.0, 0.0], [0.0, 0.0, 6.0]]
    """
    cells, mine = np.asarray(values, dtype=np.float64), np.asarray(own, dtype=bool)
    flat = cells.reshape(math.prod(cells.shape[:-2]), mine.size)
    finite = np.isfinite(flat)
    filled, contrast = np.where(finite, flat, 0.0), np.empty_like(flat)
    alike: defaultdict[bytes, list[int]] = defaultdict(list)  # tables that know the same cells share one map
    for table, known in enumerate(finite):
        alike[known.tobytes()].append(table)
    for tables in alike.values():
        contrast[tables] = filled[tables] @ _remainder(mine, finite[tables[0]].reshape(mine.shape)).T
    contrast[~finite] = np.nan
    return contrast.reshape(cells.shape)


def _remainder(own: npt.NDArray[np.bool_], finite: npt.NDArray[np.bool_]) -> Floats:
    """The linear map from finite cells to their contrasts, [cells, cells]; the rows of cells without one are NaN."""
    row, column = (index.ravel() for index in np.indices(own.shape))
    design = np.concatenate([np.eye(own.shape[0])[row], np.eye(own.shape[1])[column]], axis=1)  # [cells, effects]
    others = (~own & finite).ravel()
    fitted = np.linalg.pinv(design[others])  # [effects, other cells]
    predicted = np.zeros((own.size, own.size))
    predicted[:, others] = design @ fitted
    remainder: Floats = np.eye(own.size) - predicted
    known = np.abs(design @ fitted @ design[others] - design).max(1) < _TINY
    saturated = others & (np.abs(np.diagonal(remainder)) < _TINY)
    remainder[~known | saturated] = np.nan
    return remainder
