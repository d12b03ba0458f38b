// The demo page of a development node, and the snippet that it shows, in a real browser.

import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { once } from 'node:events';
import { after, afterEach, before, test } from 'node:test';
import { Roost } from '../sdk/harness.mjs';
import { click, launch, open, shot, text, write } from './browser.mjs';

const SDK = new URL('../sdk/node_modules/centrifuge/dist/centrifuge.js', import.meta.url).pathname;

let browser;
const roost = new Roost();
/** A node that has no SDK to serve. */
const bare = new Roost();

before(async () => {
  browser = await launch();
  await roost.begin({ config: null, flags: ['--dev'], env: { ROOST_DEMO_SDK: SDK } });
  await bare.begin({ config: null, flags: ['--dev'], env: { ROOST_DEMO_SDK: '/nowhere.js' } });
});
// A client of a test that failed would stay in the channel.
afterEach(async () => {
  for (const context of browser.browserContexts().slice(1)) await context.close();
});
after(async () => {
  await browser?.close();
  for (const node of [roost, bare]) if (node.nodes) assert.equal(await node.stop(), 0, 'exit code after SIGTERM');
});

/** The page, both of whose clients are subscribed. */
async function demo(options, { port } = roost) {
  const page = await open(browser, options);
  await page.goto(`http://127.0.0.1:${port}/demo`);
  for (const pane of ['ada', 'grace']) await isConnected(page, pane);
  return page;
}

const isConnected = (page, pane) => text(page, `state-${pane}`, (state) => state.startsWith('connected'));

async function say(page, pane, words) {
  await write(page, `input-${pane}`, words);
  await click(page, `send-${pane}`);
}

const shows = (page, pane, words) => text(page, `messages-${pane}`, (shown) => shown.includes(words));

test('clients talk, and see who is here, who said what and when', async () => {
  const page = await demo();
  await say(page, 'ada', 'hello <b>Grace</b>');
  for (const pane of ['ada', 'grace']) await shows(page, pane, 'Ada: hello <b>Grace</b>');
  await write(page, 'input-grace', 'hello Ada');
  await page.keyboard.press('Enter');
  const shown = await shows(page, 'ada', 'Grace: hello Ada');
  assert.match(shown, /\d\d:\d\d:\d\dGrace: hello Ada/);
  for (const pane of ['ada', 'grace']) await text(page, `here-${pane}`, (here) => here === 'Here: Ada, Grace');
  assert.equal(await text(page, 'state-ada'), 'connected, compressed');
  await shot(page, 'demo');
  assert.deepEqual(page.faults, []);
  await page.close();
});

/** What the console complains of, but for the SDK that a bare node doesn't have. */
const faults = (page, node) => page.faults.filter((fault) => node === roost || !/503|centrifuge\.js/.test(fault));

async function recovers(node) {
  const page = await demo({}, node);
  await click(page, 'cut-grace');
  await text(page, 'state-grace', (state) => state === 'disconnected');
  await text(page, 'here-ada', (here) => here === 'Here: Ada');
  await shows(page, 'ada', 'Grace left');
  for (const words of ['one', 'two', 'three']) {
    await say(page, 'ada', words);
    await shows(page, 'ada', `Ada: ${words}`);
  }
  await say(page, 'grace', 'is this lost?');
  await shows(page, 'grace', 'Not sent: the connection is cut');
  assert.doesNotMatch(await text(page, 'messages-grace'), /Ada: one/);
  await shot(page, 'demo-cut');
  await click(page, 'cut-grace');
  await isConnected(page, 'grace');
  const shown = await shows(page, 'grace', 'recovered 3 missed messages');
  assert.match(shown, /Ada: onerecovered.*Ada: tworecovered.*Ada: threerecovered/);
  await text(page, 'here-ada', (here) => here === 'Here: Ada, Grace');
  await shot(page, 'demo-recovered');
  assert.deepEqual(faults(page, node), []);
  await page.close();
}

async function talksOverEachTransport(node) {
  const page = await demo({}, node);
  const offered = await page.$$eval('[data-test="transport-ada"] option', (options) => options.map(({ value }) => value));
  assert.deepEqual(offered, ['websocket', 'http_stream', 'sse']);
  for (const transport of ['http_stream', 'sse', 'websocket']) {
    await page.select('[data-test="transport-ada"]', transport);
    await isConnected(page, 'ada');
    await text(page, 'here-grace', (here) => here === 'Here: Ada, Grace');
    await say(page, 'ada', `by ${transport}`);
    await shows(page, 'grace', `Ada: by ${transport}`);
    await say(page, 'grace', `back by ${transport}`);
    await shows(page, 'ada', `Grace: back by ${transport}`);
  }
  assert.deepEqual(faults(page, node), []);
  await page.close();
}

