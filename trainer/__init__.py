"""The trainer: one spectral shard in, one ordinary network out; and their fusion."""
