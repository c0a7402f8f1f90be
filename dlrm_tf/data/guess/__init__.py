"""A feature spec guessed from a sample of a log."""