test('a connection that was cut recovers the messages that it missed', () => recovers(roost));

test('each transport carries messages both ways', () => talksOverEachTransport(roost));

test('a page without the SDK says so, and its own client recovers over each transport', async () => {
  const page = await demo({}, bare);
  await text(page, 'missing', (note) => note.includes('a small client of its own'));
  await shot(page, 'demo-without-sdk');
  await page.close();
  await recovers(bare);
  await talksOverEachTransport(bare);
});

test('the page fits a phone: nothing scrolls sideways, and targets have 44 pixels', async () => {
  for (const [name, options] of Object.entries({
    'demo-phone': { width: 360, height: 740 },
    'demo-phone-dark': { width: 360, height: 740, dark: true },
    'demo-dark': { dark: true },
  })) {
    const page = await demo(options);
    await say(page, 'ada', `a word without a space: ${'x'.repeat(120)}`);
    await shows(page, 'grace', 'a word without a space');
    await text(page, 'here-grace', (here) => here === 'Here: Ada, Grace');
    const found = await page.evaluate(() => {
      const small = [...document.querySelectorAll('button, input, select, a')]
        .map((item) => [item, item.getBoundingClientRect()])
        .filter(([, box]) => box.height > 0 && (box.height < 44 || box.width < 44))
        .map(([item]) => item.outerHTML);
      const cut = [...document.querySelectorAll('pre, body, .pane')]
        .filter((box) => box.scrollWidth > box.clientWidth)
        .map((box) => box.className || box.tagName);
      return { small, cut, page: document.documentElement.scrollWidth, window: innerWidth };
    });
    assert.deepEqual([found.small, found.cut], [[], []], name);
    assert.ok(found.page <= found.window, `${name}: ${found.page} pixels of ${found.window}`);
    await shot(page, name);
    assert.deepEqual(page.faults, [], name);
    await page.close();
  }
});

test('the page needs nothing from elsewhere, and leads to the admin page', async () => {
  const page = await open(browser);
  const origins = new Set();
  page.on('request', (request) => origins.add(new URL(request.url()).host));
  await page.goto(`http://127.0.0.1:${roost.port}/demo`);
  await isConnected(page, 'ada');
  origins.delete('');
  assert.deepEqual([...origins], [`127.0.0.1:${roost.port}`]);
  await click(page, 'admin');
  await text(page, 'feed-state', (state) => state === 'live');
  await page.close();
});

test('the snippet is a page that works', async () => {
  const page = await demo();
  const html = await text(page, 'snippet-html');
  const server = createServer((request, response) => {
    const isPage = request.url === '/';
    response.writeHead(isPage ? 200 : 204, { 'content-type': 'text/html' });
    response.end(isPage ? html : '');
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const own = await open(browser);
  await own.goto(`http://127.0.0.1:${server.address().port}/`);
  await own.waitForFunction(() => typeof client !== 'undefined' && chat.state === 'subscribed');
  await own.type('#text', 'from a snippet');
  await own.keyboard.press('Enter');
  await shows(page, 'ada', 'me: from a snippet');
  await say(page, 'ada', 'from the demo');
  await own.waitForFunction(() => document.getElementById('list').textContent.includes('Ada: from the demo'));
  assert.deepEqual(own.faults, []);
  await own.close();
  await page.close();
  server.close();
});

test('a node with a configuration shows no key, no secret and no link', async () => {
  const closed = new Roost();
  await closed.begin({ config: `
[client]
allowed_origins = ["http://127.0.0.1:*"]
allow_anonymous_connect_without_token = true
[admin]
enabled = true
password = "correct horse"
[http_api]
key = "a key of the API"
[roost]
demo = true
demo_sdk = "${SDK}"
` });
  const options = await (await fetch(`http://127.0.0.1:${closed.port}/demo/snippet.json`)).json();
  assert.deepEqual([options.curl, options.admin, options.secret, options.streams.length], [null, null, null, 2]);
  assert.equal(await closed.stop(), 0);
});
