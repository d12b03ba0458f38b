// A node that is set up by variables alone, as the test set-ups of SDKs do it.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  collect,
  follow,
  Line,
  next,
  publishAll,
  refusedSubscribe,
  SECRET,
  subscribed,
  testEach,
  withRoost,
} from './harness.mjs';

const BASE = {
  CENTRIFUGO_HTTP_SERVER_ADDRESS: '127.0.0.1',
  CENTRIFUGO_CLIENT_TOKEN_HMAC_SECRET_KEY: SECRET,
  CENTRIFUGO_CLIENT_CONCURRENCY: '8',
  CENTRIFUGO_CHANNEL_WITHOUT_NAMESPACE_ALLOW_SUBSCRIBE_FOR_CLIENT: 'true',
  CENTRIFUGO_CHANNEL_WITHOUT_NAMESPACE_ALLOW_PUBLISH_FOR_SUBSCRIBER: 't',
  CENTRIFUGO_CHANNEL_WITHOUT_NAMESPACE_PRESENCE: '1',
  CENTRIFUGO_CHANNEL_WITHOUT_NAMESPACE_ALLOW_PRESENCE_FOR_SUBSCRIBER: 'true',
  CENTRIFUGO_CHANNEL_WITHOUT_NAMESPACE_JOIN_LEAVE: 'true',
  CENTRIFUGO_CHANNEL_WITHOUT_NAMESPACE_FORCE_PUSH_JOIN_LEAVE: 'true',
  CENTRIFUGO_CHANNEL_WITHOUT_NAMESPACE_HISTORY_SIZE: '100',
  CENTRIFUGO_CHANNEL_WITHOUT_NAMESPACE_HISTORY_TTL: '300s',
  CENTRIFUGO_CHANNEL_WITHOUT_NAMESPACE_FORCE_RECOVERY: 'true',
  CENTRIFUGO_CHANNEL_WITHOUT_NAMESPACE_ALLOW_HISTORY_FOR_SUBSCRIBER: 'true',
};

/** The options of two namespaces, each a name and its value. */
const NAMESPACES = {
  rooms: {
    allow_subscribe_for_client: true,
    allow_publish_for_client: true,
    presence: true,
    allow_presence_for_client: true,
  },
  'delta-log': {
    allow_subscribe_for_client: true,
    allow_publish_for_client: true,
    history_size: 100,
    history_ttl: '300s',
    force_recovery: true,
    allow_history_for_client: true,
    allowed_delta_types: ['fossil'],
    delta_publish: true,
  },
};

/** As names, and a variable for each option. */
function byNames() {
  const env = { CENTRIFUGO_CHANNEL_NAMESPACES: Object.keys(NAMESPACES).join(' ') };
  for (const [name, options] of Object.entries(NAMESPACES)) {
    for (const [option, value] of Object.entries(options)) {
      const variable = `${name}_${option}`.toUpperCase().replace('-', '_');
      env[`CENTRIFUGO_CHANNEL_NAMESPACES_${variable}`] = [value].flat().join(' ');
    }
  }
  return env;
}

/** As one JSON array. */
function byJson() {
  const list = Object.entries(NAMESPACES).map(([name, options]) => ({ name, ...options }));
  return { CENTRIFUGO_CHANNEL_NAMESPACES: JSON.stringify(list) };
}

for (const [what, namespaces] of [
  ['names', byNames()],
  ['a JSON array', byJson()],
]) {
  testEach(`namespaces from variables, as ${what}`, async (encoding) => {
    await withRoost({ config: null, env: { ...BASE, ...namespaces } }, async (roost) => {
      const client = await roost.connected('ann', { encoding });
      await subscribed(client, 'rooms:one');
      const { numClients } = await client.presenceStats('rooms:one');
      assert.equal(numClients, 1);
      await assert.rejects(client.history('rooms:one', { limit: 1 }), { code: 108 });

      const { subscription, inbox, context } = await follow(client, 'delta-log:one', {
        delta: 'fossil',
      });
      assert.equal(context.recoverable, true);
      const texts = ['a', 'b', 'c'].map((letter) => `${'the same text '.repeat(20)}${letter}`);
      await publishAll(client, 'delta-log:one', texts);
      assert.deepEqual(await inbox.take(3), texts);
      assert.ok(subscription.deltaStats().numDeltaPayloads > 0);
      assert.equal((await client.history('delta-log:one', { limit: 10 })).publications.length, 3);
      await assert.rejects(client.presence('delta-log:one'), { code: 108 });
      assert.equal((await refusedSubscribe(client, 'delta:one')).code, 102);
    });
  });
}

testEach('a node set up by variables does all that SDKs try', async (encoding) => {
  await withRoost({ config: null, env: BASE }, async (roost) => {
    const line = await Line.to(roost);
    const ann = await roost.connected('ann', { encoding, url: line.url });
    const bob = await roost.connected('bob', { encoding });
    const { subscription, inbox } = await follow(ann, 'room');
    const joins = collect(subscription, 'join', ({ info }) => info.user);
    const theirs = await follow(bob, 'room');
    await publishAll(bob, 'room', [1, 2]);
    assert.deepEqual(await inbox.take(2), [1, 2]);
    assert.ok(joins.items.includes('bob'), 'a join comes before what follows it');
    const { numClients, numUsers } = await subscription.presenceStats();
    assert.deepEqual([numClients, numUsers], [2, 2]);

    const lost = next(ann, 'connecting');
    line.cut();
    await lost;
    await publishAll(bob, 'room', [3, 4]);
    const again = next(subscription, 'subscribed');
    line.heal();
    assert.equal((await again).recovered, true);
    assert.deepEqual(await inbox.take(4), [1, 2, 3, 4]);
    const { publications, offset } = await theirs.subscription.history({ limit: 10, reverse: true });
    assert.deepEqual(publications.map(({ data }) => encoding.unpack(data)), [4, 3, 2, 1]);
    assert.equal(offset, 4);
  });
});

test("variables win over a file, roost's own over those of Centrifugo", async () => {
  const config = '\n[[channel.namespaces]]\nname = "of-the-file"\n';
  const env = {
    CENTRIFUGO_CHANNEL_NAMESPACES: '[{"name":"of-centrifugo"}]',
    ROOST_CHANNEL_NAMESPACES: '[{"name":"of-roost","allow_subscribe_for_client":true}]',
  };
  await withRoost({ config, env }, async (roost) => {
    const client = await roost.connected('ann');
    await subscribed(client, 'of-roost:one');
    for (const namespace of ['of-the-file', 'of-centrifugo']) {
      assert.equal((await refusedSubscribe(client, `${namespace}:one`)).code, 102, namespace);
    }
  });
});
