"""Recovery and delta with the Python SDK, over connections that are cut."""

from centrifuge import DeltaType, StreamPosition

from harness import NODES, Case, over_protobuf

NAMESPACES = """
[[channel.namespaces]]
name = "stream"
history_size = 1000
history_ttl = "300s"
force_recovery = true
allow_subscribe_for_client = true
allow_publish_for_client = true

[[channel.namespaces]]
name = "short"
history_size = 5
history_ttl = "300s"
force_recovery = true
allow_subscribe_for_client = true
allow_publish_for_client = true

[[channel.namespaces]]
name = "latest"
history_size = 1
history_ttl = "300s"
force_recovery = true
force_recovery_mode = "cache"
allow_subscribe_for_client = true
allow_publish_for_client = true

[[channel.namespaces]]
name = "delta"
history_size = 1000
history_ttl = "300s"
force_recovery = true
allowed_delta_types = ["fossil"]
delta_publish = true
allow_subscribe_for_client = true
allow_publish_for_client = true
"""


def document(number):
    """Little changes from number to number; characters of 1 to 4 bytes."""
    letters = "".join("äöüßéñ"[(index * 7 + number) % 6] for index in range(40))
    return {"title": 'grüße 🦆 \n "quoted" ' * 10, "number": number, "letters": letters}


class Recovery(Case):
    flags = ("--shards", "2")
    config = NAMESPACES

    async def pair(self, channel, **options):
        """A subscriber behind a line that can be cut, and a publisher with its own connection."""
        self.cut_line = await self.line()
        self.reader, self.reader_events = await self.connected("ann", url=self.cut_line.url)
        await self.reader_events.next("connecting")
        self.writer, _ = await self.connected("bob")
        _, events, context = await self.follow(self.reader, channel, **options)
        return events, context

    async def away(self, events, meanwhile):
        """Cuts the line, awaits `meanwhile`, heals it: the context of the next subscribe."""
        self.cut_line.cut()
        # 1 is the SDK's own code for a transport that broke off.
        self.assertEqual((await self.reader_events.next("connecting")).code, 1)
        await meanwhile
        self.cut_line.heal()
        return await events.next("subscribed")

    async def test_exactly_once_over_several_cuts(self):
        events, context = await self.pair("stream:one")
        self.assertTrue(context.recoverable)
        self.assertFalse(context.was_recovering)
        count = 0
        for _ in range(5):
            await self.publish(self.writer, "stream:one", range(count, count + 20))
            missed = range(count + 20, count + 40)
            context = await self.away(events, self.publish(self.writer, "stream:one", missed))
            self.assertTrue(context.was_recovering)
            self.assertTrue(context.recovered)
            count += 40
        await self.publish(self.writer, "stream:one", [count])
        self.assertEqual(await self.values(events, count + 1), list(range(count + 1)))
        self.assertTrue(events.none("publication"))

    async def test_history_too_short(self):
        events, _ = await self.pair("short:one")
        missed = self.publish(self.writer, "short:one", range(1, 8))
        context = await self.away(events, missed)
        self.assertEqual((context.was_recovering, context.recovered), (True, False))
        self.assertEqual(context.stream_position.offset, 7)
        await self.publish(self.writer, "short:one", [8])
        self.assertEqual(await self.values(events, 1), [8])

    async def test_cache(self):
        events, _ = await self.pair("latest:one")
        missed = self.publish(self.writer, "latest:one", range(1, 4))
        context = await self.away(events, missed)
        self.assertEqual((context.was_recovering, context.recovered), (True, True))
        await self.publish(self.writer, "latest:one", [4])
        self.assertEqual(await self.values(events, 2), [3, 4])

    async def test_state_is_loaded_again(self):
        _, context = await self.pair("short:one")
        epoch = context.stream_position.epoch
        await self.publish(self.writer, "short:one", range(1, 9))
        positions = [StreamPosition(1, epoch), StreamPosition(6, epoch)]

        async def get_state(channel):
            return positions.pop(0)

        client, _ = await self.connected("carol")
        _, events, context = await self.follow(
            client, "short:one", get_state=get_state,
            min_resubscribe_delay=0.01, max_resubscribe_delay=0.05,
        )
        self.assertEqual(positions, [])
        self.assertTrue(context.recovered)
        self.assertEqual(await self.values(events, 2), [7, 8])

    async def test_delta(self):
        events, _ = await self.pair("delta:one", delta=DeltaType.FOSSIL)
        plain, _ = await self.connected("carol")
        _, full = await self.subscribed(plain, "delta:one")
        # Where the SDK turns patches into data: how many of each kind came.
        kinds = []
        apply = self.reader._codec.apply_delta_if_needed

        def noting(previous, publication):
            kinds.append(publication.delta)
            return apply(previous, publication)

        self.reader._codec.apply_delta_if_needed = noting
        count = 0
        for missed in (20, 0, 1):
            more = [document(number) for number in range(count, count + 20)]
            await self.publish(self.writer, "delta:one", more)
            count += 20
            more = [document(number) for number in range(count, count + missed)]
            context = await self.away(events, self.publish(self.writer, "delta:one", more))
            self.assertTrue(context.recovered)
            count += missed
        await self.publish(self.writer, "delta:one", [document(count)])
        expected = [document(number) for number in range(count + 1)]
        self.assertEqual(await self.values(events, count + 1), expected)
        self.assertEqual(await self.values(full, count + 1), expected)
        self.assertIn(True, kinds)
        self.assertIn(False, kinds)


RecoveryProtobuf = over_protobuf(Recovery)


class NewStart(Case):
    config = NAMESPACES

    async def test_nothing_to_recover_from(self):
        client, client_events = await self.connected("ann")
        await client_events.next("connecting")
        _, events, before = await self.follow(client, "stream:one")
        await self.publish(client, "stream:one", [1, 2])
        self.assertEqual(await self.values(events, 2), [1, 2])
        self.assertEqual(await self.roost.down(), 0)
        await client_events.next("connecting")
        await self.roost.up()
        after = await events.next("subscribed", 60)
        # Of two nodes the broker has the history, and goes on.
        self.assertEqual((after.was_recovering, after.recovered), (True, NODES > 1))
        is_same = after.stream_position.epoch == before.stream_position.epoch
        self.assertEqual(is_same, NODES > 1)
        await self.publish(client, "stream:one", [3])
        self.assertEqual(await self.values(events, 1), [3])


NewStartProtobuf = over_protobuf(NewStart)
