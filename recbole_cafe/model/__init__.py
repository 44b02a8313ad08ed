"""The models. A new one is one file here, one YAML in props/model/, one line in MODELS, one test class."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recbole_cafe.model.net import Net

# name -> its net; literal, so that what is registered can be read here
MODELS = {
    "AttRec": "recbole_cafe.model.peers.att_rec.AttRecNet",
    "BERTF": "recbole_cafe.model.peers.bert_f.BERTFNet",
    "BSARec": "recbole_cafe.model.peers.bsa_rec.BSARecNet",
    "CaFe": "recbole_cafe.model.cafe.CaFeNet",
    "CaFePlus": "recbole_cafe.model.cafe_plus.CaFePlusNet",
    "CorrectedBERT4Rec": "recbole_cafe.model.peers.bert4rec.BERT4RecNet",
    "CorrectedSINE": "recbole_cafe.model.peers.sine.SINENet",
    "DIFSR": "recbole_cafe.model.peers.dif_sr.DIFSRNet",
    "HCRNN": "recbole_cafe.model.peers.hcrnn.HCRNNNet",
    "IntentBackoff": "recbole_cafe.model.intent_backoff.IntentBackoffNet",
    "LOCKER": "recbole_cafe.model.peers.locker.LOCKERNet",
    "LOCKERF": "recbole_cafe.model.peers.locker_f.LOCKERFNet",
    "NOVA": "recbole_cafe.model.peers.nova.NOVANet",
    "RKSA": "recbole_cafe.model.peers.rksa.RKSANet",
    "RecToolsSASRec": "recbole_cafe.model.peers.rectools_sasrec.RecToolsSASRecNet",
    "SAIR": "recbole_cafe.model.peers.sair.SAIRNet",
    "SSEPT": "recbole_cafe.model.peers.sse_pt.SSEPTNet",
    "WEARec": "recbole_cafe.model.peers.wea_rec.WEARecNet",
}


def net_class(name: str) -> type[Net]:
    """The net of one of MODELS."""
    module, _, attribute = MODELS[name].rpartition(".")
    net: type[Net] = getattr(importlib.import_module(module), attribute)
    return net
