// Delta compression: publications as patches, which have to arrive as what was sent.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  ask,
  closedBy,
  ENCODINGS,
  follow,
  fresh,
  Line,
  message,
  next,
  publishAll,
  range,
  shared,
  testEach,
} from './harness.mjs';

const roost = shared({
  flags: ['--shards', '2'],
  config: `
[[channel.namespaces]]
name = "delta"
history_size = 300
history_ttl = "300s"
force_recovery = true
allowed_delta_types = ["fossil"]
delta_publish = true
allow_subscribe_for_client = true
allow_publish_for_client = true

[[channel.namespaces]]
name = "full"
history_size = 300
history_ttl = "300s"
force_recovery = true
allow_subscribe_for_client = true
allow_publish_for_client = true

[[channel.namespaces]]
name = "unpatched"
history_size = 300
history_ttl = "300s"
force_recovery = true
allowed_delta_types = ["fossil"]
allow_subscribe_for_client = true
allow_publish_for_client = true
`,
});

/** A document of which little changes from number to number, with characters of 1 to 4 bytes. */
const documentOf = (number) => ({
  title: 'grüße 🦆 \n "quoted" \u2028 '.repeat(10),
  number,
  // Letters that share their first byte: a patch of bytes may cut them in two.
  letters: range(0, 40).map((index) => 'äöüßéñ'[(index * 7 + number) % 6]).join(''),
  birds: range(0, 20).map((index) => ['🦆', '🦉', '🦢'][(index + number) % 3]),
});

/** Numbers that look random and are the same in each run. */
function numbers(seed) {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    return (state >>> 8) % below;
  };
}

/** Texts that come from each other by edits anywhere. */
function edited(count, seed) {
  const below = numbers(seed);
  const letters = ['a', '"', '\\', '\n', 'ä', 'ö', '漢', '字', '🦆', '🦉', '\u0000'];
  let text = Array.from({ length: 200 }, () => letters[below(letters.length)]);
  return range(0, count).map(() => {
    const at = below(text.length + 1);
    const more = Array.from({ length: below(12) }, () => letters[below(letters.length)]);
    text = [...text.slice(0, at), ...more, ...text.slice(at + below(12))];
    return { text: text.join('') };
  });
}

/** A subscriber of each encoding with delta, and one without. */
async function readers(channel) {
  const all = [];
  for (const encoding of ENCODINGS) {
    for (const delta of ['fossil', undefined]) {
      const client = await roost.connected(`${encoding.name} ${delta}`, { encoding });
      all.push({ delta, what: `${encoding.name} ${delta}`, ...(await follow(client, channel, { delta })) });
    }
  }
  return all;
}

testEach('patches give what was published, to every kind of subscriber', async (encoding) => {
  const channel = fresh('delta');
  const all = await readers(channel);
  const writer = await roost.connected('writer', { encoding });
  const documents = range(0, 100).map(documentOf);
  await publishAll(writer, channel, documents);
  for (const { what, delta, subscription, inbox } of all) {
    assert.deepEqual(await inbox.take(documents.length), documents, what);
    assert.equal(inbox.items.length, documents.length, what);
    const stats = subscription.deltaStats();
    if (delta === undefined) {
      assert.equal(stats.numPublications, 0, what);
      continue;
    }
    assert.equal(stats.numPublications, documents.length, what);
    assert.ok(stats.numFullPayloads >= 1, `${what}: the first one is full`);
    assert.ok(stats.numDeltaPayloads > 0, `${what}: ${JSON.stringify(stats)}`);
    assert.ok(stats.bytesReceived < stats.bytesDecoded, `${what}: ${JSON.stringify(stats)}`);
  }
});

testEach('texts edited anywhere arrive as they are', async (encoding) => {
  const channel = fresh('delta');
  const all = await readers(channel);
  const writer = await roost.connected('writer', { encoding });
  for (const seed of [1, 2]) {
    const texts = edited(80, seed);
    await publishAll(writer, channel, texts);
    for (const { what, inbox } of all) {
      assert.deepEqual((await inbox.take(80 * seed)).slice(80 * (seed - 1)), texts, `${what} ${seed}`);
    }
  }
});

testEach('publications that have nothing in common arrive, too', async (encoding) => {
  const channel = fresh('delta');
  const all = await readers(channel);
  const writer = await roost.connected('writer', { encoding });
  const values = [{}, [], 'a', 0, 'x'.repeat(3000), true, documentOf(1), 'x'.repeat(3001), documentOf(2)];
  await publishAll(writer, channel, values);
  for (const { what, inbox } of all) assert.deepEqual(await inbox.take(values.length), values, what);
});

testEach('who subscribes later begins with a full publication', async (encoding) => {
  const channel = fresh('delta');
  const writer = await roost.connected('writer', { encoding });
  const documents = range(0, 30).map(documentOf);
  const inboxes = [];
  for (const [number, value] of documents.entries()) {
    if (number % 10 === 5) {
      const client = await roost.connected(`from ${number}`, { encoding });
      const { subscription, inbox } = await follow(client, channel, { delta: 'fossil' });
      inboxes.push({ from: number, subscription, inbox });
    }
    await publishAll(writer, channel, [value]);
  }
  for (const { from, subscription, inbox } of inboxes) {
    assert.deepEqual(await inbox.take(documents.length - from), documents.slice(from));
    const { numFullPayloads, numDeltaPayloads } = subscription.deltaStats();
    assert.ok(numFullPayloads >= 1 && numDeltaPayloads >= 1, `from ${from}`);
  }
});

