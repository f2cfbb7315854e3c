"""Several runs: where each may run, their processes, and what is shown of them."""
