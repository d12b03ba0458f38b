"""Presence, join and leave with the Python SDK."""

from harness import Case, over_protobuf, sign


class Presence(Case):
    flags = ("--shards", "2")
    config = """
[[channel.namespaces]]
name = "room"
presence = true
join_leave = true
force_push_join_leave = true
allow_presence_for_subscriber = true
allow_subscribe_for_client = true

[[channel.namespaces]]
name = "quiet"
presence = true
join_leave = true
allow_presence_for_subscriber = true
allow_subscribe_for_client = true
allow_publish_for_client = true
"""

    async def test_counts(self):
        watcher, _ = await self.connected("watcher")
        room, events = await self.subscribed(watcher, "room:one")
        joined = await events.next("join")
        self.assertEqual((joined.info.user, joined.info.client), ("watcher", watcher.id))
        members = []
        for user, expected in (("ann", (2, 2)), ("ann", (3, 2)), ("bob", (4, 3))):
            client, _ = await self.connected(user)
            members.append((client, (await self.subscribed(client, "room:one"))[0]))
            stats = await room.presence_stats()
            self.assertEqual((stats.num_clients, stats.num_users), expected)
            self.assertEqual((await events.next("join")).info.client, client.id)
        for expected in ((3, 2), (2, 2), (1, 1)):
            client, subscription = members.pop()
            await subscription.unsubscribe()
            self.assertEqual((await events.next("leave")).info.client, client.id)
            stats = await room.presence_stats()
            self.assertEqual((stats.num_clients, stats.num_users), expected)

    async def test_infos(self):
        client, _ = await self.connected("ann", token=sign(sub="ann", info={"name": "Ann"}))
        token = sign(sub="ann", channel="room:one", info={"role": "editor"})
        subscription, _ = await self.subscribed(client, "room:one", token=token)
        presence = (await subscription.presence()).clients
        self.assertEqual(list(presence), [client.id])
        info = presence[client.id]
        self.assertEqual((info.user, info.client), ("ann", client.id))
        self.assertEqual(self.unpack(info.conn_info), {"name": "Ann"})
        self.assertEqual(self.unpack(info.chan_info), {"role": "editor"})

    async def test_disconnect(self):
        watcher, _ = await self.connected("watcher")
        room, events = await self.subscribed(watcher, "room:one")
        client, _ = await self.connected("ann")
        await self.subscribed(client, "room:one")
        await client.disconnect()
        self.assertEqual((await events.next("leave")).info.client, client.id)
        self.assertEqual(list((await room.presence()).clients), [watcher.id])

    async def test_only_for_who_asks(self):
        asking, _ = await self.connected("asking")
        silent, _ = await self.connected("silent")
        _, told = await self.subscribed(asking, "quiet:one", join_leave=True)
        _, untold = await self.subscribed(silent, "quiet:one")
        users = {(await told.next("join")).info.user for _ in range(2)}
        self.assertEqual(users, {"asking", "silent"})
        await silent.publish("quiet:one", self.pack("end"))
        self.assertEqual(await self.values(untold, 1), ["end"])
        self.assertTrue(untold.none("join"))

    async def test_refused(self):
        client, _ = await self.connected("ann")
        for channel, code in (("nowhere:one", 102), ("closed:one", 108), ("room:one", 103)):
            await self.raises(code, client.presence(channel))
            await self.raises(code, client.presence_stats(channel))


PresenceProtobuf = over_protobuf(Presence)
