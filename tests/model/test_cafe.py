from contract import ModelContract


class TestCaFe(ModelContract):
    model = "CaFe"
