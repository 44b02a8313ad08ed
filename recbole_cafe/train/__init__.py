"""Training, evaluation and checkpoints on RecBole's trainers."""
