"""A node that is set up by variables alone, as the Python SDK's own tests do it."""

from centrifuge import DeltaType

from harness import SECRET, Case, over_protobuf

FEATURES = {
    "ALLOW_SUBSCRIBE_FOR_CLIENT": "true",
    "ALLOW_PUBLISH_FOR_SUBSCRIBER": "true",
    "PRESENCE": "true",
    "ALLOW_PRESENCE_FOR_SUBSCRIBER": "true",
    "JOIN_LEAVE": "true",
    "FORCE_PUSH_JOIN_LEAVE": "true",
    "HISTORY_SIZE": "100",
    "HISTORY_TTL": "300s",
    "FORCE_RECOVERY": "true",
    "ALLOW_HISTORY_FOR_SUBSCRIBER": "true",
    "ALLOWED_DELTA_TYPES": "fossil",
    "DELTA_PUBLISH": "true",
}


class Variables(Case):
    config = None
    env = {
        "CENTRIFUGO_HTTP_SERVER_ADDRESS": "127.0.0.1",
        "CENTRIFUGO_CLIENT_TOKEN_HMAC_SECRET_KEY": SECRET,
        "CENTRIFUGO_CLIENT_CONCURRENCY": "8",
        "CENTRIFUGO_CHANNEL_NAMESPACES": "with-all plain.one",
        "CENTRIFUGO_CHANNEL_NAMESPACES_PLAIN_ONE_ALLOW_SUBSCRIBE_FOR_CLIENT": "true",
        **{
            f"CENTRIFUGO_CHANNEL_{place}_{option}": value
            for place in ("WITHOUT_NAMESPACE", "NAMESPACES_WITH_ALL")
            for option, value in FEATURES.items()
        },
    }

    async def test_namespaces(self):
        client, _ = await self.connected("ann")
        for channel in ("room", "with-all:room"):
            with self.subTest(channel=channel):
                subscription, events = await self.subscribed(
                    client, channel, delta=DeltaType.FOSSIL
                )
                self.assertEqual((await events.next("join")).info.client, client.id)
                texts = ["the same text " * 20 + letter for letter in "abc"]
                await self.publish(client, channel, texts)
                self.assertEqual(await self.values(events, 3), texts)
                stats = await subscription.presence_stats()
                self.assertEqual((stats.num_clients, stats.num_users), (1, 1))
                self.assertEqual(len((await subscription.history(limit=10)).publications), 3)
        await self.subscribed(client, "plain.one:room")
        await self.raises(108, client.history("plain.one:room", limit=1))
        self.assertEqual(await self.refused_subscribe(client, "plain:room"), 102)


VariablesProtobuf = over_protobuf(Variables)
