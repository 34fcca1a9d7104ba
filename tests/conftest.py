"""Settings for all tests: tiny models are fastest on one thread, and W&B stays on this machine."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator

import hypothesis
import pytest
import torch

from lightning_tracin.reporting.contribution_results import write_contributions
from lightning_tracin.reporting.every_result import WrittenResults
from lightning_tracin.trainer import account_results, attribute, session
from lightning_tracin.trainer.finish import finish

#: Each run draws others, so the runs of `make test` find together what one of `make test-all` does.
hypothesis.settings.register_profile("default", max_examples=20, deadline=None)
hypothesis.settings.register_profile("thorough", max_examples=50, deadline=None)
hypothesis.settings.register_profile("fuzz", max_examples=5000, deadline=None)
hypothesis.settings.load_profile("default")

os.environ["OMP_NUM_THREADS"] = "1"  # also for the processes that tests start
torch.set_num_threads(1)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What imports and collection made stays until the end, so the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: a long one at the end keeps one process busy while the others have nothing left to do."""
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def _facts_of_languages_stay_here(tmp_path_factory: pytest.TempPathFactory) -> None:
    """In a folder that the processes of the tests share, because reading the database takes seconds."""
    os.environ["LIGHTNING_TRACIN_CACHE"] = str(tmp_path_factory.getbasetemp().parent / "languages")


@pytest.fixture(autouse=True)
def _wandb_stays_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


@pytest.fixture(autouse=True)
def _environment_stays_here() -> Iterator[None]:
    """Lightning leaves a process group's port and ranks behind, which processes of a later test would take for theirs."""
    before = dict(os.environ)
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(autouse=True)
def _seed_stays_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # studies and examples set it; this puts back what was there before


@pytest.fixture(autouse=True)
def _new_memory_is_not_a_number() -> Iterator[None]:
    """What nothing was written to is NaN, so that a test that reads it fails, and not once in a hundred runs."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture(autouse=True)
def _one_thread_stays_one() -> Iterator[None]:
    """Commands set torch's threads for their process; the tests after them would round sums in another order."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def _results_are_not_written(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tables, figures and the page take most of a small fit, and few tests look at them: the fits of others write none.

    Tests of a folder in `_LOOKED_AT`, and of modules with the mark `results`, and single tests with it, have all of them.
    """
    if _LOOKED_AT & {*request.path.parts} or request.node.get_closest_marker("results") is not None:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        for module in (session, attribute):
            patch.setattr(module, "finish", lambda *_: WrittenResults(None, None))
        patch.setattr(account_results, "write_contributions", lambda _: {})
        yield


@pytest.fixture(autouse=True)
def _results_are_written_where_one_test_looks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("results") is not None:
        for module in (session, attribute):
            monkeypatch.setattr(module, "finish", finish)
        monkeypatch.setattr(account_results, "write_contributions", write_contributions)


#: Folders of the tests that look at results.
_LOOKED_AT = {"reporting", "cli", "examples", "studies", "benchmarks"}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there is no network, without the minute that trying takes."""
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(autouse=True)
def _lightning_still_speaks() -> Iterator[None]:
    """A test that leaves Lightning silent takes what it says from every test after it in the same process."""
    before = _voice()
    yield
    if before[0] != logging.NOTSET:  # else Lightning was first imported by this test
        assert _voice() == before


def _voice() -> tuple[int, int]:
    return logging.getLogger("pytorch_lightning").level, logging.root.manager.disable
