"""Server-side subscriptions, tag filters, RPC and mixed encodings with the Python SDK."""

import json

from centrifuge import Filter

from harness import Case, over_protobuf, sign


class ServerSide(Case):
    flags = ("--shards", "2")
    config = """
[client.subscribe_to_user_personal_channel]
enabled = true
personal_channel_namespace = "personal"

[[channel.namespaces]]
name = "news"
history_size = 100
history_ttl = "300s"
force_recovery = true
allow_publish_for_client = true

[[channel.namespaces]]
name = "talk"
presence = true
join_leave = true
force_push_join_leave = true
allow_publish_for_subscriber = true
allow_presence_for_subscriber = true

[[channel.namespaces]]
name = "personal"
allow_publish_for_client = true
"""

    async def listener(self, count, url=None, **claims):
        """A client, its events, and the contexts of its first `count` subscriptions by channel."""
        client, events = await self.connected("", url=url, token=sign(**claims))
        return client, events, await self.contexts(events, count)

    async def contexts(self, events, count):
        contexts = [await events.next("subscribed") for _ in range(count)]
        return {context.channel: context for context in contexts}

    async def received(self, events, count):
        """The next publications as pairs of channel and value."""
        contexts = [await events.next("publication") for _ in range(count)]
        return [(context.channel, self.unpack(context.pub.data)) for context in contexts]

    async def test_subscriptions_of_a_token(self):
        subs = {
            "news:one": {},
            "talk:one": {"info": {"role": "host"}, "data": {"welcome": "ann"}},
        }
        client, events, contexts = await self.listener(3, sub="ann", subs=subs)
        self.assertEqual(set(contexts), {"news:one", "talk:one", "personal:#ann"})
        self.assertTrue(contexts["news:one"].recoverable)
        self.assertFalse(contexts["talk:one"].recoverable)
        self.assertEqual(self.unpack(contexts["talk:one"].data), {"welcome": "ann"})
        joined = await events.next("join")
        self.assertEqual((joined.channel, joined.info.client), ("talk:one", client.id))
        await client.publish("talk:one", self.pack("hello"))
        context = await events.next("publication")
        self.assertEqual((context.channel, self.unpack(context.pub.data)), ("talk:one", "hello"))
        self.assertEqual(self.unpack(context.pub.info.chan_info), {"role": "host"})
        self.assertEqual(await self.refused_subscribe(client, "talk:one"), 105)

    async def test_personal_channel(self):
        _, events, _ = await self.listener(1, sub="ann")
        other, _, _ = await self.listener(1, sub="bob")
        await other.publish("personal:#ann", self.pack("hello"))
        self.assertEqual(await self.received(events, 1), [("personal:#ann", "hello")])

    async def test_unknown_namespace(self):
        client, events = self.client(token=sign(sub="ann", channels=["nowhere:one"]))
        await client.connect()
        self.assertEqual((await events.next("disconnected")).code, 102)

    async def test_recovery(self):
        line = await self.line()
        _, events, _ = await self.listener(2, url=line.url, sub="ann", channels=["news:one"])
        await events.next("connecting")
        writer, _ = await self.connected("bob")
        count = 0
        for _ in range(3):
            await self.publish(writer, "news:one", range(count, count + 10))
            line.cut()
            self.assertEqual((await events.next("connecting")).code, 1)
            await self.publish(writer, "news:one", range(count + 10, count + 20))
            line.heal()
            context = (await self.contexts(events, 2))["news:one"]
            self.assertEqual((context.was_recovering, context.recovered), (True, True))
            count += 20
        await self.publish(writer, "news:one", [count])
        expected = [("news:one", number) for number in range(count + 1)]
        self.assertEqual(await self.received(events, count + 1), expected)


ServerSideProtobuf = over_protobuf(ServerSide)


class Filters(Case):
    config = """
[rpc.ping]
enabled = true

[[channel.namespaces]]
name = "tagged"
allow_tags_filter = true
allow_subscribe_for_client = true
allow_publish_for_client = true
"""

    async def test_a_missing_tag(self):
        client, _ = await self.connected("ann")
        inboxes = []
        for number, (tags_filter, passes) in enumerate((
            (Filter.not_exists("kind"), True),
            (Filter.exists("kind"), False),
            (Filter.eq("kind", "a"), False),
            (Filter.neq("kind", "a"), True),
            (Filter.is_in("kind", ["a", "b"]), False),
            (Filter.not_in("kind", ["a", "b"]), True),
            (Filter.negate(Filter.exists("kind")), True),
            (Filter.all(Filter.not_exists("kind"), Filter.exists("kind")), False),
            (Filter.any(Filter.not_exists("kind"), Filter.exists("kind")), True),
            (Filter.gt("kind", "1"), False),
        )):
            reader, _ = await self.connected(f"user-{number}")
            _, events = await self.subscribed(reader, "tagged:one", tags_filter=tags_filter)
            _, marker = await self.subscribed(reader, "tagged:marker")
            inboxes.append((tags_filter, passes, events, marker))
        await self.publish(client, "tagged:one", [1, 2])
        # Comes to each connection behind what it got of the other channel.
        await self.publish(client, "tagged:marker", ["end"])
        for tags_filter, passes, events, marker in inboxes:
            with self.subTest(tags_filter=tags_filter):
                await self.values(marker, 1)
                if passes:
                    self.assertEqual(await self.values(events, 2), [1, 2])
                self.assertTrue(events.none("publication"))

    async def test_refused(self):
        client, _ = await self.connected("ann")
        there = Filter.exists("kind")
        for channel, tags_filter in (
            ("tagged:one", Filter.eq("kind", "")),
            ("tagged:one", Filter.is_in("kind", [])),
            ("tagged:one", Filter.all()),
            ("untagged", there),
        ):
            with self.subTest(channel=channel, tags_filter=tags_filter):
                code = await self.refused_subscribe(client, channel, tags_filter=tags_filter)
                self.assertEqual(code, 107)

    async def test_rpc(self):
        client, _ = await self.connected("ann")
        result = await client.rpc("ping", self.pack({}))
        self.assertEqual(self.unpack(result.data) or {}, {})
        await self.raises(104, client.rpc("anything", self.pack({})))


FiltersProtobuf = over_protobuf(Filters)


class Mixed(Case):
    flags = ("--shards", "2", "--channel.publication_data_format", "binary")

    async def test_both_encodings_in_one_channel(self):
        members = []
        for protobuf in (False, True):
            client, client_events = await self.connected("ann", protobuf=protobuf)
            _, events = await self.subscribed(client, "room")
            members.append((client, client_events, events))
        (text, text_events, text_inbox), (binary, _, binary_inbox) = members
        await text.publish("room", {"from": "JSON ü"})
        await binary.publish("room", b'{"from":"Protobuf \xc3\xbc"}')
        self.assertEqual(
            await text_inbox.data(2), [{"from": "JSON ü"}, {"from": "Protobuf ü"}]
        )
        received = [json.loads(payload) for payload in await binary_inbox.data(2)]
        self.assertEqual(received, [{"from": "JSON ü"}, {"from": "Protobuf ü"}])
        # What is not JSON can't be shown to the one, and is to the other.
        await binary.publish("room", b"\x00\xff")
        self.assertEqual((await text_events.next("disconnected")).code, 3506)
        self.assertEqual(await binary_inbox.data(1), [b"\x00\xff"])
