// Recovery: what was published while a client was away, exactly once and in order, or a plain no.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  ask,
  collect,
  everywhere,
  follow,
  fresh,
  Line,
  message,
  messages,
  next,
  NODES,
  payloads,
  publishAll,
  range,
  shared,
  testEach,
  unsubscribed,
  withRoost,
} from './harness.mjs';

const CONFIG = `
[[channel.namespaces]]
name = "stream"
history_size = 1000
history_ttl = "300s"
force_recovery = true
allow_subscribe_for_client = true
allow_publish_for_client = true

[[channel.namespaces]]
name = "asked"
history_size = 1000
history_ttl = "300s"
allow_recovery = true
allow_positioning = true
allow_subscribe_for_client = true
allow_publish_for_client = true

[[channel.namespaces]]
name = "reader"
history_size = 1000
history_ttl = "300s"
allow_history_for_subscriber = true
allow_subscribe_for_client = true

[[channel.namespaces]]
name = "unasked"
history_size = 1000
history_ttl = "300s"
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
name = "cached"
history_size = 1
history_ttl = "300s"
force_recovery = true
force_recovery_mode = "cache"
auto_cache_recover = true
allow_subscribe_for_client = true
allow_publish_for_client = true
`;

const roost = shared({ flags: ['--shards', '2'], config: CONFIG });

/** A subscriber behind a line that can be cut, and a publisher with a connection of its own. */
async function pair(encoding, channel, options) {
  const line = await Line.to(roost);
  const reader = await roost.connected('ann', { encoding, url: line.url });
  const writer = await roost.connected('bob', { encoding });
  const { subscription, inbox, context } = await follow(reader, channel, options);
  return { line, reader, writer, subscription, inbox, context };
}

/** Cuts the line, runs `meanwhile`, heals it: the context of the subscribe that follows. */
async function away({ line, reader, subscription }, meanwhile) {
  const lost = next(reader, 'connecting');
  line.cut();
  // 1 is the SDK's own code for a transport that broke off.
  assert.equal((await lost).code, 1);
  await meanwhile();
  const again = next(subscription, 'subscribed');
  line.heal();
  return again;
}

testEach('over several cuts everything arrives once and in order', async (encoding) => {
  const channel = fresh('stream');
  const both = await pair(encoding, channel);
  assert.deepEqual([both.context.positioned, both.context.recoverable], [true, true]);
  assert.deepEqual([both.context.wasRecovering, both.context.recovered], [false, false]);
  assert.notEqual(both.context.streamPosition.epoch, '');
  let count = 0;
  const publish = async (more) => {
    const from = count;
    count += more;
    await publishAll(both.writer, channel, range(from, count));
  };
  for (let turn = 0; turn < 6; turn += 1) {
    // Some of these are on their way when the line is cut, some come while it is being healed.
    const before = publish(30);
    if (turn % 2 === 0) await before;
    let after;
    const context = await away(both, async () => {
      await before;
      await publish(30);
      after = publish(30);
    });
    await after;
    assert.deepEqual([context.wasRecovering, context.recovered], [true, true], `turn ${turn}`);
    assert.equal(context.streamPosition.epoch, both.context.streamPosition.epoch);
  }
  await publish(1);
  assert.deepEqual(await both.inbox.take(count), range(0, count));
  assert.equal(both.inbox.items.length, count);
});

testEach('a cut without publications recovers nothing', async (encoding) => {
  const channel = fresh('stream');
  const both = await pair(encoding, channel);
  await publishAll(both.writer, channel, [1]);
  await both.inbox.take(1);
  const context = await away(both, async () => {});
  assert.deepEqual([context.wasRecovering, context.recovered], [true, true]);
  assert.equal(context.hasRecoveredPublications, false);
  await publishAll(both.writer, channel, [2]);
  assert.deepEqual(await both.inbox.take(2), [1, 2]);
});

testEach('a stream that begins while the client is away is recovered from its start', async (encoding) => {
  const channel = fresh('stream');
  const both = await pair(encoding, channel);
  assert.equal(both.context.streamPosition.offset, 0);
  const context = await away(both, () => publishAll(both.writer, channel, [1, 2, 3]));
  assert.equal(context.recovered, true);
  assert.deepEqual(await both.inbox.take(3), [1, 2, 3]);
});

