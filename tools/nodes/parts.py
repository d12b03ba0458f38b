"""Parts of a system of several nodes on this machine, each started, watched and removed by itself:
a network with a namespace for each node, servers of Redis, nodes of roost, and a balancer."""

import contextlib
import json
import os
import re
import resource
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = HERE.parent / ".cache"

READY_SECONDS_MAX = 30
STOP_SECONDS_MAX = 40

# Configurations of balancers name these nodes and this port; lines with the first node are repeated for
# each node, and lines with the second one are left out.
FIRST_NODE, SECOND_NODE = "10.0.0.11", "10.0.0.12"
FIRST_NAME, SECOND_NAME = "node1", "node2"
NODE_PORT = 8000


class CannotRun(Exception):
    """There is nothing to run, and the text says why."""


def note(text):
    print(f"cluster: {text}", file=sys.stderr, flush=True)


def need(program, package):
    """The path of a program, after installing its Debian package if it is missing."""
    # Programs of Debian's packages are also in folders that an unprivileged path lacks.
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    found = shutil.which(program, path=path)
    if found:
        return found
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise CannotRun(f"{program} is missing: install {package}")
    note(f"no {program} here: installing Debian's {package}")
    CACHE.mkdir(exist_ok=True)
    lock = ["flock", str(CACHE / "apt.lock")]
    # A package must not start a service of its own on this machine.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for command in (["update", "-qq"],
                    ["install", "-y", "-qq", "--no-install-recommends", package]):
        subprocess.run([*lock, "apt-get", *command], check=False, stdout=subprocess.DEVNULL,
                       env=environment, timeout=600)
    found = shutil.which(program, path=path)
    if not found:
        raise CannotRun(f"{program} is missing, and {package} could not be installed")
    return found


_ports = set()


def free_port(host="127.0.0.1"):
    """A port that nothing uses now, below the usual range of outgoing connections."""
    for _ in range(1000):
        port = 10_000 + secrets.randbelow(20_000)
        if port in _ports:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((host, port))
            _ports.add(port)
            return port
    raise CannotRun(f"no free port on {host}")


def until(check, what, seconds=READY_SECONDS_MAX, pause=0.02):
    """The first true value of `check`; a failure that names what was waited for."""
    deadline = time.monotonic() + seconds
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > deadline:
            raise CannotRun(f"waited {seconds} s for {what}")
        time.sleep(pause)


def clean_environment(**extra):
    """This environment less options of roost."""
    kept = {name: value for name, value in os.environ.items()
            if not re.match("ROOST_(?!IO$)|CENTRIFUGO_", name)}
    return {**kept, **extra}


class Process:
    """A child process with its output in a file. It is ended by its process id."""

    def __init__(self, argv, log, environment=None):
        self.argv = [str(word) for word in argv]
        self.log_file = Path(log)
        self.environment = environment
        self.child = None
        self.start()

    def start(self):
        with self.log_file.open("ab") as log:
            self.child = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=log,
                                          stderr=subprocess.STDOUT, env=self.environment)

    @property
    def pid(self):
        return self.child.pid

    def is_running(self):
        return self.child.poll() is None

    def check(self):
        if not self.is_running():
            raise CannotRun(f"{self.argv[0]} ended with {self.child.returncode}:\n{self.log()}")

    def log(self):
        return self.log_file.read_text(errors="replace")

    def signal(self, number):
        if self.is_running():
            self.child.send_signal(number)

    def kill(self):
        self.signal(signal.SIGKILL)
        self.child.wait()

    def stop(self, seconds=STOP_SECONDS_MAX):
        """Ends it in good order, and by force where that takes too long."""
        # A stopped process takes its signal when it goes on.
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
        return self.child.returncode


