// The demo page, and the snippet that it shows, in a real browser.

import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { once } from 'node:events';
import { after, before, test } from 'node:test';
import { Roost } from '../sdk/harness.mjs';
import { click, launch, open, shot, text, write } from './browser.mjs';

const SDK = new URL('../sdk/node_modules/centrifuge/dist/centrifuge.js', import.meta.url).pathname;

const CONFIG = `
[client]
allowed_origins = ["http://127.0.0.1:*"]
allow_anonymous_connect_without_token = true
[roost]
demo = true
demo_sdk = "${SDK}"
`;

/** As in a development node: whoever is anonymous may talk. */
const env = {
  ROOST_CHANNEL_WITHOUT_NAMESPACE_ALLOW_SUBSCRIBE_FOR_ANONYMOUS: 'true',
  ROOST_CHANNEL_WITHOUT_NAMESPACE_ALLOW_PUBLISH_FOR_ANONYMOUS: 'true',
};

let browser;
const roost = new Roost();

before(async () => {
  browser = await launch();
  await roost.begin({ config: CONFIG, env });
});
after(async () => {
  await browser?.close();
  if (roost.nodes) assert.equal(await roost.stop(), 0, 'exit code after SIGTERM');
});

test('two panes talk', async () => {
  const page = await open(browser);
  await page.goto(`http://127.0.0.1:${roost.port}/demo`);
  for (const pane of ['ada', 'grace']) await text(page, `state-${pane}`, (state) => state === 'connected');
  await write(page, 'input-ada', 'hello <b>Grace</b>');
  await click(page, 'send-ada');
  for (const pane of ['ada', 'grace']) {
    await text(page, `messages-${pane}`, (shown) => shown.includes('Ada: hello <b>Grace</b>'));
  }
  await write(page, 'input-grace', 'hello Ada');
  await page.keyboard.press('Enter');
  await text(page, 'messages-ada', (shown) => shown.includes('Grace: hello Ada'));
  await shot(page, 'demo');
  assert.deepEqual(page.faults, []);
  await page.close();
});

test('the snippet is a page that works', async () => {
  const page = await open(browser);
  await page.goto(`http://127.0.0.1:${roost.port}/demo`);
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
  await text(page, 'state-ada', (state) => state === 'connected');
  await own.waitForFunction(() => typeof client !== 'undefined' && chat.state === 'subscribed');
  await own.type('#text', 'from a snippet');
  await own.keyboard.press('Enter');
  await text(page, 'messages-ada', (shown) => shown.includes('me: from a snippet'));
  await write(page, 'input-ada', 'from the demo');
  await click(page, 'send-ada');
  await own.waitForFunction(() => document.getElementById('list').textContent.includes('Ada: from the demo'));
  assert.deepEqual(own.faults, []);
  await own.close();
  await page.close();
  server.close();
});