testEach('offsets go on where they were', async (encoding) => {
  const channel = fresh('stream');
  const both = await pair(encoding, channel);
  const publications = collect(both.subscription, 'publication');
  await publishAll(both.writer, channel, [1, 2]);
  await away(both, () => publishAll(both.writer, channel, [3, 4]));
  await publishAll(both.writer, channel, [5]);
  const seen = (await publications.take(5)).map(({ offset, info }) => [offset, info.user]);
  assert.deepEqual(seen, range(1, 6).map((offset) => [offset, 'bob']));
});

testEach('leaving a channel keeps the place in it', async (encoding) => {
  const channel = fresh('stream');
  const { writer, subscription, inbox } = await pair(encoding, channel);
  await publishAll(writer, channel, [1]);
  await inbox.take(1);
  await unsubscribed(subscription);
  await publishAll(writer, channel, [2, 3]);
  const again = next(subscription, 'subscribed');
  subscription.subscribe();
  assert.equal((await again).recovered, true);
  assert.deepEqual(await inbox.take(3), [1, 2, 3]);
});

testEach('a subscription may begin at a place that is known', async (encoding) => {
  const channel = fresh('stream');
  const { writer, context } = await pair(encoding, channel);
  await publishAll(writer, channel, [1, 2, 3, 4]);
  await everywhere(roost, channel, 4);
  const late = await roost.connected('carol', { encoding });
  const { epoch } = context.streamPosition;
  const from = await follow(late, channel, { since: { offset: 2, epoch } });
  assert.deepEqual([from.context.wasRecovering, from.context.recovered], [true, true]);
  assert.deepEqual(await from.inbox.take(2), [3, 4]);
  const wrong = await roost.connected('dave', { encoding });
  const other = await follow(wrong, channel, { since: { offset: 2, epoch: 'other' } });
  assert.deepEqual([other.context.wasRecovering, other.context.recovered], [true, false]);
  assert.deepEqual(other.context.streamPosition, { offset: 4, epoch });
  await publishAll(writer, channel, [5]);
  assert.deepEqual(await from.inbox.take(3), [3, 4, 5]);
  assert.deepEqual(await other.inbox.take(1), [5]);
});

testEach('a history that is too short says so, and goes on from its end', async (encoding) => {
  const channel = fresh('short');
  const both = await pair(encoding, channel);
  await publishAll(both.writer, channel, [1, 2]);
  await both.inbox.take(2);
  const context = await away(both, async () => {
    await publishAll(both.writer, channel, range(3, 9));
    await everywhere(roost, channel, 8);
  });
  assert.deepEqual([context.wasRecovering, context.recovered], [true, false]);
  assert.equal(context.hasRecoveredPublications, false);
  assert.equal(context.streamPosition.offset, 8);
  await publishAll(both.writer, channel, [9]);
  assert.deepEqual(await both.inbox.take(3), [1, 2, 9]);
  // Five are kept, so five can be missed.
  const again = await away(both, () => publishAll(both.writer, channel, range(10, 15)));
  assert.equal(again.recovered, true);
  assert.deepEqual(await both.inbox.take(8), [1, 2, ...range(9, 15)]);
});

testEach('more than a recovery may bring is not recovered', async (encoding) => {
  const config = `${CONFIG}\n[client]\nrecovery_max_publication_limit = 10\n`;
  await withRoost({ config }, async (node) => {
    const writer = await node.connected('bob', { encoding });
    const channel = fresh('stream');
    await publishAll(writer, channel, [1]);
    const first = await follow(writer, channel);
    const { epoch } = first.context.streamPosition;
    await publishAll(writer, channel, range(2, 12));
    await everywhere(node, channel, 11);
    for (const [offset, recovered] of [[1, true], [0, false]]) {
      const reader = await node.connected('ann', { encoding });
      const { context } = await follow(reader, channel, { since: { offset, epoch } });
      assert.equal(context.recovered, recovered, `from ${offset}`);
    }
  });
});

testEach('a client may ask for recovery where that is allowed', async (encoding) => {
  const channel = fresh('asked');
  const both = await pair(encoding, channel, { recoverable: true });
  assert.deepEqual([both.context.positioned, both.context.recoverable], [true, true]);
  await away(both, () => publishAll(both.writer, channel, [1, 2]));
  assert.deepEqual(await both.inbox.take(2), [1, 2]);

  const client = await roost.connected('carol', { encoding });
  const granted = async (namespace, options) => {
    const { context } = await follow(client, fresh(namespace), options);
    return [context.positioned, context.recoverable];
  };
  assert.deepEqual(await granted('asked', {}), [false, false]);
  assert.deepEqual(await granted('asked', { positioned: true }), [true, false]);
  // Who may read the history may recover from it.
  assert.deepEqual(await granted('reader', { recoverable: true }), [true, true]);
  assert.deepEqual(await granted('unasked', { recoverable: true, positioned: true }), [false, false]);
  assert.deepEqual(await granted('', { recoverable: true, positioned: true }), [false, false]);
});

