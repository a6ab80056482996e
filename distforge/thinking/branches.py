"""N branches of a batch of texts, fed token by token or in blocks through one language model."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from distforge.errors import InputError
from distforge.thinking.branch_attention import BranchCache
from distforge.thinking.language_model import Prediction, head_at, require_room


class Branches:
    """The texts are read once, on construction; every `feed` is one forward pass for all branches.

    Args:
        lm: in evaluation mode.
        input_ids, attention_mask: (B, L), padded on either side. A text that has no branch is not
            read.
        rows, positions: (N,) int64: text of each branch, and column of the last token it sees.
            Equal pairs are different branches.
        capacity: most tokens that a branch will hold.
        base: whether `base` is wanted.

    ``base``: what the model predicts at the N anchors, before any branch.

    Raises:
        InputError: a row or position that does not exist or is padding, padding inside a text, a
            text with its branch over the model's context, or a model that cannot branch.
    """

    def __init__(
        self,
        lm: PreTrainedModel,
        input_ids: Tensor,
        attention_mask: Tensor,
        rows: Tensor,
        positions: Tensor,
        capacity: int,
        *,
        base: bool = False,
    ) -> None:
        self._lm, device = lm, lm.device
        rows, positions = rows.to(device), positions.to(device)
        ids, offsets = _right_padded(input_ids.to(device), attention_mask.to(device))
        self.anchors = _checked_anchors(attention_mask.to(device), offsets, rows, positions)
        require_room(lm, int(self.anchors.max()) + 1 + capacity)
        used, self._row = rows.unique(return_inverse=True)
        # Nothing sees a text beyond the last anchor.
        ids = ids[used, : int(self.anchors.max()) + 1]
        self._column, count = _columns(self._row, len(used))
        anchors = torch.zeros(len(used), count, dtype=torch.int64, device=device)
        anchors[self._row, self._column] = self.anchors
        ends = self._row * ids.shape[1] + self.anchors
        text = DynamicCache()
        with head_at(lm, ends if base else ends[:1]) as hidden:
            logits = lm(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                past_key_values=text,
                use_cache=True,
            ).logits
        self.base = Prediction(logits, hidden[0]) if base else None
        self._cache = BranchCache(text, anchors, capacity)
        self._grid = anchors.shape

    def feed(self, tokens: Tensor, positions: Tensor, valid: Tensor, wanted: Tensor) -> Prediction:
        """Append s tokens to every branch; what the M wanted slots predict, branch by branch.

        Args:
            tokens, positions: (N, s) int64: ids, and their places in the sequence that the branch
                continues.
            valid: (N, s) boolean, false for filling that nothing attends to.
            wanted: (N, s) boolean, with at least one true value.
        """
        steps = tokens.shape[1]
        texts, branches = self._grid
        with (
            self._cache.extend(self._lm, self._laid_out(valid)),
            head_at(self._lm, self._slots(steps)[wanted]) as hidden,
        ):
            ids = self._laid_out(tokens).view(texts, steps * branches)
            logits: Tensor = self._lm(
                input_ids=ids,
                # Says that no slot is padding; what a slot sees is the cache's to decide.
                attention_mask=torch.ones_like(ids),
                position_ids=self._laid_out(positions).view(texts, steps * branches),
                past_key_values=self._cache,
                use_cache=True,
            ).logits
        return Prediction(logits, hidden[0])

    def keep(self, kept: Tensor) -> None:
        """Go on with the branches ``kept`` (M,) alone, in that order; M at least 1."""
        self._row, before = self._row[kept], self._column[kept]
        self._column, count = _columns(self._row, self._grid[0])
        self.anchors = self.anchors[kept]
        columns = torch.zeros(self._grid[0], count, dtype=torch.int64, device=before.device)
        columns[self._row, self._column] = before
        self._cache.select(columns)
        self._grid = columns.shape

    @property
    def width(self) -> int:
        """Most branches of one text, which all texts are padded to."""
        return self._grid[1]

    def _laid_out(self, values: Tensor) -> Tensor:
        """(N, s) to (B, s, P), zero where a text has no branch."""
        texts, branches = self._grid
        grid = values.new_zeros(texts, values.shape[1], branches)
        grid[self._row, :, self._column] = values
        return grid

    def _slots(self, steps: int) -> Tensor:
        """(N, s) index of each slot among the B * s * P of a forward pass."""
        branches = self._grid[1]
        step = torch.arange(steps, device=self._row.device)
        return (self._row[:, None] * steps + step) * branches + self._column[:, None]


def _right_padded(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """The texts from column 0 on, and the column (B,) where each began.

    Behind a text, padding needs no mask: nothing causal looks back at it from inside the text.
    """
    mask = attention_mask.bool()
    if input_ids.ndim != 2 or mask.shape != input_ids.shape:
        raise InputError(
            f"input_ids of shape {tuple(input_ids.shape)} and attention_mask of shape "
            f"{tuple(mask.shape)} should both be (texts, length)"
        )
    lengths = mask.sum(dim=1)
    offsets = mask.int().argmax(dim=1)
    columns = torch.arange(mask.shape[1], device=mask.device)
    inside = (columns >= offsets[:, None]) & (columns < (offsets + lengths)[:, None])
    if not torch.equal(inside, mask):
        raise InputError("attention_mask has zeros inside a text; padding stands at its ends only")
    shifted = (columns + offsets[:, None]).clamp(max=mask.shape[1] - 1)
    return input_ids.gather(1, shifted), offsets


def _checked_anchors(mask: Tensor, offsets: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
    if rows.ndim != 1 or rows.shape != positions.shape:
        raise InputError(
            f"rows of shape {tuple(rows.shape)} and positions of shape {tuple(positions.shape)} "
            "should both be (thoughts,)"
        )
    outside = (rows < 0) | (rows >= mask.shape[0]) | (positions < 0) | (positions >= mask.shape[1])
    outside[~outside] = ~mask[rows[~outside], positions[~outside]].bool()
    if outside.any():
        first = int(outside.nonzero()[0])
        raise InputError(
            f"thought {first} follows token {int(positions[first])} of text {int(rows[first])}, "
            "which is empty or ends before; positions are columns of input_ids with a token"
        )
    return positions - offsets[rows]


def _columns(rows: Tensor, texts: int) -> tuple[Tensor, int]:
    """Number of each branch among those of its text, and the most that a text has."""
    order = rows.argsort(stable=True)
    counts = rows.bincount(minlength=texts)
    starts = counts.cumsum(0) - counts
    columns = torch.empty_like(rows)
    columns[order] = torch.arange(len(rows), device=rows.device) - starts[rows[order]]
    return columns, int(counts.max())
