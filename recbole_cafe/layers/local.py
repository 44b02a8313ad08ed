"""What makes an attention head local: LOCKER's five forms and CaFe's.

He et al., "Locker: Locally Constrained Self-Attentive Sequential Recommendation", CIKM 2021 (authors' code:
github.com/AaronHeee/LOCKER, read for comparison); CaFe, Eq. 5-6. Forms by the names of LOCKER's code; its printed
formulas were not available to us, so the code is what is followed, and where we part from it is said.

b rows of a group, H local heads, l positions, d head size. A form takes the heads' queries, keys and values
[b, H, l, d] and which positions are real [b, l], and gives the heads' outputs [b, H, l, d]. Positions that are not real
repeat the last real one (recbole_cafe.layers.packing); what comes out there is dropped.

The distance of a key j from a query i is the lag i - j: positive in the past, negative in the future.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_cafe.errors import ConfigError
from recbole_cafe.layers.attend import attend, drop_weights

if TYPE_CHECKING:
    from typing_extensions import Unpack

THETA_SOURCES = ("qk", "v")
LOCAL_HEADS = 2**10  # their number among all heads: behind any global one
INITIAL_FORMS = ("logit_gate", "theta")


class Common(TypedDict):
    """The arguments of :class:`Local`."""

    n_heads: int
    head_size: int
    max_seq_length: int
    causal: bool
    scale: float
    dropout: float


class WindowedCommon(Common):
    """The arguments of :class:`Windowed`."""

    local_window: int


class Local(nn.Module):
    """What the forms share.

    Args:
        n_heads: H.
        head_size: d.
        max_seq_length: L.
        causal: a position sees itself and the past only.
        scale: scores are multiplied by it.
        dropout: of attention weights.
    """

    def __init__(self, *, n_heads: int, head_size: int, max_seq_length: int, causal: bool, scale: float,
                 dropout: float) -> None:  # fmt: skip
        super().__init__()
        self.n_heads, self.head_size, self.max_seq_length = n_heads, head_size, max_seq_length
        self.causal, self.scale, self.dropout = causal, scale, dropout

    def lags(self, length: int, device: torch.device) -> Tensor:
        """[l, l] of i - j."""
        steps = torch.arange(length, device=device)
        return steps[:, None] - steps

    def allowed(self, real: Tensor) -> Tensor:
        """Which keys a query may see: [1, 1, l, l] if causal (real positions come first), else [b, 1, 1, l]."""
        if self.causal:
            return (self.lags(real.shape[1], real.device) >= 0)[None, None]
        return real[:, None, None, :]

    def by_lag(self, table: Tensor, length: int) -> Tensor:
        """Look values up by lag.

        Args:
            table: [H, W], W = L if causal (lags 0..L-1), else 2 L - 1 (lags 1-L..L-1).
            length: l.

        Returns:
            [H, l, l]; with `causal` the future gets the value of lag 0.
        """
        lag = self.lags(length, table.device)
        return table[:, lag.clamp(min=0) if self.causal else lag + self.max_seq_length - 1]

    @property
    def n_lags(self) -> int:
        """Rows of a table by lag."""
        return self.max_seq_length if self.causal else 2 * self.max_seq_length - 1

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, key: Tensor | None) -> Tensor:
        """Softmax attention with a bool or additive mask; see :func:`recbole_cafe.layers.attend.attend`."""
        return attend(q, k, v, mask=mask, scale=self.scale, key=key, p=self.dropout, first_head=LOCAL_HEADS)

    @property
    def is_bias(self) -> bool:
        """Whether the form is attention with something added to its scores, :meth:`bias`, and nothing besides."""
        return False

    def bias(self, k: Tensor, v: Tensor) -> Tensor:
        """What a form that `is_bias` adds. [n, H, W, d] twice to [n, H, W, W]; a row may begin anywhere in a line."""
        raise NotImplementedError

    def forward(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor, key: Tensor | None = None) -> Tensor:
        """The heads' outputs.

        Args:
            q: [b, H, l, d].
            k: [b, H, l, d].
            v: [b, H, l, d].
            real: [b, l].
            key: [b, l] random numbers of the positions, for dropout of the weights; None drops nothing.

        Returns:
            [b, H, l, d].
        """
        raise NotImplementedError

    def weights(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:  # noqa: ARG002
        """The weights of :meth:`forward`, [b, H, l, l]; a row for each query.

        Raises:
            ConfigError: the form has none that can be told, such as a convolution.
        """
        raise ConfigError(f"local heads of the form {type(self).__name__.lower()} tell no attention weights")


class Theta(Local):
    """Weights re-scaled by content and distance: CaFe's item encoder, and with `local_positions` LOCKER's ``adapt``.

        a_ij = theta_ij exp(s_ij) / sum_k theta_ik exp(s_ik) = softmax_j(s_ij + ln theta_ij)
        ln theta_ij = W (v_i + v_j + b_{i-j}) + const                                   (CaFe, Eq. 6)

    Every term without the index j is the same for all keys of a query and cancels in the softmax, so the query
    term, the bias and LOCKER's user term have no effect and no gradient. What is left,

        ln theta_ij ~ w . v_j + w . b_{i-j},

    is an additive bias of shape [b, H, l, l]. The naive form with all its terms lives in the tests, which hold the two
    equal. So, as published, theta adapts to neither the query nor the user.

    Args:
        source: where the content term comes from: ``qk``, the head's query and key projections, of which the key's
            remains (CaFe's paper), or ``v``, its value projection (CaFe's code, LOCKER).
        local_positions: add position vectors of their own to the heads' queries and keys (LOCKER).
        common: the arguments of :class:`Local`.
    """

    def __init__(self, *, source: str = "qk", local_positions: bool = False, **common: Unpack[Common]) -> None:
        super().__init__(**common)
        if source not in THETA_SOURCES:
            raise ConfigError(f"theta_source={source!r} is not one of {', '.join(THETA_SOURCES)}")
        self.source = source
        self.theta_weight = nn.Parameter(torch.empty(self.n_heads, self.head_size))
        self.distance = nn.Parameter(torch.empty(self.n_heads, self.n_lags, self.head_size))
        nn.init.normal_(self.theta_weight, std=0.02)
        nn.init.normal_(self.distance, std=0.02)
        self.positions = LocalPositions(self) if local_positions else None

    @property
    def is_bias(self) -> bool:
        """Yes; but positions of its own are counted from the start of a row."""
        return self.positions is None

    def bias(self, k: Tensor, v: Tensor) -> Tensor:
        """See :class:`Local`."""
        return self.log_theta(k if self.source == "qk" else v)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor, key: Tensor | None = None) -> Tensor:
        """See :class:`Local`."""
        return self._carry(q, k, v, real, v, key)

    def weights(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
        """See :class:`Local`."""
        length = real.shape[1]
        one_hot = torch.eye(length, dtype=v.dtype, device=v.device).expand(*v.shape[:2], length, length)
        return self._carry(q, k, v, real, one_hot, None)

    def _carry(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor, carried: Tensor, key: Tensor | None) -> Tensor:
        """What the weights, made of q, k and v, make of `carried`, [b, H, l, ...]."""
        bias = self.log_theta(k if self.source == "qk" else v).masked_fill(~self.allowed(real), float("-inf"))
        if self.positions is not None:
            q, k = self.positions(q, k, real)
        return self.attend(q, k, carried, bias, key)

    def log_theta(self, content: Tensor) -> Tensor:
        """ln theta without the terms that cancel. content: [b, H, l, d] projections. Returns [b, H, l, l]."""
        by_key = torch.einsum("bhjd,hd->bhj", content, self.theta_weight)
        by_distance = torch.einsum("hld,hd->hl", self.distance, self.theta_weight)  # [H, lags]
        return by_key[:, :, None, :] + self.by_lag(by_distance, content.shape[2])


class LocalPositions(nn.Module):
    """Absolute positions that only local heads see, in queries and keys of every layer (LOCKER: initial, adapt).

    Counted from the start of the row if causal, else from its end; why, see
    :class:`recbole_cafe.layers.encoder.SequenceEncoder`.
    """

    def __init__(self, of: Local) -> None:
        super().__init__()
        self.from_start = of.causal
        self.query = nn.Parameter(torch.empty(of.n_heads, of.max_seq_length, of.head_size))
        self.key = nn.Parameter(torch.empty(of.n_heads, of.max_seq_length, of.head_size))
        nn.init.normal_(self.query, std=0.02)
        nn.init.normal_(self.key, std=0.02)

    def forward(self, q: Tensor, k: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """q, k: [b, H, l, d]; real: [b, l]. Returns [b, H, l, d] each."""
        steps = torch.arange(real.shape[1], device=real.device)
        if self.from_start:
            return q + self.query[:, steps], k + self.key[:, steps]
        at = (real.sum(1, keepdim=True) - 1 - steps).clamp(min=0)  # [b, l]
        return q + self.query[:, at].transpose(0, 1), k + self.key[:, at].transpose(0, 1)


class Windowed(Local):
    """A form of limited reach.

    Args:
        local_window: s, in positions.
        common: the arguments of :class:`Local`.

    Raises:
        ConfigError: it is negative.
    """

    def __init__(self, *, local_window: int, **common: Unpack[Common]) -> None:
        super().__init__(**common)
        if local_window < 0:
            raise ConfigError(f"local_window={local_window} should be at least 0")
        self.local_window = local_window


class Window(Windowed):
    """A fixed window: keys at most `local_window` steps away."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor, key: Tensor | None = None) -> Tensor:
        """See :class:`Local`. What is no position sees itself: a softmax over nothing is NaN, in gradients too."""
        lag = self.lags(real.shape[1], real.device)
        return self.attend(q, k, v, self.allowed(real) & (lag.abs() <= self.local_window) | (lag == 0), key)