testEach('a state that is loaded again takes the place of a recovery that fails', async (encoding) => {
  const channel = fresh('short');
  const { writer, context } = await pair(encoding, channel);
  await publishAll(writer, channel, range(1, 9));
  const { epoch } = context.streamPosition;
  const client = await roost.connected('carol', { encoding });
  await everywhere(roost, channel, 8);
  const positions = [
    { offset: 1, epoch },
    { offset: 5, epoch: 'other' },
    { offset: 6, epoch },
  ];
  const { inbox, context: done } = await follow(client, channel, {
    minResubscribeDelay: 10,
    maxResubscribeDelay: 50,
    getState: async () => positions.shift(),
  });
  assert.equal(positions.length, 0);
  assert.equal(done.recovered, true);
  assert.deepEqual(await inbox.take(2), [7, 8]);
});

test('a recovery that must not fail is answered with 112', async () => {
  const channel = fresh('short');
  const writer = await roost.connected('bob');
  await publishAll(writer, channel, range(1, 9));
  const socket = await roost.session('ann');
  const request = { channel, recover: true, offset: 1, flag: 2 };
  const { error } = await ask(socket, { id: 2, subscribe: request });
  assert.deepEqual(error, { code: 112, message: 'unrecoverable position' });
  // Nothing of the refused one is left.
  const { subscribe } = await ask(socket, { id: 3, subscribe: { ...request, offset: 8 } });
  assert.deepEqual([subscribe.was_recovering, subscribe.recovered], [true, true]);
});

test('a recovered result stands at the place that was asked for', async () => {
  const channel = fresh('stream');
  const writer = await roost.connected('bob');
  await publishAll(writer, channel, ['a', 'b', 'c']);
  const socket = await roost.session('ann');
  const plain = (await ask(socket, { id: 2, subscribe: { channel } })).subscribe;
  assert.deepEqual([plain.offset, plain.recoverable, plain.positioned], [3, true, true]);
  assert.equal(plain.publications, undefined);
  assert.equal(plain.was_recovering, undefined);
  await ask(socket, { id: 3, unsubscribe: { channel } });
  const { epoch } = plain;
  const recovering = { channel, recover: true, offset: 1, epoch };
  const { subscribe } = await ask(socket, { id: 4, subscribe: recovering });
  assert.deepEqual([subscribe.offset, subscribe.epoch], [1, epoch]);
  assert.deepEqual([subscribe.was_recovering, subscribe.recovered], [true, true]);
  const missed = subscribe.publications.map(({ data, offset }) => [data, offset]);
  assert.deepEqual(missed, [
    ['b', 2],
    ['c', 3],
  ]);
});

test('the first publication of a stream tells its epoch', async () => {
  const channel = fresh('stream');
  const socket = await roost.session('ann');
  const { subscribe } = await ask(socket, { id: 2, subscribe: { channel } });
  const writer = await roost.connected('bob');
  await publishAll(writer, channel, ['a', 'b']);
  const is = ({ push }) => push?.pub?.offset === 2;
  const second = await message(socket, is, 'the second publication');
  const first = messages(socket).find(({ push }) => push?.pub?.offset === 1);
  assert.equal(first.push.pub.epoch, subscribe.epoch);
  assert.equal(second.push.pub.epoch, undefined);
});

testEach('in cache mode the latest publication is what is recovered', async (encoding) => {
  const channel = fresh('latest');
  const both = await pair(encoding, channel);
  await publishAll(both.writer, channel, [1, 2]);
  await both.inbox.take(2);
  const missed = await away(both, async () => {
    await publishAll(both.writer, channel, [3, 4, 5]);
    await everywhere(roost, channel, 5);
  });
  assert.deepEqual([missed.wasRecovering, missed.recovered], [true, true]);
  await publishAll(both.writer, channel, [6]);
  assert.deepEqual(await both.inbox.take(4), [1, 2, 5, 6]);
  const nothing = await away(both, async () => {});
  assert.deepEqual([nothing.wasRecovering, nothing.recovered], [true, true]);
  assert.equal(nothing.hasRecoveredPublications, false);
  await publishAll(both.writer, channel, [7]);
  assert.deepEqual(await both.inbox.take(5), [1, 2, 5, 6, 7]);

  // Only who recovers gets it.
  const late = await follow(await roost.connected('carol', { encoding }), channel);
  assert.deepEqual([late.context.wasRecovering, late.context.recovered], [false, false]);
  await publishAll(both.writer, channel, [8]);
  assert.deepEqual(await late.inbox.take(1), [8]);
});

