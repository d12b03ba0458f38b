"""A system of several nodes: which parts it has, how they find each other, and its description."""

import contextlib
import http.client
import json
import os
import secrets
import signal
import subprocess
from pathlib import Path

from parts import (ROOT, Balancer, CannotRun, Network, Node, OneHost, Store, clean_environment, note,
                   until)
from nats import NatsStore

# A namespace of which everything is recovered, one with presence, and channels without either.
CHANNELS = {
    "without_namespace": {
        "allow_subscribe_for_client": True,
        "allow_publish_for_client": True,
    },
    "namespaces": [
        {
            "name": "kept",
            "allow_subscribe_for_client": True,
            "allow_publish_for_client": True,
            "allow_history_for_client": True,
            "force_recovery": True,
            "force_positioning": True,
            "history_size": 10_000,
            "history_ttl": "10m",
        },
        {
            "name": "present",
            "allow_subscribe_for_client": True,
            "presence": True,
        },
        {
            "name": "room",
            "allow_subscribe_for_client": True,
            "allow_publish_for_client": True,
            "allow_presence_for_client": True,
            "presence": True,
            "join_leave": True,
            "force_push_join_leave": True,
        },
    ],
}


class Options:
    """Options of a system, from the command line."""

    @staticmethod
    def add_to(parser):
        parser.add_argument("--nodes", type=int, default=2, metavar="N", help="nodes (default 2)")
        parser.add_argument("--redis", default="single",
                            choices=["single", "cluster", "sentinel", "nats", "none"],
                            help="one server, a Cluster of three, a master and a replica with three "
                                 "Sentinels, a server of NATS in its place, or none: then nodes know "
                                 "nothing of each other")
        parser.add_argument("--cluster", dest="redis", action="store_const", const="cluster",
                            help="the same as --redis cluster")
        parser.add_argument("--sentinel", dest="redis", action="store_const", const="sentinel",
                            help="the same as --redis sentinel")
        parser.add_argument("--persist", action="store_true",
                            help="Redis keeps its data on disk, and has it after a new start")
        parser.add_argument("--redis-acl", action="store_true",
                            help="nodes use a user of Redis that may do what roost needs and no more")
        parser.add_argument("--balancer", default="nginx.conf", metavar="FILE",
                            help="a configuration in tools/nodes (nginx.conf, nginx-ip-hash.conf, "
                                 "nginx-cookie.conf, nginx-tcp.conf, haproxy.cfg, haproxy-cookie.cfg, "
                                 "haproxy-tcp.cfg), or none")
        parser.add_argument("--listen", default="127.0.0.1", metavar="ADDRESS",
                            help="address of the balancer (default 127.0.0.1)")
        parser.add_argument("--config", type=Path, metavar="FILE",
                            help="configuration of the nodes, in place of one that allows everything")
        parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE",
                            help="one more option of the nodes; VALUE is JSON or text")
        parser.add_argument("--no-namespaces", action="store_true",
                            help="all nodes on 127.0.0.1, for machines without network namespaces")
        parser.add_argument("--reports", type=Path, metavar="DIR",
                            help="bench, faults: the report of each run of roost-load as a page in this folder")
        parser.add_argument("--binary", type=Path, metavar="DIR",
                            help="folder with roost and roost-load (default: target/release, built by "
                                 "cargo)")


SHORT_NAMES = {"nginx": "nginx.conf", "haproxy": "haproxy.cfg"}


def binaries(directory):
    """Paths of roost and roost-load, built where no folder is given."""
    if directory is None:
        note("cargo build --release")
        built = subprocess.run(["cargo", "build", "--release", "--quiet", "--bins"], cwd=ROOT,
                               timeout=1800, check=False)
        if built.returncode:
            raise CannotRun("the build failed")
        directory = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
    found = [Path(directory).resolve() / name for name in ("roost", "roost-load")]
    for path in found:
        if not os.access(path, os.X_OK):
            raise CannotRun(f"{path} is not there or not executable")
    return found


