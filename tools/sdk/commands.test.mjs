// Commands in both encodings: batches, limits, and those that the server doesn't know.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import WebSocket from 'ws';
import {
  ask,
  collect,
  follow,
  FRAMES_ARE_MESSAGES,
  fresh,
  next,
  publishAll,
  range,
  refusedSubscribe,
  shared,
  sign,
  subscribed,
  testEach,
  within,
  withRoost,
} from './harness.mjs';

const MESSAGE_BYTES_MAX = 65_536;

const roost = shared({
  flags: ['--shards', '2'],
  config: `
[client]
channel_limit = 5

[rpc.ping]
enabled = true

[[channel.namespaces]]
name = "news"
allow_subscribe_for_client = true
allow_publish_for_client = true
`,
});

testEach('a publication comes back with who published it', async (encoding) => {
  const client = await roost.connected('ann', { encoding });
  const channel = fresh();
  const { subscription, inbox } = await follow(client, channel);
  const publications = collect(subscription, 'publication');
  const data = { text: 'grüße 🦆 \n "quoted" \u2028', list: [1, 2.5, null, true], nested: { a: {} } };
  await subscription.publish(encoding.pack(data));
  assert.deepEqual(await inbox.take(1), [data]);
  const [publication] = await publications.take(1);
  assert.equal(publication.channel, channel);
  assert.equal(publication.info.user, 'ann');
  assert.equal(publication.info.client, client.id);
  assert.equal(publication.offset, undefined, 'no history, no offset');
});

testEach('order is kept over several channels and publishers', async (encoding) => {
  const channels = [fresh(), fresh(), fresh()];
  const each = 200;
  const clients = [
    await roost.connected('ann', { encoding }),
    await roost.connected('bob', { encoding }),
  ];
  const inboxes = [];
  for (const client of clients) {
    for (const channel of channels) inboxes.push({ channel, ...(await follow(client, channel)) });
  }
  const replies = channels.flatMap((channel) =>
    clients.map((client, from) =>
      publishAll(client, channel, range(0, each).map((number) => ({ from, number }))),
    ),
  );
  await Promise.all(replies);
  const seen = new Map();
  for (const { channel, inbox } of inboxes) {
    const items = await inbox.take(each * clients.length);
    for (const from of clients.keys()) {
      const numbers = items.filter((item) => item.from === from).map((item) => item.number);
      assert.deepEqual(numbers, range(0, each), `${channel} from ${from}`);
    }
    // Every subscriber of a channel sees one and the same order.
    if (seen.has(channel)) assert.deepEqual(items, seen.get(channel), channel);
    seen.set(channel, items);
  }
});

testEach('a batch travels in one frame and every command is answered', async (encoding) => {
  let frames = 0;
  class Counting extends WebSocket {
    send(...args) {
      frames += 1;
      return super.send(...args);
    }
  }
  const client = await roost.connected('ann', { encoding, websocket: Counting });
  const channel = fresh();
  const { inbox } = await follow(client, channel);
  frames = 0;
  client.startBatching();
  const replies = range(0, 100).map((number) => client.publish(channel, encoding.pack({ number })));
  const refused = assert.rejects(client.publish('nowhere:news', encoding.pack({})), { code: 102 });
  await new Promise(setImmediate);
  client.stopBatching();
  await within(Promise.all(replies), 'replies to the batch');
  await refused;
  assert.equal(frames, 1);
  const numbers = (await inbox.take(100)).map((item) => item.number);
  assert.deepEqual(numbers, range(0, 100));
});

testEach('subscriptions made before the connection go with the connect', async (encoding) => {
  const client = roost.client({ encoding, token: sign({ sub: 'ann' }) });
  const channels = [fresh(), fresh(), fresh()];
  const done = channels.map((channel) => {
    const subscription = client.newSubscription(channel);
    subscription.subscribe();
    return next(subscription, 'subscribed');
  });
  client.connect();
  await Promise.all(done);
});

