"""Before a step: are all gradients finite, and do the ranks that share its work agree on them?"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from distforge.errors import InputError
from distforge.optim.layout import whole_shape
from distforge.optim.peers import Peers
from distforge.optim.placement import PLAIN, local
from distforge.optim.precision import wide_dtype

# Elements of a gradient up to which copying it costs less than a call of its own.
_SMALL = 4096


Named = tuple[Any, Tensor]  # a parameter with its name, or its number in its group


def require_usable_gradients(
    groups: list[dict[str, Any]], peers: Iterable[Peers], unchanged: str
) -> None:
    """Raises, on all ranks alike, unless every gradient of the groups can be used.

    Args:
        groups: the parameter groups, those of every rank alike.
        peers: ranks that step together, in the same order on each.
        unchanged: what has not changed yet, for the errors.

    Raises:
        InputError: a sparse gradient, or ranks that have gradients for different parameters.
        FloatingPointError: a gradient that is infinite or not a number.
    """
    candidates: list[Named] = []
    for group in groups:
        params = group["params"]
        # DeepSpeed puts one flat tensor in the place of parameters, and leaves their names.
        candidates += zip(group.get("param_names", range(len(params))), params, strict=False)
    grads = [param.grad for _, param in candidates if param.grad is not None]
    if any(grad.is_sparse for grad in grads):
        name = next(name for name, p in candidates if p.grad is not None and p.grad.is_sparse)
        raise InputError(
            f"parameter {name} has a sparse gradient: make its embedding with sparse=False."
        )
    bad = None if _all_finite(grads) else _first_not_finite(candidates)
    elsewhere = False
    for some in peers:
        here = bad is not None or elsewhere
        elsewhere = _on_other_ranks(here, candidates, some, unchanged)
    if bad is None and not elsewhere:
        return
    where = f"the gradient of parameter {bad}" if bad is not None else "a gradient on another rank"
    raise FloatingPointError(
        f"{where} is not finite; no {unchanged} has changed: "
        "drop this batch, or lower the learning rate or the loss scale."
    )


def _first_not_finite(candidates: list[Named]) -> Any | None:
    present = [(name, local(p.grad)) for name, p in candidates if p.grad is not None]
    return next((name for name, grad in present if not grad.isfinite().all()), None)


def _all_finite(grads: list[Tensor]) -> bool:
    """Whether they are, by what is quickest; False may mean that it has to be looked at closer."""
    if not PLAIN.issuperset(map(type, grads)):
        grads = [local(grad) for grad in grads]
    if all(grad.is_cpu for grad in grads):
        # No sum with a term that is not finite is finite itself, and torch's largest magnitude
        # takes ten times as long on a CPU. That a sum of finite terms overflows is rare.
        return all(math.isfinite(total.item()) for total in _sums(grads))
    # The largest magnitude, not the 2-norm: a legitimate gradient of 1e30 has no finite square.
    return bool(torch.nn.utils.get_total_norm(grads, math.inf).isfinite())


def _sums(grads: list[Tensor]) -> Iterator[Tensor]:
    """Numbers that are finite only if all gradients are; small ones go together."""
    small: dict[torch.dtype, list[Tensor]] = defaultdict(list)
    for grad in grads:
        if grad.numel() <= _SMALL:
            small[grad.dtype].append(grad)
        else:
            yield grad.sum(dtype=wide_dtype(grad))
    for some in small.values():
        together = torch._utils._flatten_dense_tensors(some)
        yield together.sum(dtype=wide_dtype(together))


def _on_other_ranks(bad: bool, candidates: list[Named], peers: Peers, unchanged: str) -> bool:
    """Whether any rank has a bad gradient. A collective that only some ranks enter would hang, and
    one in which they mean different parameters would mix them up, so it is also asked whether all
    have gradients for the same ones."""
    if peers.size == 1:
        return bad
    present = [param.grad is not None for _, param in candidates]
    digest = hash(tuple(present)) >> 2  # within int64, its negative too
    flags = torch.tensor([int(bad), digest, -digest], dtype=torch.int64, device=peers.device)
    dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=peers.group)
    worst, most, least = flags.tolist()
    if most != -least:
        raise InputError(_difference(present, candidates, peers, unchanged))
    return worst > 0


def _difference(present: list[bool], candidates: list[Named], peers: Peers, unchanged: str) -> str:
    mine = torch.tensor(present, dtype=torch.int64, device=peers.device)
    counts = mine.clone()
    dist.all_reduce(counts, group=peers.group)
    some = [0 < count < peers.size for count in counts.tolist()]
    if True not in some:
        return (
            f"this rank has {len(present)} parameters, another one has others: "
            "give the optimizer the same parameters on every rank."
        )
    first = some.index(True)
    name, param = candidates[first]
    return (
        f"parameter {name} of shape {whole_shape(param)} has a gradient on "
        f"{int(counts[first])} of {peers.size} ranks; no {unchanged} has changed: "
        "every rank must use the same parameters in a step."
    )
