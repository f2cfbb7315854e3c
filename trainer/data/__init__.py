"""From prepared shards to batches on the device."""
