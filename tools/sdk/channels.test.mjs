// What a channel's name and its namespace allow, and with which code the rest is refused.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  follow,
  fresh,
  JSON_ENCODING,
  PROTOBUF_ENCODING,
  refusedSubscribe,
  shared,
  sign,
  subscribed,
  testEach,
} from './harness.mjs';

const roost = shared({
  config: `
[[channel.namespaces]]
name = "members"
allow_user_limited_channels = true

[[channel.namespaces]]
name = "mixed-members"
allow_user_limited_channels = true
allow_subscribe_for_client = true

[[channel.namespaces]]
name = "numbers"
allow_subscribe_for_client = true
allow_publish_for_subscriber = true
channel_regex = "^[0-9]+$"

[[channel.namespaces]]
name = "umlauts"
allow_subscribe_for_client = true
channel_regex = "^[äöü]+$"

[[channel.namespaces]]
name = "wall"
allow_publish_for_client = true

[[channel.namespaces]]
name = "radio"
allow_subscribe_for_client = true

[[channel.namespaces]]
name = "json"
allow_subscribe_for_client = true
allow_publish_for_client = true
publication_data_format = "json"

[[channel.namespaces]]
name = "object"
allow_subscribe_for_client = true
allow_publish_for_client = true
publication_data_format = "json_object"

[[channel.namespaces]]
name = "bytes"
allow_subscribe_for_client = true
allow_publish_for_client = true
publication_data_format = "binary"
`,
});

testEach('subscribing is refused with the code that says why', async (encoding) => {
  const client = await roost.connected('ann', { encoding });
  const codes = {
    'nowhere:news': 102,
    '$nowhere:news': 102,
    'closed:news': 103,
    'wall:news': 103,
    $gold: 103,
    '$lobby:gold': 103,
    'nön-ascii': 107,
    'lobby:nön-ascii': 107,
    ['x'.repeat(256)]: 107,
    [`lobby:${'x'.repeat(250)}`]: 107,
  };
  for (const [channel, code] of Object.entries(codes)) {
    assert.equal((await refusedSubscribe(client, channel)).code, code, channel.slice(0, 20));
  }
  await subscribed(client, `lobby:${'x'.repeat(249)}`);
  assert.equal(client.state, 'connected');
});

testEach('publishing is refused with the code that says why', async (encoding) => {
  const client = await roost.connected('ann', { encoding });
  const data = encoding.pack({});
  await assert.rejects(client.publish('nowhere:news', data), { code: 102 });
  await assert.rejects(client.publish('nön-ascii', data), { code: 107 });
  await assert.rejects(client.publish('closed:news', data), { code: 103 });
  const radio = fresh('radio');
  await subscribed(client, radio);
  await assert.rejects(client.publish(radio, data), { code: 103 }, 'a subscriber of the radio');
  const channel = fresh();
  await assert.rejects(client.publish(channel, data), { code: 103 }, 'before subscribing');
  const subscription = await subscribed(client, channel);
  await client.publish(channel, data);
  subscription.unsubscribe();
  await assert.rejects(client.publish(channel, data), { code: 103 }, 'after unsubscribing');
});

testEach('who may publish need not subscribe', async (encoding) => {
  const client = await roost.connected('ann', { encoding });
  const channel = fresh('wall');
  const reader = await roost.connected('bob', { encoding });
  const { inbox } = await follow(reader, channel, { token: sign({ sub: 'bob', channel }) });
  await client.publish(channel, encoding.pack({ from: 'outside' }));
  assert.deepEqual(await inbox.take(1), [{ from: 'outside' }]);
});

testEach('a namespace has its own rules', async (encoding) => {
  const client = await roost.connected('ann', { encoding });
  const inside = await follow(client, 'lobby:news');
  const outside = await follow(client, 'news');
  await inside.subscription.publish(encoding.pack({ to: 'lobby' }));
  await outside.subscription.publish(encoding.pack({ to: 'all' }));
  assert.deepEqual(await inside.inbox.take(1), [{ to: 'lobby' }]);
  assert.deepEqual(await outside.inbox.take(1), [{ to: 'all' }]);
  assert.equal(inside.inbox.items.length, 1);
  assert.equal(outside.inbox.items.length, 1);
});