class Initial(Local):
    """A gate on each distance, Gaussian at the start and learned from there.

    LOCKER's code multiplies the score by the gate, score_ij * sigmoid(r_{i-j} / 0.1); ``theta`` adds ln of the gate
    instead, which is CaFe's Eq. 5 with a theta that depends on the distance alone. r_m starts at exp(-(m / 0.5)^2 / 2).
    In the code an index shift puts the Gaussian's centre on the next item (lag -1) instead of the item itself;
    `initial_center` 0 puts it on the item, 1 reproduces the code.

    Args:
        initial_form: ``logit_gate`` or ``theta``.
        initial_center: lag -initial_center gets the largest gate.
        common: the arguments of :class:`Local`.
    """

    def __init__(self, *, initial_form: str, initial_center: int, **common: Unpack[Common]) -> None:
        super().__init__(**common)
        if initial_form not in INITIAL_FORMS:
            raise ConfigError(f"initial_form={initial_form!r} is not one of {', '.join(INITIAL_FORMS)}")
        self.initial_form = initial_form
        first = 0 if self.causal else 1 - self.max_seq_length
        lag = first + torch.arange(self.n_lags, dtype=torch.get_default_dtype())
        start = torch.exp(-(((lag + initial_center) / 0.5) ** 2) / 2)
        self.relative = nn.Parameter(start.repeat(self.n_heads, 1))
        self.positions = LocalPositions(self)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor, key: Tensor | None = None) -> Tensor:
        """See :class:`Local`."""
        q, k = self.positions(q, k, real)
        gate = self.by_lag(self.relative / 0.1, q.shape[2])  # [H, l, l]
        hidden = ~self.allowed(real)
        if self.initial_form == "theta":
            return self.attend(q, k, v, F.logsigmoid(gate)[None].masked_fill(hidden, float("-inf")), key)
        score = (q @ k.transpose(-1, -2)) * self.scale * gate.sigmoid()
        weight = score.masked_fill(hidden, float("-inf")).softmax(-1)
        return (weight if key is None else drop_weights(weight, key, self.dropout, LOCAL_HEADS)) @ v


