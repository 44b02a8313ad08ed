"""The cloze task: hide items of a row and predict them from both sides (BERT4Rec, Sun et al., CIKM 2019).

RecBole 1.2's BERT4Rec never trains on a user's last train item, forgets the oldest item at every inference, never
trains a hidden first position and divides by zero where nothing is hidden. Here every real position may be hidden, at
least one is, and the oldest item goes only when the row is full.
"""

import torch
from torch import Tensor

from recbole_cafe.errors import ConfigError
from recbole_cafe.layers.sampling import uniform


class Cloze:
    """Makes the rows of the cloze task.

    Args:
        mask_id: the id that stands for a hidden item.
        mask_ratio: share p of a row's n items that is hidden: max(1, round(n p)), at most L p.
        max_seq_length: L.

    Raises:
        ConfigError: mask_ratio is not in (0, 1).
    """

    def __init__(self, *, mask_id: int, mask_ratio: float, max_seq_length: int) -> None:
        if not 0.0 < mask_ratio < 1.0:
            raise ConfigError(f"mask_ratio={mask_ratio} is not between 0 and 1")
        self.mask_id, self.mask_ratio, self.max_seq_length = mask_id, mask_ratio, max_seq_length

    def rows(self, item_seq: Tensor, target: Tensor) -> Tensor:
        """Histories with the item that follows them, so that a user's last train item is read and hidden too.

        Args:
            item_seq: [B, W].
            target: [B, W] as for a next-item loss; its last entry is what follows the row.

        Returns:
            [B, min(W + 1, L)].
        """
        last = (item_seq > 0).sum(1) - 1
        return self._append(item_seq, target[torch.arange(len(target), device=target.device), last])

    def question(self, item_seq: Tensor) -> Tensor:
        """Histories with a hidden item after the last. [B, W] to [B, min(W + 1, L)]."""
        return self._append(item_seq, torch.full_like(item_seq[:, 0], self.mask_id))

    def hide(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Hide items, positions drawn uniformly without replacement.

        Args:
            rows: [B, W].

        Returns:
            rows with hidden items [B, W], and these items [B, W], 0 where nothing was hidden.
        """
        real = rows > 0
        n = real.sum(1)
        most = max(1, int(self.max_seq_length * self.mask_ratio))
        count = (n * self.mask_ratio).round().long().clamp(min=1, max=most)
        key = uniform(rows).masked_fill(~real, 2.0)
        order = key.argsort(1).argsort(1)  # the rank of each key in its row
        hidden = (order < count[:, None]) & real
        return rows.masked_fill(hidden, self.mask_id), torch.where(hidden, rows, 0)

    def _append(self, item_seq: Tensor, item: Tensor) -> Tensor:
        """Put an item [B] after each row [B, W]; of L + 1 items the last L are kept."""
        n = (item_seq > 0).sum(1)
        longer = torch.cat((item_seq, torch.zeros_like(item_seq[:, :1])), dim=1)
        longer = longer.scatter(1, n[:, None], item[:, None])
        if longer.shape[1] <= self.max_seq_length:
            return longer
        oldest = (n + 1 - self.max_seq_length).clamp(min=0)
        return longer.gather(1, oldest[:, None] + torch.arange(self.max_seq_length, device=n.device))
