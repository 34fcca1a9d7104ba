"""The exact pass against each peer, on the workload it supports."""

from __future__ import annotations

from benchmarks.compare import compare
from benchmarks.contenders import Contender
from benchmarks.peer_bergson import BERGSON
from benchmarks.peer_captum import EXACT, LAST_LAYER, SAMPLE_WISE
from benchmarks.peer_dattri_llm import DATTRI_LLM, FROZEN
from benchmarks.peer_kronfluence import KRONFLUENCE
from benchmarks.registry import Context, measurement
from benchmarks.report import Report, ratio_result
from benchmarks.workloads import Workload, base_shape, causal_lm, reference


def _against(context: Context, name: str, workload: Workload, contender: Contender, *beside: Contender) -> Report:
    """The figure of one comparison, and further comparisons to show with it."""
    small = workload.scaled(context.scale)
    comparison = compare(context, small, contender)
    results = () if comparison.ratio is None else (ratio_result(name, comparison.ratio),)
    return Report(results, (comparison, *(compare(context, small, other) for other in beside)))


@measurement("exact_vs_dattri_llm")
def dattri_llm(context: Context) -> Report:
    """TracIn of dattri-llm with the summed loss, as documented; and with its weights frozen by hand, which is faster."""
    return _against(context, "exact_vs_dattri_llm", reference(), DATTRI_LLM, FROZEN)


@measurement("exact_vs_captum")
def captum(context: Context) -> Report:
    """The exact path of captum, and its faster ones with their error."""
    return _against(context, "exact_vs_captum", reference(), EXACT, SAMPLE_WISE, LAST_LAYER)


@measurement("exact_vs_kronfluence")
def kronfluence(context: Context) -> Report:
    """The identity strategy of kronfluence, Linear layers on both sides."""
    return _against(context, "exact_vs_kronfluence", reference(), KRONFLUENCE)


@measurement("exact_vs_bergson")
def bergson(context: Context) -> Report:
    """The peer for causal language models, bergson: inner Linear weights on both sides."""
    return _against(context, "exact_vs_bergson", causal_lm(), BERGSON)


@measurement("base_shape")
def xlm_r_base(context: Context) -> Report:
    """All peers that can handle XLM-R base's real shape, on fewer samples."""
    workload = base_shape().scaled(context.scale)
    return Report(comparisons=tuple(compare(context, workload, peer) for peer in (DATTRI_LLM, EXACT, KRONFLUENCE)))
