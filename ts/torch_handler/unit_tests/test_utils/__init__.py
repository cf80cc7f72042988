"""Stand-ins for what a worker hands to a handler."""
