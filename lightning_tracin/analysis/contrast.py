"""Contrast: what one train language is to one probe language in particular.

Some train languages help every probe language, and some probe languages profit from everything. A table of probe languages
(rows) and train languages (columns) is full of such effects. The contrast of a cell is what remains after they are taken out.
Effects are fitted to the cells of *other* languages only, because a probe language's own train language stands out and would
distort them.
"""

from __future__ import annotations

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
        [..., rows, columns]. NaN where nothing can be said: an effect is unknown (two languages have one other cell each), or
        an effect follows from this cell alone, so that nothing would remain of it.

    Example:
        >>> own = np.eye(3, dtype=bool)
        >>> additive = np.array([[9.0, 1.0, 2.0], [2.0, 9.0, 4.0], [1.0, 2.0, 9.0]])  # other cells: row effect + column effect
        >>> (contrast_of(additive, own).round(6) + 0.0).tolist()
        [[9.0, 0.0, 0.0], [0.0, 6.0, 0.0], [0.0, 0.0, 6.0]]
    """
    cells = np.asarray(values, dtype=np.float64)
    remaining = _remainder(np.asarray(own, dtype=bool))
    flat = cells.reshape(*cells.shape[:-2], -1)
    contrast: Floats = (flat @ remaining.T).reshape(cells.shape)
    return contrast


def _remainder(own: npt.NDArray[np.bool_]) -> Floats:
    """The linear map from cells to their contrasts, [cells, cells]; the rows of cells without one are NaN."""
    row, column = (index.ravel() for index in np.indices(own.shape))
    design = np.concatenate([np.eye(own.shape[0])[row], np.eye(own.shape[1])[column]], axis=1)  # [cells, effects]
    others = ~own.ravel()
    fitted = np.linalg.pinv(design[others])  # [effects, other cells]
    predicted = np.zeros((own.size, own.size))
    predicted[:, others] = design @ fitted
    remainder: Floats = np.eye(own.size) - predicted
    known = np.abs(design @ fitted @ design[others] - design).max(1) < _TINY
    saturated = others & (np.abs(np.diagonal(remainder)) < _TINY)
    remainder[~known | saturated] = np.nan
    return remainder
