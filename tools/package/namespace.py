"""A small system in namespaces: this machine's files under an overlay in memory, and systemd as process 1.

Nothing of the machine is changed: its root is the lower layer, mounts, processes and network are the
namespace's own, and its cgroups are below one of their own that is removed at the end."""

import os
import shutil
import signal
import subprocess
import tempfile
import time

UNIFIED = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]

BOOT = r"""
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs "$FOLDER"
mkdir "$FOLDER/upper" "$FOLDER/work" "$FOLDER/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$FOLDER/upper,workdir=$FOLDER/work" "$FOLDER/root"
cd "$FOLDER/root"
# Units of this machine are not those of the test.
rm -rf usr/sbin/policy-rc.d etc/systemd/system/*.wants etc/machine-id var/log/journal
touch etc/machine-id
mount -t proc proc proc
mount -t sysfs sysfs sys
mkdir -p run tmp dev
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mount --bind "$SHARED" mnt
mount -t tmpfs tmpfs dev
while read -r name major minor; do
  mknod -m 666 "dev/$name" c "$major" "$minor"
done <<'NODES'
null 1 3
zero 1 5
full 1 7
random 1 8
urandom 1 9
tty 5 0
console 1 3
NODES
mkdir -p dev/pts dev/shm
mount -t devpts devpts dev/pts -o newinstance,ptmxmode=0666,mode=620
ln -s pts/ptmx dev/ptmx
mount -t tmpfs tmpfs sys/fs/cgroup
mount -t cgroup2 cgroup2 sys/fs/cgroup
ip link set lo up
export container=roost
mkdir old
pivot_root . old
umount -l /old
exec /lib/systemd/systemd --system --unit=basic.target --log-target=journal --show-status=false
"""


def may_boot():
    """Why no system can be started here; None when it can."""
    if os.geteuid() != 0:
        return "not root"
    for tool in ["unshare", "nsenter", "ip"]:
        if not shutil.which(tool):
            return f"no {tool}"
    if not os.path.exists("/lib/systemd/systemd"):
        return "no systemd"
    trial = "mount -t tmpfs tmpfs /mnt && mkdir /mnt/u /mnt/w /mnt/r && mount -t overlay o -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w /mnt/r && mount -t cgroup2 c /mnt/u"
    tried = subprocess.run(["unshare", "--mount", "--pid", "--fork", "--net", "--cgroup", "sh", "-c", trial], capture_output=True)
    return None if tried.returncode == 0 else f"no namespaces: {tried.stderr.decode().strip()}"


class System:
    """A running system. `shared` is its /mnt."""

    def __init__(self, shared):
        self.folder = tempfile.mkdtemp(prefix="roost-system-")
        top = next(path for path in UNIFIED if os.path.exists(f"{path}/cgroup.procs"))
        self.cgroup = f"{top}/roost-test-{os.getpid()}"
        os.mkdir(self.cgroup)

        def enter():
            with open(f"{self.cgroup}/cgroup.procs", "w") as procs:
                procs.write("0")

        flags = ["--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "--net", "--cgroup"]
        self.log = open(f"{shared}/boot.log", "w+")
        self.unshare = subprocess.Popen(
            ["unshare", *flags, "bash", "-c", BOOT],
            env={**os.environ, "FOLDER": self.folder, "SHARED": shared},
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, preexec_fn=enter)
        self.init = None
        children = f"/proc/{self.unshare.pid}/task/{self.unshare.pid}/children"
        for _ in range(600):
            if self.unshare.poll() is not None:
                break
            pids = open(children).read().split()
            if pids:
                self.init = pids[0]
                state = self.run("systemctl is-system-running", check=False, quiet=True)
                if state.stdout.strip() in ["running", "degraded"]:
                    return
            time.sleep(0.1)
        self.log.seek(0)
        said = self.log.read()
        self.end()
        raise SystemExit(f"the system does not boot: {said}")

    def run(self, command, check=True, quiet=False):
        """Runs a line of bash in it."""
        done = subprocess.run(
            ["nsenter", "-t", self.init, "-m", "-p", "-u", "-i", "-n", "-C", "-r", "-w", "bash", "-c", command],
            capture_output=True, text=True, stdin=subprocess.DEVNULL,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"})
        if check and done.returncode != 0:
            journal = "" if quiet else self.run("journalctl --no-pager -n 60", check=False, quiet=True).stdout
            raise SystemExit(f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}\n{journal}")
        return done

    def says(self, command):
        return self.run(command).stdout.strip()

    def until(self, command, wanted, seconds=30):
        """Waits until a command prints a text."""
        end = time.monotonic() + seconds
        while True:
            said = self.run(command, check=False).stdout
            if wanted in said:
                return said
            if time.monotonic() > end:
                journal = self.run("journalctl --no-pager -n 60", check=False).stdout
                raise SystemExit(f"{command} never says {wanted!r}: {said}\n{journal}")
            time.sleep(0.1)

    def end(self):
        if self.unshare.poll() is None:
            # Process 1 of a namespace takes all others with it.
            os.kill(int(self.init or self.unshare.pid), signal.SIGKILL)
            self.unshare.wait()
        for _ in range(100):
            for folder, _, _ in os.walk(self.cgroup, topdown=False):
                try:
                    os.rmdir(folder)
                except OSError:
                    pass
            if not os.path.exists(self.cgroup):
                break
            time.sleep(0.05)
        os.rmdir(self.folder)
