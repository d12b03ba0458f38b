// Tag filters. What clients publish has no tags, so filters are told apart by what they make of a
// tag that is missing.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  ask,
  collect,
  follow,
  fresh,
  Line,
  next,
  publishAll,
  range,
  refusedSubscribe,
  shared,
  testEach,
} from './harness.mjs';

const roost = shared({
  flags: ['--shards', '2'],
  config: `
[[channel.namespaces]]
name = "tagged"
history_size = 100
history_ttl = "300s"
force_recovery = true
allow_tags_filter = true
allow_subscribe_for_client = true
allow_publish_for_client = true

[[channel.namespaces]]
name = "plain"
allow_tags_filter = true
allow_subscribe_for_client = true
allow_publish_for_client = true

[[channel.namespaces]]
name = "untagged"
allow_subscribe_for_client = true
`,
});

const there = { key: 'kind', cmp: 'ex' };
const missing = { key: 'kind', cmp: 'nex' };

/** Filters, and whether a publication without tags passes. */
const FILTERS = [
  [missing, true],
  [there, false],
  [{ key: 'kind', cmp: 'eq', val: 'a' }, false],
  [{ key: 'kind', cmp: 'neq', val: 'a' }, true],
  [{ key: 'kind', cmp: 'in', vals: ['a', 'b'] }, false],
  [{ key: 'kind', cmp: 'nin', vals: ['a', 'b'] }, true],
  [{ key: 'kind', cmp: 'sw', val: 'a' }, false],
  [{ key: 'kind', cmp: 'ew', val: 'a' }, false],
  [{ key: 'kind', cmp: 'ct', val: 'a' }, false],
  [{ key: 'kind', cmp: 'lt', val: '1' }, false],
  [{ key: 'kind', cmp: 'lte', val: '1' }, false],
  [{ key: 'kind', cmp: 'gt', val: '-1' }, false],
  [{ key: 'kind', cmp: 'gte', val: '-1' }, false],
  [{ op: 'not', nodes: [there] }, true],
  [{ op: 'not', nodes: [missing] }, false],
  [{ op: 'and', nodes: [missing, { key: 'kind', cmp: 'neq', val: 'a' }] }, true],
  [{ op: 'and', nodes: [missing, there] }, false],
  [{ op: 'or', nodes: [there, missing] }, true],
  [{ op: 'or', nodes: [there, { key: 'kind', cmp: 'eq', val: 'a' }] }, false],
  [{ op: 'and', nodes: [{ op: 'or', nodes: [there, missing] }, { op: 'not', nodes: [there] }] }, true],
  [{ op: 'not', nodes: [{ op: 'and', nodes: [missing, missing] }] }, false],
];

for (const namespace of ['tagged', 'plain']) {
  testEach(`each subscriber gets what its filter lets pass, ${namespace}`, async (encoding) => {
    const channel = fresh(namespace);
    const marker = fresh('plain');
    const writer = await roost.connected('bob', { encoding });
    const all = [];
    for (const [tagsFilter, passes] of FILTERS) {
      const client = await roost.connected('ann', { encoding });
      const filtered = await follow(client, channel, { tagsFilter });
      const last = await follow(client, marker);
      all.push({ tagsFilter, passes, inbox: filtered.inbox, last: last.inbox });
    }
    const free = await follow(await roost.connected('carol', { encoding }), channel);
    await publishAll(writer, channel, [1, 2, 3]);
    // Comes to each connection behind what it got of the other channel.
    await publishAll(writer, marker, ['end']);
    assert.deepEqual(await free.inbox.take(3), [1, 2, 3]);
    for (const { tagsFilter, passes, inbox, last } of all) {
      await last.take(1);
      assert.deepEqual(inbox.items, passes ? [1, 2, 3] : [], JSON.stringify(tagsFilter));
    }
  });
}

