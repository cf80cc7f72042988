"""Old places of functions that handlers import."""
