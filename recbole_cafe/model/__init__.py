"""The models. A new one is one file here, one YAML in props/model/, one line in MODELS, one test class."""

# name -> module that defines it; literal, so that what is registered can be read here
MODELS = {
    "AttRec": "recbole_cafe.model.att_rec",
    "BERTF": "recbole_cafe.model.bert_f",
    "CaFe": "recbole_cafe.model.cafe",
    "CaFePlus": "recbole_cafe.model.cafe_plus",
    "CorrectedBERT4Rec": "recbole_cafe.model.bert4rec",
    "CorrectedSINE": "recbole_cafe.model.sine",
    "HCRNN": "recbole_cafe.model.hcrnn",
    "IntentBackoff": "recbole_cafe.model.intent_backoff",
    "LOCKER": "recbole_cafe.model.locker",
    "LOCKERF": "recbole_cafe.model.locker_f",
    "NOVA": "recbole_cafe.model.nova",
    "RKSA": "recbole_cafe.model.rksa",
    "RecToolsSASRec": "recbole_cafe.model.rectools_sasrec",
    "SAIR": "recbole_cafe.model.sair",
    "SSEPT": "recbole_cafe.model.sse_pt",
}
