"""captum's `TracInCP` (https://captum.ai/api/influence.html): its exact path, and its two fast ones."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from benchmarks.contenders import Contender, parameter_bytes
from benchmarks.workloads import Sentences, Workload


class _Logits(nn.Module):
    """The model as captum calls it: tensors in, logits out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits = self.network(input_ids=input_ids, attention_mask=attention_mask).logits
        assert isinstance(logits, Tensor)
        return logits


def _tuples(samples: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    batch = default_collate(samples)
    return batch["input_ids"], batch["attention_mask"], batch["labels"]


def _loader(samples: Sentences, batch_size: int) -> DataLoader[Any]:
    return DataLoader(samples, batch_size=batch_size, collate_fn=_tuples)


def _rate_one(_model: nn.Module, _checkpoint: str) -> float:
    """Load nothing, because the weights are in the model already; captum expects the learning rate."""
    return 1.0


def _scores(workload: Workload, batch_size: int, loss: Any, sample_wise: bool) -> Tensor:
    from captum.influence import TracInCP

    tracin = TracInCP(
        _Logits(workload.model),
        _loader(workload.train, batch_size),
        ["in the model"],
        _rate_one,
        loss_fn=loss,
        sample_wise_grads_per_batch=sample_wise,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # token ids do not require gradients, says captum
        scores = tracin.influence(_loader(workload.probes, batch_size))
    workload.model.zero_grad(set_to_none=True)
    assert isinstance(scores, Tensor)
    return scores.detach().T


def exact_scores(workload: Workload, batch_size: int) -> Tensor:
    """One backward pass for each sample; gradients of all parameters are written out."""
    return _scores(workload, batch_size, nn.CrossEntropyLoss(reduction="none"), sample_wise=False)


def sample_wise_scores(workload: Workload, batch_size: int) -> Tensor:
    """One backward pass for each batch; gradients of Linear layers only."""
    scores = _scores(workload, batch_size, nn.CrossEntropyLoss(reduction="sum"), sample_wise=True)
    for parameter in workload.model.parameters():
        if hasattr(parameter, "sample_grad"):
            del parameter.sample_grad
    return scores


def last_layer_scores(workload: Workload, batch_size: int) -> Tensor:
    """`TracInCPFast`: the last Linear layer only."""
    from captum.influence import TracInCPFast

    model = _Logits(workload.model)
    last = workload.model.get_submodule("classifier.out_proj")
    fast = TracInCPFast(
        model,
        last,
        _loader(workload.train, batch_size),
        ["in the model"],
        _rate_one,
        loss_fn=nn.CrossEntropyLoss(reduction="sum"),
    )
    scores = fast.influence(next(iter(_loader(workload.probes, len(workload.probes)))))
    assert isinstance(scores, Tensor)
    return scores.detach().T


def _written_out(workload: Workload, batch_size: int) -> int:
    """Bytes for the gradients of all probes, twice while they are joined, and of a batch of train samples."""
    return parameter_bytes(workload) * (2 * len(workload.probes) + 2 * batch_size)


EXACT = Contender(
    "captum TracInCP",
    "captum",
    exact_scores,
    (1, 8),
    "loss with reduction 'none', sample_wise_grads_per_batch=False: its only setting that covers every layer",
    bytes_needed=_written_out,
)
SAMPLE_WISE = Contender(
    "captum TracInCP, sample-wise",
    "captum",
    sample_wise_scores,
    (8, 32),
    "sample_wise_grads_per_batch=True, which knows Linear and Conv2d layers only",
    exact=False,
    bytes_needed=_written_out,
)
LAST_LAYER = Contender(
    "captum TracInCPFast",
    "captum",
    last_layer_scores,
    (32,),
    "the last Linear layer only",
    exact=False,
)
