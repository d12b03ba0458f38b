// Offsets that grow and need not be consecutive: with JetStream they are sequences of a stream with many channels.
// All that SDKs do with positions works without counting.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  BROKER,
  collect,
  follow,
  fresh,
  JSON_ENCODING,
  next,
  pages,
  publishAll,
  range,
  readsOfTen,
  shared,
  testEach,
  unsubscribed,
} from './harness.mjs';

const roost = shared({
  flags: ['--shards', '2'],
  config: `
[[channel.namespaces]]
name = "log"
history_size = 100
history_ttl = "300s"
force_recovery = true
allow_subscribe_for_client = true
allow_publish_for_subscriber = true
allow_history_for_subscriber = true
`,
});

/** Publishes numbers to a channel, and as many to another one of its namespace in between: the offsets by number. */
async function filled(encoding, count) {
  const client = await roost.connected('ann', { encoding });
  const { subscription, inbox, context } = await follow(client, fresh('log'));
  const other = await follow(client, fresh('log'));
  const seen = collect(subscription, 'publication');
  for (const number of range(1, count + 1)) {
    await publishAll(client, subscription.channel, [{ number }]);
    await publishAll(client, other.subscription.channel, [{ number }, { number }]);
  }
  await inbox.take(count);
  const offsets = [0, ...seen.items.map(({ offset }) => offset)];
  assert.ok(offsets.every((offset, at) => at === 0 || offset > offsets[at - 1]), 'they grow');
  return { client, subscription, offsets, epoch: context.streamPosition.epoch };
}

const numbers = ({ publications }, { unpack }) => publications.map(({ data }) => unpack(data).number);

testEach('a sparse history is read from any place, forwards and backwards', async (encoding) => {
  const { subscription, offsets, epoch } = await filled(encoding, 10);
  const at = (number) => ({ offset: offsets[number], epoch });
  for (const [request, expected] of readsOfTen(at)) {
    const history = await subscription.history(request);
    assert.deepEqual(numbers(history, encoding), expected, JSON.stringify(request));
    assert.deepEqual([history.offset, history.epoch], [offsets[10], epoch], JSON.stringify(request));
    for (const [index, number] of expected.entries()) {
      assert.equal(history.publications[index].offset, offsets[number], JSON.stringify(request));
    }
  }
});

testEach('sparse pages show everything once', async (encoding) => {
  const { subscription } = await filled(encoding, 27);
  for (const reverse of [false, true]) {
    const publications = await pages(subscription, { limit: 10, reverse });
    const seen = numbers({ publications }, encoding);
    assert.deepEqual(seen, reverse ? range(1, 28).reverse() : range(1, 28));
  }
});

testEach('a client that was away gets what it has missed, from each place', async (encoding) => {
  const { client, subscription, offsets, epoch } = await filled(encoding, 5);
  for (const number of range(0, 6)) {
    const reader = await roost.connected('bob', { encoding });
    const since = { offset: offsets[number], epoch };
    const { context, inbox } = await follow(reader, subscription.channel, { since });
    assert.deepEqual([context.wasRecovering, context.recovered], [true, true], `from ${number}`);
    const missed = await inbox.take(5 - number);
    assert.deepEqual(missed.map((of) => of.number), range(number + 1, 6), `from ${number}`);
    reader.disconnect();
  }
  await unsubscribed(subscription);
  await publishAll(client, (await follow(client, fresh('log'))).subscription.channel, [{ number: 0 }]);
  const again = next(subscription, 'subscribed');
  subscription.subscribe();
  const { recovered, streamPosition } = await again;
  assert.deepEqual([recovered, streamPosition?.offset], [true, offsets[5]]);
});

test('offsets are consecutive where the broker numbers each channel', async () => {
  const { offsets } = await filled(JSON_ENCODING, 4);
  const isDense = offsets.every((offset, at) => offset === at);
  assert.equal(isDense, BROKER !== 'nats');
});
