// JSON and Protobuf side by side: one channel, two encodings, and what only one of them can say.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import WebSocket from 'ws';
import {
  collect,
  ENCODINGS,
  follow,
  fresh,
  next,
  PROTOBUF_ENCODING,
  publishAll,
  range,
  shared,
  sign,
  subscribed,
  within,
  withRoost,
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
allow_publish_for_client = true
allow_history_for_client = true

[[channel.namespaces]]
name = "bytes"
history_size = 100
history_ttl = "300s"
allow_subscribe_for_client = true
allow_publish_for_client = true
allow_history_for_client = true
publication_data_format = "binary"
`,
});

const NOT_JSON = Uint8Array.from([0, 0xff, 0x7b, 0x80, 0x0a]);

test('both encodings see one and the same channel', async () => {
  const channel = fresh('log');
  const members = [];
  for (const encoding of [...ENCODINGS, ...ENCODINGS]) {
    const client = await roost.connected(encoding.name, { encoding });
    const { subscription, inbox } = await follow(client, channel);
    members.push({ client, inbox, contexts: collect(subscription, 'publication') });
  }
  const values = (from) => range(0, 50).map((number) => ({ from, number, text: 'grüße 🦆 \n "\u2028' }));
  await Promise.all(members.map(({ client }, from) => publishAll(client, channel, values(from))));
  const order = await members[0].inbox.take(200);
  for (const from of members.keys()) {
    assert.deepEqual(order.filter((item) => item.from === from), values(from));
  }
  for (const { inbox, contexts } of members) {
    assert.deepEqual(await inbox.take(200), order);
    assert.equal(inbox.items.length, 200);
    for (const [index, { offset, info }] of contexts.items.entries()) {
      assert.equal(offset, index + 1);
      assert.equal(info.user, ENCODINGS[order[index].from % 2].name);
      assert.equal(info.client, members[order[index].from].client.id);
    }
  }
});

test('both encodings read one and the same history, presence and infos', async () => {
  const channel = fresh('log');
  for (const encoding of ENCODINGS) {
    const token = sign({ sub: encoding.name, info: { speaks: encoding.name } });
    const client = await roost.connected('', { encoding, token });
    await subscribed(client, channel);
    await publishAll(client, channel, [{ from: encoding.name }]);
  }
  const seen = [];
  for (const encoding of ENCODINGS) {
    const client = await roost.connected('reader', { encoding });
    const { publications, offset, epoch } = await client.history(channel, { limit: 10 });
    seen.push({
      offset,
      epoch,
      publications: publications.map((publication) => [
        publication.offset,
        encoding.unpack(publication.data),
        publication.info.user,
        encoding.unpack(publication.info.connInfo),
      ]),
    });
  }
  assert.deepEqual(seen[0], seen[1]);
  assert.deepEqual(
    seen[0].publications,
    ENCODINGS.map(({ name }, index) => [index + 1, { from: name }, name, { speaks: name }]),
  );
});

test('what is not JSON closes the JSON subscribers with 3506, and only them', async () => {
  const channel = fresh('bytes');
  const elsewhere = fresh();
  const bystander = await roost.connected('bystander');
  const { inbox: calm } = await follow(bystander, elsewhere);
  const writer = await roost.connected('writer', { encoding: PROTOBUF_ENCODING });
  const reader = await roost.connected('reader', { encoding: PROTOBUF_ENCODING });
  // Only where the namespace allows it.
  await assert.rejects(writer.publish(fresh(), NOT_JSON), { code: 107 });
  await subscribed(writer, channel);
  const subscription = await subscribed(reader, channel);
  const received = collect(subscription, 'publication', ({ data }) => [...data]);
  const struck = [];
  for (const user of ['ann', 'bob']) {
    const client = await roost.connected(user);
    const { inbox } = await follow(client, channel);
    struck.push({ client, inbox, ended: next(client, 'disconnected') });
  }
  await writer.publish(channel, new TextEncoder().encode('{"still":"JSON"}'));
  for (const { inbox } of struck) assert.deepEqual(await inbox.take(1), [{ still: 'JSON' }]);
  await writer.publish(channel, NOT_JSON);
  for (const { ended } of struck) {
    const { code, reason } = await ended;
    assert.deepEqual([code, reason], [3506, 'inappropriate protocol']);
  }
  await writer.publish(channel, Uint8Array.from([1]));
  assert.deepEqual((await received.take(3)).slice(1), [[...NOT_JSON], [1]]);
  await follow(writer, elsewhere);
  await writer.publish(elsewhere, new TextEncoder().encode('"hello"'));
  assert.deepEqual(await calm.take(1), ['hello']);
  for (const client of [writer, reader, bystander]) assert.equal(client.state, 'connected');
});

test('a history that is not JSON closes who reads it in JSON with 3506', async () => {
  const channel = fresh('bytes');
  const writer = await roost.connected('writer', { encoding: PROTOBUF_ENCODING });
  await writer.publish(channel, NOT_JSON);
  const { publications } = await writer.history(channel, { limit: 10 });
  assert.deepEqual(publications.map(({ data }) => [...data]), [[...NOT_JSON]]);
  const reader = await roost.connected('reader');
  // The position alone can be told.
  assert.equal((await reader.history(channel)).offset, 1);
  const ended = next(reader, 'disconnected');
  reader.history(channel, { limit: 10 }).catch(() => {});
  assert.equal((await ended).code, 3506);
  assert.equal(writer.state, 'connected');
});

test('an info that is not JSON is given to Protobuf clients as it is', async () => {
  const b64info = Buffer.from(NOT_JSON).toString('base64');
  const token = sign({ sub: 'ann', b64info });
  const client = await roost.connected('', { encoding: PROTOBUF_ENCODING, token });
  const channel = fresh();
  const subscription = await subscribed(client, channel);
  const publications = collect(subscription, 'publication', ({ info }) => [...info.connInfo]);
  await subscription.publish(PROTOBUF_ENCODING.pack({}));
  assert.deepEqual(await publications.take(1), [[...NOT_JSON]]);
});

test('Protobuf is chosen by subprotocol or by query', async () => {
  const ways = [
    [{ protocols: ['centrifuge-protobuf'] }, 'centrifuge-protobuf', true],
    [{ protocols: ['unknown', 'centrifuge-protobuf'] }, 'centrifuge-protobuf', true],
    [{ protocols: ['centrifuge-json'] }, 'centrifuge-json', false],
    [{ protocols: [] }, '', false],
    [{ url: `${roost.url}?format=protobuf` }, '', true],
    [{ url: `${roost.url}?cf_protocol=protobuf` }, '', true],
    [{ url: `${roost.url}?format=json` }, '', false],
  ];
  for (const [options, protocol, protobuf] of ways) {
    const what = JSON.stringify(options);
    const socket = await roost.socket(options);
    assert.equal(socket.protocol, protocol, what);
    const token = sign({ sub: 'ann' });
    if (protobuf) socket.send(connectOf(token));
    else socket.send(JSON.stringify({ id: 1, connect: { token } }));
    const [frame] = await socket.frames.take(1);
    assert.equal(Buffer.isBuffer(frame), protobuf, what);
    if (protobuf) assert.deepEqual([...frame.subarray(1, 4)], [0x08, 1, 0x2a], what);
    else assert.ok(JSON.parse(frame).connect, what);
    socket.close();
  }
});

/** A field of a Protobuf message that holds bytes, with a length below 2^14. */
function field(number, bytes) {
  const { length } = bytes;
  const size = length < 128 ? [length] : [(length & 127) | 128, length >> 7];
  return Buffer.concat([Buffer.from([(number << 3) | 2, ...size]), bytes]);
}

/** A message with its length in front. */
const delimited = (bytes) => field(0, bytes).subarray(1);

/** The connect command with this token, and the id 1. */
function connectOf(token) {
  const request = field(1, Buffer.from(token));
  return delimited(Buffer.concat([Buffer.from([0x08, 1]), field(4, request)]));
}

const hex = (text) => Buffer.from(text.replaceAll(' ', ''), 'hex');

test('Protobuf commands are answered to the byte', async () => {
  await withRoost({ flags: ['--client.insecure'] }, async (node) => {
    const socket = await node.socket({ protocols: ['centrifuge-protobuf'] });
    const exchange = async (command, reply, what) => {
      const { length } = socket.frames.items;
      socket.send(hex(command));
      const frame = (await socket.frames.take(length + 1)).at(-1);
      if (reply !== undefined) assert.equal(frame.toString('hex'), hex(reply).toString('hex'), what);
      return frame;
    };
    // connect {name: "js"}
    const connected = await exchange('08 08 01 22 04 22 02 6a 73');
    assert.deepEqual([...connected.subarray(1, 4)], [0x08, 1, 0x2a]);
    assert.equal(connected[0], connected.length - 1);
    await exchange('0a 08 02 2a 06 0a 04 74 65 73 74', '04 08 02 32 00', 'subscribe test');
    await exchange(
      '0b 08 03 2a 07 0a 05 24 67 6f 6c 64',
      '19 08 03 12 15 08 67 12 11 70 65 72 6d 69 73 73 69 6f 6e 20 64 65 6e 69 65 64',
      'subscribe $gold',
    );
    await exchange('0a 08 04 32 06 0a 04 74 65 73 74', '04 08 04 3a 00', 'unsubscribe test');
    // Two commands in one frame are answered in their order, in one frame or in two.
    const { length } = socket.frames.items;
    socket.send(hex('0a 08 05 2a 06 0a 04 74 65 73 74 0a 08 06 32 06 0a 04 74 65 73 74'));
    const expected = hex('04 08 05 32 00 04 08 06 3a 00');
    for (let frames = 1; ; frames += 1) {
      const taken = (await socket.frames.take(length + frames)).slice(length);
      const bytes = Buffer.concat(taken);
      if (bytes.length < expected.length) continue;
      assert.equal(bytes.toString('hex'), expected.toString('hex'));
      break;
    }
  });
});

test('Protobuf that is malformed closes with 3501', async () => {
  const frames = {
    empty: '',
    'cut short': '0a 08 02 2a',
    'a length beyond the frame': '7f 08 02',
    'a length without end': 'ff ff ff ff ff ff ff ff ff ff ff',
    'a second message cut short': '0a 08 02 2a 06 0a 04 74 65 73 74 05',
    'no message': '04 ff ff ff ff',
    'no request': '02 08 02',
    'a second connect': '04 08 02 22 00',
    'no id': '08 2a 06 0a 04 74 65 73 74',
    'no channel': '04 08 02 2a 00',
  };
  for (const [what, frame] of Object.entries(frames)) {
    const socket = await roost.socket({ protocols: ['centrifuge-protobuf'] });
    socket.send(connectOf(sign({ sub: 'ann' })));
    await socket.frames.take(1);
    socket.send(hex(frame));
    const { code, reason } = await within(socket.closed, `the close after ${what}`);
    assert.deepEqual([code, reason], [3501, 'bad request'], what);
  }
});

test('a Protobuf client answers pings, and stays', async () => {
  const config = '\n[client]\nping_interval = "2s"\npong_timeout = "1s"\n';
  await withRoost({ config }, async (node) => {
    let pings = 0;
    let fourPings;
    const survived = new Promise((resolve) => (fourPings = resolve));
    class Listening extends WebSocket {
      constructor(...args) {
        super(...args);
        this.on('message', (data) => {
          if (data.byteLength === 1 && new Uint8Array(data)[0] === 0) pings += 1;
          if (pings === 4) fourPings();
        });
      }
    }
    const options = { encoding: PROTOBUF_ENCODING, websocket: Listening };
    const client = await node.connected('ann', options);
    const losses = collect(client, 'connecting');
    const silent = await node.socket({ protocols: ['centrifuge-protobuf'] });
    silent.send(connectOf(sign({ sub: 'silent' })));
    const [, ping] = await silent.frames.take(2);
    assert.deepEqual([...ping], [0]);
    assert.equal((await within(silent.closed, 'the close of the silent client')).code, 3012);
    // The fourth ping comes only to a client whose three pongs were taken.
    await within(survived, 'four pings');
    assert.equal(client.state, 'connected');
    assert.equal(losses.items.length, 0);
  });
});
