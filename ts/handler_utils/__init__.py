"""What handlers use beside their base class: timing, micro-batches, streaming, text and large models."""
