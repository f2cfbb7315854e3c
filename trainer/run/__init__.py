"""One run: its steps, its evaluation, its progress."""
