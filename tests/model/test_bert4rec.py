"""recbole_cafe.model.bert4rec: the contract, and each defect of RecBole's that it must not have."""

from contract import ModelContract


class TestCorrectedBERT4Rec(ModelContract):
    model = "CorrectedBERT4Rec"
    causal = False
    layouts = {"all": 120, "last": 20}  # noqa: RUF012
    learns_with = {"train_batch_size": 16, "learning_rate": 0.003, "hidden_dropout_prob": 0.1}  # noqa: RUF012
