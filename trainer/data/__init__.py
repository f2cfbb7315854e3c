"""Prepared shards in, batches on the device out."""
