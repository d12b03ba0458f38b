"""The Python SDK, unmodified, against a running roost: everyday life.

Run by `python3 -m unittest discover` in an environment that has requirements.txt installed.
"""

import asyncio
import os
import time
import unittest

from centrifuge import CentrifugeError, ClientState

from harness import NODES, WAIT_SECONDS_MAX, Case, over_protobuf, sign


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
        await subscription.publish(self.pack(data))
        publication = (await events.next("publication")).pub
        self.assertEqual(self.unpack(publication.data), data)
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
            asyncio.ensure_future(
                client.publish(channel, self.pack({"from": sender, "number": number}), 60)
            )
            for number in range(each)
            for channel in channels
            for sender, client in enumerate(clients)
        ]
        await asyncio.wait_for(asyncio.gather(*replies), 60)
        seen = {}
        for channel, events in inboxes:
            data = await self.values(events, each * len(clients))
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
        await self.raises(103, client.publish("quiet", self.pack({})))

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
        await subscription.publish(self.pack({"price": 1}))
        self.assertEqual(await self.values(events, 1), [{"price": 1}])

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
            await other.publish("loop", self.pack({"turn": turn}))
            self.assertEqual(await self.values(events, 1), [{"turn": turn}])
            await subscription.unsubscribe()
            # Refused, and so the server is past the unsubscribe.
            await self.raises(103, client.publish("loop", self.pack({})))
            if NODES == 1:
                # Between nodes, one without history may arrive when the client has come back already.
                await other.publish("loop", self.pack({"missed": turn}))
            await subscription.subscribe()
            await events.next("subscribed")
        for _ in range(50):
            await subscription.unsubscribe()
            await subscription.subscribe()
            await events.next("subscribed")
        await other.publish("loop", self.pack({"turn": "last"}))
        self.assertEqual(await self.values(events, 1), [{"turn": "last"}])
        # The SDK reconnects when an unsubscribe fails.
        await client_events.next("connecting")
        self.assertTrue(client_events.none("connecting"))

    @unittest.skipIf(os.environ.get("TRANSPORT") == "compressed", "a message is no plain frame here")
    async def test_message_above_the_size_limit(self):
        client, client_events = await self.connected("ann")
        subscription, events = await self.subscribed(client, "large")
        await client_events.next("connecting")
        text = "y" * (65536 - 200)
        await subscription.publish(self.pack({"text": text}))
        self.assertEqual(await self.values(events, 1), [{"text": text}])
        with self.assertRaises(CentrifugeError):
            await client.publish("large", self.pack({"text": text * 2}))
        # 3 is the SDK's own code for a close with 1009.
        self.assertEqual((await client_events.next("connecting")).code, 3)


EverydayProtobuf = over_protobuf(Everyday)


class Restart(Case):
    flags = ("--shards", "2")

    async def restart(self, kill, code):
        members = []
        for number in range(10):
            client, client_events = await self.connected(f"user-{number}")
            await client_events.next("connecting")
            _, events = await self.subscribed(client, "room")
            members.append((client, client_events, events))
        await members[0][0].publish("room", self.pack({"before": True}))
        for _, _, events in members:
            self.assertEqual(await self.values(events, 1), [{"before": True}])
        exit_code = await self.roost.down(kill)
        self.assertEqual(exit_code, -9 if kill else 0)
        for _, client_events, _ in members:
            self.assertEqual((await client_events.next("connecting")).code, code)
        await self.roost.up()
        for _, client_events, events in members:
            await client_events.next("connected", 60)
            await events.next("subscribed", 60)
        await members[0][0].publish("room", self.pack({"after": True}))
        for _, _, events in members:
            self.assertEqual(await self.values(events, 1), [{"after": True}])

    async def test_after_sigterm(self):
        await self.restart(kill=False, code=3001)

    async def test_after_sigkill(self):
        # 1 is the SDK's own code for a transport that broke off.
        await self.restart(kill=True, code=1)


RestartProtobuf = over_protobuf(Restart)


class Anonymous(Case):
    env = {"ROOST_CLIENT_ALLOW_ANONYMOUS_CONNECT_WITHOUT_TOKEN": "true"}

    async def test_anonymous(self):
        client, _ = await self.connected("", token="")
        subscription, events = await self.subscribed(client, "lobby:chat")
        await subscription.publish(self.pack({"hello": "all"}))
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


PingsProtobuf = over_protobuf(Pings)


if __name__ == "__main__":
    unittest.main()
