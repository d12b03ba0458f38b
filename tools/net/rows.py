"""What is measured on a path: a method for each table of docs/networks.md."""

import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from paths import ENDS, MIB, PORT, SECRET, SERVER, Node, end_of

from parts import CannotRun, Process, note, until


TRAINS = Path(__file__).resolve().parent / "trains.toml"


class Rows:
    """What is measured. Each row returns lines of its table."""

    def __init__(self, paths, binary, directory, options):
        self.paths, self.binary, self.directory, self.options = paths, binary, directory, options
        # Promises that were not kept, whatever the path was.
        self.faults = []

    def promised(self, what, count, path):
        """Something that no path may cause."""
        if count:
            self.faults.append(f"{what}: {count}, at a round trip and a loss of {path}")

    def folder(self):
        return tempfile.TemporaryDirectory(dir=self.directory)

    def recovery(self):
        """Goodput of a recovery of 4 MB to one client, beside a bare TCP stream of the same size"""
        lines = [["round trip", "loss", "control", "`send_buffer`", "`notsent_lowat`", "bare", "roost", "ratio"]]
        small, default, large = (65536, 16384), (0, 16384), (0, 131072)
        # Losses are random: one transfer has none, and the next one five.
        many = 5
        cases = [(1, 0, "cubic", small, 1), (1, 0, "cubic", default, 1), (50, 0, "cubic", small, 1),
                 (50, 0, "cubic", default, 1), (50, 0.1, "cubic", small, 1), (50, 0.1, "cubic", default, many),
                 (50, 0.1, "cubic", large, 2), (50, 0.1, "bbr", small, 1), (50, 0.1, "bbr", default, many),
                 (50, 1, "cubic", default, 1), (50, 1, "bbr", default, 2), (200, 0.1, "cubic", default, 2),
                 (200, 0.1, "bbr", default, 2)]
        for delay, loss, control, (send_buffer, lowat), times in cases:
            self.paths.lay(delay, loss)
            self.paths.setting("net.ipv4.tcp_congestion_control", control)
            bare, roost = self.goodput(times * self.options.rounds, send_buffer=send_buffer, notsent_lowat=lowat)
            lines.append([f"{delay} ms", f"{loss} %", control, f"{send_buffer}", f"{lowat}",
                          f"{bare:.2f} MB/s", f"{roost:.2f} MB/s", f"{roost / bare:.2f}"])
            note(" | ".join(lines[-1]))
        self.paths.setting("net.ipv4.tcp_congestion_control", "cubic")
        return lines

    def goodput(self, rounds, **roost):
        """MB/s of a bare stream and of a recovery of 4 MB, medians of alternating rounds."""
        count, size = 250, 16_000
        total = count * size
        with self.folder() as folder:
            node = Node(self.paths, self.binary, Path(folder), **roost)
            bare = Process(self.paths.run_in(0, [sys.executable, ENDS, "bare", total]),
                           Path(folder) / "bare.log")
            try:
                until(lambda: bare.check() or "ready" in bare.log(), "the bare server")
                end_of(self.paths, 0, "fill", "kept:x", count, size)
                epoch = node.call("history", channel="kept:x", limit=0)["result"]["epoch"]
                took = {"bare": [], "roost": []}
                for _ in range(rounds):
                    took["bare"].append(end_of(self.paths, 1, "get", total))
                    took["roost"].append(end_of(self.paths, 1, "recover", "kept:x", epoch, total))
            finally:
                bare.kill()
                node.stop()
        return [total / statistics.median(took[of]) / 1e6 for of in ("bare", "roost")]

    def fanout(self):
        """Latency of publications through a client, from the intended time, at a round trip of 50 ms"""
        lines = [["clients", "messages/s", "bytes", "path", "p50", "p99", "p99 / round trip", "lost"]]
        cases = [(100, 100, 1024, {}), (300, 100, 1024, {}), (1000, 20, 1024, {}), (1000, 50, 1024, {}),
                 (1000, 100, 1024, {}), (1000, 20, 1024, {"loss": 0.1}), (1000, 20, 1024, {"loss": 0.1, "control": "bbr"}),
                 (1000, 50, 1024, {"mtu": 1400}), (1000, 20, 1024, {"rate": 1}),
                 (200, 5, 16384, {}), (200, 5, 16384, {"restart": 0}), (200, 5, 16384, {"mtu": 1400}),
                 (200, 5, 16384, {"rate": 10}), (20, 1, 262144, {}), (20, 1, 262144, {"restart": 0}),
                 (20, 1, 262144, {"restart": 0, "control": "bbr"}), (20, 1, 262144, {"rate": 10})]
        for clients, rate, size, path in cases:
            self.change(50, **path)
            report = self.loaded(["broadcast", "--connections", clients, "--rate", rate, "--size", size,
                                  "--duration", "10s"])
            latency = report["latency_us"]
            lines.append([f"{clients:,}", f"{rate}", f"{size:,}", self.words(**path), f"{latency['p50'] / 1000:.1f} ms",
                          f"{latency['p99'] / 1000:.1f} ms", f"{latency['p99'] / 50_000:.2f}",
                          f"{report['messages']['lost']}"])
            note(" | ".join(lines[-1]))
        self.change(50)
        return lines

    def change(self, delay, loss=0.0, control="cubic", restart=1, mtu=1500, rate=0.0):
        """Another path, and what both ends do on it."""
        self.paths.lay(delay, loss, rate, mtu)
        self.paths.setting("net.ipv4.tcp_congestion_control", control)
        self.paths.setting("net.ipv4.tcp_slow_start_after_idle", restart)

    @staticmethod
    def words(loss=0.0, control="cubic", restart=1, mtu=1500, rate=0.0):
        """What is special about a path."""
        parts = [f"{loss} % lost" if loss else "", control if control != "cubic" else "",
                 "no slow start after idle" if not restart else "", f"MTU {mtu:,}" if mtu != 1500 else "",
                 f"{rate} Mbit/s each" if rate else ""]
        return ", ".join(part for part in parts if part)

    def storm(self):
        """1,000 clients whose connections end at once and come back; and 1,000 that leave for 0.5 to 2 s every 2 to
6 s and recover, while 20 messages/s of 1,024 bytes are published (`tools/net/trains.toml`)"""
        lines = [["round trip", "loss", "all back after", "times away", "not recovered", "lost", "doubled"]]
        for delay, loss in [(1, 0), (50, 0), (50, 0.1), (50, 1), (200, 0.1)]:
            self.paths.lay(delay, loss)
            back = self.loaded(["storm", "--connections", 1000, "--drop-share", 1])["storm"]["back_s"]
            report = self.loaded(["run", TRAINS, "--recover", "--size", 1024])
            messages = report["messages"]
            for what in ("lost", "duplicated", "out_of_order"):
                self.promised(f"messages {what}", messages[what], f"{delay} ms, {loss} %")
            self.promised("not recovered", report["returns"]["unrecovered"], f"{delay} ms, {loss} %")
            lines.append([f"{delay} ms", f"{loss} %", f"{back:.2f} s", f"{report['churn']['left']:,}",
                          f"{report['returns']['unrecovered']}", f"{messages['lost']}", f"{messages['duplicated']}"])
            note(" | ".join(lines[-1]))
        return lines

    def drain(self):
        """A node with 1,000 clients that ends: from SIGTERM to its end, and how the clients learn it"""
        lines = [["round trip", "loss", "node ended after", "told to reconnect", "cut"]]
        for delay, loss in [(1, 0), (50, 0), (50, 1), (200, 0.1)]:
            self.paths.lay(delay, loss)
            with self.folder() as folder:
                node = Node(self.paths, self.binary, Path(folder))
                clients = Process(self.paths.run_in(1, [sys.executable, ENDS, "told", 1000]), Path(folder) / "clients.log")
                try:
                    until(lambda: clients.check() or "ready" in clients.log(), "the clients", 120)
                    took = node.end()
                    until(lambda: not clients.is_running(), "the clients' end", 120)
                    told, cut = json.loads(clients.log().splitlines()[-1])
                finally:
                    clients.kill()
                    node.stop()
            self.promised("clients without a close frame", cut, f"{delay} ms, {loss} %")
            lines.append([f"{delay} ms", f"{loss} %", f"{took:.2f} s", f"{told:,}", f"{cut}"])
            note(" | ".join(lines[-1]))
        return lines

    def gone(self):
        """Clients that vanish without a word: time until the node has closed their connections"""
        lines = [["client", "answers pings", "closed after"]]
        for name, kind in [("WebSocket", "websocket"), ("server-sent events, one-way", "uni_sse")]:
            self.paths.lay(1, 0)
            with self.folder() as folder:
                node = Node(self.paths, self.binary, Path(folder), **{"client.ping_interval": "25s"})
                client = Process(self.paths.run_in(1, [sys.executable, ENDS, "stay", kind]), Path(folder) / "client.log")
                try:
                    until(lambda: client.check() or "ready" in client.log(), "the client")
                    # From the ping on, which says that all is well.
                    began = until(lambda: client.check() or self.moment(client, "ping"), "a ping", 60)
                    self.paths.swallow()
                    ended = until(lambda: None if self.established() else time.monotonic(), "the end", 1200, 0.5)
                finally:
                    client.kill()
                    node.stop()
            lines.append([name, "yes" if kind == "websocket" else "no", f"{ended - began:.0f} s"])
            note(" | ".join(lines[-1]))
        return lines

    @staticmethod
    def moment(process, word):
        return time.monotonic() if word in process.log() else None

    def established(self):
        """Connections of the node."""
        words = self.paths.run_in(0, ["ss", "-tnHO", "state", "established", f"( sport = :{PORT} )"])
        return len(subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines())

    def steering(self):
        """Echoes over a pair of veth devices: packets on the CPU of the sender, or spread over all (`rps_cpus`);
connections by their hash, or to the shard of the CPU on which they arrive"""
        lines = [["`rps_cpus`", "`incoming_cpu`", "messages/s", "CPU of the node for each", "connections of the shards"]]
        cases = [(mask, incoming) for mask in ("0", "3") for incoming in (False, True)]
        seen = {case: [] for case in cases}
        self.paths.join()
        for _ in range(self.options.rounds):
            for mask, incoming in cases:
                self.paths.steer(mask)
                seen[mask, incoming].append(self.echoed(shards=2, pin="on", incoming_cpu=incoming, echo=True))
        for (mask, incoming), of in seen.items():
            rate, cost, shares = (statistics.median(column) for column in zip(*of))
            lines.append([mask, "yes" if incoming else "no", f"{rate:,.0f}", f"{cost:.1f} us", f"{shares:.0%} on one"])
            note(" | ".join(lines[-1]))
        return lines

    def echoed(self, **roost):
        """Echoes a second, the node's CPU for each in microseconds, and the greatest share that one shard has of
        the connections."""
        with self.folder() as folder:
            node = Node(self.paths, self.binary, Path(folder), **roost)
            report = Path(folder) / "report.json"
            argv = [self.binary / "roost-load", "echo", "--connections", 200, "--window", 1, "--threads", 2,
                    "--duration", "4s", "--url", f"ws://{SERVER}:{PORT}/echo", "--protocol", "raw",
                    "--json", report]
            client = Process(self.paths.run_in(1, argv), Path(folder) / "client.log")
            try:
                most = until(lambda: client.check() or self.share(node), "connections")
                before = self.cpu_s(node)
                until(lambda: not client.is_running(), "the end of the echoes", 60)
                spent = self.cpu_s(node) - before
                report = json.loads(report.read_text())
            finally:
                client.kill()
                node.stop()
        got = report["messages"]["received"]
        return got / report["duration_s"], spent * 1e6 / got, most

    @staticmethod
    def cpu_s(node):
        """Processor time of the node so far."""
        words = Path(f"/proc/{node.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def zerocopy(self):
        """Sends of a bare program over a pair of veth devices, with and without MSG_ZEROCOPY"""
        lines = [["bytes of a send", "plain", "zero-copy", "copied all the same"]]
        self.paths.join()
        for size in (4096, 16384, 65536, 262144):
            rounds = [[self.sent(size, kind) for kind in ("plain", "zerocopy")] for _ in range(self.options.rounds)]
            plain, zero = zip(*rounds)
            copied = statistics.median(share for _, share in zero)
            plain, zero = (statistics.median(cost for cost, _ in of) for of in (plain, zero))
            lines.append([f"{size:,}", f"{plain:.2f} us/KB", f"{zero:.2f} us/KB", f"{copied:.0%}"])
            note(" | ".join(lines[-1]))
        return lines

    def sent(self, size, kind):
        """What a bare program sends by sends of so many bytes: CPU for a KB, and the share that was copied."""
        with self.folder() as folder:
            sink = Process(self.paths.run_in(1, [sys.executable, ENDS, "sink"]), Path(folder) / "sink.log")
            try:
                until(lambda: sink.check() or "ready" in sink.log(), "the sink")
                return end_of(self.paths, 0, "zerocopy", size, kind)
            finally:
                sink.kill()

    @staticmethod
    def share(node, clients=200):
        """The greatest share of the connections that one shard has, once all are there. Each shard's thread has a
        descriptor table of its own."""
        counts = []
        for task in Path(f"/proc/{node.process.pid}/task").iterdir():
            if (task / "comm").read_text().startswith("shard-"):
                links = (file for file in (task / "fd").iterdir())
                counts.append(sum(os.readlink(link).startswith("socket:") for link in links))
        return max(counts) / sum(counts) if sum(counts) >= clients else None

    def slow(self):
        """Memory for clients that read nothing: what waits for each in the kernel, and in the node"""
        lines = [["clients", "messages", "bytes", "`send_buffer`", "`notsent_lowat`", "kernel", "node"]]
        self.paths.lay(1, 0)
        cases = [(800, 1_000, (65536, 16384)), (800, 1_000, (0, 16384)), (800, 1_000, (0, 0)),
                 (80, 16_000, (65536, 16384)), (80, 16_000, (0, 16384)), (80, 16_000, (0, 131072))]
        for messages, size, (send_buffer, lowat) in cases:
            kernel, node = self.held(500, messages, size, send_buffer=send_buffer, notsent_lowat=lowat)
            lines.append(["500", f"{messages:,}", f"{size:,}", f"{send_buffer}", f"{lowat}",
                          f"{kernel / 1000:,.0f} KB", f"{node / 1000:,.1f} KB"])
            note(" | ".join(lines[-1]))
        return lines

    def held(self, count, messages, size, **roost):
        """Bytes that wait for a client that reads nothing: in the server's kernel, and in its process."""
        with self.folder() as folder:
            node = Node(self.paths, self.binary, Path(folder), **roost)
            argv = self.paths.run_in(1, [sys.executable, ENDS, "slow", count, messages, size])
            clients = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            try:
                if not clients.stdout.readline():
                    raise CannotRun("the clients that read nothing have ended")
                before = self.resident(node)
                end_of(self.paths, 0, "fill", "slow", messages, size)
                # Nothing more moves: two looks are the same.
                seen = until(self.twice(self.queued), "queues that stay as they are", pause=0.25)
                return seen / count, (self.resident(node) - before) / count
            finally:
                clients.kill()
                clients.communicate()
                node.stop()

    @staticmethod
    def twice(look):
        seen = []

        def same():
            seen.append(look())
            return seen[-1] if len(seen) > 4 and seen[-1] == seen[-5] else None

        return same

    def queued(self):
        """Bytes of memory that the kernel has for the send queues of the node's sockets."""
        words = self.paths.run_in(0, ["ss", "-tmnHO", "state", "established", f"( sport = :{PORT} )"])
        out = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        # skmem:(r0,rb131072,t0,tb2626560,f0,w0,...): w is what queues hold with the kernel's own share.
        return sum(int(word) for word in re.findall(r",w(\d+),", out))

    def resident(self, node):
        """User-space memory of the node's process."""
        pids = subprocess.run(["ip", "netns", "pids", self.paths.names[0]], capture_output=True, text=True,
                              check=True).stdout.split()
        status = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
        own = [text for text in status if text.startswith("Name:\troost\n")]
        return 1024 * int(re.search(r"RssAnon:\s+(\d+)", own[0])[1])

    def loaded(self, words, **roost):
        """What roost-load reports of this scenario."""
        with self.folder() as folder:
            node = Node(self.paths, self.binary, Path(folder), **roost)
            report = Path(folder) / "report.json"
            argv = [self.binary / "roost-load", *words, "--url",
                    f"ws://{SERVER}:{PORT}/connection/websocket", "--secret", SECRET, "--json", report]
            try:
                done = subprocess.run(self.paths.run_in(1, argv), capture_output=True, text=True, check=False,
                                      timeout=300)
                # 1: something was lost, which the table shows. No message that arrived is no figure.
                if not report.exists() or "refused" in done.stdout:
                    raise CannotRun(f"{done.stdout}{done.stderr}")
                return json.loads(report.read_text())
            finally:
                node.stop()