testEach('a filter that is not valid is refused with 107', async (encoding) => {
  const client = await roost.connected('ann', { encoding });
  const filters = [
    {},
    { key: 'kind' },
    { key: 'kind', cmp: 'like', val: 'a' },
    { cmp: 'eq', val: 'a' },
    { key: 'kind', cmp: 'eq' },
    { key: 'kind', cmp: 'eq', vals: ['a'] },
    { key: 'kind', cmp: 'in' },
    { key: 'kind', cmp: 'in', vals: [] },
    { key: 'kind', cmp: 'in', val: 'a' },
    { key: 'kind', cmp: 'gt' },
    { op: 'xor', nodes: [there, missing] },
    { op: 'and' },
    { op: 'and', nodes: [] },
    { op: 'or', nodes: [] },
    { op: 'not', nodes: [] },
    { op: 'not', nodes: [there, missing] },
    { op: 'and', nodes: [there, { key: 'kind', cmp: 'like', val: 'a' }] },
  ];
  for (const tagsFilter of filters) {
    const { code } = await refusedSubscribe(client, fresh('tagged'), { tagsFilter });
    assert.equal(code, 107, JSON.stringify(tagsFilter));
  }
  const { code } = await refusedSubscribe(client, fresh('untagged'), { tagsFilter: there });
  assert.equal(code, 107, 'where filters are not allowed');
  assert.equal(client.state, 'connected');
});

testEach('another filter may be set for the next subscribe', async (encoding) => {
  const channel = fresh('plain');
  const client = await roost.connected('ann', { encoding });
  const { subscription, inbox } = await follow(client, channel, { tagsFilter: there });
  // Without history nodes deliver what was acknowledged a moment later: also to who subscribes meanwhile.
  const witnesses = [];
  for (const user of ['bob', 'cid']) {
    witnesses.push(await follow(await roost.connected(user, { encoding }), channel));
  }
  await client.publish(channel, encoding.pack(1));
  for (const witness of witnesses) await witness.inbox.take(1);
  subscription.unsubscribe();
  subscription.setTagsFilter(missing);
  const done = next(subscription, 'subscribed');
  subscription.subscribe();
  await done;
  await client.publish(channel, encoding.pack(2));
  assert.deepEqual(await inbox.take(1), [2]);
});

testEach('what a filter keeps back is no gap, and is not recovered', async (encoding) => {
  const channel = fresh('tagged');
  const line = await Line.to(roost);
  const writer = await roost.connected('bob', { encoding });
  const readers = [];
  for (const tagsFilter of [there, missing]) {
    const client = await roost.connected('ann', { encoding, url: line.url });
    const reader = { client, ...(await follow(client, channel, { tagsFilter })) };
    reader.losses = collect(reader.subscription, 'subscribing');
    readers.push(reader);
  }
  let count = 0;
  for (let turn = 1; turn <= 3; turn += 1) {
    await publishAll(writer, channel, range(count, count + 5));
    await readers[1].inbox.take(count + 5);
    const lost = readers.map(({ client }) => next(client, 'connecting'));
    const again = readers.map(({ subscription }) => next(subscription, 'subscribed'));
    line.cut();
    await Promise.all(lost);
    await publishAll(writer, channel, range(count + 5, count + 10));
    line.heal();
    const [kept, passed] = await Promise.all(again);
    assert.deepEqual([kept.recovered, kept.hasRecoveredPublications], [true, false]);
    assert.deepEqual([passed.recovered, passed.hasRecoveredPublications], [true, true]);
    count += 10;
  }
  assert.deepEqual(await readers[1].inbox.take(count), range(0, count));
  assert.deepEqual(readers[0].inbox.items, []);
  for (const { losses } of readers) assert.equal(losses.items.length, 3, 'only the cuts');
});

test('a filter is sent as tf', async () => {
  const socket = await roost.session('ann');
  const subscribe = (id, tf) => ask(socket, { id, subscribe: { channel: fresh('tagged'), tf } });
  assert.ok((await subscribe(2, there)).subscribe);
  const { error } = await subscribe(3, { key: 'kind', cmp: 'eq' });
  assert.deepEqual(error, { code: 107, message: 'bad request' });
});
