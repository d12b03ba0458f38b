// Clients that can't have a WebSocket, or only listen: falling back, an ordinary EventSource, curl.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { EventEmitter, once } from 'node:events';
import { readFileSync } from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import { connect as connectTcp } from 'node:net';
import { createInterface } from 'node:readline';
import { test } from 'node:test';
import { connect as connectTls } from 'node:tls';
import { isDeepStrictEqual } from 'node:util';
import { EventSource } from 'eventsource';
import WebSocket from 'ws';
import {
  collect,
  ENCODINGS,
  follow,
  fresh,
  JSON_ENCODING,
  KEPT,
  next,
  NODES,
  ONE_NODE,
  ONE_PROCESS,
  publishAll,
  range,
  SECURE,
  shared,
  sign,
  TRANSPORT,
  within,
  withRoost,
} from './harness.mjs';

/** These say themselves what they come over. */
const ONCE = { skip: TRANSPORT !== 'websocket' && 'the same over each transport' };

/** For tests that wait for a counter. */
const COUNTED = { skip: ONCE.skip || ONE_PROCESS.skip };

const SCHEME = SECURE ? 'https' : 'http';

const roost = shared({
  config: `
[uni_sse]
enabled = true
[uni_http_stream]
enabled = true
[long_poll]
enabled = true
[http_api]
key = "k"
${KEPT}`,
});

/** A server of HTTP, over TLS where nodes have it: with their certificate. */
function createServer(handle) {
  if (!SECURE) return http.createServer(handle);
  const [cert, key] = ['cert', 'key'].map((name) => readFileSync(`${SECURE}/${name}.pem`));
  return https.createServer({ cert, key }, handle);
}

/**
 * An HTTP proxy that supports no upgrades, and answers 502 for the paths in `blocked`. Over TLS it has both
 * sides' plain text, as a proxy of a company's network does.
 */
class Proxy {
  static async to(node, blocked = []) {
    const proxy = new Proxy();
    proxy.sockets = new Set();
    proxy.broken = false;
    proxy.seen = [];
    proxy.server = createServer((request, response) => {
      proxy.seen.push(request.url.split('?')[0]);
      if (proxy.broken || blocked.some((path) => request.url.startsWith(path))) {
        response.writeHead(502).end();
        return;
      }
      const { method, url: path, headers } = request;
      const onward = (SECURE ? https : http).request({ host: '127.0.0.1', port: node.port, method, path, headers });
      onward.on('response', (answer) => {
        response.writeHead(answer.statusCode, answer.headers);
        answer.pipe(response);
        answer.on('error', () => response.destroy());
      });
      onward.on('error', () => response.destroy());
      response.on('close', () => onward.destroy());
      request.pipe(onward);
    });
    proxy.server.on('upgrade', (request, socket) => {
      proxy.seen.push(request.url);
      socket.destroy();
    });
    proxy.server.on('connection', (socket) => {
      proxy.sockets.add(socket);
      socket.on('close', () => proxy.sockets.delete(socket));
    });
    proxy.server.listen(0, '127.0.0.1');
    await once(proxy.server, 'listening');
    proxy.server.unref();
    proxy.at = `127.0.0.1:${proxy.server.address().port}`;
    proxy.origin = `${SCHEME}://${proxy.at}`;
    return proxy;
  }

  cut() {
    this.broken = true;
    for (const socket of this.sockets) socket.destroy();
  }

  heal() {
    this.broken = false;
  }
}

