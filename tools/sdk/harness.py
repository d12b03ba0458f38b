"""What the tests of the Python SDK share: a roost under test, tokens, clients, a line to cut."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import itertools
import json
import os
import pathlib
import random
import re
import socket
import tempfile
import time
import unittest

from centrifuge import Client, ClientEventHandler, ReplyError, SubscriptionEventHandler

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PROGRAM = os.path.abspath(os.environ.get("PROGRAM", str(ROOT / "target/release/roost")))
SECRET = "a secret of the tests, 32 bytes+"
# Every wait is bounded: what has not come by then is a failure.
WAIT_SECONDS_MAX = 15
# How many nodes a roost under test has: one, or two on one Redis or NATS and behind nginx. tools/sdk/run starts
# that server.
NODES = int(os.environ.get("SDK_NODES", "1"))

# A new process takes over all connections of a node again and again, so many milliseconds after the one before: clients
# notice nothing.
TAKEOVER_EVERY_MS = int(os.environ.get("TAKEOVER_EVERY_MS", "0"))

# A folder with cert.pem and key.pem, if nodes listen with TLS.
SECURE = os.environ.get("SECURE")
TLS = f"""tls = {{ enabled = true, cert_pem = "{SECURE}/cert.pem", key_pem = "{SECURE}/key.pem" }}"""

CONFIG = f"""
[http_server]
address = "127.0.0.1"
{TLS if SECURE else ""}

[client.token]
hmac_secret_key = "{SECRET}"

[websocket]
compression = {"true" if os.environ.get("TRANSPORT") == "compressed" else "false"}

[channel.without_namespace]
allow_subscribe_for_client = true
allow_publish_for_subscriber = true

[[channel.namespaces]]
name = "closed"