testEach('after recovery patches go on from what was recovered', async (encoding) => {
  const channel = fresh('delta');
  const line = await Line.to(roost);
  const writer = await roost.connected('writer', { encoding });
  const all = [];
  for (const delta of ['fossil', undefined]) {
    const client = await roost.connected(`reader ${delta}`, { encoding, url: line.url });
    all.push({ client, delta, ...(await follow(client, channel, { delta })) });
  }
  let count = 0;
  const publish = async (more) => {
    const from = count;
    count += more;
    await publishAll(writer, channel, range(from, count).map(documentOf));
  };
  // Also with nothing, and with one publication missed.
  for (const missed of [20, 0, 1, 5]) {
    await publish(10);
    const lost = all.map(({ client }) => next(client, 'connecting'));
    const again = all.map(({ subscription }) => next(subscription, 'subscribed'));
    line.cut();
    await Promise.all(lost);
    await publish(missed);
    line.heal();
    for (const { recovered } of await Promise.all(again)) assert.equal(recovered, true);
  }
  await publish(10);
  for (const { delta, inbox } of all) {
    assert.deepEqual(await inbox.take(count), range(0, count).map(documentOf), `delta ${delta}`);
    assert.equal(inbox.items.length, count);
  }
  assert.ok(all[0].subscription.deltaStats().numDeltaPayloads > 0);
});

testEach('several publishers make one chain of patches', async (encoding) => {
  const channel = fresh('delta');
  const all = await readers(channel);
  const writers = [
    await roost.connected('one', { encoding }),
    await roost.connected('two', { encoding: ENCODINGS.find((other) => other !== encoding) }),
  ];
  const mark = (value, from) => ({ ...value, from });
  await Promise.all(
    writers.map((writer, from) =>
      publishAll(writer, channel, range(0, 50).map((number) => mark(documentOf(number), from))),
    ),
  );
  const order = await all[0].inbox.take(100);
  for (const from of [0, 1]) {
    const own = order.filter((item) => item.from === from);
    assert.deepEqual(own, range(0, 50).map((number) => mark(documentOf(number), from)));
  }
  for (const { what, inbox } of all) assert.deepEqual(await inbox.take(100), order, what);
});

testEach('where delta is not allowed everything arrives in full', async (encoding) => {
  const channel = fresh('full');
  const client = await roost.connected('ann', { encoding });
  const { subscription, inbox } = await follow(client, channel, { delta: 'fossil' });
  const documents = range(0, 5).map(documentOf);
  await publishAll(client, channel, documents);
  assert.deepEqual(await inbox.take(5), documents);
  assert.equal(subscription.deltaStats().numPublications, 0, 'delta was not granted');
});

testEach('where publishes take no part in delta everything arrives in full', async (encoding) => {
  const channel = fresh('unpatched');
  const client = await roost.connected('ann', { encoding });
  const { subscription, inbox } = await follow(client, channel, { delta: 'fossil' });
  const documents = range(0, 5).map(documentOf);
  await publishAll(client, channel, documents);
  assert.deepEqual(await inbox.take(5), documents);
  const stats = subscription.deltaStats();
  assert.deepEqual([stats.numFullPayloads, stats.numDeltaPayloads], [5, 0]);
});

testEach('what is recovered is patched for who has delta, and full for the others', async (encoding) => {
  const client = await roost.connected('ann', { encoding });
  const channel = fresh('delta');
  const { inbox, context } = await follow(client, channel, { delta: 'fossil' });
  const documents = range(0, 5).map(documentOf);
  await publishAll(client, channel, documents);
  assert.deepEqual(await inbox.take(5), documents);
  const since = { offset: 0, epoch: context.streamPosition.epoch };
  for (const delta of ['fossil', undefined]) {
    const late = await roost.connected('bob', { encoding });
    const from = await follow(late, channel, { since, delta });
    assert.deepEqual(await from.inbox.take(5), documents, `delta ${delta}`);
  }
});

test('in JSON data is a text for who has delta, and as it is for the others', async () => {
  const channel = fresh('delta');
  const writer = await roost.connected('writer');
  const documents = range(0, 3).map(documentOf);
  const patched = await roost.session('patched');
  const plain = await roost.session('plain');
  const granted = await ask(patched, { id: 2, subscribe: { channel, delta: 'fossil' } });
  assert.equal(granted.subscribe.delta, true);
  const without = await ask(plain, { id: 2, subscribe: { channel } });
  assert.equal(without.subscribe.delta, undefined);
  await publishAll(writer, channel, documents);
  const at = (socket, offset) =>
    message(socket, ({ push }) => push?.pub?.offset === offset, `publication ${offset}`);
  const first = (await at(patched, 1)).push.pub;
  assert.equal(first.delta, undefined);
  assert.deepEqual(JSON.parse(first.data), documents[0]);
  for (const offset of [1, 2, 3]) {
    assert.equal(typeof (await at(patched, offset)).push.pub.data, 'string');
    assert.deepEqual((await at(plain, offset)).push.pub.data, documents[offset - 1]);
    assert.equal((await at(plain, offset)).push.pub.delta, undefined);
  }
});

test('a kind of delta that does not exist closes with 3501', async () => {
  const socket = await roost.session('ann');
  const request = { channel: fresh('delta'), delta: 'other' };
  assert.equal((await closedBy(socket, { id: 2, subscribe: request })).code, 3501);
});
