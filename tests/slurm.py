"""A real Slurm on this machine, for tests: munged, slurmctld and slurmd in a folder of their own.

No systemd, no cgroups, no accounting; its ports are free ones, and it is ended by process ids. It
takes root, and Debian's packages munge, slurmctld, slurmd and slurm-client.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
KILL_WAIT = 10  # seconds from SIGTERM to SIGKILL
MAX_ARRAY = 8
# cred_expire: a requeued job waits a second longer, below 5 two minutes.
# MinJobAge: how long squeue -t all knows those that have ended
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={socket},cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
PlugStackConfig={folder}/plugstack.conf
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait={kill_wait}
MinJobAge=600
MaxArraySize={max_array}
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 CoresPerSocket=4 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=5
PartitionName=urgent Nodes={host} MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str:
    """Why there can be none here; nothing where it can be."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if absent:
        return f"{', '.join(absent)} not installed (Debian: munge slurmctld slurmd slurm-client)"
    return "" if os.geteuid() == 0 else "starting Slurm takes root"


@dataclass(frozen=True)
class Slurm:
    """One that runs. `conf`: what SLURM_CONF has to say to reach it."""

    folder: Path
    conf: Path

    def run(self, *command: object) -> str:
        """What a command of Slurm's says."""
        env = {**os.environ, "PATH": PATH, "SLURM_CONF": str(self.conf)}
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=env)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def states(self) -> dict[str, str]:
        """Of all jobs it knows of, `3` or `3_0`: PENDING, RUNNING, COMPLETED, …"""
        lines = self.run("squeue", "-h", "-r", "-t", "all", "-o", "%i %T").splitlines()
        return dict(line.split() for line in lines)

    def details(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says of one."""
        words = self.run("scontrol", "-o", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def await_state(self, job: str, *wanted: str, seconds: float = 150) -> str:
        """Until the job is in one of the states."""
        found = [""]

        def reached() -> bool:
            found[0] = self.states().get(job, "")
            return found[0] in wanted

        assert await_(reached, seconds), (job, found[0], wanted, self.log_tail())
        return found[0]

    def log_tail(self) -> str:
        return (self.folder / "slurmctld.log").read_text()[-2000:]


def await_(true: Callable[[], bool], seconds: float = 150) -> bool:
    """Look several times a second, until it is true or the time is over."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


@contextmanager
def running(folder: Path) -> Iterator[Slurm]:
    """Start it in a folder that is nobody else's; end it, and its jobs."""
    host = socket.gethostname().partition(".")[0]
    munge = folder / "munge.socket"
    for name in ("state", "spool"):
        (folder / name).mkdir(mode=0o755)
    for name in ("plugstack.conf", "cgroup.conf"):  # in place of /etc/slurm's
        (folder / name).touch()
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(os.urandom(128))
    conf = folder / "slurm.conf"
    values = {"host": host, "ports": free_ports(2), "socket": munge, "folder": folder}
    conf.write_text(CONF.format(**values, kill_wait=KILL_WAIT, max_array=MAX_ARRAY))
    slurm = Slurm(folder, conf)
    # --force: the folders of tests are not for everybody, which munged minds
    started = [
        _start(folder, ["munged", "-F", "--force", f"--key-file={key}", f"--socket={munge}",
                        f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munged.seed",
                        f"--log-file={folder}/munged.log"])
    ]  # fmt: skip
    try:
        assert await_(munge.exists, 10), (folder / "munged.out").read_text()
        started.append(_start(folder, ["slurmctld", "-D", "-f", str(conf)]))
        started.append(_start(folder, ["slurmd", "-D", "-f", str(conf)]))
        assert await_(lambda: _usable(slurm), 30), slurm.log_tail()
        yield slurm
        _end_jobs(slurm)
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _start(folder: Path, command: list[str]) -> subprocess.Popen[bytes]:
    with (folder / f"{command[0]}.out").open("wb") as out:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            env={**os.environ, "PATH": PATH},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip


def _usable(slurm: Slurm) -> bool:
    try:
        return slurm.run("sinfo", "-h", "-p", "main", "-o", "%T") in ("idle", "mixed")
    except AssertionError:
        return False


def _end_jobs(slurm: Slurm) -> None:
    """Jobs belong to slurmstepd, which outlives slurmd."""
    slurm.run("scancel", "-u", "root", "--signal=KILL", "--full")
    slurm.run("scancel", "-u", "root")
    await_(lambda: not slurm.run("squeue", "-h"), KILL_WAIT + 20)


def free_ports(count: int) -> list[int]:
    """TCP ports of this machine that nothing uses."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
