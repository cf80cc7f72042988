"""Handlers of models that several processes compute together."""
