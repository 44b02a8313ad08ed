"""The command `recbole-cafe`: one parser, one file for each group of verbs."""
