"""The Python SDK, unmodified, against a running roost.

Run by `python3 -m unittest` in an environment that has requirements.txt installed.
"""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import os
import pathlib
import random
import re
import socket
import tempfile
import time
import unittest

from centrifuge import (
    CentrifugeError,
    Client,
    ClientEventHandler,
    ClientState,
    ReplyError,
    SubscriptionEventHandler,
)

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PROGRAM = os.environ.get("PROGRAM", str(ROOT / "target/release/roost"))
SECRET = "a secret of the tests, 32 bytes+"
# Every wait is bounded: what has not come by then is a failure.
WAIT_SECONDS_MAX = 15

CONFIG = f"""
[http_server]
address = "127.0.0.1"

[client.token]
hmac_secret_key = "{SECRET}"

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


def free_port():
    """A port that nothing listens on, below the usual range of outgoing connections."""
    while True:
        port = random.randrange(10000, 30000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def clean_environment(extra):
    kept = {k: v for k, v in os.environ.items() if not re.match("ROOST_|CENTRIFUGO_", k)}
    return {**kept, **extra}


class Roost:
    """A roost under test, ended by its process id."""

    def __init__(self, config="", flags=(), env=None):
        self.folder = tempfile.TemporaryDirectory(prefix="roost-sdk-")
        self.file = pathlib.Path(self.folder.name) / "roost.toml"
        self.file.write_text(CONFIG + config)
        self.port = free_port()
        self.url = f"ws://127.0.0.1:{self.port}/connection/websocket"
        self.flags = flags
        self.env = clean_environment(env or {})

    async def up(self):
        """Starts the process, on the same port as before, and waits until it listens."""
        self.process = await asyncio.create_subprocess_exec(
            PROGRAM, "serve", "-c", self.file, "--http_server.port", str(self.port), *self.flags,
            env=self.env, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        self.log = []
        listening = asyncio.Event()

        async def read():
            async for line in self.process.stderr:
                self.log.append(line.decode(errors="replace"))
                if f"listening on 127.0.0.1:{self.port}" in self.log[-1]:
                    listening.set()
            listening.set()

        self.reader = asyncio.ensure_future(read())
        await asyncio.wait_for(listening.wait(), WAIT_SECONDS_MAX)
        if self.reader.done():
            raise AssertionError("roost did not start:\n" + "".join(self.log))

    async def down(self, kill=False):
        """Ends the process and returns its exit code."""
        if self.process.returncode is None:
            if kill:
                self.process.kill()
            else:
                self.process.terminate()
        try:
            code = await asyncio.wait_for(self.process.wait(), 2 * WAIT_SECONDS_MAX)
        finally:
            if self.process.returncode is None:
                self.process.kill()
        await self.reader
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


class Events(ClientEventHandler, SubscriptionEventHandler):
    """Puts what the SDK reports into one queue for each kind of event."""

    KINDS = (
        "connecting", "connected", "disconnected", "error",
        "subscribing", "subscribed", "unsubscribed", "publication",
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
    """A test with a roost of its own."""

    config = ""
    flags = ()
    env = {}

    async def asyncSetUp(self):
        # unittest switches it on, and it reports every step that takes long.
        asyncio.get_running_loop().set_debug(False)
        self.clients = []
        self.roost = Roost(self.config, self.flags, self.env)
        self.addCleanup(self.roost.folder.cleanup)
        await self.roost.up()

    async def asyncTearDown(self):
        for client in self.clients:
            await client.disconnect()
        self.assertEqual(await self.roost.down(), 0, "exit code after SIGTERM")

    def client(self, **options):
        events = Events()
        client = Client(
            self.roost.url, events=events, proxy=None,
            min_reconnect_delay=0.05, max_reconnect_delay=0.5, **options,
        )
        self.clients.append(client)
        return client, events

    async def connected(self, user, **options):
        client, events = self.client(**{"token": sign(sub=user), **options})
        await client.connect()
        context = await events.next("connected")
        client.id = context.client
        return client, events

    async def subscribed(self, client, channel, **options):
        events = Events()
        subscription = client.new_subscription(channel, events=events, **options)
        await subscription.subscribe()
        await events.next("subscribed")
        return subscription, events

    async def refused_subscribe(self, client, channel, **options):
        """The code with which the subscription ends."""
        events = Events()
        subscription = client.new_subscription(channel, events=events, **options)
        await subscription.subscribe()
        code = (await events.next("unsubscribed")).code
        client.remove_subscription(subscription)
        return code


class Everyday(Case):
    flags = ("--shards", "2")

    async def test_connect_with_a_printed_token(self):
        client, events = self.client(token=await self.roost.token("--user", "ann"))
        await client.connect()
        context = await events.next("connected")
        self.assertRegex(context.client, r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
        self.assertEqual(client.state, ClientState.CONNECTED)

    async def test_own_publication(self):
        client, _ = await self.connected("ann")
        subscription, events = await self.subscribed(client, "own")
        data = {"text": "grüße 🦆 \n", "list": [1, 2.5, None, True], "nested": {"a": {}}}
        await subscription.publish(data)
        publication = (await events.next("publication")).pub
        self.assertEqual(publication.data, data)
        self.assertEqual(publication.info.user, "ann")
        self.assertEqual(publication.info.client, client.id)

    async def test_order_over_channels_and_publishers(self):
        channels = ["order-1", "order-2", "order-3"]
        each = 250
        clients = [(await self.connected(user))[0] for user in ("ann", "bob")]
        inboxes = []
        for client in clients:
            for channel in channels:
                inboxes.append((channel, (await self.subscribed(client, channel))[1]))
        replies = [
            asyncio.ensure_future(client.publish(channel, {"from": sender, "number": number}, 60))
            for number in range(each)
            for channel in channels
            for sender, client in enumerate(clients)
        ]
        await asyncio.wait_for(asyncio.gather(*replies), 60)
        seen = {}
        for channel, events in inboxes:
            data = await events.data(each * len(clients))
            for sender in range(len(clients)):
                numbers = [item["number"] for item in data if item["from"] == sender]
                self.assertEqual(numbers, list(range(each)), f"{channel} from {sender}")
            # Every subscriber of a channel sees one and the same order.
            self.assertEqual(seen.setdefault(channel, data), data, channel)
            self.assertTrue(events.none("publication"))

    async def test_refusals(self):
        client, _ = await self.connected("ann")
        for channel, code in {
            "nowhere:news": 102, "closed:news": 103, "$gold": 103, "x" * 256: 107,
        }.items():
            with self.subTest(channel=channel[:20]):
                self.assertEqual(await self.refused_subscribe(client, channel), code)
        with self.assertRaises(ReplyError) as raised:
            await client.publish("quiet", {})
        self.assertEqual(raised.exception.code, 103)

    async def test_tokens_that_do_not_open(self):
        for token, code in (
            (sign("another secret of 32 bytes and+", sub="ann"), 3500),
            ("abc", 3500),
            (sign(sub="ann", channel="$gold"), 3500),
            ("", 3501),
        ):
            with self.subTest(token=token):
                client, events = self.client(token=token)
                await client.connect()
                self.assertEqual((await events.next("disconnected")).code, code)

    async def test_expired_token_is_renewed(self):
        asked = []

        async def get_token():
            asked.append(True)
            return sign(sub="ann", exp=int(time.time()) + 3600)

        client, events = self.client(
            token=sign(sub="ann", exp=int(time.time()) - 10), get_token=get_token
        )
        await client.connect()
        await events.next("connected")
        self.assertEqual((await events.next("error")).error.code, 109)
        self.assertEqual(len(asked), 1)

    async def test_private_channel(self):
        client, _ = await self.connected("ann")
        printed = await self.roost.token("--user", "ann", "--channel", "$gold")
        subscription, events = await self.subscribed(client, "$gold", token=printed)
        await subscription.publish({"price": 1})
        self.assertEqual(await events.data(1), [{"price": 1}])

        asked = []

        async def get_token(channel):
            asked.append(channel)
            return sign(sub="ann", channel=channel)

        expired = sign(sub="ann", channel="$silver", exp=int(time.time()) - 10)
        await self.subscribed(
            client, "$silver", token=expired, get_token=get_token,
            min_resubscribe_delay=0.01, max_resubscribe_delay=0.05,
        )
        self.assertEqual(asked, ["$silver"])
        forged = sign("another secret of 32 bytes and+", sub="ann", channel="$forged")
        self.assertEqual(await self.refused_subscribe(client, "$forged", token=forged), 103)

    async def test_unsubscribe_and_subscribe_in_a_loop(self):
        client, client_events = await self.connected("ann")
        other, _ = await self.connected("bob")
        await self.subscribed(other, "loop")
        subscription, events = await self.subscribed(client, "loop")
        for turn in range(100):
            await other.publish("loop", {"turn": turn})
            self.assertEqual(await events.data(1), [{"turn": turn}])
            await subscription.unsubscribe()
            # Refused, and so the server is past the unsubscribe.
            with self.assertRaises(ReplyError):
                await client.publish("loop", {})
            await other.publish("loop", {"missed": turn})
            await subscription.subscribe()
            await events.next("subscribed")
        for _ in range(50):
            await subscription.unsubscribe()
            await subscription.subscribe()
            await events.next("subscribed")
        await other.publish("loop", {"turn": "last"})
        self.assertEqual(await events.data(1), [{"turn": "last"}])
        # The SDK reconnects when an unsubscribe fails.
        await client_events.next("connecting")
        self.assertTrue(client_events.none("connecting"))

    async def test_message_above_the_size_limit(self):
        client, client_events = await self.connected("ann")
        subscription, events = await self.subscribed(client, "large")
        await client_events.next("connecting")
        text = "y" * (65536 - 200)
        await subscription.publish({"text": text})
        self.assertEqual(await events.data(1), [{"text": text}])
        with self.assertRaises(CentrifugeError):
            await client.publish("large", {"text": text * 2})
        # 3 is the SDK's own code for a close with 1009.
        self.assertEqual((await client_events.next("connecting")).code, 3)


class Restart(Case):
    flags = ("--shards", "2")

    async def restart(self, kill, code):
        members = []
        for number in range(10):
            client, client_events = await self.connected(f"user-{number}")
            await client_events.next("connecting")
            _, events = await self.subscribed(client, "room")
            members.append((client, client_events, events))
        await members[0][0].publish("room", {"before": True})
        for _, _, events in members:
            self.assertEqual(await events.data(1), [{"before": True}])
        exit_code = await self.roost.down(kill)
        self.assertEqual(exit_code, -9 if kill else 0)
        for _, client_events, _ in members:
            self.assertEqual((await client_events.next("connecting")).code, code)
        await self.roost.up()
        for _, client_events, events in members:
            await client_events.next("connected", 60)
            await events.next("subscribed", 60)
        await members[0][0].publish("room", {"after": True})
        for _, _, events in members:
            self.assertEqual(await events.data(1), [{"after": True}])

    async def test_after_sigterm(self):
        await self.restart(kill=False, code=3001)

    async def test_after_sigkill(self):
        # 1 is the SDK's own code for a transport that broke off.
        await self.restart(kill=True, code=1)


class Anonymous(Case):
    env = {"ROOST_CLIENT_ALLOW_ANONYMOUS_CONNECT_WITHOUT_TOKEN": "true"}

    async def test_anonymous(self):
        client, _ = await self.connected("", token="")
        subscription, events = await self.subscribed(client, "lobby:chat")
        await subscription.publish({"hello": "all"})
        self.assertEqual((await events.next("publication")).pub.info.user, "")
        self.assertEqual(await self.refused_subscribe(client, "members"), 103)


class Pings(Case):
    config = """
[client]
ping_interval = "2s"
pong_timeout = "1s"
"""

    async def test_the_client_answers_pings(self):
        client, events = await self.connected("ann")
        await events.next("connecting")
        # The SDK has no event for a ping: take note where it handles one.
        pings = asyncio.Queue()
        handle = client._handle_ping

        async def noting():
            await handle()
            await pings.put(True)

        client._handle_ping = noting
        for _ in range(4):
            await asyncio.wait_for(pings.get(), WAIT_SECONDS_MAX)
        self.assertEqual(client.state, ClientState.CONNECTED)
        self.assertTrue(events.none("connecting"))


if __name__ == "__main__":
    unittest.main()
