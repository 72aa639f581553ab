"""A real Slurm on this machine, for tests: Debian's daemons on the loopback, four nodes that claim eight A100 GPUs each.

    python tests/slurm/cluster.py start      # as root, with the packages slurm-wlm and munge
    python tests/slurm/cluster.py stop

The GPUs are character devices that do nothing: Slurm counts and grants them as it would real ones.  The configuration has to lie
in /etc/slurm, because the executor plugin drops SLURM_CONF inside of jobs; a Slurm that is already configured is left alone.
"""

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ETC, ROOT = Path("/etc/slurm"), Path(tempfile.gettempdir()) / "entropy_asr-slurm"
NODES, GPUS, CPUS, MEMORY_MB = 4, 8, 128, 1_000_000  # n1 and n2 in the partition gpu, n3 and n4 in faults
FILES = ("slurm.conf", "gres.conf", "cgroup.conf")
DAEMONS = ("slurmctld", *(f"slurmd-n{i}" for i in range(1, NODES + 1)), "munged")


class NoCluster(RuntimeError):
    """A cluster cannot be started here; the message says why."""


def start() -> None:
    """Start munge, the controller and the nodes; returns when all nodes are idle.

    Raises:
        NoCluster: not root, no packages, or another Slurm's configuration in /etc/slurm.
    """
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(name, path=search_path())]
    if os.geteuid() != 0 or missing:
        raise NoCluster(
            f"needs root and Debian's slurm-wlm and munge (apt-get install slurm-wlm munge); missing: {missing or 'root'}"
        )
    foreign = [path for path in (ETC / name for name in FILES) if path.exists() and not path.is_symlink()]
    if foreign:
        raise NoCluster(f"{foreign[0]} belongs to another Slurm")
    stop()
    for folder in ("state", "run", "log", "dev", "munge", *(f"spool-n{i}" for i in range(1, NODES + 1))):
        (ROOT / folder).mkdir(parents=True, exist_ok=True)
    ROOT.chmod(0o755)
    (ROOT / "munge").chmod(0o700)
    for gpu in range(GPUS):
        os.mknod(ROOT / f"dev/nvidia{gpu}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    name_nodes()
    for name, text in zip(FILES, (slurm_conf(), gres_conf(), "CgroupPlugin=cgroup/v1\n"), strict=True):
        (ROOT / name).write_text(text)
        ETC.mkdir(exist_ok=True)
        (ETC / name).unlink(missing_ok=True)
        (ETC / name).symlink_to(ROOT / name)
    key = ROOT / "munge/key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    run = ROOT / "run"
    daemon("munged", f"--key-file={key}", f"--socket={run}/munge.socket", f"--pid-file={run}/munged.pid",
           f"--log-file={ROOT}/log/munged.log", f"--seed-file={ROOT}/munge/seed", "--force")  # fmt: skip
    daemon("slurmctld", "-c")
    for i in range(1, NODES + 1):
        daemon("slurmd", "-N", f"n{i}")
    wait_until(lambda: states() == ["idle"] * NODES, 30, "nodes are not idle")


def stop() -> None:
    """End all jobs and daemons that `start` started, and take away its files."""
    if (ROOT / "run/slurmctld.pid").exists():
        subprocess.run(["scancel", "--user=root"], check=False, timeout=20, stderr=subprocess.DEVNULL)
        deadline = time.time() + 8
        while time.time() < deadline and subprocess.run(["squeue", "-h"], capture_output=True, check=False).stdout:
            time.sleep(0.2)
    for name in DAEMONS:
        kill(name)
    for name in FILES:
        if (ETC / name).is_symlink() and (ETC / name).readlink() == ROOT / name:
            (ETC / name).unlink()
    shutil.rmtree(ROOT, ignore_errors=True)


def kill(name: str) -> None:
    """End one daemon by its pid file, if the process is what the file says."""
    pid_file = ROOT / f"run/{name}.pid"
    if not pid_file.exists():
        return
    pid = int(pid_file.read_text())
    command = Path(f"/proc/{pid}/comm")
    if command.exists() and command.read_text().strip() == name.split("-")[0]:
        os.kill(pid, 15)
        deadline = time.time() + 10
        while command.exists() and time.time() < deadline:
            time.sleep(0.05)
        if command.exists():
            os.kill(pid, 9)
    pid_file.unlink(missing_ok=True)


def lose_node(name: str) -> None:
    """End a node's daemon; the processes of its jobs live on, as on a node that the network has lost."""
    os.kill(int((ROOT / f"run/slurmd-{name}.pid").read_text()), 9)


def daemon(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PATH": search_path()})
    if done.returncode != 0:
        raise NoCluster(f"{command[0]}: {done.stderr or done.stdout}")


def search_path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def states() -> list[str]:
    done = subprocess.run(["sinfo", "-N", "-h", "-p", "gpu,faults", "-o", "%t"], capture_output=True, text=True, check=False)
    return done.stdout.split()


def wait_until(condition, seconds: float, message: str) -> None:
    deadline = time.time() + seconds
    while not condition():
        if time.time() > deadline:
            raise NoCluster(f"{message} after {seconds:.0f} s; logs: {ROOT}/log")
        time.sleep(0.1)


def name_nodes() -> None:
    """Give the nodes' names an address: torchrun's ranks find the first node by its name."""
    hosts = Path("/etc/hosts")
    line = f"127.0.0.1 {' '.join(f'n{i}' for i in range(1, NODES + 1))} # entropy_asr test cluster\n"
    if line not in hosts.read_text():
        hosts.write_text(hosts.read_text().rstrip("\n") + "\n" + line)


def slurm_conf() -> str:
    host, first = socket.gethostname().split(".")[0], 17301
    return f"""\
ClusterName=entropyasr
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort=17300
SlurmctldPidFile={ROOT}/run/slurmctld.pid
SlurmdPidFile={ROOT}/run/slurmd-%n.pid
SlurmctldLogFile={ROOT}/log/slurmctld.log
SlurmdLogFile={ROOT}/log/slurmd-%n.log
SlurmdSpoolDir={ROOT}/spool-%n
StateSaveLocation={ROOT}/state
SwitchType=switch/none
MpiDefault=none
AuthType=auth/munge
AuthInfo=socket={ROOT}/run/munge.socket
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={ROOT}/log/jobcomp.log
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
GresTypes=gpu
DefMemPerCPU=100
EnforcePartLimits=ALL
ReturnToService=2
KillWait=5
MinJobAge=3600
SlurmdTimeout=10
SlurmctldDebug=info
NodeName=n[1-{NODES}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{first + NODES - 1}] CPUs={CPUS} \
RealMemory={MEMORY_MB} Gres=gpu:a100:{GPUS}
PartitionName=gpu Nodes=n[1-2] Default=YES MaxTime=14-0
PartitionName=faults Nodes=n[3-4] MaxTime=14-0 PriorityTier=1
PartitionName=urgent Nodes=n[3-4] MaxTime=14-0 PriorityTier=2
"""


def gres_conf() -> str:
    return f"NodeName=n[1-{NODES}] Name=gpu Type=a100 File={ROOT}/dev/nvidia[0-{GPUS - 1}]\n"


if __name__ == "__main__":
    {"start": start, "stop": stop}[sys.argv[1]]()
