"""Two network namespaces and what is between them, and a node in one of them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "nodes"))

from parts import CannotRun, Process, clean_environment, ip, need, until  # noqa: E402

SERVER, CLIENT = "198.19.7.1", "198.19.7.2"
PORT, BARE_PORT = 8000, 9000
SECRET, KEY = "secret", "key"
MIB = 1 << 20
ENDS = Path(__file__).resolve().parent / "ends.py"


class Paths:
    """Two namespaces, and the path between them: one with a delay, or a pair of veth devices."""

    def __init__(self, directory):
        self.names = [f"roost-path-{os.getpid()}-{end}" for end in ("server", "client")]
        self.directory, self.process, self.is_joined = directory, None, False
        for name in self.names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")

    def lay(self, delay, loss, rate=0.0, mtu=1500):
        """Another path: milliseconds of a round trip, percent, Mbit/s of each flow, bytes of a packet."""
        self.cut()
        program, log = ROOT / "tools/.cache/net/release/path", self.directory / "path.log"
        # The line of the path before isn't that of this one.
        log.unlink(missing_ok=True)
        self.process = Process([program, *self.names, "--delay", delay / 2, "--loss", loss / 2, "--rate", rate],
                               log)
        until(lambda: self.process.check() or "ready" in self.process.log(), "the path")
        for name, address in zip(self.names, (SERVER, CLIENT)):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "path0")
            ip("-n", name, "link", "set", "path0", "txqueuelen", "10000", "mtu", str(mtu), "up")

    def join(self):
        """A pair of veth devices instead of a path: no delay, and packets arrive on the CPU of the sender."""
        self.cut()
        ip("-n", self.names[0], "link", "add", "path0", "type", "veth", "peer", "name", "path0", "netns", self.names[1])
        for name, address in zip(self.names, (SERVER, CLIENT)):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "path0")
            ip("-n", name, "link", "set", "path0", "up")
        self.is_joined = True

    def swallow(self):
        """From now on the client's end gets nothing, and sends nothing."""
        ip("-n", self.names[1], "link", "set", "path0", "down")

    def cut(self):
        if self.is_joined:
            ip("-n", self.names[0], "link", "delete", "path0")
            self.is_joined = False
        if self.process:
            self.process.kill()
            self.process = None

    def run_in(self, end, words):
        return [need("ip", "iproute2"), "netns", "exec", self.names[end], *map(str, words)]

    def setting(self, name, value):
        """A sysctl of both ends."""
        for end in (0, 1):
            subprocess.run(self.run_in(end, ["sysctl", "-qw", f"{name}={value}"]), check=True)

    def steer(self, mask):
        """The CPUs to which packets of the server's device go: a mask in hexadecimal digits; 0: none is chosen."""
        file = "/sys/class/net/path0/queues/rx-0/rps_cpus"
        # Another namespace's devices are in a /sys of their own.
        subprocess.run(self.run_in(0, ["sh", "-c", f"echo {mask} > {file}"]), check=True)

    def remove(self):
        self.cut()
        for name in self.names:
            ip("netns", "delete", name, check=False)


class Controls:
    """Lets namespaces choose their congestion control, and puts back what this machine allowed."""

    file = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")

    def __enter__(self):
        self.before = self.file.read_text()
        self.file.write_text(Path(str(self.file).replace("allowed", "available")).read_text())

    def __exit__(self, *_):
        self.file.write_text(self.before)


class Node:
    """A node in the server's namespace. Options are those of `roost`, or have their section: `client.ping_interval`."""

    def __init__(self, paths, binary, directory, **roost):
        options = {
            "client": {"token": {"hmac_secret_key": SECRET}, "allowed_origins": ["*"], "queue_max_size": 64 * MIB,
                       "recovery_max_publication_limit": 0, "ping_interval": "10m"},
            "websocket": {"message_size_limit": MIB, "write_timeout": "10m"},
            "uni_sse": {"enabled": True},
            "http_api": {"key": KEY},
            "http_server": {"internal_port": "8001", "internal_address": "127.0.0.1"},
            "channel": {
                "without_namespace": {"allow_subscribe_for_client": True, "allow_publish_for_client": True},
                "namespaces": [{"name": "kept", "allow_subscribe_for_client": True,
                                "allow_publish_for_client": True, "history_size": 1000,
                                "history_ttl": "10m", "force_recovery": True}]},
            "roost": {"shards": 1, **roost},
        }
        for name in [name for name in roost if "." in name]:
            section, word = name.split(".")
            options.setdefault(section, {})[word] = options["roost"].pop(name)
        file = directory / "options.json"
        file.write_text(json.dumps(options))
        self.paths = paths
        argv = [binary / "roost", "serve", "-c", file, "-a", SERVER, "-p", PORT]
        self.process = Process(paths.run_in(0, argv), directory / "node.log", clean_environment())
        until(lambda: self.process.check() or "listening on" in self.process.log(), "the node")

    def call(self, method, **params):
        """A call of the server API, inside the namespace."""
        words = [sys.executable, ENDS, "call", method, json.dumps(params)]
        out = subprocess.run(self.paths.run_in(0, words), capture_output=True, text=True, check=False)
        if out.returncode:
            raise CannotRun(f"{method}: {out.stderr}\n{self.process.log()}")
        return json.loads(out.stdout)

    def end(self):
        """Ends the node in good order; the seconds that this took."""
        began = time.monotonic()
        self.process.stop()
        return time.monotonic() - began

    def stop(self):
        self.process.kill()


def end_of(paths, end, *words):
    """Runs one of the ends below in its namespace; its last line as JSON."""
    argv = paths.run_in(end, [sys.executable, ENDS, *words])
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        raise CannotRun(f"{words}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])
