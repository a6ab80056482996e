"""Next-token cross-entropy on what the model should write, without logits for anything else."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from distforge.data.dataset import IGNORE_INDEX

# (module or an engine around it, micro-batch on its device) -> (loss in nats summed over the
# micro-batch's targets, how many targets the argmax hits), both scalars. The engine divides by the
# targets of the whole step, on all ranks together.
Loss = Callable[[nn.Module, Mapping[str, Tensor]], tuple[Tensor, Tensor]]


def sum_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy in nats, and how many targets the argmax hits (both scalars).

    Args:
        model: a Hugging Face causal LM, or an engine around one.
        batch: ``input_ids``, ``attention_mask`` and ``labels``, each (batch, length), int64, padded
            on the right; labels are aligned with the inputs and are shifted here.

    Logits are computed from the first column that predicts a target on (where the model can), and
    only target rows are cast to fp32, so a large vocabulary costs what its targets cost.
    """
    labels = batch["labels"][:, 1:]
    targets = labels != IGNORE_INDEX
    columns = targets.any(dim=0).nonzero()
    first = int(columns[0]) if len(columns) else labels.shape[1]
    kwargs = {}
    if keeps_logits(model):
        kwargs["logits_to_keep"] = batch["input_ids"].shape[1] - first
    else:
        first = 0
    logits = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        use_cache=False,
        **kwargs,
    ).logits
    chosen = targets[:, first:]
    rows = logits[:, :-1][chosen].float()
    wanted = labels[:, first:][chosen]
    loss = nn.functional.cross_entropy(rows, wanted, reduction="sum")
    return loss, (rows.detach().argmax(dim=-1) == wanted).sum()


def keeps_logits(model: nn.Module) -> bool:
    """Whether the model can be asked for the logits of its last positions alone."""
    inner = getattr(model, "module", model)
    return "logits_to_keep" in inspect.signature(inner.forward).parameters
