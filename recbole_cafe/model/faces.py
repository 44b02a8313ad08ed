"""Our models as RecBole sees them: `CaFe`, `CaFePlus` and every other name of MODELS is a class of this module.

A face is made of its net when it is asked for, so that the nets themselves need no RecBole: whoever only recommends
(recbole_cafe.recommend) has them without it.
"""

from __future__ import annotations

from recbole_cafe.model import MODELS, net_class
from recbole_cafe.model.base import NetRecommender


def __getattr__(name: str) -> type[NetRecommender]:
    """The face of a model (PEP 562), always the same one."""
    if name not in MODELS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    said = {"__module__": __name__, "__doc__": f"{name} as RecBole sees it."}
    face = type(name, (NetRecommender,), {"net": net_class(name), **said})
    globals()[name] = face
    return face