for (const [left, blocked] of [
  ['http_stream', []],
  ['sse', ['/connection/http_stream']],
]) {
  test(`where WebSockets are broken off the SDK falls back by itself, and recovers (${left})`, ONCE, async () => {
    for (const encoding of left === 'sse' ? [JSON_ENCODING] : ENCODINGS) {
      const proxy = await Proxy.to(roost, blocked);
      const transports = [
        { transport: 'websocket', endpoint: `${SECURE ? 'wss' : 'ws'}://${proxy.at}/connection/websocket` },
        { transport: 'http_stream', endpoint: `${proxy.origin}/connection/http_stream` },
        { transport: 'sse', endpoint: `${proxy.origin}/connection/sse` },
      ];
      const usable = encoding === JSON_ENCODING ? transports : transports.slice(0, 2);
      const client = new encoding.Client(usable, {
        websocket: WebSocket,
        eventsource: EventSource,
        fetch,
        readableStream: ReadableStream,
        emulationEndpoint: `${proxy.origin}/emulation`,
        token: sign({ sub: 'ann' }),
        minReconnectDelay: 50,
        maxReconnectDelay: 200,
      });
      client.encoding = encoding;
      roost.clients.push(client);
      const connected = next(client, 'connected');
      client.connect();
      assert.equal((await connected).transport, left);
      assert.equal(proxy.seen[0].split('?')[0], '/connection/websocket');
      const channel = fresh('kept');
      const { inbox } = await follow(client, channel);
      const writer = await roost.connected('bob', { encoding, transport: 'websocket' });
      await publishAll(writer, channel, range(0, 10));
      await inbox.take(10);
      const lost = next(client, 'connecting');
      proxy.cut();
      await lost;
      await publishAll(writer, channel, range(10, 20));
      const back = next(client, 'connected');
      proxy.heal();
      await back;
      await publishAll(writer, channel, range(20, 30));
      assert.deepEqual(await inbox.take(30), range(0, 30));
      await client.publish(channel, encoding.pack('up')).then(() => inbox.take(31));
      client.disconnect();
    }
  });
}

/** The URL of a one-way connection with this request. */
const uni = (at, path, request) =>
  `${SCHEME}://${at}/connection/${path}?cf_connect=${encodeURIComponent(JSON.stringify(request))}`;

test('an EventSource recovers by itself what it missed', ONCE, async (t) => {
  const proxy = await Proxy.to(roost);
  const channels = [fresh('kept'), fresh('kept')];
  const subs = Object.fromEntries(channels.map((channel) => [channel, {}]));
  const source = new EventSource(uni(proxy.at, 'uni_sse', { token: sign({ sub: 'ann' }), subs }));
  // One that stays open connects again without end, and keeps the process of the tests.
  t.after(() => source.close());
  // Publications, live or recovered, by channel.
  const got = Object.fromEntries(channels.map((channel) => [channel, []]));
  const messages = collect(
    { on: (_, receive) => source.addEventListener('message', receive) },
    'message',
    ({ data }) => {
      const push = JSON.parse(data);
      if (push.pub) got[push.channel].push(push.pub.data);
      for (const [channel, sub] of Object.entries(push.connect?.subs ?? {})) {
        got[channel].push(...(sub.publications ?? []).map((publication) => publication.data));
      }
      return push;
    },
  );
  await messages.take(1);
  const writer = await roost.connected('bob');
  let expected = [];
  for (let round = 0; round < 3; round += 1) {
    for (const [at, numbers] of [range(0, 5), range(5, 10), range(10, 15)].entries()) {
      const before = messages.items.length;
      if (at === 1) {
        const lost = new Promise((resolve) => source.addEventListener('error', resolve, { once: true }));
        proxy.cut();
        await lost;
      }
      for (const channel of channels) await publishAll(writer, channel, numbers);
      expected = [...expected, ...numbers];
      if (at === 0) await messages.take(before + 2 * numbers.length);
      if (at === 1) {
        proxy.heal();
        await messages.take(before + 1);
      }
    }
    for (let count = messages.items.length; ; count += 1) {
      if (channels.every((channel) => got[channel].length >= expected.length)) break;
      await messages.take(count + 1);
    }
    for (const channel of channels) assert.deepEqual(got[channel], expected);
  }
});

test('curl is a client', ONCE, async () => {
  const channel = fresh('kept');
  const request = { token: sign({ sub: 'ann', channels: [channel] }) };
  const writer = await roost.connected('bob');
  for (const [path, arguments_, read] of [
    ['uni_sse', [uni(`127.0.0.1:${roost.port}`, 'uni_sse', request)], (line) => line.startsWith('data: ') && line.slice(6)],
    [
      'uni_http_stream',
      ['--data', JSON.stringify(request), `${roost.origin}/connection/uni_http_stream`],
      (line) => line,
    ],
  ]) {
    const curl = spawn('curl', ['--silent', '--no-buffer', ...arguments_], { stdio: ['ignore', 'pipe', 'inherit'] });
    const lines = collect(createInterface({ input: curl.stdout }), 'line');
    const pushes = async (count) => {
      for (let at = 1; ; at += 1) {
        const found = (await lines.take(at)).map(read).filter(Boolean).map((text) => JSON.parse(text));
        if (found.length >= count) return found;
      }
    };
    assert.ok((await pushes(1))[0].connect.subs[channel], path);
    await writer.publish(channel, { over: path });
    assert.deepEqual((await pushes(2))[1].pub.data, { over: path });
    const ended = once(curl, 'exit');
    curl.kill();
    await ended;
  }
});