class Convolution(Windowed):
    """A convolution over the head's values, no queries or keys: ReLU(conv(v)).

    Its width is 2 s + 1, around the position or, if causal, up to it.
    """

    def __init__(self, **common: Unpack[WindowedCommon]) -> None:
        super().__init__(**common)
        width = self.n_heads * self.head_size
        # one convolution per head: groups share no weights
        self.conv = nn.Conv1d(width, width, 2 * self.local_window + 1, groups=self.n_heads)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor, key: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """See :class:`Local`."""
        s = self.local_window
        v = v * real[:, None, :, None]
        padded = F.pad(v.transpose(2, 3).flatten(1, 2), (2 * s, 0) if self.causal else (s, s))  # [b, H d, l + 2 s]
        heads: Tensor = F.relu(self.conv(padded)).unflatten(1, (self.n_heads, self.head_size))
        return heads.transpose(2, 3)


class Recurrent(Windowed):
    """The last state of a GRU over a window of s + 1 values, from a zero state.

    The values are those from here on, as in LOCKER's code, which pads the end with zeros; if causal, they are those up
    to here, with zeros before the start.

    The code is consistent for one local head only (each of its GRUs returns all heads); here each head has a GRU of its
    own values.
    """

    def __init__(self, **common: Unpack[WindowedCommon]) -> None:
        super().__init__(**common)
        self.gru = nn.ModuleList(
            nn.GRU(self.head_size, self.head_size, batch_first=True) for _ in range(self.n_heads)
        )  # fmt: skip

    def forward(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor, key: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """See :class:`Local`."""
        s = self.local_window
        b, _, length, d = v.shape
        v = F.pad(v * real[:, None, :, None], (0, 0, s, 0) if self.causal else (0, 0, 0, s))
        windows = v.unfold(2, s + 1, 1).transpose(-1, -2)  # [b, H, l, s + 1, d], in order of time
        heads = [gru(windows[:, m].reshape(b * length, s + 1, d))[0][:, -1] for m, gru in enumerate(self.gru)]
        return torch.stack([head.view(b, length, d) for head in heads], dim=1)


class Adaptive(Theta):
    """LOCKER's ``adapt``: :class:`Theta` from values, with local positions."""

    def __init__(self, **common: Unpack[Common]) -> None:
        super().__init__(source="v", local_positions=True, **common)


# local_type -> form. LOCKER's `none` is no local head.
LOCALS: dict[str, type[Local]] = {
    "theta": Theta,
    "win": Window,
    "initial": Initial,
    "adapt": Adaptive,
    "conv": Convolution,
    "rnn": Recurrent,
}
