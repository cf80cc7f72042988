"""Archives from other machines: what may be asked for, who may be connected to, and the transfer itself."""
