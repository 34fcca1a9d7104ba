"""Contributions: by how much each train group lowered the loss of each probe group in the fit that was made, as tables.

An account (`storage.account`) has, for each window of optimizer steps, by how much each source lowered the loss of each query,
and the measured losses at both ends. Sources are the train groups (languages, or what the account is by), and what changes the
weights besides: `decay`, `momentum` and `undivided`. What they do not add up to is `unexplained`: it is measured, too.

A contribution has up to two errors, which are independent, so that their variances add:

- Queries are a sample of their group: a percentile bootstrap over items, in which the queries of an item are drawn together. Each
  draw is of whole fits: the nats of several windows are summed for each query first.
- With `every_n_steps=n`, steps are a sample, too. A window's variance is estimated from the differences between neighbouring
  windows, C[w] - C[w-1]: the mean of their squares, halved, times 1 - 1/n, because one step in n was seen (von Neumann et al.
  1941). It also holds what changes from window to window indeed, so the interval is rather too wide. The variance of a sum over
  windows is the sum of theirs; with a single window it is not known, and so is the interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from lightning_tracin.analysis.reliance import Floats
from lightning_tracin.analysis.resampling import Interval, checked_interval
from lightning_tracin.analysis.scores import require_k
from lightning_tracin.analysis.top_k import Strongest, tables_of
from lightning_tracin.config import Sign
from lightning_tracin.errors import TracInError
from lightning_tracin.storage.account import OTHER_SOURCES, AccountRecord, AccountStore, Window

#: The row of what the sources do not add up to.
UNEXPLAINED = "unexplained"

#: Means that are drawn at once: 999 of each take 33 MB.
_TOGETHER = 4096

#: Names of sources, and whether they are train groups.
_Source = tuple[str, bool]


@dataclass(frozen=True)
class _ProbeGroup:
    """The numbers of a probe group."""

    name: str
    queries: int
    numbers: dict[str, Floats]  # column -> [windows, sources], or [windows, 1] where sources do not differ


def columns_by(by: str) -> tuple[str, str]:
    """The columns of a table that hold the probe group and the train group (or another source).

    Example:
        >>> columns_by("language")
        ('probe_language', 'train_language')
    """
    return f"probe_{by}", f"train_{by}"


def grouping_of(table: pd.DataFrame) -> tuple[str, str]:
    """The same columns of a table that is there.

    Example:
        >>> grouping_of(pd.DataFrame(columns=["window", "probe_domain", "train_domain", "probes"]))
        ('probe_domain', 'train_domain')
    """
    by = next(str(name) for name in table if str(name).startswith("train_"))
    return columns_by(by.removeprefix("train_"))


def contribution_table(
    record: AccountRecord,
    windows: Sequence[Window],
    cumulative: bool = False,
    share: bool = False,
    interval: Interval | None = None,
) -> pd.DataFrame:
    """The contributions to every probe group, window by window.

    Args:
        record: what the account is of.
        windows: its windows, in order.
        cumulative: sum over all windows up to each, instead of taking each alone.
        share: `nats`, `low` and `high` as parts of the probe group's fall; NaN where its loss did not fall.
        interval: settings of the bootstrap over the items of the queries. None means 95 %; `NO_INTERVAL` leaves it out.

    Returns:
        A row for each window, probe group and source: the train groups in alphabetical order, then `decay`, `momentum` and
        `undivided` (each if it did anything in some window), then `unexplained`. A probe group without queries has no rows.

        - `window`, `first_step`, `step`, `epoch`: number of the window, its first and last optimizer step, epoch of the latter.
        - `probe_language`, `train_language`: for an account by another column, `probe_` and `train_` with its name.
        - `nats`: by how much the source lowered the mean loss of the group's queries (negative: raised it); `low` and `high` are
          its interval, NaN with a single item.
        - `fall`: by how much that loss fell as measured; the `nats` of all sources add up to it.
        - `probes`: number of the queries; `loss`: their mean loss at the window's end.
        - `measured`: fall of the mean loss of all probes of the group, queries or not; NaN where the others were not measured.
        - `samples`: train samples of the source in the accounted steps.
        - `is_group`: whether the source is a train group, which may have any name, even `decay`.

    Raises:
        TracInError: a window's file is missing or damaged.

    Example:
        Skipped: needs a run directory.

        >>> store = AccountStore(Path("runs/xnli"))  # doctest: +SKIP
        >>> contribution_table(store.record(), store.windows(), cumulative=True)  # doctest: +SKIP
    """
    sources, nats = _nats_by_source(record, windows)
    counts = _samples(sources, windows)
    before, after = (_stacked(windows, end, len(record.groups)) for end in ("before", "after"))
    queries, groups = np.asarray(record.queries), np.asarray(record.groups)
    falls = before - after
    values = np.concatenate([nats, (falls[:, queries] - nats.sum(2))[:, :, None]], axis=2)  # [windows, queries, sources]
    if cumulative:  # from the first window's beginning
        falls, values, counts = before[:1] - after, values.cumsum(0), counts.cumsum(0)
    parts = []
    for group in sorted(set(groups[queries].tolist())):
        mine = groups[queries] == group
        mean = values[:, mine].mean(1)  # [windows, sources]
        items = [record.items[probe] for probe in queries[mine]]
        low, high = _interval(values[:, mine], items, record.every_n_steps, cumulative, checked_interval(interval))
        fall = falls[:, queries[mine]].mean(1, keepdims=True)
        if share:
            with np.errstate(divide="ignore", invalid="ignore"):
                mean, low, high = (np.where(fall > 0, one / fall, np.nan) for one in (mean, low, high))
        loss = after[:, queries[mine]].mean(1, keepdims=True)
        measured = falls[:, groups == group].mean(1, keepdims=True)
        numbers = {"nats": mean, "low": low, "high": high, "fall": fall, "loss": loss, "measured": measured}
        parts.append(_ProbeGroup(group, int(mine.sum()), numbers))
    return _assembled(record, windows, sources, counts, parts)


def whole_fit(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the last window, which in a cumulative table are sums over the whole fit.

    Args:
        table: as from `contribution_table(..., cumulative=True)`.

    Example:
        >>> whole_fit(pd.DataFrame({"window": [1, 2], "nats": [0.25, 0.75]})).values.tolist()
        [[2.0, 0.75]]
    """
    last: pd.DataFrame = table[table["window"] == table["window"].max()].reset_index(drop=True)
    return last