# What roost needs: its keys, its PUB/SUB names, and these commands.
ACL_COMMANDS = (ROOT / "tools" / "nodes" / "roost.acl").read_text()


def acl_rule(name, password):
    """The rule of a user, from the file that the documentation shows."""
    lines = [line for line in ACL_COMMANDS.splitlines() if line and not line.startswith("#")]
    [line] = lines
    return line.replace("user roost", f"user {name}").replace(">secret", f">{password}")


# Scenario files of roost-load.
SCENARIOS = ROOT / "tools" / "nodes" / "scenarios"


class System:
    """A running system. It is a context: everything in it ends with it."""

    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.roost, self.load = binaries(options.binary)
        self.secret, self.api_key = secrets.token_hex(16), secrets.token_hex(16)
        self.admin_password = secrets.token_hex(8)
        self.store = self.balancer = self.network = None
        self.nodes = []

    def page(self, name):
        """Words of roost-load for its report as a page, with --reports; a number makes names differ."""
        if not self.options.reports:
            return []
        self.options.reports.mkdir(parents=True, exist_ok=True)
        number = len(list(self.options.reports.glob(f"{name}-*.html"))) + 1
        return ["--html", self.options.reports / f"{name}-{number}.html"]

    def __enter__(self):
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self):
        options = self.options
        self.network = OneHost() if options.no_namespaces else Network()
        if options.redis.startswith("nats"):
            storage = options.redis.partition("-")[2] or "file"
            self.store = NatsStore(self.folder, self.network.host, storage)
        elif options.redis != "none":
            lines = []
            if options.redis_acl:
                self.redis_password = secrets.token_hex(8)
                lines = [acl_rule("roost", self.redis_password)]
            self.store = Store(options.redis, self.folder, self.network.host, options.persist, lines)
        for number in range(1, options.nodes + 1):
            self.add_node(number)
        for node in self.nodes:
            node.wait()
        if self.store and not options.config:
            for node in self.nodes:
                until(lambda node=node: self.is_ready(node), f"{node.name} to be ready")
        if self.nodes and options.balancer != "none":
            file = SHORT_NAMES.get(options.balancer, options.balancer)
            self.balancer = Balancer(file, self.folder / "balancer", self.nodes, options.listen)
            self.balancer.wait()

    def add_node(self, number):
        node = Node(self.roost, number, self.folder / f"node{number}", self.network,
                    self.options.config, self.node_options())
        self.nodes.append(node)
        return node

    def node_options(self):
        """Options of each node: what connects it with the others, and where no file is given, all others."""
        options = {} if self.options.config else {
            "client": {"token": {"hmac_secret_key": self.secret}, "allowed_origins": ["*"]},
            "http_api": {"key": self.api_key},
            "health": {"enabled": True},
            "prometheus": {"enabled": True},
            "admin": {"enabled": True, "password": self.admin_password,
                      "secret": secrets.token_hex(16)},
            "http_stream": {"enabled": True},
            "sse": {"enabled": True},
            "uni_sse": {"enabled": True},
            "uni_http_stream": {"enabled": True},
            "channel": CHANNELS,
        }
        if self.store and self.store.kind == "nats":
            options |= self.store.node_options()
        elif self.store:
            options["engine"] = {"type": "redis", "redis": self.store.options() | self.redis_user()}
        if self.options.balancer != "none":
            # The balancer reaches nodes from this machine's end of the network.
            options["roost"] = {"trusted_proxies": [self.network.host]}
            if "-tcp." in self.options.balancer:
                options["roost"]["proxy_protocol"] = True
            else:
                options["roost"]["client_address_header"] = "X-Forwarded-For"
        for words in self.options.set:
            path, _, value = words.partition("=")
            *sections, name = path.split(".")
            place = options
            for section in sections:
                place = place.setdefault(section, {})
            try:
                place[name] = json.loads(value)
            except ValueError:
                place[name] = value
        return options

    def redis_user(self):
        """Options for the user of Redis, if it has one."""
        return {"user": "roost", "password": self.redis_password} if self.options.redis_acl else {}

    def __exit__(self, *_):
        for process in [self.balancer, *reversed(self.nodes)]:
            if process:
                process.process.signal(signal.SIGCONT)
                process.process.signal(signal.SIGTERM)
        for process in [self.balancer, *self.nodes]:
            if process:
                process.process.stop()
        if self.store:
            self.store.stop()
        if self.network:
            self.network.remove()

    def description(self):
        """All of it, for a program beside it."""
        return {
            "secret": self.secret,
            "api_key": self.api_key,
            "admin_password": self.admin_password,
            "host": self.network.host,
            "aside": self.network.aside,
            "nodes": [{"name": node.name, "address": node.address, "namespace": node.namespace,
                       "pid": node.process.pid, "argv": node.process.argv,
                       "environment": node.process.environment if self.options.config else {},
                       "log": str(node.process.log_file)} for node in self.nodes],
            "redis": None if not self.store else {
                "kind": self.store.kind,
                "options": self.store.options(),
                "user": self.redis_user(),
                "servers": [{"address": server.address, "pid": server.process.pid,
                             "argv": server.process.argv} for server in self.store.servers],
            },
            "balancer": None if not self.balancer else {
                "file": self.balancer.file.name, "address": self.balancer.address,
                "pid": self.balancer.process.pid},
        }

    def print(self):
        """The addresses, for people."""
        if self.balancer:
            print(f"balancer   http://{self.balancer.address}   ({self.balancer.file.name})")
        for node in self.nodes:
            where = f"   (ip netns exec {node.namespace} ...)" if node.namespace else ""
            print(f"{node.name:<10} http://{node.address}{where}")
        if self.store:
            addresses = " ".join(server.address for server in self.store.servers)
            print(f"broker     {addresses}   ({self.store.kind})")
            for sentinel in self.store.sentinels:
                print(f"sentinel   {sentinel.address}")
        if not self.options.config:
            print(f"api key    {self.api_key}")
            print(f"admin      {self.admin_password}   (a node's address in a browser)")
            token = subprocess.run(
                [self.roost, "token", "-c", self.nodes[0].directory / "options.json", "-u", "ann"],
                capture_output=True, text=True, env=clean_environment(), timeout=20,
                check=False).stdout.strip() if self.nodes else ""
            if token:
                print(f"token      {token}   (user ann)")
        print(f"files      {self.folder}")

    def call(self, node, method, path, body=None, headers=()):
        """The body of an answer of a node, past the balancer."""
        line = http.client.HTTPConnection(node.host, node.port, timeout=15,
                                          source_address=(self.network.aside, 0))
        with contextlib.closing(line):
            line.request(method, path, body, dict(headers))
            answer = line.getresponse()
            text = answer.read().decode()
            if answer.status != 200:
                raise CannotRun(f"{path} of {node.name} answers {answer.status}: {text}")
            return text

    def is_ready(self, node):
        """Whether a node delivers: it has Redis and is subscribed to its channels."""
        try:
            return self.call(node, "GET", "/ready") is not None
        except CannotRun as error:
            # Without the check there is nothing to wait for.
            return "answers 404" in str(error)
        except OSError:
            return False

    def api(self, node, method, **request):
        """The answer to a call of the server API at a node."""
        headers = {"X-API-Key": self.api_key, "Content-Type": "application/json"}
        return json.loads(self.call(node, "POST", f"/api/{method}", json.dumps(request), headers))

    def counters(self, node):
        """Figures of a node's /metrics: the sum over labels for each name."""
        found = {}
        for line in self.call(node, "GET", "/metrics").splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                with contextlib.suppress(ValueError):
                    key = name.split("{")[0]
                    found[key] = found.get(key, 0) + float(value)
        return found