[[channel.namespaces]]
name = "lobby"
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_publish_for_subscriber = true
allow_publish_for_anonymous = true
"""


def base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sign(secret=SECRET, **claims):
    """A JWT of these claims, HS256."""
    head = base64url(b'{"alg":"HS256","typ":"JWT"}')
    body = head + "." + base64url(json.dumps(claims).encode())
    digest = hmac.new(secret.encode(), body.encode(), hashlib.sha256).digest()
    return body + "." + base64url(digest)


# Ports that were given out.
_ports = set()

# Attempts to start with a port that another process takes meanwhile.
STARTS_MAX = 5


def free_port():
    """A port that nothing listens on, below the usual range of outgoing connections. Another process may take it
    before it is used."""
    while True:
        port = random.randrange(10000, 30000)
        if port in _ports:
            continue
        _ports.add(port)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def clean_environment(extra):
    kept = {k: v for k, v in os.environ.items() if not re.match("ROOST_(?!IO$)|CENTRIFUGO_", k)}
    return {**kept, **extra}


class Process:
    """A process of a roost under test, ended by its process id."""

    @classmethod
    async def start(cls, words, is_ready, **options):
        """Starts it and waits until a line of its standard error says that it is ready."""
        self = cls()
        self.child = await asyncio.create_subprocess_exec(
            *words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE, **options,
        )
        self.log = []
        ready = asyncio.Event()

        async def read():
            async for line in self.child.stderr:
                self.log.append(line.decode(errors="replace"))
                if is_ready(self.log[-1]):
                    ready.set()
            ready.set()

        self.reader = asyncio.ensure_future(read())
        try:
            await asyncio.wait_for(ready.wait(), WAIT_SECONDS_MAX)
        except asyncio.TimeoutError:
            await self.end(kill=True)
            raise AssertionError(f"{words[0]} did not listen in time:\n" + "".join(self.log)) from None
        if not any(map(is_ready, self.log)):
            await self.end(kill=True)
            raise AssertionError(f"{words[0]} did not start:\n" + "".join(self.log))
        return self

    async def end(self, kill=False):
        """Ends it and returns its exit code."""
        if self.child.returncode is None:
            if kill:
                self.child.kill()
            else:
                self.child.terminate()
        try:
            code = await asyncio.wait_for(self.child.wait(), 2 * WAIT_SECONDS_MAX)
        finally:
            if self.child.returncode is None:
                self.child.kill()
        await self.reader
        return code


roosts = itertools.count(1)


class Roost:
    """A roost under test: a node, or two behind a balancer.

    `config` is TOML that is added to the tests' own; None: there is no file, and all options come
    from `flags` and `env`.
    """

    def __init__(self, config="", flags=(), env=None):
        self.folder = tempfile.TemporaryDirectory(prefix="roost-sdk-")
        self.scheme = "wss" if SECURE and config is not None else "ws"
        self._choose_ports()
        self.nodes = []
        self.takeovers = None
        self.flags = list(flags)
        self.env = clean_environment({**(self._broker() if NODES > 1 else {}), **(env or {})})
        self.file = self.balancer = None
        if config is not None:
            self.file = pathlib.Path(self.folder.name) / "roost.toml"
            self.file.write_text(CONFIG + config)
            self.flags += ["-c", str(self.file)]

    def _broker(self):
        """Variables for the Redis or NATS of these tests, with names that no other roost has."""
        store = json.loads(pathlib.Path(os.environ["ROOST_CLUSTER"]).read_text())["redis"]
        options = store["options"]
        options["prefix"] = f"sdk-{os.getpid()}-{next(roosts)}"
        if store["kind"] == "nats":
            return {
                "ROOST_BROKER_ENABLED": "true",
                "ROOST_BROKER_TYPE": "nats",
                "ROOST_BROKER_NATS_URL": options["url"],
                "ROOST_BROKER_NATS_PREFIX": options["prefix"],
                "ROOST_BROKER_NATS_JETSTREAM_ENABLED": "true",
                "ROOST_BROKER_NATS_JETSTREAM_STORAGE": options["jetstream"]["storage"],
                "ROOST_PRESENCE_MANAGER_ENABLED": "true",
                "ROOST_PRESENCE_MANAGER_TYPE": "nodes",
            }
        variables = {"ROOST_ENGINE_TYPE": "redis"}
        for name, value in options.items():
            text = " ".join(value) if isinstance(value, list) else value
            variables[f"ROOST_ENGINE_REDIS_{name.upper()}"] = text
        return variables

    def _choose_ports(self):
        self.port = free_port()
        self.ports = [free_port(), free_port()] if NODES > 1 else [self.port]
        self.url = f"{self.scheme}://127.0.0.1:{self.port}/connection/websocket"

    async def up(self):
        """Starts each node, on the same port as before, and waits until it listens. The first time the ports are
        others where another process has taken one meanwhile."""
        is_first = not self.nodes
        for number in range(STARTS_MAX):
            try:
                return await self._start()
            except AssertionError as error:
                if "in use" not in str(error).lower() or number + 1 == STARTS_MAX:
                    raise
                await self.down(kill=True)
            if is_first:
                self._choose_ports()
            else:
                await asyncio.sleep(0.2)

    async def _start(self):
        self.nodes = []
        for port in self.ports:
            self.nodes.append(await self._launch(port))
        if NODES > 1 and not self.balancer:
            await self._balance()
        if TAKEOVER_EVERY_MS:
            self.stays = asyncio.Event()
            self.takeovers = asyncio.ensure_future(self._replace_again_and_again())

    async def _launch(self, port):
        """A process of the node at a port. With takeovers it takes over from one that runs."""
        flags, env = list(self.flags), dict(self.env)
        # Without a file the port is in the environment, too: all options can be.
        if self.file:
            flags += ["--http_server.port", str(port)]
        else:
            env["CENTRIFUGO_HTTP_SERVER_PORT"] = str(port)
        if TAKEOVER_EVERY_MS:
            env["ROOST_TAKEOVER"] = str(pathlib.Path(self.folder.name) / f"takeover-{port}")
        return await Process.start(
            [PROGRAM, "serve", *flags],
            lambda line, port=port: f"listening on 127.0.0.1:{port}" in line,
            cwd=self.folder.name, env=env,
        )

    async def _replace_again_and_again(self):
        for at in itertools.cycle(range(len(self.ports))):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.stays.wait(), TAKEOVER_EVERY_MS / 1000)
                return
            before = self.nodes[at]
            node = await self._launch(self.ports[at])
            code = await asyncio.wait_for(before.child.wait(), WAIT_SECONDS_MAX)
            assert code == 0, "the process before ends by itself"
            self.nodes[at] = node

    async def _stay(self):
        """No process takes over from here on."""
        takeovers, self.takeovers = self.takeovers, None
        if takeovers:
            self.stays.set()
            await takeovers

    async def _balance(self):
        """nginx in front of two nodes."""
        text = (pathlib.Path(__file__).parent / "nginx.conf").read_text()
        ports = {"FIRST": self.ports[0], "SECOND": self.ports[1], "PORT": self.port}
        text = re.sub(r"\b(FIRST|SECOND|PORT)\b", lambda name: str(ports[name[0]]), text)
        folder = pathlib.Path(self.folder.name)
        (folder / "nginx.conf").write_text(text)
        globals_ = f"daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr notice;"
        env = {**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin"}
        self.balancer = await Process.start(
            ["nginx", "-c", str(folder / "nginx.conf"), "-g", globals_],
            lambda line: "RLIMIT_NOFILE" in line, env=env,
        )

    async def down(self, kill=False):
        """Ends each node and returns the exit code."""
        await self._stay()
        codes = await asyncio.gather(*(node.end(kill) for node in self.nodes))
        return next((code for code in codes if code != 0), 0)

    async def stop(self):
        """Ends all of it and returns the exit code."""
        code = await self.down()
        if self.balancer:
            await self.balancer.end()
        return code

    async def token(self, *flags):
        """The output of `roost token` with these flags."""
        process = await asyncio.create_subprocess_exec(
            PROGRAM, "token", "-c", self.file, *flags, env=self.env,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await asyncio.wait_for(process.communicate(), WAIT_SECONDS_MAX)
        if process.returncode != 0:
            raise AssertionError(f"roost token ended with {process.returncode}")
        return output.decode().strip()


class Line:
    """A TCP proxy in front of a node, to break connections off as networks do."""

    def __init__(self, port):
        self.port = port
        self.broken = False
        self.writers = set()

    async def open(self):
        self.server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        port = self.server.sockets[0].getsockname()[1]
        scheme = "wss" if SECURE else "ws"
        self.url = f"{scheme}://127.0.0.1:{port}/connection/websocket"

    async def _pass(self, near_reader, near_writer):
        if self.broken:
            near_writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers |= {near_writer, far_writer}
        try:
            await asyncio.gather(
                self._pump(near_reader, far_writer), self._pump(far_reader, near_writer)
            )
        finally:
            self.writers -= {near_writer, far_writer}

    async def _pump(self, reader, writer):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    def cut(self):
        """Breaks off all connections, without a word to either side, and lets none through."""
        self.broken = True
        for writer in self.writers:
            writer.transport.abort()

    def heal(self):
        """Lets connections through again."""
        self.broken = False

    async def close(self):
        self.cut()
        self.server.close()


class Events(ClientEventHandler, SubscriptionEventHandler):
    """Puts what the SDK reports into one queue for each kind of event."""

    KINDS = (
        "connecting", "connected", "disconnected", "error",
        "subscribing", "subscribed", "unsubscribed", "publication", "join", "leave",
    )

    def __init__(self):
        self.queues = {kind: asyncio.Queue() for kind in self.KINDS}
        for kind in self.KINDS:
            setattr(self, f"on_{kind}", self.queues[kind].put)

    async def next(self, kind, seconds=WAIT_SECONDS_MAX):
        try:
            return await asyncio.wait_for(self.queues[kind].get(), seconds)
        except asyncio.TimeoutError:
            raise AssertionError(f"waited {seconds} s for {kind!r}") from None

    async def data(self, count):
        """The payloads of the next publications."""
        return [(await self.next("publication")).pub.data for _ in range(count)]

    def none(self, kind):
        return self.queues[kind].empty()


class Case(unittest.IsolatedAsyncioTestCase):
    """A test with a roost of its own.

    What holds for both encodings is in a class that is tested a second time by `over_protobuf`.
    """

    config = ""
    flags = ()
    env = {}
    protobuf = False

    async def asyncSetUp(self):
        # unittest switches it on, and it reports every step that takes long.
        asyncio.get_running_loop().set_debug(False)
        self.clients = []
        self.lines = []
        self.roost = Roost(self.config, self.flags, self.env)
        self.addCleanup(self.roost.folder.cleanup)
        await self.roost.up()

    async def asyncTearDown(self):
        for client in self.clients:
            await client.disconnect()
        for line in self.lines:
            await line.close()
        self.assertEqual(await self.roost.stop(), 0, "exit code after SIGTERM")

    def pack(self, value):
        """The payload of a value."""
        return json.dumps(value).encode() if self.protobuf else value

    def unpack(self, payload):
        """The value of a payload, None where there was none."""
        return json.loads(payload) if self.protobuf and payload else payload

    async def values(self, events, count):
        """The values of the next publications."""
        return [self.unpack(payload) for payload in await events.data(count)]

    async def publish(self, client, channel, values):
        """Publishes values in their order, all at once, and waits until the server took them."""
        replies = [
            asyncio.ensure_future(client.publish(channel, self.pack(value), WAIT_SECONDS_MAX))
            for value in values
        ]
        await asyncio.gather(*replies)

    async def line(self):
        line = Line(self.roost.port)
        await line.open()
        self.lines.append(line)
        return line

    def client(self, url=None, protobuf=None, **options):
        events = Events()
        client = Client(
            url or self.roost.url, events=events, proxy=None,
            use_protobuf=self.protobuf if protobuf is None else protobuf,
            min_reconnect_delay=0.05, max_reconnect_delay=0.5, **{"timeout": 30.0, **options},
        )
        self.clients.append(client)
        return client, events

    async def connected(self, user, **options):
        client, events = self.client(**{"token": sign(sub=user), **options})
        await client.connect()
        context = await events.next("connected")
        client.id = context.client
        return client, events

    async def follow(self, client, channel, **options):
        """A subscription that is through, with its events and the context of the subscribe."""
        events = Events()
        subscription = client.new_subscription(channel, events=events, **options)
        await subscription.subscribe()
        return subscription, events, await events.next("subscribed")

    async def subscribed(self, client, channel, **options):
        subscription, events, _ = await self.follow(client, channel, **options)
        return subscription, events

    async def refused_subscribe(self, client, channel, **options):
        """The code with which the subscription ends."""
        events = Events()
        subscription = client.new_subscription(channel, events=events, **options)
        await subscription.subscribe()
        code = (await events.next("unsubscribed")).code
        client.remove_subscription(subscription)
        return code

    async def raises(self, code, call):
        """The call is answered with this error."""
        with self.assertRaises(ReplyError) as raised:
            await call
        self.assertEqual(raised.exception.code, code)


def over_protobuf(case):
    """The same tests with clients that speak Protobuf."""
    settings = {"protobuf": True, "__module__": case.__module__}
    return type(f"{case.__name__}Protobuf", (case,), settings)