testEach('user-limited channels let in the users that they name', async (encoding) => {
  for (const namespace of ['members', 'mixed-members']) {
    const channel = `${fresh(namespace)}#ann,bob`;
    const ann = await roost.connected('ann', { encoding });
    const bob = await roost.connected('bob', { encoding });
    const carol = await roost.connected('carol', { encoding });
    await subscribed(ann, channel);
    await subscribed(bob, channel);
    assert.equal((await refusedSubscribe(carol, channel)).code, 103, namespace);
    // Only what follows the last # counts.
    const nested = `${fresh(namespace)}#carol#ann`;
    await subscribed(ann, nested);
    assert.equal((await refusedSubscribe(carol, nested)).code, 103, namespace);
    assert.equal((await refusedSubscribe(ann, `${fresh(namespace)}#an`)).code, 103, namespace);
  }
  const ann = await roost.connected('ann', { encoding });
  await subscribed(ann, fresh('mixed-members'));
  assert.equal((await refusedSubscribe(ann, fresh('members'))).code, 103);
  // Without the option # means nothing.
  await subscribed(ann, `${fresh('lobby')}#bob`);
});

testEach('channel_regex is the only test of the part after the namespace', async (encoding) => {
  const client = await roost.connected('ann', { encoding });
  await subscribed(client, encoding === JSON_ENCODING ? 'numbers:1' : 'numbers:2');
  await subscribed(client, 'umlauts:äöü');
  for (const channel of ['numbers:', 'numbers:1a', 'numbers:numbers:1', 'umlauts:abc']) {
    assert.equal((await refusedSubscribe(client, channel)).code, 107, channel);
  }
  await assert.rejects(client.publish('numbers:1a', encoding.pack({})), { code: 107 });
});

test('publication_data_format says what may be published', async () => {
  const client = await roost.connected('ann', { encoding: PROTOBUF_ENCODING });
  const reader = await roost.connected('bob', { encoding: PROTOBUF_ENCODING });
  const texts = ['{"a":1}', '[1]', '"text"', '17', 'null', 'not JSON', '{"a":1', '\u0000\u00ff', ''];
  const lawful = {
    json: ['{"a":1}', '[1]', '"text"', '17', 'null'],
    object: ['{"a":1}'],
    bytes: texts,
    // Where nothing is said clients publish JSON.
    lobby: ['{"a":1}', '[1]', '"text"', '17', 'null'],
  };
  for (const [namespace, expected] of Object.entries(lawful)) {
    const channel = fresh(namespace);
    await subscribed(client, channel);
    const received = [];
    const subscription = reader.newSubscription(channel);
    const all = new Promise((resolve) => {
      subscription.on('publication', ({ data }) => {
        received.push(Buffer.from(data).toString());
        if (received.length === expected.length) resolve();
      });
    });
    subscription.subscribe();
    await subscription.ready(5000);
    const taken = [];
    for (const text of texts) {
      const published = client.publish(channel, new TextEncoder().encode(text));
      await published.then(
        () => taken.push(text),
        (error) => assert.equal(error.code, 107, `${namespace} ${text}`),
      );
    }
    assert.deepEqual(taken, expected, namespace);
    await all;
    assert.deepEqual(received, expected, namespace);
  }
});

test('publication_data_format holds for JSON clients too', async () => {
  const client = await roost.connected('ann');
  const channel = fresh('object');
  const { inbox } = await follow(client, channel);
  for (const value of [[1], 'text', 17, true]) {
    await assert.rejects(client.publish(channel, value), { code: 107 }, JSON.stringify(value));
  }
  await client.publish(channel, { a: 1 });
  assert.deepEqual(await inbox.take(1), [{ a: 1 }]);
});
