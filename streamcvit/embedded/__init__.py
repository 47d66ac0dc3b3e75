"""The embedded benchmark and its small base: the one room that is a toy."""
