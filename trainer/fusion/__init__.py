"""The trained networks of one group, fused into one classifier."""
