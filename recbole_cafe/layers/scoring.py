"""How the relevance of an item and of its intent become one score (CaFe, Eq. 8 and 10)."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from recbole_cafe.errors import ConfigError

JOINTS = ("product", "sum", "item")


def joint_score(item_logit: Tensor, intent_term: Tensor | None, joint: str) -> Tensor:
    """One score per candidate, larger is better.

    ``product`` returns ln(sigmoid(r^v) sigmoid(r^c)), Eq. 10 in logarithms: the product of two sigmoids underflows
    in float32 for logits below about -50, its logarithm does not, and the order is the same. ``sum`` returns
    r^v + r^c, what the authors' code does; the two do not rank alike: (r^c, r^v) = (10, 0) against (4, 4) is
    10 > 8 by sum and .50 < .96 by product. ``item`` returns r^v.

    Args:
        item_logit: r^v of the candidates, any shape.
        intent_term: the intent part of :func:`intent_terms` at the candidates, same shape;
            None for ``item``, which does not read it.
        joint: one of the three.

    Returns:
        the shape of `item_logit`.

    Raises:
        ConfigError: joint is none of the above, or the intent's part is missing.
    """
    if joint not in JOINTS:
        raise ConfigError(f"joint={joint!r} is not one of {', '.join(JOINTS)}")
    if joint == "item":
        return item_logit
    if intent_term is None:
        raise ConfigError(f"joint={joint!r} needs the terms of the intents")
    return (F.logsigmoid(item_logit) if joint == "product" else item_logit) + intent_term


def intent_terms(intent_logit: Tensor, joint: str) -> Tensor:
    """The intent part of the joint score, for every intent.

    Args:
        intent_logit: [B, C + 1]; column 0 is padding, 1..C-1 are the intents, the last column stands for items
            without an intent. It gets what an unknown intent has on average: the (logarithm of the) mean probability
            of the intents 1..C-1, for ``sum`` their mean logit.
        joint: see :func:`joint_score`.

    Returns:
        [B, C + 1].
    """
    term = F.logsigmoid(intent_logit) if joint == "product" else intent_logit
    known = term[:, 1:-1]
    if not known.shape[1]:
        neutral = term.new_zeros(len(term), 1)
    elif joint == "product":
        neutral = known.logsumexp(1, keepdim=True) - math.log(known.shape[1])
    else:
        neutral = known.mean(1, keepdim=True)
    return torch.cat((term[:, :-1], neutral), dim=1)
