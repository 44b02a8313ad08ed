"""The models. A new one is one file here, one YAML in props/model/, one line in MODELS, one test class."""

# name -> module that defines it; literal, so that what is registered can be read here
MODELS = {
    "BERTF": "recbole_cafe.model.bert_f",
    "CaFe": "recbole_cafe.model.cafe",
    "CorrectedBERT4Rec": "recbole_cafe.model.bert4rec",
    "IntentBackoff": "recbole_cafe.model.intent_backoff",
    "LOCKER": "recbole_cafe.model.locker",
    "LOCKERF": "recbole_cafe.model.locker_f",
    "NOVA": "recbole_cafe.model.nova",
}
