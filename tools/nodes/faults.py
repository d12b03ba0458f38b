"""Breaks one part of a system after another, under load, and counts what clients lost, got twice or out of
order. Clients do as SDKs do; a publish that fails is tried again with its idempotency key."""

import argparse
import contextlib
import json
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import nats
from parts import CannotRun, note, until
from system import SCENARIOS, System

CONNECTIONS, CHANNELS, RATE = 200, 20, 400
# The fault begins when messages have flowed for a moment, and they flow on after it.
BEFORE_SECONDS, AFTER_SECONDS = 2, 4
LOAD_SECONDS_MAX = 120


def kill_pubsub(system):
    """All PUB/SUB connections are closed by Redis, five times."""
    closed = 0
    for _ in range(5):
        for server in system.store.servers:
            closed += int(server.ask("CLIENT", "KILL", "TYPE", "pubsub"))
        time.sleep(0.7)
    if closed < 5 * len(system.nodes):
        raise CannotRun(f"Redis closed {closed} PUB/SUB connections only")


def kill_commands(system):
    """All connections to Redis are closed by it, five times."""
    for _ in range(5):
        for server in system.store.servers:
            server.ask("CLIENT", "KILL", "TYPE", "pubsub")
            server.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        time.sleep(0.7)


def kill_redis(system):
    """Redis is killed, and starts with its data 2 s later."""
    server = system.store.servers[0]
    server.process.kill()
    time.sleep(2)
    server.restart()


def empty_redis(system):
    """Redis is killed, and starts empty 2 s later."""
    server = system.store.servers[0]
    server.process.kill()
    time.sleep(2)
    server.restart(empty=True)


def freeze_redis(system):
    """Redis stands still for 6 s, longer than the timeout of a reply."""
    server = system.store.servers[0]
    server.process.signal(signal.SIGSTOP)
    time.sleep(6)
    server.process.signal(signal.SIGCONT)


def fail_over(system):
    """The master is killed, and Sentinels make the replica the master."""
    master = system.store.master()
    master.process.kill()
    until(lambda: system.store.master() is not master, "another master", 30)


def kill_master_of_cluster(system):
    """A master of the Cluster is killed, and starts with its data 2 s later."""
    kill_redis(system)


def kill_node(system):
    """A node is killed; its clients go to the other."""
    system.nodes[0].process.kill()


def drain_node(system):
    """A node gets SIGTERM; its clients go to the other."""
    if system.nodes[0].process.stop() != 0:
        raise CannotRun(f"the node ended badly:\n{system.nodes[0].process.log()}")


class Fault:
    """What is broken, in which system, and which marks it may leave on clients."""

    def __init__(self, inflict, redis="single", persist=False, moves_clients=False, loses_history=False):
        self.inflict, self.redis, self.persist = inflict, redis, persist
        self.moves_clients, self.loses_history = moves_clients, loses_history

    @property
    def text(self):
        return self.inflict.__doc__


FAULTS = {
    "pubsub_killed": Fault(kill_pubsub),
    "connections_killed": Fault(kill_commands),
    "redis_killed": Fault(kill_redis, persist=True),
    "redis_emptied": Fault(empty_redis, loses_history=True),
    "redis_frozen": Fault(freeze_redis),
    "failover": Fault(fail_over, redis="sentinel", loses_history=True),
    "cluster_killed": Fault(kill_master_of_cluster, redis="cluster", persist=True),
    "nats_connections": Fault(nats.kick_nodes, redis="nats"),
    "nats_killed": Fault(nats.kill, redis="nats"),
    "nats_emptied": Fault(nats.empty, redis="nats", loses_history=True),
    "nats_frozen": Fault(nats.freeze, redis="nats"),
    "nats_leader_killed": Fault(nats.kill_leader, redis="nats-cluster"),
    "nats_leader_frozen": Fault(nats.freeze_leader, redis="nats-cluster"),
    "node_killed": Fault(kill_node, moves_clients=True),
    "node_drained": Fault(drain_node, moves_clients=True),
}