def mean_losses(record: AccountRecord, window: Window) -> dict[str, float]:
    """Probe group -> mean loss of its probes that were measured at the end of a window, in nats."""
    losses: Floats = window.numbers["after"].numpy()
    return {str(group): float(loss) for group, loss in pd.Series(losses).groupby(list(record.groups)).mean().items()}


def strongest_contributions(store: AccountStore, group: str, k: int = 10, sign: Sign = "positive") -> pd.DataFrame:
    """The train samples whose own contribution to a probe group is largest (`"negative"`: the most harmful ones).

    Returns:
        Columns train (index), item, language, label, score (nats, summed over the sample's visits), text; strongest first.

    Raises:
        TracInError: single samples were not accounted, there is no such probe group, or `k` is out of range.
    """
    train, scores = store.train(), store.samples().double().numpy()
    groups = sorted(set(store.record().groups))
    if group not in groups:
        raise TracInError(f"There is no probe {store.record().by} {group!r}; the account has {', '.join(groups)}.")
    require_k(k, len(train))
    strongest = Strongest(k, sign)
    strongest.add(np.arange(len(train)), scores[:, [groups.index(group)]])
    (table,) = tables_of(strongest, train)
    return table


def _nats_by_source(record: AccountRecord, windows: Sequence[Window]) -> tuple[list[_Source], Floats]:
    """The sources that have rows, and their nats: [windows, queries, sources]."""
    named = {source for window in windows for source in zip(window.record.sources, window.record.is_group, strict=True)}
    others = [(name, False) for name in OTHER_SOURCES if (name, False) in named]
    sources = [*sorted(source for source in named if source[1]), *others]
    nats = np.zeros((len(windows), len(record.queries), len(sources)))
    place = {source: column for column, source in enumerate(sources)}
    for row, window in enumerate(windows):
        columns = [place[source] for source in zip(window.record.sources, window.record.is_group, strict=True)]
        nats[row][:, columns] = window.numbers["nats"].numpy()
    kept = [column for column, (_, is_group) in enumerate(sources) if is_group or nats[:, :, column].any()]
    return [sources[column] for column in kept], nats[:, :, kept]


def _samples(sources: Sequence[_Source], windows: Sequence[Window]) -> npt.NDArray[np.int64]:
    """Train samples of each source in the accounted steps, 0 for what is unexplained: [windows, sources + 1]."""
    counts = np.zeros((len(windows), len(sources) + 1), np.int64)
    for row, window in enumerate(windows):
        of = dict(zip(zip(window.record.sources, window.record.is_group, strict=True), window.record.samples, strict=True))
        counts[row, :-1] = [of.get(source, 0) for source in sources]
    return counts


def _stacked(windows: Sequence[Window], name: str, probes: int) -> Floats:
    """One number for each window and probe: [windows, probes]."""
    return np.asarray([window.numbers[name].numpy() for window in windows]).reshape(len(windows), probes)


