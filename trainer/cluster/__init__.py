"""Jobs on a cluster: batch scripts for Slurm, what a task does at its end, and where all stands."""
