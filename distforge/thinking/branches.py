"""N branches of a batch of texts, fed token by token or in blocks through one language model."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from distforge.errors import InputError
from distforge.thinking.branch_attention import BranchCache
from distforge.thinking.language_model import Prediction, head_at, require_room
from distforge.thinking.sampling import numbered_within


class Branches:
    """The texts are read once, on construction; every `feed` is one forward pass for all branches.

    Args:
        lm: in evaluation mode.
        input_ids, attention_mask: (B, L), padded on either side. A text that has no branch is not
            read.
        rows, positions: (N,) int64: text of each branch, and column of the last token it sees.
            Equal pairs are different branches, unless ``shared``.
        capacity: most tokens that a branch will hold.
        base: whether `base` is wanted.
        shared: one branch for all equal pairs.

    ``base``: what the model predicts at the anchors, before any branch.
    ``anchors``: (branches,), the column of the last token of each one's text.
    ``owner``: (N,), the branch of each pair; the N in order, unless ``shared``.

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
        shared: bool = False,
    ) -> None:
        self._lm, device = lm, lm.device
        rows, positions = rows.to(device), positions.to(device)
        ids, offsets = _right_padded(input_ids.to(device), attention_mask.to(device))
        self.anchors = _checked_anchors(attention_mask.to(device), offsets, rows, positions)
        require_room(lm, int(self.anchors.max()) + 1 + capacity)
        used, self._text = rows.unique(return_inverse=True)
        # Nothing sees a text beyond the last anchor.
        ids = ids[used, : int(self.anchors.max()) + 1]
        ends = self._text * ids.shape[1] + self.anchors
        self.owner = torch.arange(len(rows), device=device)
        if shared:
            ends, self.owner = ends.unique(return_inverse=True)
            self._text, self.anchors = ends // ids.shape[1], ends % ids.shape[1]
        text = DynamicCache()
        with head_at(lm, ends if base else ends[:1]) as hidden:
            logits = lm(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                past_key_values=text,
                use_cache=True,
            ).logits
        self.base = Prediction(logits, hidden[0]) if base else None
        self._sizes = (ids.shape[1], capacity)
        self._grid = _Grid.of(self._text, *self._sizes)
        self._cache = BranchCache(text, self._grid.texts, self._grid.filled(self.anchors), capacity)

    def feed(self, tokens: Tensor, positions: Tensor, valid: Tensor, wanted: Tensor) -> Prediction:
        """Append s tokens to every branch; what the M wanted slots predict, branch by branch.

        Args:
            tokens, positions: (N, s) int64: ids, and their places in the sequence that the branch
                continues.
            valid: (N, s) boolean, false for filling that nothing attends to.
            wanted: (N, s) boolean, with at least one true value.
        """
        grid, shape = self._grid, (len(self._grid.texts), -1)
        with (
            self._cache.extend(self._lm, grid.laid_out(valid)),
            head_at(self._lm, grid.slots(tokens.shape[1])[wanted]) as hidden,
        ):
            ids = grid.laid_out(tokens).view(shape)
            logits: Tensor = self._lm(
                input_ids=ids,
                # Says that no slot is padding; what a slot sees is the cache's to decide.
                attention_mask=torch.ones_like(ids),
                position_ids=grid.laid_out(positions).view(shape),
                past_key_values=self._cache,
                use_cache=True,
            ).logits
        return Prediction(logits, hidden[0])

    def __len__(self) -> int:
        return len(self._text)

    def at(self, kept: Tensor) -> Branches:
        """The branches ``kept`` (M,) as they are now, in that order; M at least 1.

        One that comes several times becomes several: each goes on by itself.
        """
        chosen = copy.copy(self)
        chosen._text, chosen.anchors = self._text[kept], self.anchors[kept]
        chosen._grid = _Grid.of(chosen._text, *self._sizes)
        cells = chosen._grid.filled((self._grid.row * self._grid.width + self._grid.column)[kept])
        chosen._cache = self._cache.at(cells // self._grid.width, cells % self._grid.width)
        return chosen


@dataclass(frozen=True)
class _Grid:
    """Where branches stand: ``row`` and ``column`` (N,) of each, and ``texts`` (B,) of the rows."""

    row: Tensor
    column: Tensor
    texts: Tensor
    width: int

    @classmethod
    def of(cls, text: Tensor, length: int, capacity: int) -> _Grid:
        """As wide as takes least memory: many branches of a text share a row, few stand alone."""
        counts = text.bincount()
        most = int(counts.max())
        widths = [*(1 << power for power in range(most.bit_length())), most]
        needed = [-(-counts // width) for width in widths]
        slots = [
            int(rows.sum()) * (length + width * capacity)
            for rows, width in zip(needed, widths, strict=True)
        ]
        best = slots.index(min(slots))
        rows, width = needed[best], widths[best]
        number, _ = numbered_within(text, len(counts))
        first = rows.cumsum(0) - rows
        every = torch.arange(len(counts), device=text.device)
        return cls(
            first[text] + number // width, number % width, every.repeat_interleave(rows), width
        )

    def laid_out(self, values: Tensor) -> Tensor:
        """(N, s) to (B, s, P), zero where nothing stands."""
        grid = values.new_zeros(len(self.texts), values.shape[1], self.width)
        grid[self.row, :, self.column] = values
        return grid

    def filled(self, values: Tensor) -> Tensor:
        """(N,) to (B, P); where nothing stands, a value of the same row."""
        first = torch.empty_like(self.texts).index_put((self.row,), values)
        return first[:, None].repeat(1, self.width).index_put((self.row, self.column), values)

    def slots(self, steps: int) -> Tensor:
        """(N, s) index of each slot among the B * s * P of a forward pass."""
        step = torch.arange(steps, device=self.row.device)
        return (self.row[:, None] * steps + step) * self.width + self.column[:, None]


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
            f"a thought follows token {int(positions[first])} of text {int(rows[first])}, "
            "which is empty or ends before; positions are columns of input_ids with a token"
        )
    return positions - offsets[rows]
