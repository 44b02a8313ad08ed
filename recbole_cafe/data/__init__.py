"""From raw files to histories, intents and candidates."""