def ip(*words, check=True):
    done = subprocess.run([need("ip", "iproute2"), *words], capture_output=True, text=True,
                          timeout=20, check=False)
    if check and done.returncode:
        raise CannotRun(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


class Network:
    """A bridge of this machine, and a network namespace for each node, all named by this process.

    Addresses are of 198.18.0.0/15, which is for tests of networks.
    """

    # How many this process has made.
    made = 0

    def __init__(self):
        Network.made += 1
        self.id = f"{os.getpid()}-{Network.made}"
        self.bridge = f"rb{self.id}"
        self.count = 0
        remove_leftovers()
        used = ip("-o", "address")
        free = [n for n in range(1, 255) if f" 198.18.{n}." not in used]
        if not free:
            raise CannotRun("no free network in 198.18.0.0/16")
        self.net = f"198.18.{secrets.choice(free)}"
        # The first address is that of servers and the balancer, the other one that of calls past the balancer.
        self.host, self.aside = f"{self.net}.1", f"{self.net}.2"
        try:
            # An address of its own: else it takes another one when a node is added, and nodes that know the old
            # one don't reach the servers for half a minute.
            own = ":".join(["02", *(f"{byte:02x}" for byte in secrets.token_bytes(5))])
            ip("link", "add", self.bridge, "address", own, "type", "bridge")
            for address in (self.host, self.aside):
                ip("address", "add", f"{address}/24", "dev", self.bridge)
            ip("link", "set", self.bridge, "up")
        except CannotRun:
            self.remove()
            raise

    def add(self):
        """A new namespace: its name and address."""
        self.count += 1
        name, end = f"roost-{self.id}-{self.count}", f"rv{self.id}n{self.count}"
        address = f"{self.net}.{10 + self.count}"
        ip("netns", "add", name)
        ip("link", "add", end, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", end, "master", self.bridge, "up")
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", name, "route", "add", "default", "via", self.host)
        return name, address

    def remove(self):
        remove_network(self.id)


def remove_network(owner):
    """Removes what a process with this id made."""
    names = re.findall(rf"^(roost-{owner}-\d+)\b", ip("netns", "list", check=False), re.M)
    for name in names:
        ip("netns", "delete", name, check=False)
    links = re.findall(rf"^\d+: (r[bv]{owner}(?:n\d+)?)\b", ip("-o", "link", check=False), re.M)
    for link in links:
        ip("link", "delete", link, check=False)


def can_make_namespaces():
    """Whether this user may make network namespaces, and has the program for it."""
    try:
        Network().remove()
        return True
    except CannotRun:
        return False


def remove_leftovers():
    """Removes networks of processes that ended by force."""
    text = ip("netns", "list", check=False) + ip("-o", "link", check=False)
    owners = set(re.findall(r"\broost-(\d+-\d+)-\d+\b", text))
    owners |= set(re.findall(r"\brb(\d+-\d+)\b", text))
    for owner in owners:
        if not Path(f"/proc/{owner.split('-')[0]}").exists():
            remove_network(owner)


class OneHost:
    """In place of a network: all nodes on the loopback address, told apart by their ports."""

    host, aside = "127.0.0.1", "127.0.0.2"

    def add(self):
        return None, self.host

    def remove(self):
        pass


class RedisServer:
    """One server of Redis, or a Sentinel."""

    def __init__(self, directory, host, *options, sentinel=None, persist=False):
        directory.mkdir()
        self.host, self.port = host, free_port(host)
        self.directory, self.program = directory, need("redis-server", "redis-server")
        config = directory / "redis.conf"
        lines = [f"port {self.port}", f"bind {host}", "protected-mode no", f"dir {directory}"]
        if sentinel:
            lines += sentinel
        else:
            # Without fsync: a process that is killed loses nothing, a machine that fails does.
            lines += ['save ""', f"appendonly {'yes' if persist else 'no'}", "appendfsync no",
                      "repl-diskless-sync-delay 0", *options]
        config.write_text("\n".join(lines) + "\n")
        argv = [self.program, config, *(["--sentinel"] if sentinel else [])]
        self.process = Process(argv, directory / "log")
        self.wait()

    @property
    def address(self):
        return f"{self.host}:{self.port}"

    def wait(self):
        def answers():
            self.process.check()
            with contextlib.suppress(OSError, RedisError):
                return Redis(self.host, self.port).once("PING") in (b"PONG", None)
            return False
        until(answers, f"Redis on {self.address}")

    def restart(self, empty=False):
        """Starts it again after its process ended, on the same port."""
        if empty:
            shutil.rmtree(self.directory / "appendonlydir", ignore_errors=True)
        self.process.start()
        self.wait()

    def ask(self, *words):
        return Redis(self.host, self.port).once(*words)


class RedisError(Exception):
    """An error in a reply of Redis."""


class Redis:
    """A connection to a server of Redis, as small as its use here."""

    def __init__(self, host, port, seconds=10):
        self.socket = socket.create_connection((host, port), timeout=seconds)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reader = self.socket.makefile("rb")

    def once(self, *words):
        """The reply to one command, after which the connection is closed."""
        with self.socket:
            return self.ask(*words)

    def ask(self, *words):
        self.send(*words)
        return self.reply()

    def send(self, *words):
        self.socket.sendall(encoded(*words))

    def reply(self):
        line = self.reader.readline()
        if not line:
            raise RedisError("the connection ended")
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise RedisError(rest.decode())
        if kind == b":":
            return int(rest)
        if kind == b"$":
            size = int(rest)
            return None if size < 0 else self.reader.read(size + 2)[:-2]
        if kind == b"*":
            return [self.reply() for _ in range(int(rest))]
        return rest


def encoded(*words):
    """The bytes of a command."""
    words = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


class Store:
    """The Redis of a system: one server, a Cluster of three, or a replicated one with Sentinels."""

    def __init__(self, kind, directory, host, persist=False, options=()):
        self.kind, self.directory, self.host = kind, directory / "redis", host
        self.servers, self.sentinels = [], []
        self.directory.mkdir()
        try:
            {"single": self._single, "cluster": self._cluster,
             "sentinel": self._sentinel}[kind](persist, options)
        except BaseException:
            self.stop()
            raise

    def _server(self, *options, **how):
        name = f"{len(self.servers) + len(self.sentinels)}"
        return RedisServer(self.directory / name, self.host, *options, **how)

    def _single(self, persist, options):
        self.servers.append(self._server(*options, persist=persist))

    def _cluster(self, persist, options):
        for _ in range(3):
            self.servers.append(self._server(
                "cluster-enabled yes", f"cluster-port {free_port(self.host)}",
                "cluster-node-timeout 3000", *options, persist=persist))
        first = self.servers[0]
        for server in self.servers[1:]:
            bus = re.search(r"cluster-port (\d+)",
                            (server.directory / "redis.conf").read_text())[1]
            first.ask("CLUSTER", "MEET", server.host, server.port, bus)
        for index, server in enumerate(self.servers):
            first_slot, last_slot = 16384 * index // 3, 16384 * (index + 1) // 3 - 1
            server.ask("CLUSTER", "ADDSLOTSRANGE", first_slot, last_slot)
        until(lambda: all(b"cluster_state:ok" in server.ask("CLUSTER", "INFO")
                          and b"cluster_known_nodes:3" in server.ask("CLUSTER", "INFO")
                          for server in self.servers), "the Cluster to be complete")

    def _sentinel(self, persist, options):
        master = self._server(*options, persist=persist)
        self.servers.append(master)
        self.servers.append(self._server(
            f"replicaof {master.host} {master.port}", *options, persist=persist))
        until(lambda: b"master_link_status:up" in self.servers[1].ask("INFO", "replication"),
              "the replica to follow")
        for _ in range(3):
            self.sentinels.append(self._server(sentinel=[
                f"sentinel monitor main {master.host} {master.port} 2",
                "sentinel down-after-milliseconds main 1000",
                "sentinel failover-timeout main 5000",
            ]))
        for sentinel in self.sentinels:
            def knows(sentinel=sentinel):
                reply = sentinel.ask("SENTINEL", "MASTER", "main")
                facts = dict(zip(reply[::2], reply[1::2]))
                return (facts[b"num-other-sentinels"] == b"2" and facts[b"num-slaves"] == b"1"
                        and facts[b"flags"] == b"master")
            until(knows, "Sentinels to know each other")

    def options(self):
        """Options of engine.redis."""
        addresses = [server.address for server in self.servers]
        if self.kind == "cluster":
            return {"cluster_address": [",".join(addresses)]}
        if self.kind == "sentinel":
            return {"sentinel_address": [",".join(s.address for s in self.sentinels)],
                    "sentinel_master_name": "main"}
        return {"address": [f"redis://{addresses[0]}"]}

    def master(self):
        """The server that takes writes now."""
        if self.kind != "sentinel":
            return self.servers[0]
        _, port = self.sentinels[0].ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")
        return next(server for server in self.servers if server.port == int(port))

    def stop(self):
        for server in [*self.sentinels, *self.servers]:
            server.process.signal(signal.SIGCONT)
            server.process.kill()


class Node:
    """One `roost serve`, in a namespace of its own where there is a network."""

    def __init__(self, roost, number, directory, network, config, options):
        directory.mkdir()
        self.name, self.directory = f"node{number}", directory
        self.namespace, self.host = network.add()
        self.port = NODE_PORT if self.namespace else free_port()
        file = directory / "options.json"
        file.write_text(json.dumps(options, indent=1))
        file.chmod(0o600)
        argv = [roost, "serve"]
        environment = clean_environment()
        if config:
            # Options of the system go into the environment, which wins over the file.
            argv += ["-c", config]
            environment.update(environment_of(options))
        else:
            argv += ["-c", file]
        argv += ["-a", self.host, "-p", self.port, "--node.name", self.name]
        if self.namespace:
            argv = [need("ip", "iproute2"), "netns", "exec", self.namespace, *argv]
        self.process = Process(argv, directory / "log", environment)

    @property
    def address(self):
        return f"{self.host}:{self.port}"

    def wait(self):
        def listens():
            self.process.check()
            with contextlib.suppress(OSError):
                socket.create_connection((self.host, self.port), timeout=1).close()
                return True
            return False
        until(listens, f"{self.name} to listen")

    def restart(self):
        self.process.start()
        self.wait()


def environment_of(options, path="ROOST"):
    """Variables of these options."""
    found = {}
    for name, value in options.items():
        key = f"{path}_{name.upper()}"
        if isinstance(value, dict):
            # Options of roost's own have no section in their variables.
            found.update(environment_of(value, path if name == "roost" else key))
        elif isinstance(value, list):
            found[key] = " ".join(str(item) for item in value)
        else:
            found[key] = str(value).lower() if isinstance(value, bool) else str(value)
    return found


class Balancer:
    """nginx or HAProxy with a configuration of this folder, in which addresses are replaced, and numbers that
    this machine's limit of descriptors does not allow."""

    def __init__(self, file, directory, nodes, listen, trusted=None):
        self.file = HERE / file
        if not self.file.exists():
            raise CannotRun(f"no configuration {self.file}")
        self.port = free_port(listen)
        self.address = f"{listen}:{self.port}"
        directory.mkdir()
        config = directory / self.file.name
        text = with_addresses(self.file.read_text(), nodes, self.address)
        self.log_file = directory / "log"
        if self.file.suffix == ".cfg":
            if os.geteuid() != 0:
                text = re.sub(r"^\s*(user|group) .*\n", "", text, flags=re.M)
            argv = [need("haproxy", "haproxy"), "-f", config, "-db"]
        else:
            argv = [need("nginx", "nginx"), "-c", config, "-g",
                    f"daemon off; pid {directory}/pid; error_log {self.log_file};"]
            if "ngx_stream_module" in text and not Path(
                    "/usr/lib/nginx/modules/ngx_stream_module.so").exists():
                need_module("libnginx-mod-stream")
        config.write_text(text)
        self.process = Process(argv, self.log_file, None)
        self.listen = listen

    def wait(self):
        def listens():
            self.process.check()
            with contextlib.suppress(OSError):
                socket.create_connection((self.listen, self.port), timeout=1).close()
                return True
            return False
        until(listens, f"{self.file.name} to listen")


def need_module(package):
    """A Debian package that has no program."""
    note(f"installing Debian's {package}")
    CACHE.mkdir(exist_ok=True)
    done = subprocess.run(["flock", str(CACHE / "apt.lock"), "apt-get", "install", "-y", "-qq",
                           "--no-install-recommends", package], stdout=subprocess.DEVNULL,
                          env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, timeout=600,
                          check=False)
    if done.returncode:
        raise CannotRun(f"{package} could not be installed")


def with_addresses(text, nodes, listen):
    """A configuration of a balancer, for these nodes and with this address to listen on."""
    _, descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors < 250_000:
        for name, most in (("worker_rlimit_nofile", descriptors), ("worker_connections", descriptors),
                           ("maxconn", descriptors // 2 - 500)):
            text = re.sub(rf"^(\s*{name}) \d+", rf"\1 {most}", text, flags=re.M)
    lines = []
    for line in text.splitlines():
        bare = line.split("#")[0]
        if SECOND_NODE in bare:
            continue
        if FIRST_NODE in bare:
            lines += [line.replace(f"{FIRST_NODE}:{NODE_PORT}", node.address)
                          .replace(FIRST_NAME, node.name) for node in nodes]
            continue
        line = re.sub(r"^(\s*listen )80\b", rf"\g<1>{listen}", line)
        line = re.sub(r"^(\s*bind ):80\b", rf"\g<1>{listen}", line)
        lines.append(line)
    return "\n".join(lines) + "\n"
