"""What an account of contributions shows, in sentences."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import pandas as pd

from lightning_tracin.analysis.contributions import UNEXPLAINED, grouping_of
from lightning_tracin.storage.account import DECAY, MOMENTUM, UNDIVIDED, AccountRecord

#: What a sentence calls a source that is no train group.
_OTHERS = {DECAY: "weight decay", MOMENTUM: "momentum", UNDIVIDED: "what could not be divided by train samples"}

#: Below this part of the fall, such a source is not named; above the second, what is unexplained is a caution.
_NEGLIGIBLE, _MUCH = 0.01, 0.05

#: How many times longer than the change a part may be before that is a caution.
_LONG = 3

#: Train groups that a sentence names.
_NAMED = 8

#: What contributions are not.
PATH = (
    "Contributions are of the path that this fit took: they say whose samples did the work, not what would be missed without "
    "them (a translation may do the work of another)."
)


def findings_of_contributions(whole: pd.DataFrame) -> Iterator[str]:
    """State for each probe group how its loss changed, and which train groups lowered and raised it.

    Args:
        whole: the rows of a whole fit, as from `contributions.whole_fit`.

    Example:
        >>> rows = [("de", 0.5, True, 30), ("en", 0.25, True, 10), ("unexplained", -0.002, False, 0)]
        >>> table = pd.DataFrame(rows, columns=["train_language", "nats", "is_group", "samples"])
        >>> table = table.assign(probe_language="fr", fall=0.748, low=float("nan"), high=float("nan"), probes=9)
        >>> print(*findings_of_contributions(table))
        The loss of fr fell by 0.748 nats (9 probes): samples of de lowered it by 0.5 (75 % of the samples), en by 0.25 (25 %); \
-0.002 is unexplained (0.3 %).
    """
    group, train = grouping_of(whole)
    for name, lines in whole.groupby(group, sort=True):
        rows = lines.to_dict("records")
        seen = int(lines["samples"].sum())
        mine = sorted((row for row in rows if row["is_group"]), key=lambda row: -abs(row["nats"]))
        fall = rows[0]["fall"]
        parts = [*_work(mine[:_NAMED], train, seen)]
        if mine[_NAMED:]:
            parts.append(
                f"{len(mine) - _NAMED} others together changed it by {_nats(-sum(row['nats'] for row in mine[_NAMED:]))}"
            )
        others = [row for row in rows if not row["is_group"] and row[train] in _OTHERS]
        parts += [
            f"{_OTHERS[row[train]]} {_verb(row)} it by {_nats(abs(row['nats']))}"
            for row in others
            if abs(row["nats"]) >= _NEGLIGIBLE * abs(fall)
        ]
        left = next(row["nats"] for row in rows if row[train] == UNEXPLAINED and not row["is_group"])
        part = f" ({abs(left) / abs(fall):.1%})".replace("%", " %") if fall else ""
        verb = "fell" if fall >= 0 else "rose"
        seen_on = f"{_probes(rows[0]['probes'])}{_of_all(rows[0])}"
        yield (
            f"The loss of {name} {verb} by {_nats(abs(fall))} nats ({seen_on}): {'; '.join(parts)}; "
            f"{_nats(left)} is unexplained{part}."
        )


def cautions_of_contributions(whole: pd.DataFrame, record: AccountRecord) -> Iterator[str]:
    """What readers of an account have to know of it.

    Args:
        whole: as in `findings_of_contributions`.
        record: what the account is of.
    """
    yield PATH
    if record.approximate is not None:
        yield f"The split is approximate: {record.approximate.rstrip('.')}."
    if record.undivided:
        yield (
            f"The gradients of {len(record.undivided)} parameters ({sum(record.undivided.values()):,} elements) are not split by "
            f'{record.by}; what they changed is the row "{UNDIVIDED}".'
        )
    if record.every_n_steps > 1:
        yield f"One of {record.every_n_steps} optimizer steps was accounted and scaled up; the intervals include that error."
    if record.began_at:
        yield f"The account begins after optimizer step {record.began_at}; what the fit did before is not in it."
    if not record.ended:
        yield "The fit has not ended, or it was interrupted: the account goes up to its last window."
    group, train = grouping_of(whole)
    parts = whole[whole["is_group"]].groupby(group)["nats"].agg(lambda nats: nats.abs().max())
    falls = whole.groupby(group)["fall"].first().abs()
    crossed = parts.index[parts > _LONG * falls]
    if len(crossed):
        yield (
            f"For {', '.join(map(str, crossed))}, single parts are more than {_LONG} times the change: they nearly cancel. Adam "
            "makes such long parts where the gradients of the train groups cancel, as at the end of a long fit, and in its first "
            "steps without warm-up; look at the intervals, and at when the parts grew."
        )
    left = whole[(whole[train] == UNEXPLAINED) & ~whole["is_group"]]
    much = left[left["nats"].abs() > _MUCH * left["fall"].abs()]
    if len(much):
        yield (
            f"More than {_MUCH:.0%} of the change is unexplained for {', '.join(map(str, much[group]))}; shorter windows explain "
            "more of it."
        ).replace("%", " %", 1)


def _work(rows: list[dict[Hashable, Any]], train: str, seen: int) -> Iterator[str]:
    """What each train group did, with its interval and its part of the samples: first those that lowered the loss."""
    for lowering in (True, False):
        chosen = [row for row in rows if (row["nats"] >= 0) is lowering]
        texts: list[str] = []
        for number, row in enumerate(chosen):
            nats, low, high = (row["nats"], row["low"], row["high"]) if lowering else (-row["nats"], -row["high"], -row["low"])
            known = [] if low != low else [f"{'95 % interval ' if not texts else ''}{_nats(low)} to {_nats(high)}"]
            share = f"{row['samples'] / seen:.0%}".replace("%", " %") if seen else ""
            known += [f"{share}{' of the samples' if not texts else ''}"] if share else []
            verb = f" {_verb(row)} it" if number == 0 else ""
            texts.append(f"{row[train]}{verb} by {_nats(nats)}" + (f" ({'; '.join(known)})" if known else ""))
        if texts:
            yield f"samples of {', '.join(texts)}"


def _of_all(row: Mapping[Hashable, Any]) -> str:
    """How the loss of all measured probes changed, where these are more than the probes whose loss is split."""
    measured = float(row.get("measured", row["fall"]))
    if measured != measured or measured == row["fall"]:
        return ""
    return f"; that of all its probes {'fell' if measured >= 0 else 'rose'} by {_nats(abs(measured))}"


def _verb(row: Mapping[Hashable, Any]) -> str:
    return "lowered" if row["nats"] >= 0 else "raised"


def _probes(count: int) -> str:
    return f"{count} probe{'' if count == 1 else 's'}"


def _nats(value: float) -> str:
    """A number of nats with three significant digits or four decimals, without an exponent.

    Example:
        >>> _nats(1.6612), _nats(0.00123), _nats(-0.00001), _nats(-0.5)
        ('1.66', '0.0012', '0', '-0.5')
    """
    if abs(value) >= 0.01:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{round(value, 4) or 0.0:.4f}".rstrip("0").rstrip(".")
