"""A real Slurm cluster of two nodes on this machine, for as long as the tests run.

Each node has its own network, host name and /etc/hosts, so a job that finds its other half only
by way of 127.0.0.1 fails here as it would on a cluster. Files, processes and cores are shared.

All of it lives in one process namespace, whose first process is the child that `Cluster` starts
and that ends when its standard input is closed: nothing outlives the test run, killed or not.
Needs root and the Debian packages that .ci/run installs; writes only below a folder in /tmp.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import launching

NODES = {"node1": "10.213.77.11", "node2": "10.213.77.12"}
LOGIN = "10.213.77.1"
SLURMD_PORT = 6818
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "ip", "unshare", "nsenter")

SLURM_CONF = """\
ClusterName=two
SlurmctldHost=login({login})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# a requeued job waits cred_expire + 1 s, 121 s unless told; 5 is the least
AuthInfo=socket={root}/munge.socket,cred_expire=5
SlurmdPort={port}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
# no cgroups, no affinity, no database
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
# more cores and GPUs than the machine has: they are only counted
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
EnforcePartLimits=ALL
KillWait=5
MinJobAge=3600
GresTypes=gpu
{nodes}
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
# Runs in the node's own namespaces: names itself, waits for its network cable, starts the daemon.
BE_NODE = """
name=$1 address=$2 root=$3
hostname "$name"
mount --bind "$root/hosts" /etc/hosts
ip link set lo up
until ip address add "$address/24" dev eth0 2>/dev/null; do sleep 0.02; done
ip link set eth0 up
exec slurmd -D -f "$root/slurm.conf" -N "$name" </dev/null >/dev/null 2>&1
"""


def missing_programs() -> list[str]:
    """What a cluster needs and this machine lacks."""
    missing = [name for name in PROGRAMS if not shutil.which(name, path=_path())]
    return missing if os.geteuid() == 0 else [*missing, "the rights of root"]


class Cluster:
    """Two nodes and a login host, up when made."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: sockets have short names
        namespaces = ["--net", "--uts", "--mount", "--pid", "--fork", "--kill-child"]
        self._first = subprocess.Popen(
            ["unshare", *namespaces, "--mount-proc", sys.executable, __file__, str(self.root)],
            env={**os.environ, "PATH": _path()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        answer = self._first.stdout.readline()
        if answer != "up\n":
            logs = self.logs()
            self.close()
            raise RuntimeError(f"Slurm did not start; its output is above, its logs say\n{logs}")

    def close(self) -> None:
        """End the cluster and all that runs on it."""
        self._first.stdin.close()
        self._first.wait(timeout=launching.HANGS_S)
        self._first.stdout.close()
        shutil.rmtree(self.root)

    def command(self, *arguments: str, cwd: Path = Path("/"), **variables: str) -> str:
        """Run a command on the login host. Returns what it says."""
        [first] = launching.children(self._first.pid)
        enter = ["nsenter", "-t", str(first), "--net", "--uts", "--mount", "--pid", f"--wd={cwd}"]
        ended = subprocess.run(
            [*enter, "--", *arguments],
            env=launching.environment(
                SLURM_CONF=f"{self.root}/slurm.conf", PATH=_path(), **variables
            ),
            capture_output=True,
            text=True,
            timeout=launching.HANGS_S,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.strip()

    def sbatch(self, *arguments: str, cwd: Path, **variables: str) -> str:
        """Submit a job from folder `cwd`. Returns its number."""
        return self.command("sbatch", "--parsable", *arguments, cwd=cwd, **variables)

    def show(self, job: str) -> dict[str, str]:
        """What Slurm knows of a job, such as {"JobState": "RUNNING", "Restarts": "0"}."""
        words = self.command("scontrol", "show", "--oneliner", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, job: str, *, timeout: float = launching.HANGS_S) -> dict[str, str]:
        """Wait until a job has ended for good. Returns what Slurm knows of it."""
        over = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}
        deadline = time.monotonic() + timeout
        while (shown := self.show(job))["JobState"] not in over:
            assert time.monotonic() < deadline, f"{shown}\n{self.logs()}"
            time.sleep(0.1)
        return shown

    def logs(self) -> str:
        """The end of each daemon's log."""
        ends = [path.read_text().splitlines()[-5:] for path in sorted(self.root.glob("*.log"))]
        return "\n".join(line for end in ends for line in end)