/** A connection to this port that is ready for an HTTP request, and the TCP socket below it. */
async function opened(port) {
  const tcp = connectTcp(port, '127.0.0.1');
  await within(once(tcp, 'connect'), 'a connection');
  if (!SECURE) return [tcp, tcp];
  const socket = connectTls({ socket: tcp, host: '127.0.0.1' });
  await within(once(socket, 'secureConnect'), 'a TLS handshake');
  return [socket, tcp];
}

/** An answer to a poll, as curl gets it. */
async function polled(request) {
  const curl = spawn(
    'curl',
    ['--silent', '--get', `${roost.origin}/connection/long_poll`, '--data-urlencode', `cf_connect=${JSON.stringify(request)}`],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  );
  const parts = [];
  curl.stdout.on('data', (part) => parts.push(part));
  await within(once(curl, 'close'), 'the answer to a poll');
  return JSON.parse(Buffer.concat(parts).toString());
}

test('curl polls', COUNTED, async () => {
  const channel = fresh('kept');
  const token = sign({ sub: 'ann' });
  const writer = await roost.connected('bob');
  const at = ({ subs }) => ({ [channel]: { offset: subs[channel].offset, epoch: subs[channel].epoch } });
  const first = await polled({ token, subs: { [channel]: {} } });
  assert.deepEqual([first.subs[channel].offset, first.subs[channel].publications], [0, undefined]);
  await writer.publish(channel, { n: 1 });
  const missed = await polled({ token, subs: at(first) });
  assert.deepEqual(missed.subs[channel].publications.map(({ data }) => data), [{ n: 1 }]);
  const waits = polled({ token, subs: at(missed) });
  while ((await roost.counters()).clients_long_poll === 0);
  await writer.publish(channel, { n: 2 });
  const { publications, recovered, offset } = (await waits).subs[channel];
  assert.deepEqual([publications.map(({ data }) => data), recovered], [[{ n: 2 }], true]);
  assert.equal(offset, publications[0].offset);
  assert.ok(offset > missed.subs[channel].offset);
});

test('the client of docs/transports.md polls, and misses nothing', COUNTED, async () => {
  const document = readFileSync(new URL('../../docs/transports.md', import.meta.url), 'utf8');
  const [, example] = document.split('The whole client:')[1].match(/```js\n([\s\S]*?)```/);
  const channel = 'kept:news';
  const [said, before] = [new EventEmitter(), (await roost.counters()).polls];
  const seen = collect(said, 'line');
  const writer = await roost.connected('bob');
  const ended = new AbortController();
  const AsyncFunction = (async () => {}).constructor;
  const run = new AsyncFunction('token', 'fetch', 'console', example)(
    sign({ sub: 'ann' }),
    (path) => fetch(`${roost.origin}${path}`, { signal: ended.signal }),
    { log: (...line) => said.emit('line', line) },
  );
  // The second has the positions of the first.
  while ((await roost.counters()).polls < before + 2);
  await publishAll(writer, channel, range(0, 50));
  const got = await seen.take(50);
  assert.deepEqual(got, range(0, 50).map((n) => [channel, n]));
  ended.abort();
  await assert.rejects(run, { name: 'AbortError' });
});

test('a client that ends in the middle of a request leaves nothing behind', NODES > 1 ? ONE_NODE : ONCE, () =>
  // Of its own, so that nothing else comes and goes there.
  withRoost({ config: KEPT }, async (own) => {
    for (const text of [
      'POST /connection/http_stream HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{"id":1',
      'POST /emulation HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab',
      'GET /connection/sse?cf_connect=%7B%22id%22%3A1%2C%22connect%22%3A%7B%7D%7D HTTP/1.1\r\nHost: a\r\n\r\n',
    ]) {
      for (let times = 0; times < 20; times += 1) {
        const [socket, tcp] = await opened(own.port);
        socket.write(text);
        if (times % 2) tcp.resetAndDestroy();
        else socket.destroy();
      }
    }
    const all = { connections_accepted: 60, connections_open: 0 };
    const seen = async () => {
      const { connections_accepted, connections_open } = await own.counters();
      return { connections_accepted, connections_open };
    };
    const deadline = Date.now() + 10_000;
    while (!isDeepStrictEqual(await seen(), all) && Date.now() < deadline);
    assert.deepEqual(await seen(), all);
  }),
);
