"""History with the Python SDK: pages both ways, and who may not read."""

from centrifuge import StreamPosition

from harness import Case, over_protobuf


class History(Case):
    flags = ("--shards", "2")
    config = """
[[channel.namespaces]]
name = "log"
history_size = 10
history_ttl = "300s"
allow_subscribe_for_client = true
allow_publish_for_client = true
allow_history_for_subscriber = true

[[channel.namespaces]]
name = "none"
allow_history_for_client = true
"""

    async def filled(self, count):
        """A subscription to a channel with the numbers from 1 to `count` in its history."""
        client, _ = await self.connected("ann")
        subscription, events = await self.subscribed(client, "log:one")
        await self.publish(client, "log:one", range(1, count + 1))
        await self.values(events, count)
        return client, subscription

    def numbers(self, history):
        numbers = [self.unpack(publication.data) for publication in history.publications]
        self.assertEqual(numbers, [publication.offset for publication in history.publications])
        return numbers

    async def test_pages(self):
        client, subscription = await self.filled(8)
        top = await subscription.history()
        self.assertEqual((top.publications, top.offset), ([], 8))
        self.assertTrue(top.epoch)

        def at(offset):
            return StreamPosition(offset, top.epoch)

        for request, expected in (
            ({"limit": 3}, [1, 2, 3]),
            ({"limit": -1}, [1, 2, 3, 4, 5, 6, 7, 8]),
            ({"limit": 3, "since": at(4)}, [5, 6, 7]),
            ({"limit": 3, "since": at(8)}, []),
            ({"limit": 3, "reverse": True}, [8, 7, 6]),
            ({"limit": 3, "reverse": True, "since": at(3)}, [2, 1]),
        ):
            with self.subTest(request=request):
                history = await subscription.history(**request)
                self.assertEqual(self.numbers(history), expected)
                self.assertEqual((history.offset, history.epoch), (8, top.epoch))
        first = (await subscription.history(limit=1)).publications[0]
        self.assertEqual((first.info.user, first.info.client), ("ann", client.id))

    async def test_size(self):
        _, subscription = await self.filled(13)
        history = await subscription.history(limit=100)
        self.assertEqual(self.numbers(history), list(range(4, 14)))

    async def test_refused(self):
        client, subscription = await self.filled(2)
        epoch = (await subscription.history()).epoch
        await self.raises(102, client.history("nowhere:one", limit=1))
        await self.raises(108, client.history("none:one", limit=1))
        await self.raises(103, client.history("log:two", limit=1))
        wrong = StreamPosition(1, "other")
        await self.raises(112, subscription.history(limit=1, since=wrong))
        start = StreamPosition(0, epoch)
        await self.raises(107, subscription.history(limit=1, since=start, reverse=True))


HistoryProtobuf = over_protobuf(History)