testEach('auto_cache_recover gives the latest publication to everybody', async (encoding) => {
  const channel = fresh('cached');
  const writer = await roost.connected('bob', { encoding });
  const early = await follow(await roost.connected('ann', { encoding }), channel);
  assert.equal(early.context.wasRecovering, true);
  assert.equal(early.context.hasRecoveredPublications, false);
  await publishAll(writer, channel, [1, 2]);
  const late = await follow(await roost.connected('carol', { encoding }), channel);
  assert.deepEqual([late.context.wasRecovering, late.context.recovered], [true, true]);
  await publishAll(writer, channel, [3]);
  assert.deepEqual(await early.inbox.take(3), [1, 2, 3]);
  assert.deepEqual(await late.inbox.take(2), [2, 3]);
});

testEach('a server that was started anew recovers what is not in its own memory', async (encoding) => {
  await withRoost({ config: CONFIG }, async (node) => {
    const channel = fresh('stream');
    const reader = await node.connected('ann', { encoding });
    const writer = await node.connected('bob', { encoding });
    const { subscription, inbox, context } = await follow(reader, channel);
    await publishAll(writer, channel, [1, 2]);
    await inbox.take(2);
    const lost = [reader, writer].map((client) => next(client, 'connecting'));
    const ready = next(writer, 'connected', 60_000);
    const again = next(subscription, 'subscribed', 60_000);
    assert.equal(await node.down(), 0);
    await Promise.all(lost);
    await node.up();
    const after = await again;
    // Of two nodes the broker has the history, and goes on.
    assert.deepEqual([after.wasRecovering, after.recovered], [true, NODES > 1]);
    assert.equal(after.streamPosition.offset, NODES > 1 ? 2 : 0);
    const isSame = after.streamPosition.epoch === context.streamPosition.epoch;
    assert.equal(isSame, NODES > 1);
    await ready;
    await publishAll(writer, channel, [3]);
    assert.deepEqual(await inbox.take(3), [1, 2, 3]);
  });
});

testEach('many subscribers recover each from its own place', async (encoding) => {
  const channel = fresh('stream');
  const line = await Line.to(roost);
  const writer = await roost.connected('bob', { encoding });
  const readers = [];
  for (let number = 0; number < 20; number += 1) {
    const client = await roost.connected(`user-${number}`, { encoding, url: line.url });
    readers.push({ client, from: number, ...(await follow(client, channel)) });
    await publishAll(writer, channel, [number]);
  }
  const again = readers.map(({ subscription }) => next(subscription, 'subscribed'));
  const lost = readers.map(({ client }) => next(client, 'connecting'));
  line.cut();
  await Promise.all(lost);
  await publishAll(writer, channel, range(20, 40));
  line.heal();
  for (const context of await Promise.all(again)) assert.equal(context.recovered, true);
  await publishAll(writer, channel, [40]);
  for (const { from, inbox } of readers) {
    const expected = range(from, 41);
    assert.deepEqual(await inbox.take(expected.length), expected);
  }
});

testEach('a subscription without recovery misses what was published meanwhile', async (encoding) => {
  const channel = fresh('unasked');
  const both = await pair(encoding, channel);
  const context = await away(both, () => publishAll(both.writer, channel, [1, 2]));
  assert.deepEqual([context.wasRecovering, context.recovered], [false, false]);
  await publishAll(both.writer, channel, [3]);
  assert.deepEqual(await both.inbox.take(1), [3]);
});

testEach('two subscriptions of a client recover each for itself', async (encoding) => {
  const channels = [fresh('stream'), fresh('stream')];
  const both = await pair(encoding, channels[0]);
  const second = both.reader.newSubscription(channels[1]);
  const inbox = payloads(second, encoding);
  second.subscribe();
  await second.ready(5000);
  const other = next(second, 'subscribed');
  const context = await away(both, async () => {
    await publishAll(both.writer, channels[0], [1]);
    await publishAll(both.writer, channels[1], [2, 3]);
  });
  assert.equal(context.recovered, true);
  assert.equal((await other).recovered, true);
  assert.deepEqual(await both.inbox.take(1), [1]);
  assert.deepEqual(await inbox.take(2), [2, 3]);
});
