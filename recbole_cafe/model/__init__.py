"""The models. A new one is one file here, one YAML in props/model/, one line in MODELS, one test class."""

# name -> module that defines it; literal, so that what is registered can be read here
MODELS = {
    "AttRec": "recbole_cafe.model.peers.att_rec",
    "BERTF": "recbole_cafe.model.peers.bert_f",
    "BSARec": "recbole_cafe.model.peers.bsa_rec",
    "CaFe": "recbole_cafe.model.cafe",
    "CaFePlus": "recbole_cafe.model.cafe_plus",
    "CorrectedBERT4Rec": "recbole_cafe.model.peers.bert4rec",
    "CorrectedSINE": "recbole_cafe.model.peers.sine",
    "DIFSR": "recbole_cafe.model.peers.dif_sr",
    "HCRNN": "recbole_cafe.model.peers.hcrnn",
    "IntentBackoff": "recbole_cafe.model.intent_backoff",
    "LOCKER": "recbole_cafe.model.peers.locker",
    "LOCKERF": "recbole_cafe.model.peers.locker_f",
    "NOVA": "recbole_cafe.model.peers.nova",
    "RKSA": "recbole_cafe.model.peers.rksa",
    "RecToolsSASRec": "recbole_cafe.model.peers.rectools_sasrec",
    "SAIR": "recbole_cafe.model.peers.sair",
    "SSEPT": "recbole_cafe.model.peers.sse_pt",
    "WEARec": "recbole_cafe.model.peers.wea_rec",
}