def _path() -> str:
    return f"{launching.environment()['PATH']}:/usr/sbin:/sbin"  # where the daemons are


# ---- below: the cluster's first process ----


def _serve(root: Path) -> None:
    """Start the cluster around this process and wait until standard input is closed."""
    _configure(root)
    _run("hostname", "login")
    _run("mount", "--bind", str(root / "hosts"), "/etc/hosts")
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "link", "add", "bridge0", "type", "bridge")
    _run("ip", "address", "add", f"{LOGIN}/24", "dev", "bridge0")
    _run("ip", "link", "set", "bridge0", "up")
    _run(
        *("munged", "--force", f"--key-file={root}/munge.key", f"--socket={root}/munge.socket"),
        *(f"--pid-file={root}/munged.pid", f"--log-file={root}/munged.log"),
        f"--seed-file={root}/munged.seed",
    )
    _run("slurmctld", "-f", str(root / "slurm.conf"))
    for name, address in NODES.items():
        _plug_in(name, address, root)
    os.environ["SLURM_CONF"] = str(root / "slurm.conf")
    if not _are_idle():
        sys.exit("slurm: the nodes are not idle in time")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the first process buries orphans
    print("up", flush=True)
    sys.stdin.read()


def _configure(root: Path) -> None:
    root.chmod(0o755)
    (root / "state").mkdir()
    key = root / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    hosts = {"localhost": "127.0.0.1", "login": LOGIN, **NODES}
    (root / "hosts").write_text("".join(f"{ip} {name}\n" for name, ip in hosts.items()))
    gpus = [root / f"gpu{number}" for number in range(2)]  # devices, so that jobs may be given them
    for gpu in gpus:
        gpu.symlink_to("/dev/null")
    (root / "gres.conf").write_text("".join(f"Name=gpu File={gpu}\n" for gpu in gpus))
    version = subprocess.run(["slurmd", "-V"], capture_output=True, text=True, check=True).stdout
    if tuple(map(int, version.split()[1].split(".")[:2])) >= (24, 5):
        (root / "cgroup.conf").write_text("CgroupPlugin=disabled\n")  # older ones lack the word
    nodes = [
        f"NodeName={name} NodeAddr={address} CPUs=4 RealMemory=8000 TmpDisk=1000 Gres=gpu:2"
        for name, address in NODES.items()
    ]
    (root / "slurm.conf").write_text(
        SLURM_CONF.format(root=root, login=LOGIN, port=SLURMD_PORT, nodes="\n".join(nodes))
    )


def _plug_in(name: str, address: str, root: Path) -> None:
    (root / f"spool-{name}").mkdir()
    namespaces = ["--net", "--uts", "--mount", "--propagation", "private"]
    node = subprocess.Popen(
        ["unshare", *namespaces, "bash", "-euc", BE_NODE, "bash", name, address, str(root)]
    )
    own = os.readlink("/proc/self/ns/net")
    while os.readlink(f"/proc/{node.pid}/ns/net") == own:
        time.sleep(0.01)
    _run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(node.pid))
    _run("ip", "link", "set", name, "master", "bridge0", "up")


def _are_idle() -> bool:
    deadline = time.monotonic() + launching.HANGS_S
    while time.monotonic() < deadline:
        states = subprocess.run(
            ["sinfo", "--noheader", "--Node", "-o", "%T"], capture_output=True, text=True
        ).stdout.split()
        if states == ["idle"] * len(NODES):
            return True
        time.sleep(0.1)
    return False


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
