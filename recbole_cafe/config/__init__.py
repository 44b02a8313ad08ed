"""Configuration: RecBole's layers with ours in between."""