def load(system, name, seconds):
    """roost-load through the balancer, with publishes at the last node."""
    words = [system.load, "run", SCENARIOS / "faults.toml", "--url", f"ws://{system.balancer.address}/connection/websocket",
             "--connections", CONNECTIONS, "--channels", CHANNELS,
             "--secret", system.secret, "--recover", "--retry", "60s",
             "--api-url", f"http://{system.nodes[-1].address}/api", "--api-key", system.api_key,
             "--rate", RATE, "--duration", f"{seconds}s", "--json", *system.page(name)]
    return subprocess.Popen([str(word) for word in words], stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def complaints(fault, result):
    """What clients saw and must not see."""
    messages, connections, returns = result["messages"], result["connections"], result["returns"]
    found = []
    for name in ("lost", "duplicated", "out_of_order"):
        if messages[name]:
            found.append(f"{messages[name]} {name}")
    for name in ("failed", "dropped"):
        if connections[name]:
            found.append(f"{connections[name]} connections {name}")
    if messages["sent"] == 0 or messages["received"] == 0:
        found.append("no messages")
    if fault.moves_clients and not returns["reconnected"]:
        found.append("no client moved")
    if not fault.moves_clients and returns["reconnected"]:
        found.append(f"{returns['reconnected']} connections closed")
    if not fault.loses_history and returns["unrecovered"]:
        found.append(f"{returns['unrecovered']} subscriptions not recovered")
    if not fault.moves_clients and not fault.loses_history and returns["resubscribed"]:
        found.append(f"{returns['resubscribed']} subscriptions ended")
    return found


def inflict(name, fault, options):
    """Runs one fault: the result of roost-load."""
    settings = argparse.Namespace(**{**vars(options), "redis": fault.redis, "persist": fault.persist})
    # How long the fault itself takes is not known before.
    seconds = BEFORE_SECONDS + 9 + AFTER_SECONDS
    with tempfile.TemporaryDirectory(prefix="roost-faults-") as folder, \
            System(settings, Path(folder)) as system:
        running = load(system, name, seconds)
        try:
            until(lambda: open_connections(system) >= CONNECTIONS, "all clients")
            time.sleep(BEFORE_SECONDS)
            fault.inflict(system)
            output, _ = running.communicate(timeout=LOAD_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            raise CannotRun(f"{name}: roost-load was not done after {LOAD_SECONDS_MAX} s") from None
        finally:
            if running.poll() is None:
                running.kill()
                running.wait()
        logs = {node.name: node.process.log() for node in system.nodes}
    try:
        return json.loads(output.decode().splitlines()[-1]), logs
    except (IndexError, ValueError):
        raise CannotRun(f"{name}: roost-load ended with {running.returncode} and no result") from None


def open_connections(system):
    """Connections of all nodes that answer."""
    count = 0
    for node in system.nodes:
        with contextlib.suppress(OSError, CannotRun):
            count += system.counters(node).get("roost_clients", 0)
    return count


def main(options):
    if options.list:
        for name, fault in FAULTS.items():
            print(f"{name:<20} {fault.text}")
        return 0
    wanted = options.only.split(",") if options.only else list(FAULTS)
    unknown = [name for name in wanted if name not in FAULTS]
    if unknown:
        raise CannotRun(f"no such fault: {', '.join(unknown)} (see --list)")
    print(f"{CONNECTIONS} clients of {options.nodes} nodes, {CHANNELS} channels, {RATE} publishes a second\n")
    heads = ("fault", "sent", "received", "lost", "twice", "late", "closed", "resubscribed", "announced", "")
    row = "{:<20}{:>7}{:>10}{:>6}{:>7}{:>6}{:>8}{:>14}{:>11}  {}"
    print(row.format(*heads), flush=True)
    failed = 0
    for name in wanted:
        fault = FAULTS[name]
        result, logs = inflict(name, fault, options)
        messages, returns = result["messages"], result["returns"]
        found = complaints(fault, result)
        failed += bool(found)
        print(row.format(name, messages["sent"], messages["received"], messages["lost"],
                         messages["duplicated"], messages["out_of_order"], returns["reconnected"],
                         returns["resubscribed"], returns["announced"],
                         "FAILED: " + ", ".join(found) if found else "as it should be"), flush=True)
        if found:
            note(f"{name}: {json.dumps(result['reasons'])}")
            for node, log in logs.items():
                note(f"{node}:\n" + "\n".join(log.splitlines()[-15:]))
    return 1 if failed else 0
