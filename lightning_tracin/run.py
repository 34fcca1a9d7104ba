"""`TracInRun`: reads a run directory and derives every score and table from what is stored."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from inspect import signature
from typing import TYPE_CHECKING, Any

import pandas as pd
import xarray as xr

from lightning_tracin.analysis.contributions import contribution_table
from lightning_tracin.analysis.influence_by_distance import influence_by_known_distance
from lightning_tracin.analysis.influence_reader import InfluenceReader
from lightning_tracin.analysis.language_distances import distance_table
from lightning_tracin.analysis.language_facts import languages_table
from lightning_tracin.analysis.need_table import Curvature, need_table, rises_of_run
from lightning_tracin.analysis.reliance import Floats
from lightning_tracin.analysis.resampling import NO_INTERVAL, Interval
from lightning_tracin.attribution.early_products import warn_of_early_products
from lightning_tracin.attribution.method import Method, method_of
from lightning_tracin.config import SCALED, WHITENED, Measure, Scoring
from lightning_tracin.errors import TracInError
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.filesystem import Place, place

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule

    from lightning_tracin.reporting.plots import Plots


class TracInRun(InfluenceReader):
    """A run, opened for reading.

    It has influence after a fit with `TracInCallback`, contributions after one with `ContributionCallback`; what is not there is
    an error when it is asked for.

    Attributes:
        directory: the files of the run.
        path: its folder.
        account: the files of its contributions.
        has_influence: whether it has influence.

    Example:
        A run is the result of a fit; skipped here, because it takes a fit.

        >>> run = TracInRun.open("runs/xnli")  # doctest: +SKIP
        >>> run.influence(similarity="dot").sel(probe=3)  # the influence of each train sample on probe 3  # doctest: +SKIP
        >>> run.reliance().query("probe_language == 'sw'")  # the influence of each language on Swahili  # doctest: +SKIP
        >>> run.top(probe=3, sign="negative")  # the train samples that hurt probe 3 most  # doctest: +SKIP
        >>> run.contributions(cumulative=True, share=True)  # which languages lowered each one's loss  # doctest: +SKIP
    """

    def __init__(self, directory: RunDirectory) -> None:
        super().__init__(directory)
        if self.has_influence:  # report missing or damaged files now
            directory.ledger.snapshots()
            _ = self.train, self.probes, self.queries, self._scorer

    @classmethod
    def open(cls, path: Place) -> TracInRun:
        """Open a run directory.

        Raises:
            TracInError: there is no run, or one of its files is missing or damaged.

        Example:
            >>> try:
            ...     TracInRun.open("no/such/folder")
            ... except TracInError as error:
            ...     print(str(error).partition(";")[0])
            no/such/folder/run.json is missing
        """
        run = cls(RunDirectory(place(path)))
        if run.has_influence:
            warn_of_early_products(run.directory, run.method)
        return run

    def __repr__(self) -> str:
        """What the run contains, in a few sentences."""
        from lightning_tracin.reporting.run_summary import described  # see `plot`

        return described(self)

    def _repr_html_(self) -> str:
        """The same for notebooks, with the influence of each language on each other."""
        from lightning_tracin.reporting.run_summary import as_html  # see `plot`

        return as_html(self)

    @cached_property
    def method(self) -> Method:
        """The attribution method that computed its influence."""
        return method_of(self.record.options)

    def contributions(
        self, by: str | None = None, cumulative: bool = False, share: bool = False, interval: Interval | None = None
    ) -> pd.DataFrame:
        """By how many nats each train language lowered the loss of each probe language in the fit, window by window.

        Args:
            by: what the account is by, as a check. None: whatever it is.
            cumulative: sum over all windows up to each, instead of taking each alone.
            share: as parts of the probe language's measured fall.
            interval: bootstrap over the items of the probes. None: 95%.

        Returns:
            A row for each window, probe language and source of change: the train languages, then `decay`, `momentum`, `undivided`
            where they did anything, and `unexplained`. `analysis.contributions.contribution_table` explains the columns.

        Raises:
            TracInError: the directory has no account, it is by something else, or a file is missing or damaged.

        Example:
            Skipped: needs a run directory.

            >>> run.contributions(cumulative=True).query("probe_language == 'uk'")  # doctest: +SKIP
        """
        if not self.account.is_there:
            raise TracInError(f"{self.path} holds no contributions; fit with `ContributionCallback` to have them.")
        record = self.account.record()
        if by not in (None, record.by):
            raise TracInError(f"The contributions in {self.path} are by {record.by}, not by {by!r}; a fit's account is by one.")
        return contribution_table(record, self.account.windows(), cumulative, share, interval)

    def predicted_need(self, curvature: Curvature = "gauss-newton", interval: Interval | None = None) -> pd.DataFrame:
        """By how many nats each probe language's loss would be higher after a fit without each train language.

        The fit without it takes as many steps, on the mean loss of the samples that are left. It is not made, but predicted from
        what the snapshots say of gradients and curvature, see `analysis.predicted_need`; docs/evidence.md says how well. What
        `reliance` sums up is what a language's steps did; this is less what the other languages would have done in their place.

        Args:
            curvature: `"gauss-newton"`, for the cross-entropy of one label a sample; `"fisher"` for any loss, less exact.
            interval: bootstrap over the items of the probes; other train samples and other seeds are not in it. None: 95%.

        Returns:
            A row for each probe language and train language: columns `need_table.NEED_COLUMNS`.

        Raises:
            TracInError: the run has no features in the metric of the fit's steps (`projection_dim`, and
                `preconditioner="adam-fisher"` in a fit with Adam), its loss is not a mean, labels' probabilities are not known,
                or all train samples are in one language.

        Example:
            Skipped: needs a run directory.

            >>> run.predicted_need().query("not is_own").nlargest(3, "nats")  # what others need most  # doctest: +SKIP
        """
        rises = rises_of_run(self._influence_files, self.train.language, curvature)
        return need_table(rises, self.train.language, self.probes.language, self.probes.item, interval)

    def languages(self) -> pd.DataFrame:
        """What is known of the languages of the train samples and probes: name, script, family, speakers, place.

        Returns:
            A row for each language; `analysis.language_facts.languages_table` explains the columns. What is not known is missing.

        Raises:
            TracInError: the run has no influence.
            MissingPackageError: the extra `languages` is not installed.

        Example:
            Skipped: needs a run directory.

            >>> run.languages()[["code", "name", "family", "script"]]  # doctest: +SKIP
        """
        return languages_table(sorted({*self.train.language, *self.probes.language}))

    def distances(self) -> pd.DataFrame:
        """How far each probe language is from each train language: in the family tree, on the map, in script.

        Returns:
            A row for each pair, to be joined with `reliance` on `probe_language` and `train_language`;
            `analysis.language_distances.distance_table` explains the columns. What is not known is NaN.

        Raises:
            TracInError: the run has no influence.
            MissingPackageError: the extra `languages` is not installed.

        Example:
            Skipped: needs a run directory.

            >>> run.reliance(cumulative=True).merge(run.distances())  # doctest: +SKIP
        """
        return distance_table(sorted(set(self.probes.language)), sorted(set(self.train.language)))

    def influence_by_distance(self, measure: Measure = "sum", permutations: int = 999) -> pd.DataFrame:
        """Does influence say more of two languages than their distance? Correlations and a regression, with permutations.

        It is of other languages' cells in the whole run, by the fit's similarity and weighting.

        Args:
            measure: see `reliance`.
            permutations: see `analysis.influence_by_distance.influence_by_distance`, which explains the table.

        Returns:
            A row for `others` (the measure as it is) and `contrast`, and each distance. Languages whose distances are not known
            are left out; a warning names them, and so does `attrs["left_out"]`.

        Raises:
            TracInError: the run has no influence or no such measure, or fewer than four languages have known distances.
            MissingPackageError: the extra `languages` is not installed.

        Example:
            Skipped: needs a run directory.

            >>> run.influence_by_distance()[["of", "distance", "spearman", "spearman_p", "r2"]]  # doctest: +SKIP
        """
        view = self.record.options
        last = len(self.snapshots) - 1
        table = self.reliance(view.top_k, cumulative=True, measure=measure, snapshots=[last], interval=NO_INTERVAL)
        return influence_by_known_distance(table, permutations)

    @property
    def plot(self) -> Plots:
        """Figures of the run, as functions that return matplotlib figures, such as `run.plot.contributions()`."""
        # Like those below, an import against the arrows, named in the contracts: reading a run does not need figures.
        from lightning_tracin.reporting.plots import Plots

        return Plots(self)

    def representations(self) -> tuple[Floats, Floats]:
        """The fitted model's sentence representations of the train samples and of the probes: [samples, width] each.

        Raises:
            TracInError: the run has none, because its influence was not computed or its module contains no transformers model.
        """
        train, probes = self._influence_files.read_representations()
        return train.double().numpy(), probes.double().numpy()

    def add_probes(
        self,
        module: LightningModule,
        probes: Any,
        language_column: str | tuple[str, ...] | None = None,
        item_column: str | None = None,
        languages: Sequence[str] | None = None,
    ) -> TracInRun:
        """Add probes to a run with `projection_dim`, without another pass over the train samples.

        Args:
            module: a module of the fit's class and architecture. Parameters that the fit trained may have any value; all others
                need the fit's.
            probes: a DataLoader of the new probes, or several.
            language_column: as in `TracInCallback`. None: as in the fit.
            item_column: as in `TracInCallback`. None: as in the fit.
            languages: each new probe's language, instead of a column.

        Returns:
            The run with the new probes, which come after the old ones.

        Raises:
            TracInError: the run has no features, a snapshot's weights were not kept, the probes' languages are not found, or
                another process works in the run directory.

        Example:
            >>> run = run.add_probes(module, DataLoader(swahili, batch_size=32))  # doctest: +SKIP
        """
        # Neither does it need Lightning.
        from lightning_tracin.trainer.add_probes import add_probes

        add_probes(self._influence_files, module, probes, languages, language_column, item_column)
        return TracInRun(self.directory)

    def score(self, module: LightningModule, candidates: Any, probes: Any = None, **settings: Any) -> xr.DataArray:
        """Influence that samples would have on the probes as train samples; the run directory does not change.

        Args:
            module: as in `add_probes`.
            candidates: a DataLoader of the samples.
            probes: the probes as the fit had them; not needed for a run with a `projection_dim`.
            settings: options of `influence`, and `language_column`, `item_column`, `languages`, `languages_of_probes`, `mask`,
                `memory_budget` and `progress` as in `attribute`.

        Returns:
            As `influence` returns it, with `candidate` for `train`, weighted as if visited as often as the average train sample.

        Raises:
            TracInError: as for `attribute` and `influence`; or the run needs its probes again.

        Example:
            >>> run.score(module, candidates, val_loader).groupby("candidate_language").mean()  # doctest: +SKIP
        """
        from lightning_tracin.trainer.score_candidates import scored_candidates

        how = {name: settings.pop(name) for name in signature(self.influence).parameters if name in settings}
        chosen = self._scorer.chosen(how.get("snapshots"))
        scoring = Scoring(**{name: one for name, one in how.items() if name != "snapshots"})
        self._scorer.preconditioner(scoring)
        self._scorer.require_steps(scoring)
        with scored_candidates(self.directory, module, candidates, probes, chosen, **settings) as scratch:
            scores = TracInRun(scratch).influence(**how)
        names = {f"train{suffix}": f"candidate{suffix}" for suffix in ("", "_language", "_item")}
        named: xr.DataArray = scores.rename(names)
        return named

    def per_token(
        self,
        module: LightningModule,
        train_loader: Any,
        probe_loaders: Any,
        probes: Sequence[int],
        train: Sequence[int] | None = None,
        **settings: Any,
    ) -> xr.DataArray:
        """Influence of train samples on each token of some probes; a probe's tokens add up to its `influence`.

        Args:
            module: as in `add_probes`.
            train_loader: the fit's train samples, in the same dataset order.
            probe_loaders: the probes as the fit had them.
            probes: indices of the probes to split.
            train: indices of the train samples. None: all.
            settings: options of `influence`; `tokenizer` for the tokens' texts, if neither module nor collate function holds
                one; `token_language_column`, a column of the probes with a list of languages, one for each token id; `mask`,
                `languages`, `languages_of_probes`, `memory_budget` and `progress` as in `attribute`.

        Returns:
            Dimensions `train` and `token`; each token that counts has its `probe`, `position`, `text`, `target` and `term`, and
            its `token_language` if a column was named.

        Raises:
            TracInError: as for `attribute`; there is no such probe or train sample, or the loss of a token cannot be seen.

        Example:
            >>> mixed = run.per_token(module, *loaders, [3], token_language_column="languages")  # doctest: +SKIP
            >>> mixed.groupby("token_language").sum().groupby("train_language").mean()  # doctest: +SKIP
        """
        from lightning_tracin.trainer.token_scores import Pairs, token_scores

        how = {name: settings.pop(name) for name in signature(self.influence).parameters if name in settings}
        chosen, scoring = self._scorer.chosen(how.pop("snapshots", None)), Scoring(**how)
        used = self._scorer.preconditioner(scoring)
        self._scorer.require_steps(scoring)
        if self.method.metric is not None:
            raise TracInError(f"Per-token scores are of exact products, not of method={self.method.metric!r}; fit without it.")
        if used in WHITENED:
            remedy = "adam" if used in SCALED else "none"
            raise TracInError(f"Per-token scores are not whitened; take `preconditioner={remedy!r}`.")
        pairs = Pairs.of(probes, train, self.record.probes.count, len(self.train))
        return token_scores(self.directory, module, train_loader, probe_loaders, pairs, scoring, chosen, **settings)
