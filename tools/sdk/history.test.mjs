// Reading a channel's history: pages both ways, positions, and who may not.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  ask,
  follow,
  fresh,
  pages,
  publishAll,
  range,
  readsOfTen,
  refusedSubscribe,
  shared,
  subscribed,
  testEach,
  until,
} from './harness.mjs';

const roost = shared({
  flags: ['--shards', '2'],
  config: `
[client]
history_max_publication_limit = 50

[[channel.namespaces]]
name = "log"
history_size = 100
history_ttl = "300s"
allow_subscribe_for_client = true
allow_publish_for_subscriber = true
allow_history_for_subscriber = true

[[channel.namespaces]]
name = "short"
history_size = 5
history_ttl = "300s"
allow_publish_for_client = true
allow_history_for_client = true

[[channel.namespaces]]
name = "brief"
history_size = 5
history_ttl = "1s"
allow_publish_for_client = true
allow_history_for_client = true

[[channel.namespaces]]
name = "unread"
history_size = 5
history_ttl = "300s"
allow_subscribe_for_client = true

[[channel.namespaces]]
name = "none"
allow_subscribe_for_client = true
allow_history_for_client = true
`,
});

/** A subscriber of a channel with these values in its history. */
async function filled(encoding, count) {
  const client = await roost.connected('ann', { encoding });
  const { subscription, inbox } = await follow(client, fresh('log'));
  const values = range(1, count + 1).map((number) => ({ number }));
  await publishAll(client, subscription.channel, values);
  await inbox.take(count);
  return { client, subscription };
}

/** Offsets, after a check that each is at the publication with that number. */
function offsets({ publications }, { unpack }) {
  for (const { data, offset } of publications) assert.deepEqual(unpack(data), { number: offset });
  return publications.map(({ offset }) => offset);
}

testEach('without a limit there is only the position', async (encoding) => {
  const { subscription } = await filled(encoding, 3);
  const history = await subscription.history();
  assert.deepEqual(history.publications, []);
  assert.equal(history.offset, 3);
  assert.notEqual(history.epoch, '');
});

testEach('a channel that nobody published to has a position, too', async (encoding) => {
  const { subscription } = await filled(encoding, 0);
  const history = await subscription.history({ limit: 10 });
  assert.deepEqual(history.publications, []);
  assert.equal(history.offset, 0);
  assert.notEqual(history.epoch, '');
  const again = await subscription.history({ limit: 10, since: { offset: 0, epoch: history.epoch } });
  assert.equal(again.epoch, history.epoch);
});

testEach('history is read forwards and backwards', async (encoding) => {
  const { client, subscription } = await filled(encoding, 10);
  const top = await subscription.history();
  const { epoch } = top;
  const at = (offset) => ({ offset, epoch });
  for (const [request, expected] of readsOfTen(at)) {
    const history = await subscription.history(request);
    assert.deepEqual(offsets(history, encoding), expected, JSON.stringify(request));
    assert.deepEqual([history.offset, history.epoch], [10, epoch], JSON.stringify(request));
  }
  const [first] = (await subscription.history({ limit: 1 })).publications;
  assert.equal(first.channel, subscription.channel);
  assert.deepEqual([first.info.user, first.info.client], ['ann', client.id]);
});

testEach('page by page everything is seen once', async (encoding) => {
  const { subscription } = await filled(encoding, 47);
  for (const reverse of [false, true]) {
    const publications = await pages(subscription, { limit: 10, reverse });
    const seen = offsets({ publications }, encoding);
    assert.deepEqual(seen, reverse ? range(1, 48).reverse() : range(1, 48));
  }
});

testEach('one call returns no more than the node allows', async (encoding) => {
  const { subscription } = await filled(encoding, 60);
  for (const limit of [51, 1000, -1]) {
    const history = await subscription.history({ limit });
    assert.deepEqual(offsets(history, encoding), range(1, 51), `limit ${limit}`);
    assert.equal(history.offset, 60);
  }
  const backwards = await subscription.history({ limit: 1000, reverse: true });
  assert.deepEqual(offsets(backwards, encoding), range(11, 61).reverse());
});

testEach('what is beyond history_size is gone', async (encoding) => {
  const client = await roost.connected('ann', { encoding });
  const channel = fresh('short');
  await publishAll(client, channel, range(1, 13).map((number) => ({ number })));
  const history = await client.history(channel, { limit: 50 });
  assert.deepEqual(offsets(history, encoding), range(8, 13));
  assert.equal(history.offset, 12);
  const since = { offset: 3, epoch: history.epoch };
  assert.deepEqual(offsets(await client.history(channel, { limit: 50, since }), encoding), range(8, 13));
});

testEach('publications end with history_ttl, the position stays', async (encoding) => {
  const client = await roost.connected('ann', { encoding });
  const channel = fresh('brief');
  await publishAll(client, channel, [{ number: 1 }, { number: 2 }]);
  const { epoch } = await client.history(channel);
  const empty = await until(async () => {
    const history = await client.history(channel, { limit: 10 });
    return history.publications.length === 0 ? history : undefined;
  }, 'the history to end');
  assert.deepEqual([empty.offset, empty.epoch], [2, epoch]);
  await publishAll(client, channel, [{ number: 3 }]);
  const { publications, offset } = await client.history(channel, { limit: 10 });
  assert.deepEqual(publications.map((publication) => publication.offset), [3]);
  assert.equal(offset, 3);
});

testEach('history is refused with the code that says why', async (encoding) => {
  const { client, subscription } = await filled(encoding, 3);
  const { channel } = subscription;
  const { epoch } = await subscription.history();
  const refused = async (name, request, code, what) =>
    assert.rejects(client.history(name, request), { code }, what);
  await refused('nowhere:news', { limit: 1 }, 102, 'unknown namespace');
  await refused(fresh('none'), { limit: 1 }, 108, 'no history');
  await refused(fresh(), { limit: 1 }, 108, 'no history without a namespace');
  const unread = fresh('unread');
  await refused(unread, { limit: 1 }, 103, 'no permission');
  await subscribed(client, unread);
  await refused(unread, { limit: 1 }, 103, 'no permission for subscribers either');
  await refused(fresh('log'), { limit: 1 }, 103, 'not subscribed');
  await refused(channel, { limit: 1, since: { offset: 1, epoch: 'other' } }, 112, 'wrong epoch');
  await refused(channel, { limit: 0, since: { offset: 1, epoch: 'other' } }, 112, 'wrong epoch, no limit');
  await refused(channel, { limit: 1, reverse: true, since: { offset: 0, epoch } }, 107, 'before 0');
  subscription.unsubscribe();
  await refused(channel, { limit: 1 }, 103, 'no longer subscribed');
  // A channel that may only be read can't be subscribed for that.
  assert.equal((await refusedSubscribe(client, fresh('short'))).code, 103);
  assert.equal(client.state, 'connected');
});

test('in JSON publications, offset and epoch are always written', async () => {
  const socket = await roost.session('ann');
  const { history } = await ask(socket, { id: 2, history: { channel: fresh('short'), limit: 5 } });
  assert.deepEqual(Object.keys(history).sort(), ['epoch', 'offset', 'publications']);
  assert.deepEqual([history.publications, history.offset], [[], 0]);
  assert.equal(typeof history.epoch, 'string');
});
