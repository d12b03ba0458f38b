// The SDK over each transport in a real browser, on a page of another origin; and a plain EventSource.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { KEPT, Line, range, Roost, sign, within } from '../sdk/harness.mjs';
import { emptyPage, launch, SDKS, servePages } from './browser.mjs';

const CONFIG = `
[client]
allowed_origins = ["http://localhost:*"]
[uni_sse]
enabled = true
[long_poll]
enabled = true
[http_api]
key = "k"
${KEPT}`;

let browser;
let pages;
const roost = new Roost();

before(async () => {
  browser = await launch();
  await roost.begin({ config: CONFIG });
  pages = await servePages();
});
after(async () => {
  await browser?.close();
  pages?.close();
  if (roost.nodes) assert.equal(await roost.stop(), 0, 'exit code after SIGTERM');
});

const page = (sdk) => emptyPage(browser, pages, sdk);

/** Waits until an expression on the page is true. */
const holds = (on, expression) => within(on.waitForFunction(expression, { polling: 50 }), expression);

async function publish(channel, numbers) {
  for (const n of numbers) {
    const answer = await fetch(`http://127.0.0.1:${roost.port}/api/publish`, {
      method: 'POST',
      headers: { 'X-API-Key': 'k' },
      body: JSON.stringify({ channel, data: { n } }),
    });
    assert.equal(answer.status, 200);
  }
}

for (const [transport, encoding, upgrades] of [
  ['websocket', 'json', true],
  ['websocket', 'protobuf', true],
  ['http_stream', 'json', true],
  ['http_stream', 'protobuf', true],
  ['sse', 'json', true],
  ['fallback', 'json', false],
]) {
  test(`recovers over ${transport} (${encoding})`, async () => {
    const way = await Line.to(roost, { upgrades });
    const at = await page(SDKS[encoding]);
    const channel = `kept:${transport}-${encoding}`;
    const all = {
      websocket: { transport: 'websocket', endpoint: `ws://${way.at}/connection/websocket` },
      http_stream: { transport: 'http_stream', endpoint: `http://${way.at}/connection/http_stream` },
      sse: { transport: 'sse', endpoint: `http://${way.at}/connection/sse` },
    };
    const transports = transport === 'fallback' ? [all.websocket, all.http_stream] : [all[transport]];
    await at.evaluate(
      (transports, emulationEndpoint, token, channel, binary) => {
        globalThis.seen = [];
        globalThis.client = new Centrifuge(transports, { emulationEndpoint, token, minReconnectDelay: 50, maxReconnectDelay: 200 });
        client.on('connected', ({ transport }) => (globalThis.over = transport));
        const sub = client.newSubscription(channel);
        sub.on('publication', ({ data }) => seen.push((binary ? JSON.parse(new TextDecoder().decode(data)) : data).n));
        sub.on('subscribed', () => (globalThis.ready = true));
        globalThis.send = (n) => sub.publish(binary ? new TextEncoder().encode(JSON.stringify({ n })) : { n });
        sub.subscribe();
        client.connect();
      },
      transports,
      `http://${way.at}/emulation`,
      sign({ sub: 'ann' }),
      channel,
      encoding === 'protobuf',
    );
    await holds(at, 'globalThis.ready === true');
    assert.equal(await at.evaluate('over'), transport === 'fallback' ? 'http_stream' : transport);
    assert.equal(way.upgradesSeen > 0, transport === 'fallback');
    await publish(channel, range(0, 10));
    await holds(at, 'seen.length === 10');
    way.cut();
    await holds(at, 'client.state === "connecting"');
    await publish(channel, range(10, 20));
    way.heal();
    await holds(at, 'seen.length === 20');
    await at.evaluate('send(20)');
    await holds(at, 'seen.length === 21');
    assert.deepEqual(await at.evaluate('seen'), range(0, 21));
    await at.evaluate('client.disconnect()');
    await at.close();
  });
}

test('a plain EventSource comes back by itself with what it missed', async () => {
  const way = await Line.to(roost);
  const at = await page();
  const channel = 'kept:events';
  await at.evaluate(
    (url) => {
      globalThis.seen = [];
      globalThis.connects = 0;
      const source = new EventSource(url);
      source.onmessage = ({ data }) => {
        const push = JSON.parse(data);
        if (push.connect) globalThis.connects += 1;
        const missed = Object.values(push.connect?.subs ?? {}).flatMap((sub) => sub.publications ?? []);
        for (const publication of push.pub ? [push.pub] : missed) seen.push(publication.data.n);
      };
    },
    `http://${way.at}/connection/uni_sse?cf_connect=${encodeURIComponent(
      JSON.stringify({ token: sign({ sub: 'ann', channels: [channel] }) }),
    )}`,
  );
  await holds(at, 'connects === 1');
  // Before anything was published, and in the middle.
  for (const [from, connects] of [
    [0, 2],
    [20, 3],
  ]) {
    way.cut();
    await publish(channel, range(from, from + 10));
    way.heal();
    await holds(at, `connects === ${connects} && seen.length === ${from + 10}`);
    await publish(channel, range(from + 10, from + 20));
    await holds(at, `seen.length === ${from + 20}`);
  }
  assert.deepEqual(await at.evaluate('seen'), range(0, 40));
  await at.close();
});

test('a page polls with fetch, and misses nothing', async () => {
  const at = await page();
  const channel = 'kept:polled';
  await at.evaluate(
    (url, token, channel) => {
      globalThis.seen = [];
      globalThis.polls = 0;
      (async () => {
        const subs = { [channel]: {} };
        while (seen.length < 30) {
          const asked = encodeURIComponent(JSON.stringify({ token, subs }));
          const answer = await (await fetch(`${url}?cf_connect=${asked}`)).json();
          const { publications = [], offset, epoch } = answer.subs[channel];
          seen.push(...publications.map(({ data }) => data.n));
          subs[channel] = { offset, epoch };
          polls += 1;
        }
      })().catch((error) => (globalThis.fault = String(error)));
    },
    `http://127.0.0.1:${roost.port}/connection/long_poll`,
    sign({ sub: 'ann' }),
    channel,
  );
  await holds(at, 'globalThis.fault || polls === 1');
  await publish(channel, range(0, 30));
  await holds(at, 'globalThis.fault || seen.length === 30');
  assert.equal(await at.evaluate('globalThis.fault'), undefined);
  assert.deepEqual(await at.evaluate('seen'), range(0, 30));
  await at.close();
});
