"""Why a loss of a batch may not be made of its samples' own losses, each with its remedy, in words."""

from __future__ import annotations

INNER_GRADIENT = (
    "`training_step` computes gradients itself (adversarial training such as FGM, a gradient penalty), which is "
    "no function of one "
    "sample's forward pass. Leave that part out of the loss that is scored: return the plain loss of each sample from "
    "`per_sample_loss(self, batch)`."
)

BATCH_NORM = (
    "a BatchNorm uses the statistics of the batch, so that each sample's loss depends on the others. Let it keep "
    "running statistics "
    "(`track_running_stats=True`) and stay in evaluation mode, or use LayerNorm or GroupNorm."
)

PENALTY = (
    "the loss has a term that depends on the weights alone (an L2 or orthogonality penalty, {value:.3g} here), "
    "which is no sample's "
    "own. Take it out of the loss that is scored (`weight_decay` of the optimizer does the same as L2)."
)

ROUTER = (
    "the loss has a term of its router (a load-balancing or z-loss, {value:.3g} here), which depends on all "
    "tokens of the batch. "
    "Take it out of the loss that is scored: `output_router_logits=False` in the model's config, or subtract "
    "`coefficient * outputs.aux_loss`."
)

CAPACITY = (
    "{change}, and the model has experts: those with a limited capacity drop tokens according to what else is in "
    "the batch. Give them "
    "room for every token (a larger `expert_capacity` or capacity factor in evaluation)."
)

PAIRS = (
    "the samples are compared with each other (in-batch negatives or another contrastive loss), so a sample has "
    "no loss of its own. "
    "Compare each with negatives of its own (a fixed set in the sample, or a frozen memory) in `per_sample_loss(self, batch)`."
)

ORDER = (
    "the loss changes when the same samples come in another order, so it pairs or mixes neighbours. Make each "
    "sample's loss a function "
    "of that sample alone, with samples in the first dimension."
)

PADDING = (
    "a sample's loss changes with the padding of its batch (from {alone:.6g} alone to {padded:.6g} with the "
    "batch's padding). Let "
    "attention and loss leave padding out (`attention_mask`, labels of -100, masked logits and means), or pad "
    "every sample to one "
    "length in the collate function (`padding='max_length'`)."
)

TERM = (
    "the loss has a term beside its samples' losses that depends on the batch ({low:.3g} to {high:.3g} here). "
    "Take it out of the loss "
    "that is scored."
)


def reason_of_error(error: Exception) -> str | None:
    """Why a step raises an error of torch's when it is evaluated on its own; None if it is the step's own error.

    Example:
        >>> import torch
        >>> layer = torch.nn.BatchNorm1d(2, track_running_stats=False).eval()
        >>> try:
        ...     layer(torch.zeros(1, 2))
        ... except ValueError as error:
        ...     print(reason_of_error(error)[:48])
        a BatchNorm uses the statistics of the batch, so
    """
    if "more than 1 value per channel when training" in str(error):
        return BATCH_NORM
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename.replace("\\", "/").endswith("torch/autograd/__init__.py") and code.co_name in ("grad", "backward"):
            return INNER_GRADIENT
        trace = trace.tb_next
    return None
