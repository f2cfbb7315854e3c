"""The same runs as an Indexed Job of Kubernetes: a manifest to read, change and apply.

It is printed and not applied: no cluster was at hand to run it on. Exit statuses decide as they do
under Slurm: 75 (stopped) and a node that is taken away count for nothing, 1 and 2 end the index.
"""

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from trainer.cluster.script import WARNING, Shape
from trainer.cluster.site import Site


def manifest(
    shards: Sequence[str], words: Sequence[str], data: Path, runs: Path, site: Site, shape: Shape,
    *, at_once: int | None, starts: int,
) -> str:  # fmt: skip
    """YAML. words: options of `spectral train` but --shard, --data and --runs."""
    command = ["spectral", "train", "--data", str(data), "--runs", str(runs), *words]
    script = (
        f"shards=({shlex.join(shards)})\n"
        f'exec {shlex.join(command)} --shard "${{shards[$JOB_COMPLETION_INDEX]}}"\n'
    )
    limits = f"cpu: {site.cpus * shape.processes}"
    limits += f", nvidia.com/gpu: {shape.gpus}" if shape.gpus else ""
    return f"""# kubectl apply -f THIS; not run by us. Edit: image, claimName, resources
apiVersion: batch/v1
kind: Job
metadata:
  name: spectral-train
spec:
  completionMode: Indexed
  completions: {len(shards)}
  parallelism: {at_once or len(shards)}
  backoffLimitPerIndex: {starts}  # crashes of one shard; stops and lost nodes do not count
  maxFailedIndexes: {len(shards)}  # one that fails leaves the others alone
  podReplacementPolicy: Failed  # never two pods on one shard
  podFailurePolicy:
    rules:
      - action: Ignore  # preempted, evicted, drained
        onPodConditions:
          - type: DisruptionTarget
      - action: Ignore  # stopped by a signal, all is saved
        onExitCodes:
          operator: In
          values: [75]
      - action: FailIndex  # an error that the next start would meet again
        onExitCodes:
          operator: In
          values: [1, 2]
  template:
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: {WARNING}  # to write a checkpoint in
      containers:
        - name: train
          image: {json.dumps(site.container or "spectral:latest")}
          command: ["bash", "-c"]
          args:
            - |
{"".join(f"              {line}" + chr(10) for line in script.splitlines())}\
          resources:
            limits: {{{limits}}}
          volumeMounts:
            - name: work
              mountPath: {json.dumps(os.path.commonpath([data, runs]))}
      volumes:
        - name: work
          persistentVolumeClaim:
            claimName: spectral
"""
