"""Envelopes: what stands between a request's body and a handler that knows nothing of it (one class per module)."""
