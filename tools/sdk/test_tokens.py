"""Tokens with the Python SDK: infos, ends, and how they are renewed."""

import time

from harness import Case, over_protobuf, sign

OTHER_SECRET = "another secret of 32 bytes and+"


def ending(seconds, **claims):
    """Claims of a token that ends in so many seconds."""
    return {**claims, "exp": int(time.time()) + seconds}


class Tokens(Case):
    config = """
[client]
expired_close_delay = "3s"
expired_sub_close_delay = "3s"
"""

    async def test_infos(self):
        client, _ = await self.connected("ann", token=sign(sub="ann", info={"name": "Ann Ä"}))
        claims = {"channel": "$gold", "info": {"role": "editor"}, "data": {"hello": "ann"}}
        subscription, events = await self.subscribed(
            client, "$gold", token=sign(sub="ann", **claims)
        )
        await subscription.publish(self.pack({}))
        info = (await events.next("publication")).pub.info
        self.assertEqual(self.unpack(info.conn_info), {"name": "Ann Ä"})
        self.assertEqual(self.unpack(info.chan_info), {"role": "editor"})

    async def test_data_of_a_subscription(self):
        client, _ = await self.connected("ann")
        token = sign(sub="ann", channel="$gold", data={"hello": "ann"})
        _, _, context = await self.follow(client, "$gold", token=token)
        self.assertEqual(self.unpack(context.data), {"hello": "ann"})

    async def test_refused(self):
        for claims, code in (
            ({"sub": "ann", "exp": int(time.time()) + 60, "expire_at": 1}, 110),
            ({"sub": "ann", "channel": "$gold"}, 3500),
        ):
            with self.subTest(claims=claims):
                client, events = self.client(token=sign(**claims))
                await client.connect()
                self.assertEqual((await events.next("disconnected")).code, code)

    async def test_subscription_token_of_somebody_else(self):
        for claims in ({"sub": "ann", "channel": "$other"}, {"sub": "bob", "channel": "$gold"}):
            with self.subTest(claims=claims):
                client, events = await self.connected("ann")
                subscription = client.new_subscription("$gold", token=sign(**claims))
                await subscription.subscribe()
                self.assertEqual((await events.next("disconnected")).code, 3500)

    async def test_connection_is_refreshed(self):
        asked = []

        async def get_token():
            asked.append(True)
            return sign(**ending(3600, sub="ann"))

        client, events = await self.connected(
            "ann", token=sign(**ending(2, sub="ann")), get_token=get_token
        )
        await events.next("connecting")
        # Ends later than the other one would have, so the other one was refreshed.
        _, others = await self.connected("bob", token=sign(**ending(3, sub="bob")))
        await others.next("connecting")
        self.assertEqual((await others.next("connecting")).code, 3005)
        subscription, inbox = await self.subscribed(client, "still")
        await subscription.publish(self.pack("there"))
        self.assertEqual(await self.values(inbox, 1), ["there"])
        self.assertTrue(events.none("connecting"))
        self.assertEqual(len(asked), 1)

    async def test_subscription_is_refreshed(self):
        asked = []

        async def get_token(channel):
            asked.append(channel)
            return sign(**ending(3600, sub="ann", channel=channel))

        client, _ = await self.connected("ann")
        subscription, events = await self.subscribed(
            client, "$gold", token=sign(**ending(2, sub="ann", channel="$gold")),
            get_token=get_token,
        )
        await events.next("subscribing")
        # Ends later than the other one would have, so the other one was refreshed. Without a
        # way to a new token it is not taken up again.
        other, _ = await self.connected("bob")
        _, others = await self.subscribed(
            other, "$gold", token=sign(**ending(3, sub="bob", channel="$gold"))
        )
        await others.next("subscribing")
        self.assertEqual((await others.next("subscribing")).code, 2501)
        await subscription.publish(self.pack("there"))
        self.assertEqual(await self.values(events, 1), ["there"])
        self.assertTrue(events.none("subscribing"))
        self.assertEqual(asked, ["$gold"])


TokensProtobuf = over_protobuf(Tokens)


class Rotation(Case):
    env = {"CENTRIFUGO_CLIENT_TOKEN_HMAC_PREVIOUS_SECRET_KEY": OTHER_SECRET}

    async def test_both_keys(self):
        await self.connected("ann")
        await self.connected("ann", token=sign(OTHER_SECRET, sub="ann"))
        client, events = self.client(token=sign("a third secret of 32 bytes and +", sub="ann"))
        await client.connect()
        self.assertEqual((await events.next("disconnected")).code, 3500)
