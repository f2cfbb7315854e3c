"""The files on disk: betons, payloads, the manifest."""