def _interval(
    values: Floats, items: Sequence[str | None], every_n_steps: int, cumulative: bool, settings: Interval
) -> tuple[Floats, Floats]:
    """The interval of the mean over queries: two arrays [windows, sources].

    Args:
        values: of each window, query and source: [windows, queries, sources].
        items: of each query.
        every_n_steps: one of this many steps was seen.
        cumulative: whether the values are sums over windows.
        settings: of the bootstrap.
    """
    mean = values.mean(1)
    low, high = _drawn_means(values, items, settings)
    if every_n_steps == 1:
        return low, high
    variance = _variance_of_steps(mean, cumulative) * (1 - 1 / every_n_steps)
    of_steps = stats.norm.ppf(0.5 + settings.confidence / 2) ** 2 * variance
    below, above = (np.sqrt(np.clip(half, 0, None) ** 2 + of_steps) for half in (mean - low, high - mean))
    return mean - below, mean + above


def _drawn_means(values: Floats, items: Sequence[str | None], settings: Interval) -> tuple[Floats, Floats]:
    """Percentiles of the mean over queries when items are drawn again: [windows, sources] each."""
    units = pd.factorize(np.asarray([f"query {row}" if item is None else f"item {item}" for row, item in enumerate(items)]))[0]
    count = int(units.max(initial=-1)) + 1
    windows, queries, sources = values.shape
    if count < 2 or not settings.resamples or not windows:
        nothing = np.full((windows, sources), np.nan)
        return nothing, nothing
    member = np.zeros((count, queries))
    member[units, np.arange(queries)] = 1.0
    sums = np.einsum("uq,wqs->uws", member, values).reshape(count, windows * sources)
    drawn = np.random.default_rng(settings.seed).multinomial(count, np.full(count, 1 / count), settings.resamples)
    weights = drawn / (drawn @ member.sum(1))[:, None]  # [resamples, items]
    tail = (1 - settings.confidence) / 2
    blocks = np.array_split(sums, -(-sums.shape[1] // _TOGETHER), axis=1)
    ends = np.concatenate([np.quantile(weights @ block, [tail, 1 - tail], axis=0) for block in blocks], axis=1)
    low, high = ends.reshape(2, windows, sources)
    return low, high


def _variance_of_steps(mean: Floats, cumulative: bool) -> Floats:
    """The variance of each entry of `mean` [windows, sources] from that of the steps, as if few of them had been seen."""
    each = np.diff(mean, axis=0, prepend=0) if cumulative else mean
    squares = np.diff(each, axis=0) ** 2 / 2
    if cumulative:
        number = np.arange(1, len(each) + 1)[:, None]  # windows so far
        sums = np.concatenate([np.full_like(each[:1], np.nan), squares.cumsum(0)])
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(number * sums / (number - 1))
    typical = squares.mean(0) if len(squares) else np.full(each.shape[1], np.nan)
    return np.broadcast_to(typical, each.shape)


def _assembled(
    record: AccountRecord,
    windows: Sequence[Window],
    sources: Sequence[_Source],
    counts: npt.NDArray[np.int64],
    groups: Sequence[_ProbeGroup],
) -> pd.DataFrame:
    """The long table; counts are [windows, sources]."""
    names, shape = [*sources, (UNEXPLAINED, False)], (len(windows), len(groups), len(sources) + 1)
    probe, train = columns_by(record.by)

    def of_window(name: str) -> npt.NDArray[np.int64]:
        given = np.array([getattr(window.record, name) for window in windows], np.int64)
        return np.broadcast_to(given[:, None, None], shape).ravel()

    def of_group(values: Sequence[object], kind: object) -> npt.NDArray[np.object_]:
        return np.broadcast_to(np.array(values, dtype=kind)[None, :, None], shape).ravel()  # type: ignore[call-overload]

    def of_source(values: Sequence[object], kind: object) -> npt.NDArray[np.object_]:
        return np.broadcast_to(np.array(values, dtype=kind)[None, None, :], shape).ravel()  # type: ignore[call-overload]

    def of_each(name: str) -> Floats:
        given = [np.broadcast_to(group.numbers[name], (shape[0], shape[2])) for group in groups]
        return np.stack(given, axis=1).ravel()

    table: pd.DataFrame = pd.DataFrame(
        {
            "window": of_window("number"),
            "first_step": of_window("first_step"),
            "step": of_window("last_step"),
            "epoch": of_window("epoch"),
            probe: of_group([group.name for group in groups], object),
            train: of_source([name for name, _ in names], object),
            **{name: of_each(name) for name in ("nats", "low", "high", "fall")},
            "probes": of_group([group.queries for group in groups], np.int64),
            **{name: of_each(name) for name in ("loss", "measured")},
            "samples": np.broadcast_to(counts[:, None, :], shape).ravel(),
            "is_group": of_source([is_group for _, is_group in names], np.bool_),
        }
    )
    return table
