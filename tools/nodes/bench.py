"""Measures a system of several nodes on this machine, each figure beside its bound and, where there is one,
beside what Redis does for a bare client in the same run. Writes docs/cluster-benchmarks.md."""

import argparse
import contextlib
import http.client
import json
import multiprocessing
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import faults
import nats
from client import Client
from parts import ROOT, CannotRun, Redis, encoded, note, until
from system import SCENARIOS, System

DATA = {"text": "x" * 110}
BATCH = 100
ROUNDS = 3
# Requests of the server API that are under way at the same time.
CALLERS = 16
DOCUMENT = ROOT / "docs" / "cluster-benchmarks.md"
# What each row found last, so that a run of some rows leaves the others on the page.
FOUND = ROOT / "target" / "cluster-bench.json"
# The small client answers no pings while it counts.
NO_PINGS = "client.ping_interval=-1"


class Row:
    """One figure: its text, the bound, and whether it is kept; the floor where there is one."""

    def __init__(self, what, value, bound, is_kept, floor="", how=""):
        self.what, self.value, self.bound, self.is_kept = what, value, bound, is_kept
        self.floor, self.how = floor, how


@contextlib.contextmanager
def running(options, **changes):
    """A system with the command line's options and these."""
    fixed = {"nodes": 1, "redis": "single", "balancer": "none", "persist": False, "config": None}
    settings = argparse.Namespace(**{**vars(options), **fixed, **changes})
    with tempfile.TemporaryDirectory(prefix="roost-bench-") as folder, \
            System(settings, Path(folder)) as system:
        yield system


def client(system, node, user="bench"):
    return Client(node.host, node.port, system.secret, user)


