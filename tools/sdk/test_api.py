"""The server API with the Python client, `cent`; health and metrics with Prometheus's own parsers."""

import asyncio
import time

import aiohttp
import cent
from harness import Case, NODES, SECURE, WAIT_SECONDS_MAX
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as metrics

KEY = "the key of the tests"


class Api(Case):
    flags = ("--shards", "2")
    config = f"""
[http_api]
key = "{KEY}"
[health]
enabled = true
[prometheus]
enabled = true

[[channel.namespaces]]
name = "room"
allow_subscribe_for_client = true
presence = true
history_size = 10
history_ttl = "1m"
force_recovery = true
"""

    async def asyncSetUp(self):
        await super().asyncSetUp()
        scheme = "https" if SECURE else "http"
        self.url = f"{scheme}://127.0.0.1:{self.roost.port}"
        self.api = cent.AsyncClient(f"{self.url}/api", KEY)
        self.addAsyncCleanup(self.api._session.close)

    async def test_publishing(self):
        client, _ = await self.connected("ann")
        _, events = await self.subscribed(client, "room:a")
        first = await self.api.publish(cent.PublishRequest(channel="room:a", data={"n": 1}))
        self.assertEqual(first.offset, 1)
        request = cent.PublishRequest(channel="room:a", data={"n": 2}, idempotency_key="once")
        again = [await self.api.publish(request) for _ in range(2)]
        self.assertEqual([result.offset for result in again], [2, 2])
        result = await self.api.broadcast(
            cent.BroadcastRequest(channels=["room:a", "nobody:b"], data={"n": 3}))
        self.assertEqual(result.responses[0].result.offset, 3)
        self.assertEqual(result.responses[1].error.code, 102)
        self.assertEqual(await events.data(3), [{"n": 1}, {"n": 2}, {"n": 3}])

    async def test_channels(self):
        client, _ = await self.connected("ann")
        await self.subscribed(client, "room:a")
        presence = await self.api.presence(cent.PresenceRequest(channel="room:a"))
        self.assertEqual([info.user for info in presence.presence.values()], ["ann"])
        stats = await self.api.presence_stats(cent.PresenceStatsRequest(channel="room:a"))
        self.assertEqual((stats.num_clients, stats.num_users), (1, 1))
        nobody = await self.api.presence(cent.PresenceRequest(channel="room:empty"))
        self.assertEqual(nobody.presence, {})
        for number in range(3):
            await self.api.publish(cent.PublishRequest(channel="room:a", data=number))
        history = await self.api.history(cent.HistoryRequest(channel="room:a", limit=2, reverse=True))
        self.assertEqual([p.data for p in history.publications], [2, 1])
        since = cent.StreamPosition(offset=2, epoch=history.epoch)
        history = await self.api.history(cent.HistoryRequest(channel="room:a", limit=9, since=since))
        self.assertEqual([p.offset for p in history.publications], [3])
        await self.api.history_remove(cent.HistoryRemoveRequest(channel="room:a"))
        history = await self.api.history(cent.HistoryRequest(channel="room:a", limit=9))
        self.assertEqual((history.publications, history.offset), ([], 3))
        channels = await self.api.channels(cent.ChannelsRequest(pattern="room:*"))
        self.assertEqual(channels.channels["room:a"].num_clients, 1)

    async def test_info(self):
        await self.connected("ann")

        async def clients():
            info = await self.api.info(cent.InfoRequest())
            self.assertEqual(len({node.uid for node in info.nodes}), NODES)
            return sum(node.num_clients for node in info.nodes)

        # A node knows of the clients of another one by its messages, which come every 3 s.
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            while await clients() != 1:
                await asyncio.sleep(0.05)

    async def metrics_of(self, port):
        """The metrics of a node in both formats."""
        scheme = "https" if SECURE else "http"
        url = f"{scheme}://127.0.0.1:{port}"
        accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{url}/health") as response:
                self.assertEqual((response.status, await response.json()), (200, {}))
            async with session.get(f"{url}/metrics") as response:
                older = {f.name: f for f in metrics(await response.text())}
            async with session.get(f"{url}/metrics", headers=accept) as response:
                newer = {f.name: f for f in open_metrics(await response.text())}
        return older, newer

    async def test_users(self):
        client, events = await self.connected("ann")
        await self.api.subscribe(cent.SubscribeRequest(user="ann", channel="room:a"))
        self.assertEqual((await events.next("subscribed")).channel, "room:a")
        await self.api.publish(cent.PublishRequest(channel="room:a", data="hello"))
        self.assertEqual((await events.next("publication")).pub.data, "hello")
        await self.api.unsubscribe(cent.UnsubscribeRequest(user="ann", channel="room:a"))
        self.assertEqual((await events.next("unsubscribed")).channel, "room:a")
        expire_at = int(time.time()) + 600
        await self.api.refresh(cent.RefreshRequest(user="ann", expire_at=expire_at))
        await self.api.disconnect(cent.DisconnectRequest(user="ann"))
        self.assertEqual((await events.next("disconnected")).code, 3503)

    async def test_batch(self):
        result = await self.api.batch(cent.BatchRequest(requests=[
            cent.PublishRequest(channel="room:a", data=1),
            cent.BroadcastRequest(channels=["room:a"], data=2),
            cent.PresenceRequest(channel="room:a"),
        ]))
        self.assertEqual(result.replies[0].offset, 1)
        self.assertEqual(result.replies[1].responses[0].result.offset, 2)
        self.assertEqual(result.replies[2].presence, {})

    async def test_errors(self):
        with self.assertRaises(cent.CentApiResponseError) as raised:
            await self.api.publish(cent.PublishRequest(channel="nobody:a", data=1))
        self.assertEqual(raised.exception.code, 102)
        with self.assertRaises(cent.CentApiResponseError) as raised:
            await self.api.history(cent.HistoryRequest(channel="plain", limit=1))
        self.assertEqual(raised.exception.code, 108)
        wrong = cent.AsyncClient(f"{self.url}/api", "another key")
        self.addAsyncCleanup(wrong._session.close)
        with self.assertRaises(cent.CentUnauthorizedError):
            await wrong.info(cent.InfoRequest())

    async def test_the_blocking_client(self):
        def calls():
            api = cent.Client(f"{self.url}/api", KEY)
            offsets = [
                api.publish(cent.PublishRequest(channel="room:a", data=number)).offset
                for number in range(20)
            ]
            return offsets, api.history(cent.HistoryRequest(channel="room:a", limit=-1))

        offsets, history = await asyncio.to_thread(calls)
        self.assertEqual(offsets, list(range(1, 21)))
        self.assertEqual([p.data for p in history.publications], list(range(10, 20)))

    async def test_health_and_metrics(self):
        await self.connected("ann")
        await self.api.publish(cent.PublishRequest(channel="room:a", data=1))
        sums = {"roost_clients": 0, "roost_publications": 0}
        for port in self.roost.ports:
            older, newer = await self.metrics_of(port)
            self.assertEqual(older.keys(), newer.keys())
            self.assertGreater(len(older), 60)
            for name, family in older.items():
                self.assertEqual(family.type, newer[name].type, name)
                self.assertIn(family.type, ("counter", "gauge", "histogram"), name)
                self.assertTrue(family.documentation, name)
                self.assertTrue(name.startswith(("roost_", "process_")), name)
            for name in sums:
                sums[name] += older[name].samples[0].value
            shards = {s.labels["shard"] for s in older["roost_connections_open"].samples}
            self.assertEqual(shards, {"0", "1"})
        self.assertEqual(sums, {"roost_clients": 1, "roost_publications": 1})