testEach('a client has so many subscriptions and no more', async (encoding) => {
  const client = await roost.connected('ann', { encoding });
  const subscriptions = [];
  for (let count = 0; count < 5; count += 1) {
    subscriptions.push(await subscribed(client, fresh()));
  }
  assert.equal((await refusedSubscribe(client, fresh())).code, 106);
  subscriptions[0].unsubscribe();
  await subscribed(client, fresh());
  assert.equal((await refusedSubscribe(client, fresh())).code, 106);
});

testEach('a message above the size limit stops the client, and others are served on', async (encoding) => {
  const client = await roost.connected('ann', { encoding });
  const other = await roost.connected('bob', { encoding });
  const channel = fresh();
  const { inbox } = await follow(other, channel);
  await subscribed(client, channel);
  const text = 'y'.repeat(MESSAGE_BYTES_MAX - 200);
  await client.publish(channel, encoding.pack({ text }));
  assert.deepEqual(await inbox.take(1), [{ text }]);
  const ended = next(client, 'disconnected');
  client.publish(channel, encoding.pack({ text: text.repeat(2) })).catch(() => {});
  // 3 is the SDK's own code for a close with 1009.
  assert.equal((await ended).code, 3);
  await other.publish(channel, encoding.pack({ after: true }));
  assert.deepEqual((await inbox.take(2))[1], { after: true });
}, FRAMES_ARE_MESSAGES);

testEach('rpc: ping is answered, what nobody handles is not found', async (encoding) => {
  const client = await roost.connected('ann', { encoding });
  const { data } = await client.rpc('ping', encoding.pack({}));
  assert.deepEqual(encoding.unpack(data) ?? {}, {});
  await assert.rejects(client.rpc('anything', encoding.pack({})), { code: 104 });
  assert.equal(client.state, 'connected');
});

test('rpc: ping is not available where it is not enabled', async () => {
  await withRoost({}, async (node) => {
    const client = await node.connected('ann');
    await assert.rejects(client.rpc('ping', {}), { code: 108 });
  });
});

test('rpc: ping may have another name', async () => {
  await withRoost({ config: '\n[rpc.ping]\nenabled = true\nmethod = "alive"\n' }, async (node) => {
    const client = await node.connected('ann');
    await client.rpc('alive', {});
    await assert.rejects(client.rpc('ping', {}), { code: 104 });
  });
});

testEach('what is sent without a reply closes with 3508', async (encoding) => {
  const client = await roost.connected('ann', { encoding });
  const ended = next(client, 'disconnected');
  await client.send(encoding.pack({ to: 'nobody' }));
  const context = await ended;
  assert.deepEqual([context.code, context.reason], [3508, 'not available']);
});

testEach('unsubscribing and subscribing in a loop', async (encoding) => {
  const client = await roost.connected('ann', { encoding });
  const other = await roost.connected('bob', { encoding });
  const channel = fresh('news');
  const { subscription, inbox } = await follow(client, channel);
  for (let turn = 0; turn < 50; turn += 1) {
    const done = next(subscription, 'subscribed');
    subscription.unsubscribe();
    subscription.subscribe();
    await done;
    await other.publish(channel, encoding.pack({ turn }));
    await inbox.take(turn + 1);
  }
  assert.deepEqual(inbox.items, range(0, 50).map((turn) => ({ turn })));
});

test('a command for a channel that is subscribed already is refused with 105', async () => {
  const socket = await roost.session('ann');
  const channel = fresh();
  assert.ok((await ask(socket, { id: 2, subscribe: { channel } })).subscribe);
  assert.equal((await ask(socket, { id: 3, subscribe: { channel } })).error.code, 105);
  assert.deepEqual(await ask(socket, { id: 4, unsubscribe: { channel } }), { id: 4, unsubscribe: {} });
  assert.ok((await ask(socket, { id: 5, subscribe: { channel } })).subscribe);
});
