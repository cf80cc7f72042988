"""Handlers an archive can name or subclass."""
