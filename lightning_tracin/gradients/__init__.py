"""Per-sample gradients of a batch, and their inner products with the gradients of probes; pure torch."""

from lightning_tracin.gradients.bank import ProbeBank
from lightning_tracin.gradients.block import HeldBlock
from lightning_tracin.gradients.capture import Capture
from lightning_tracin.gradients.coverage import Coverage, plan_coverage
from lightning_tracin.gradients.forms import Dense, Form, Outer, Rows
from lightning_tracin.gradients.in_double import can_double, in_double
from lightning_tracin.gradients.query_bank import ProbeNorms, QueryBank
from lightning_tracin.gradients.single import plain_gradient, rounding
from lightning_tracin.gradients.sketch import Sketch, energy_shares
from lightning_tracin.gradients.verify import verify_gradients

__all__ = [
    "Capture",
    "Coverage",
    "Dense",
    "Form",
    "HeldBlock",
    "Outer",
    "ProbeBank",
    "ProbeNorms",
    "QueryBank",
    "Rows",
    "Sketch",
    "can_double",
    "energy_shares",
    "in_double",
    "plain_gradient",
    "plan_coverage",
    "rounding",
    "verify_gradients",
]