def load(system, node, scenario, *words, seconds=120):
    """The result of a roost-load of a scenario of tools/nodes/scenarios against a node."""
    argv = [system.load, "run", SCENARIOS / f"{scenario}.toml", *words, *system.page(scenario),
            "--url", f"ws://{node.address}/connection/websocket", "--secret", system.secret, "--json"]
    try:
        done = subprocess.run([str(word) for word in argv], capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise CannotRun(f"roost-load took more than {seconds} s") from None
    try:
        return json.loads(done.stdout.decode().splitlines()[-1])
    except (IndexError, ValueError):
        raise CannotRun(f"roost-load ended with {done.returncode}: {done.stderr.decode()}") from None


def rss_bytes(node):
    for line in Path(f"/proc/{node.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def cpu_seconds(node):
    """Processor time of a node, of user and kernel."""
    fields = Path(f"/proc/{node.process.pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def redis_cpu_seconds(system):
    info = system.store.servers[0].ask("INFO", "cpu").decode()
    facts = dict(line.split(":") for line in info.splitlines() if ":" in line)
    return float(facts["used_cpu_user"]) + float(facts["used_cpu_sys"])


def redis_calls(system, command):
    """How often Redis has run a command."""
    info = system.store.servers[0].ask("INFO", "commandstats").decode()
    for line in info.splitlines():
        if line.startswith(f"cmdstat_{command}:"):
            return int(line.split("calls=")[1].split(",")[0])
    return 0


def median(values):
    return statistics.median(values)


def quantile(values, share):
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


class Api:
    """A kept connection to the server API of a node."""

    def __init__(self, system, node):
        self.line = http.client.HTTPConnection(node.host, node.port, timeout=30)
        self.headers = {"X-API-Key": system.api_key, "Content-Type": "application/json"}

    def call(self, method, body):
        text = body if isinstance(body, (bytes, str)) else json.dumps(body)
        self.line.request("POST", f"/api/{method}", text, self.headers)
        answer = self.line.getresponse()
        text = answer.read()
        if answer.status != 200 or b'"error"' in text:
            raise CannotRun(f"{method}: {answer.status} {text[:200]!r}")
        return text

    def publish(self, channel, data=None):
        self.call("publish", {"channel": channel, "data": DATA if data is None else data})


class Publisher:
    """Publishes the same to one channel, by prepared bytes: the time of Python's HTTP client is not the node's."""

    def __init__(self, system, node, channel):
        self.socket = socket.create_connection((node.host, node.port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        body = json.dumps({"channel": channel, "data": DATA})
        self.request = (f"POST /api/publish HTTP/1.1\r\nHost: {node.address}\r\nX-API-Key: {system.api_key}\r\n"
                        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}").encode()

    def send(self):
        self.socket.sendall(self.request)

    def wait(self):
        """Waits for the answer, which comes in one piece."""
        answer = self.socket.recv(1 << 16)
        if b'"offset"' not in answer:
            raise CannotRun(f"publish: {answer!r}")


def batch_of(channels):
    """The body of a batch of publishes, one to each channel."""
    commands = [{"publish": {"channel": channel, "data": DATA}} for channel in channels]
    return json.dumps({"parallel": True, "commands": commands})


def bytes_of_connections(options):
    count, start = options.connections, options.connections // 4
    found = {"none": [], "single": []}
    for _ in range(ROUNDS):
        for redis, rounds in found.items():
            # roost-load measures processes that it can reach without leaving its network. The broker thread
            # touches its buffers for the first time in its first seconds, which no connection costs: hence
            # the time to settle.
            with running(options, redis=redis, no_namespaces=True) as system:
                node = system.nodes[0]
                result = load(system, node, "held", "--connections", count, "--rss-from", start, "--settle", 6000,
                              "--pid", node.process.pid)
                rounds.append(result["server"]["slope"]["bytes_per_connection"])
    alone = median(found["none"])
    more = median(found["single"]) - alone
    return [Row("user-space bytes per connection, one shared channel with history, beside a single node's",
                f"{more:+.0f} B", "+ 16 B", more <= 16, f"{alone:.0f} B",
                f"{count:,} connections, slope from {start:,}, medians of {ROUNDS}")]


def channels_of_their_own(options):
    """Memory of channels with one subscriber, and how long they are subscribed again."""
    count, connections = options.channels, max(options.channels // 10_000, 1)
    each = count // connections
    settings = [*options.set, NO_PINGS, f"client.channel_limit={each + 1}"]
    with running(options, nodes=2, set=settings) as system:
        node, other = system.nodes
        names = [[f"kept:c{at}-{number}" for number in range(each)] for at in range(connections)]
        clients = [client(system, node) for _ in range(connections)]
        quarter = max(connections // 4, 1)
        for at in range(quarter):
            clients[at].subscribe(names[at])
        time.sleep(1)
        first = rss_bytes(node)
        for at in range(quarter, connections):
            clients[at].subscribe(names[at])
        time.sleep(1)
        spread = connections - quarter
        size = (rss_bytes(node) - first) / (spread * each) if spread else 0
        rows = []
        if spread:
            rows.append(Row("a channel of its own with one subscriber, broker on", f"{size:.0f} B", "900 B",
                            size <= 900, "", f"{count:,} channels with history of {connections} connections"))
        # Some channels of each connection, in no order of the node's: the last of them is one of the last of all.
        some = [(at, names[at][number * each // 5]) for number in range(5) for at in range(connections)]
        api = Api(system, other)
        system.store.servers[0].ask("CLIENT", "KILL", "TYPE", "pubsub")
        began = time.perf_counter()
        for at in range(0, len(some), BATCH):
            api.call("batch", batch_of(channel for _, channel in some[at:at + BATCH]))
        ends = [made.count(b'"pub":', 5, 120) for made in clients]
        until(lambda: system.is_ready(node), "the node to be ready", 120)
        took = max(*ends, time.perf_counter()) - began
        floor = subscribing(system, count)
        rows.append(Row(f"{count:,} channels subscribed again and checked after the connection was killed",
                        f"{took:.2f} s", f"{8 * count / 1e6:.1f} s (8 s for a million)", took <= 8 * count / 1e6,
                        f"{floor:.2f} s", f"until {len(some)} publications of the gap are delivered and /ready is 200; floor: SUBSCRIBE alone"))
        for made in clients:
            made.close()
    return rows


def subscribing(system, count):
    """Seconds of a bare client that subscribes to as many channels."""
    server = system.store.servers[0]
    names = [f"floor{number}" for number in range(count)]
    words = b"".join(encoded("SUBSCRIBE", *names[at:at + 512]) for at in range(0, count, 512))
    line = Redis(server.host, server.port, 60)
    began = time.perf_counter()
    pump(line.socket, words, b"*3\r\n", count)
    took = time.perf_counter() - began
    line.socket.close()
    return took


def pump(sock, commands, mark, count):
    """Writes commands on a thread and reads until the mark has come so often."""
    writer = threading.Thread(target=sock.sendall, args=(commands,))
    writer.start()
    read_marks(sock, mark, count)
    writer.join()


def read_marks(sock, mark, count, seen_by=lambda seen: None):
    seen, tail = 0, b""
    while seen < count:
        data = sock.recv(1 << 18)
        if not data:
            raise CannotRun(f"Redis ended the connection after {seen} of {count}")
        seen += (tail + data).count(mark)
        seen_by(seen)
        tail = data[-(len(mark) - 1):] if len(mark) > 1 else b""


def fan_in(options):
    """Publications of Redis through one PUB/SUB connection of a node to a client, and to a bare client."""
    count, channels, paced = 400_000, 100, 300_000
    rates, floors = [], []
    # The client must not be closed for being slow: the way from Redis to the node is measured.
    settings = [*options.set, NO_PINGS, f"client.queue_max_size={1 << 30}", "roost.shards=1"]
    with running(options, set=settings) as system:
        node, server = system.nodes[0], system.store.servers[0]
        # A publication without history: its data alone.
        data = json.dumps(DATA).encode()
        payload = b"\x22" + bytes([len(data)]) + data
        names = [f"centrifugo.client.in{number}" for number in range(channels)]
        commands = [encoded("PUBLISH", names[number % channels], payload) for number in range(count)]
        listener = client(system, node)
        listener.subscribe([f"in{number}" for number in range(channels)])

        def received(rate):
            """Publications a second, and the most that waited in Redis."""
            publisher = PublishingProcess(server, commands, rate)
            began, sampler = time.perf_counter(), Sampler(server)
            try:
                ended = listener.count(b'"pub":', count, 10, publisher.arrived)
            except TimeoutError:
                raise CannotRun(f"{count - publisher.seen.value:,} of {count:,} publications didn't arrive, "
                                f"published at {rate or 'the rate of the reader'}") from None
            finally:
                publisher.join()
                waited = sampler.stop()
            return count / (ended - began), waited
        rates = [received(None)[0] for _ in range(ROUNDS)]
        at, waited = received(paced)
        listener.close()
        time.sleep(1.5)
        bare = Redis(server.host, server.port, 60)
        bare.send("SUBSCRIBE", *names)
        read_marks(bare.socket, b"*3\r\n", channels)
        for _ in range(ROUNDS):
            publisher = PublishingProcess(server, commands, None)
            began = time.perf_counter()
            read_marks(bare.socket, b"*3\r\n", count, publisher.arrived)
            floors.append(count / (time.perf_counter() - began))
            publisher.join()
    rate, floor = median(rates), median(floors)
    return [Row("publications through one PUB/SUB connection to a subscriber", f"{rate:,.0f}/s", "300,000/s",
                rate >= 300_000 and waited < OUTPUT_BYTES_MAX, f"{floor:,.0f}/s",
                f"{channels} channels, one client, as fast as it goes; published at {paced:,}/s, {at:,.0f}/s came and "
                f"at most {waited / 1024:,.0f} KiB waited in Redis")]


# Output that Redis may have for a connection between two of its turns.
OUTPUT_BYTES_MAX = 1 << 20


# Publications by which a publisher is ahead of the reader: without an end the reader's connection would be closed,
# or its node would drop what it has no room for.
LEAD_MAX = 50_000


class PublishingProcess:
    """A process that sends commands to Redis, so many a second or as fast as they arrive, and reads the replies."""

    def __init__(self, server, commands, rate):
        context = multiprocessing.get_context("fork")
        self.seen = context.Value("Q", 0, lock=False)
        self.process = context.Process(target=publish_all, args=(server, commands, rate, self.seen))
        self.process.start()

    def arrived(self, seen):
        self.seen.value = seen

    def join(self):
        self.process.join()


def publish_all(server, commands, rate, seen):
    sock = Redis(server.host, server.port, 60).socket
    reader = threading.Thread(target=read_marks, args=(sock, b":", len(commands)))
    reader.start()
    began, slices = time.perf_counter(), rate // 200 if rate else 2_000
    for at in range(0, len(commands), slices):
        if rate:
            time.sleep(max(0, began + at / rate - time.perf_counter()))
        deadline = time.perf_counter() + 60
        while not rate and at - seen.value > LEAD_MAX and time.perf_counter() < deadline:
            time.sleep(0.0005)
        sock.sendall(b"".join(commands[at:at + slices]))
    reader.join()


class Sampler:
    """Looks at the output of Redis for PUB/SUB connections until it is stopped."""

    def __init__(self, server):
        self.server, self.most, self.ends = server, 0, threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        while not self.ends.wait(0.05):
            # A server that is busy for so long has its figure later.
            with contextlib.suppress(TimeoutError):
                for line in self.server.ask("CLIENT", "LIST", "TYPE", "pubsub").decode().splitlines():
                    self.most = max(self.most, int(line.split("omem=")[1].split(" ")[0]))

    def stop(self):
        """The most bytes that waited."""
        self.ends.set()
        self.thread.join()
        return self.most


def deliveries(options):
    """Deliveries to 1,000 subscribers with 16 messages in flight, with and without Redis."""
    rates = {"none": [], "single": []}
    settings = [*options.set, "roost.shards=1"]
    with running(options, redis="none", set=settings) as alone, running(options, set=settings) as shared:
        for _ in range(ROUNDS):
            for redis, system in (("none", alone), ("single", shared)):
                result = load(system, system.nodes[0], "fanout", "--threads", 1)
                rates[redis].append(result["rate"]["received"])
    own, memory = median(rates["single"]), median(rates["none"])
    return [Row("deliveries to 1,000 subscribers of one channel, window 16, of the memory broker's",
                f"{own / memory:.2f}", "0.9", own / memory >= 0.9, f"{memory:,.0f}/s", f"{own:,.0f}/s with Redis")]


def publishes(options):
    """Publishes with history through the server API in batches, and the same script by a bare client."""
    channels = [f"kept:p{number}" for number in range(BATCH)]
    rates, floors = [], []
    with running(options) as system:
        node, server, body = system.nodes[0], system.store.servers[0], batch_of(channels)
        for _ in range(ROUNDS):
            rates.append(batches_per_second(system, node, body, CALLERS) * BATCH)
        script = (ROOT / "src/cluster/scripts/publish_stream.lua").read_text()
        sha = Redis(server.host, server.port).once("SCRIPT", "LOAD", script)
        count, data = 100_000, json.dumps(DATA)
        commands = b"".join(
            encoded("EVALSHA", sha, 3, f"centrifugo.stream.f{number % BATCH}",
                    f"centrifugo.stream.meta.f{number % BATCH}", f"centrifugo.result.f{number % BATCH}", data,
                    10_000, 600, f"centrifugo.client.f{number % BATCH}", 2_592_000, "abcdefgh", "publish", "", "",
                    0, "") for number in range(count))
        for _ in range(ROUNDS):
            line = Redis(server.host, server.port, 60)
            began = time.perf_counter()
            pump(line.socket, commands, b"*4\r\n", count)
            floors.append(count / (time.perf_counter() - began))
            line.socket.close()
    rate, floor = median(rates), median(floors)
    return [Row("publishes with history from one node's API, batches of 100", f"{rate:,.0f}/s", "40,000/s",
                rate >= 40_000, f"{floor:,.0f}/s", f"{CALLERS} requests under way; floor: the script of a publish, pipelined by a bare client")]


def batches_per_second(system, node, body, callers, seconds=3):
    counts = [0] * callers
    end = time.perf_counter() + seconds

    def call(at):
        api = Api(system, node)
        while time.perf_counter() < end:
            api.call("batch", body)
            counts[at] += 1
    threads = [threading.Thread(target=call, args=(at,)) for at in range(callers)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


def latency(options):
    """A publish at one node until its delivery at another, and PUBLISH until SUBSCRIBE."""
    count = 1000
    with running(options, nodes=2) as system:
        node, other = system.nodes
        listener, publisher = client(system, node), Publisher(system, other, "kept:l")
        listener.subscribe(["kept:l"])
        publisher.send()
        listener.read_until(lambda line: b'"pub"' in line)
        publisher.wait()
        own, bare = [], []
        server = system.store.servers[0]
        reader, writer = Redis(server.host, server.port), Redis(server.host, server.port)
        reader.ask("SUBSCRIBE", "floor")
        for _ in range(count):
            began = time.perf_counter()
            publisher.send()
            listener.read_until(lambda line: b'"pub"' in line)
            own.append((time.perf_counter() - began) * 1000)
            publisher.wait()
            began = time.perf_counter()
            writer.ask("PUBLISH", "floor", "x" * 128)
            reader.reply()
            bare.append((time.perf_counter() - began) * 1000)
    rows = []
    for share, name, bound in ((0.5, "p50", 0.3), (0.99, "p99", 1.0)):
        mine, floor = quantile(own, share), quantile(bare, share)
        rows.append(Row(f"publish to delivery on another node, idle, {name}, beside PUBLISH to SUBSCRIBE",
                        f"{mine - floor:+.2f} ms", f"+ {bound} ms", mine - floor <= bound, f"{floor:.2f} ms",
                        f"{mine:.2f} ms, from the HTTP request on"))
    return rows


def gap(options):
    """From the end of the PUB/SUB connections until what was published in the gap is delivered."""
    times = []
    with running(options, nodes=2) as system:
        node, other = system.nodes
        listener, api, server = client(system, node), Api(system, other), system.store.servers[0]
        listener.subscribe(["kept:g"])
        for number in range(10):
            control = Redis(server.host, server.port)
            control.ask("CLIENT", "KILL", "TYPE", "pubsub")
            began = time.perf_counter()
            api.publish("kept:g", number)
            listener.read_until(lambda line: b'"pub"' in line)
            times.append((time.perf_counter() - began) * 1000)
            control.socket.close()
            # Connections that end again at once are made anew with growing pauses.
            time.sleep(1.5)
    return [Row("gap after a killed PUB/SUB connection, nothing published later", f"{max(times):.0f} ms", "500 ms",
                max(times) <= 500, "", f"the longest of {len(times)}; median {median(times):.0f} ms")]


def presence(options):
    """The share of Redis that the refreshes of presence take."""
    connections, channels = 100, options.presence // 100
    settings = [*options.set, NO_PINGS, f"client.channel_limit={channels + 1}"]
    with running(options, set=settings) as system:
        node = system.nodes[0]
        clients = [client(system, node, f"user{number}") for number in range(connections)]
        names = [f"present:{number}" for number in range(channels)]
        for made in clients:
            made.subscribe(names)
        time.sleep(3)
        # Without the commands of an idle node.
        before, began = redis_cpu_seconds(system), time.perf_counter()
        time.sleep(options.presence_seconds)
        share = (redis_cpu_seconds(system) - before) / (time.perf_counter() - began) * 100
        floor = prolonging(system, connections) * 1e6 / REFRESH_SECONDS * 100
        for made in clients:
            made.close()
    entries = connections * channels
    scaled = share * 1e6 / entries
    return [Row("presence of 1,000,000 entries: share of a Redis core", f"{scaled:.1f} %", "15 %", scaled <= 15,
                f"{floor:.1f} %", f"{entries:,} entries, {connections} a channel: {share:.2f} %; floor: the script "
                f"of a refresh by a bare client, once in {REFRESH_SECONDS} s")]


# Interval of the refreshes: half of the time for which an entry is kept.
REFRESH_SECONDS = 30


def prolonging(system, clients, channels=1000):
    """Processor seconds of Redis for each entry that the script of a refresh prolongs, by a bare client."""
    server = system.store.servers[0]
    line = Redis(server.host, server.port, 60)
    sha = line.ask("SCRIPT", "LOAD", (ROOT / "src/cluster/scripts/presence_prolong.lua").read_text())
    ids = [f"00000000-0000-4000-8000-{number:012}" for number in range(clients)]
    for number in range(channels):
        line.ask("HSET", f"floor.data.{number}", *[word for one in ids for word in (one, "x" * 90)])
    commands = b"".join(
        encoded("EVALSHA", sha, 4, f"floor.expire.{number}", f"floor.data.{number}", f"floor.users.expire.{number}",
                f"floor.users.{number}", 60, 0, 0, clients, *ids) for number in range(channels))
    # The first round makes the sorted sets.
    pump(line.socket, commands, b":", channels)
    before = redis_cpu_seconds(system)
    pump(line.socket, commands, b":", channels)
    return (redis_cpu_seconds(system) - before) / (channels * clients)


def storm(options):
    """All clients drop and come back at once with recovery, while publishes go on."""
    count, channels = options.returning, 1000
    # Each shard has a table of descriptors, and each address of the loopback device ports of its own.
    shards = max(2, -(-count // 18_000))
    settings = [*options.set, f"roost.shards={shards}"]
    with running(options, nodes=2, set=settings, no_namespaces=True) as system:
        node, other = system.nodes
        names = [f"kept:storm-{number}" for number in range(channels)]
        bodies = [batch_of(names[at:at + BATCH]) for at in range(0, channels, BATCH)]
        counted = {}
        stop = threading.Event()

        def publish():
            api, rounds = Api(system, other), 0
            until(lambda: system.counters(node).get("roost_clients", 0) >= count or stop.is_set(), "all clients", 120)
            counted["before"] = redis_calls(system, "evalsha")
            while not stop.is_set():
                for body in bodies:
                    api.call("batch", body)
                rounds += 1
                stop.wait(0.3)
            counted["published"] = rounds * channels
        publisher = threading.Thread(target=publish)
        publisher.start()
        try:
            result = load(system, node, "storm", "--connections", count, "--channels", channels, "--recover", seconds=200)
        finally:
            stop.set()
            publisher.join()
        reads = redis_calls(system, "evalsha") - counted["before"] - counted["published"]
    back = result["storm"]
    return [Row(f"{count:,} clients back to {channels:,} channels of one node with recovery: history reads",
                f"{reads:,}", f"{channels:,}", reads <= channels and back["back"] == back["dropped"], "",
                f"all scripts that were no publish; all back after {back['back_s']:.2f} s, "
                f"{result['returns']['unrecovered']} not recovered")]


def joining(options):
    """A new node until all others list it."""
    times = []
    with running(options, nodes=2) as system:
        for number in range(3, 6):
            began = time.perf_counter()
            node = system.add_node(number)
            node.wait()
            listens = time.perf_counter()

            def known(number=number):
                return all(len(system.api(each, "info")["result"]["nodes"]) == number for each in system.nodes)
            until(known, f"{number} nodes in info", 10)
            times.append((time.perf_counter() - listens, time.perf_counter() - began))
    most = max(after for after, _ in times)
    return [Row("a joining node is in everybody's info", f"{most:.2f} s", "1 s", most <= 1, "",
                f"after it listens, the longest of {len(times)}")]


def several_nodes(options):
    """Processor time of nodes for each delivery: three that share the work, and one alone."""
    subscribers, seconds = 300, 4
    costs = {}
    for nodes in (1, 3):
        with running(options, nodes=nodes) as system:
            idle = [subprocess.Popen(
                [str(word) for word in (
                    system.load, "run", SCENARIOS / "held.toml", "--url",
                    f"ws://{node.address}/connection/websocket", "--secret", system.secret, "--connections",
                    subscribers, "--subscribe", "kept:load", "--duration", "60s", "--threads", 1)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                for node in system.nodes]
            try:
                until(lambda: all(system.counters(node).get("roost_clients", 0) == subscribers
                                  for node in system.nodes), "all clients")
                before = [(cpu_seconds(node), system.counters(node)["roost_deliveries_total"])
                          for node in system.nodes]
                api, end = Api(system, system.nodes[0]), time.monotonic() + seconds
                published = 0
                while time.monotonic() < end:
                    api.call("batch", batch_of(["kept:load"] * 20))
                    published += 20
                    time.sleep(0.02)
                wanted = published * subscribers

                def delivered():
                    return all(system.counters(node)["roost_deliveries_total"] - was >= wanted
                               for node, (_, was) in zip(system.nodes, before))
                until(delivered, "all deliveries")
                used = sum(cpu_seconds(node) - was for node, (was, _) in zip(system.nodes, before))
                costs[nodes] = used / (wanted * nodes) * 1e6
            finally:
                for process in idle:
                    process.kill()
                    process.wait()
    return [Row("processor time of the nodes for a delivery: three nodes, of one node's", f"{costs[3] / costs[1]:.2f}",
                "about 1", costs[3] <= 1.25 * costs[1], f"{costs[1]:.2f} us",
                f"{subscribers} subscribers on each node; {costs[3]:.2f} us with three")]


def all_faults(options):
    """Lost, duplicated and out of order over six kinds of faults."""
    return losses(options, ["pubsub_killed", "redis_killed", "redis_emptied", "redis_frozen", "failover", "node_killed"])


def losses(options, kinds):
    """The same over these."""
    wrong = delivered = 0
    settings = argparse.Namespace(**{**vars(options), "nodes": 2, "balancer": "nginx.conf", "config": None})
    for name in kinds:
        result, _ = faults.inflict(name, faults.FAULTS[name], settings)
        messages = result["messages"]
        wrong += messages["lost"] + messages["duplicated"] + messages["out_of_order"]
        delivered += messages["received"]
    return [Row(f"lost, duplicated, out of order over {len(kinds)} kinds of faults", f"{wrong}", "0", wrong == 0, "",
                f"{delivered:,} deliveries: " + ", ".join(kinds))]


ROWS = {
    "bytes": bytes_of_connections,
    "channels": channels_of_their_own,
    "fan_in": fan_in,
    "deliveries": deliveries,
    "publishes": publishes,
    "latency": latency,
    "gap": gap,
    "presence": presence,
    "storm": storm,
    "join": joining,
    "nodes": several_nodes,
    "faults": all_faults,
    **nats.rows(sys.modules[__name__]),
}


def remembered():
    """What earlier runs have found, by row."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(FOUND.read_text())
    return {}


def document(found):
    """The text of the page."""
    version = subprocess.run(["redis-server", "--version"], capture_output=True, text=True, check=False).stdout
    redis = next((word[2:] for word in version.split() if word.startswith("v=")), "?")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    lines = [
        "# Several nodes, measured",
        "",
        "`tools/cluster bench` measures all rows, prints this table and writes this page;",
        "`tools/cluster bench --only ROW` measures one of them and keeps the others: these may be of",
        "another machine than the one named here, and their floors show its speed.",
        "",
        "Nodes, Redis, clients and whatever else this machine did shared its processors, so rates are low",
        "and latencies high. Floors are of the same run, by a bare client on the same machine.",
        "",
        f"- Machine: Linux {platform.release()}, {os.cpu_count()} cores, {memory:.0f} GiB.",
        f"- Redis {redis}, one thread; in rows `nats_...` NATS {nats.version()} in its place, histories in files",
        "  unless said; `roost.broker_threads` 1; each node in a network namespace of its own,",
        "  where the row doesn't need more connections than one address has ports.",
        f"- Medians of {ROUNDS} rounds for rates. The load is that of the last minute at the end of a row, its",
        "  own included.",
        "",
        "| row | what | measured | bound | kept | floor | how | load |",
        "| --- | --- | ---: | ---: | --- | ---: | --- | ---: |",
    ]
    missing = {"what": "", "value": "not measured", "bound": "", "is_kept": False, "floor": "", "how": "", "load": 0}
    for name in ROWS:
        for row in found.get(name, [missing]):
            kept = "yes" if row["is_kept"] else "**no**"
            lines.append(f"| `{name}` | {row['what']} | {row['value']} | {row['bound']} | {kept} | {row['floor']} | "
                         f"{row['how']} | {row['load']:.1f} |")
    return "\n".join(lines) + "\n"


def main(options):
    if options.list:
        for name, row in ROWS.items():
            print(f"{name:<12} {(row.__doc__ or 'Memory of connections.').splitlines()[0]}")
        return 0
    wanted = options.only.split(",") if options.only else list(ROWS)
    unknown = [name for name in wanted if name not in ROWS]
    if unknown:
        raise CannotRun(f"no such row: {', '.join(unknown)} (see --list)")
    found, is_good = remembered(), True
    for name in wanted:
        note(f"bench: {name}")
        try:
            rows = ROWS[name](options)
        except (CannotRun, OSError, KeyError) as error:
            note(f"bench: {name}: {error}")
            rows = [Row("", "not measured", "", False, "", str(error).splitlines()[0][:100])]
        found[name] = [{**vars(row), "load": os.getloadavg()[0]} for row in rows]
        for row in rows:
            is_good &= row.is_kept
            print(f"{'kept  ' if row.is_kept else 'MISSED'} {row.what}: {row.value} (bound {row.bound}"
                  + (f", floor {row.floor}" if row.floor else "") + f"; {row.how})", flush=True)
        if not options.no_file:
            FOUND.parent.mkdir(exist_ok=True)
            FOUND.write_text(json.dumps(found, indent=1))
    text = document(found)
    print()
    print(text)
    if not options.no_file:
        DOCUMENT.write_text(text)
        note(f"written to {DOCUMENT.relative_to(ROOT)}")
    return 0 if is_good else 1
