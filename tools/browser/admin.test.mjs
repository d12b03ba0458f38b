// The admin page in a real browser: it signs in, numbers move, a message that is published appears.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, request as ask } from 'node:http';
import { connect } from 'node:net';
import { after, before, test } from 'node:test';
import { follow, freePort, Roost, until, withRoost } from '../sdk/harness.mjs';
import { click, hook, launch, open, shot, text, write } from './browser.mjs';

const PASSWORD = 'correct horse';

const CONFIG = `
[admin]
enabled = true
password = "${PASSWORD}"

[[channel.namespaces]]
name = "kept"
history_size = 20
history_ttl = "300s"
presence = true
roost = { history_time = true, subscribed_at = true }
allow_subscribe_for_client = true
allow_publish_for_client = true
`;

let browser;
const roost = new Roost();
const url = () => `http://127.0.0.1:${roost.port}/`;

before(async () => {
  browser = await launch();
  await roost.begin({ config: CONFIG, flags: ['--shards', '2'] });
});
after(async () => {
  await browser?.close();
  if (roost.nodes) assert.equal(await roost.stop(), 0, 'exit code after SIGTERM');
});

/** A page that is signed in. */
async function signedIn(options) {
  const page = await open(browser, options);
  await page.goto(url());
  await write(page, 'password', PASSWORD);
  await click(page, 'sign-in');
  await text(page, 'feed-state', (state) => state === 'live');
  return page;
}

const count = (shown) => Number(shown.replaceAll(',', ''));

test('signs in with the password, and with no other', async () => {
  const page = await open(browser);
  await page.goto(url());
  await hook(page, 'password');
  // Nothing is said of the node and of the connection before somebody has signed in.
  const badges = () => page.$$eval('.badge', (all) => all.filter((badge) => badge.checkVisibility()).length);
  assert.equal(await badges(), 0);
  await write(page, 'password', 'wrong');
  await click(page, 'sign-in');
  await page.waitForFunction(() => document.getElementById('login-result').textContent === 'Wrong password.');
  await write(page, 'password', PASSWORD);
  await page.keyboard.press('Enter');
  await text(page, 'feed-state', (state) => state === 'live');
  // It stays signed in when it is loaded again, and not once it is signed out.
  await page.reload();
  await text(page, 'feed-state', (state) => state === 'live');
  await page.click('#sign-out');
  await hook(page, 'password');
  await page.reload();
  await hook(page, 'password');
  // A wrong password is an answer with status 400, which the browser notes.
  assert.deepEqual(page.faults.filter((fault) => !/400/.test(fault)), []);
  await page.close();
});

test('numbers move, by the node and by shard', async () => {
  const page = await signedIn();
  await text(page, 'health', (state) => state === 'healthy');
  const before = count(await text(page, 'tile-clients', (shown) => /^\d/.test(shown)));
  const clients = await Promise.all(['a', 'b', 'c', 'd'].map((user) => roost.connected(user)));
  await text(page, 'tile-clients', (shown) => count(shown) === before + 4);
  const publishing = clients[0];
  const { subscription } = await follow(publishing, 'kept:moves');
  const timer = setInterval(() => subscription.publish({ x: 1 }).catch(() => {}), 20);
  await text(page, 'tile-deliveries', (shown) => count(shown) > 5);
  await text(page, 'tile-messages-out', (shown) => count(shown) > 5);
  clearInterval(timer);
  // What a chart shows is told in words, too.
  const said = () => page.$eval('[data-test="chart-connections"] canvas', (canvas) => canvas.ariaLabel);
  assert.match(await said(), /^Connections: connections \d+, clients \d+$/);
  await page.click('#by-shard');
  assert.match(await said(), /^Connections: shard 0 \d+, shard 1 \d+$/);
  assert.match(await text(page, 'memory', (shown) => /resident/.test(shown)), /sessions/);
  await shot(page, 'admin-light');
  assert.deepEqual(page.faults, []);
  await page.close();
});

test('a channel: who is there, what was published, and a test message', async () => {
  const ann = await roost.connected('ann');
  const { inbox } = await follow(ann, 'kept:inspected');
  const page = await signedIn();
  await click(page, 'nav-channels');
  await write(page, 'channel-pattern', 'kept:insp*');
  await click(page, 'channel-find');
  await page.waitForFunction(() => {
    const found = [...document.querySelectorAll('[data-test="channel-open"]')];
    return found.length === 1 && found[0].textContent === 'kept:inspected';
  });
  await click(page, 'channel-open');
  await page.waitForFunction(() => document.getElementById('presence').textContent.includes('ann'));
  await write(page, 'publish-data', '{"hello": ');
  await click(page, 'publish-send');
  await text(page, 'publish-result', (said) => said.startsWith('That is not JSON'));
  await write(page, 'publish-data', '{"hello": "<b>page</b>"}');
  await click(page, 'publish-send');
  await text(page, 'publish-result', (said) => said.startsWith('Published: offset 1'));
  assert.deepEqual(await inbox.take(1), [{ hello: '<b>page</b>' }]);
  await text(page, 'history-list', (shown) => shown.includes('{"hello":"<b>page</b>"}'));
  await ann.publish('kept:inspected', 'from ann');
  await page.click('#channel-again');
  await text(page, 'history-list', (shown) => shown.includes('from ann'));
  // When it was published, and since when somebody is there.
  const cells = (id) => page.$$eval(`#${id} th, #${id} td`, (all) => all.map((cell) => cell.textContent));
  const has = async (id, title) => {
    const shown = await cells(id);
    assert.ok(shown.includes(title), `${title} in ${shown}`);
    assert.ok(shown.some((cell) => /\d:\d\d/.test(cell)), `a time in ${shown}`);
  };
  await has('presence', 'since');
  await has('history', 'time');
  for (let at = 3; at <= 14; at += 1) await ann.publish('kept:inspected', at);
  await page.click('#channel-again');
  // A page of ten, and the rest.
  await text(page, 'history-list', (shown) => shown.includes('shown 5 to 14'));
  await click(page, 'history-older');
  await text(page, 'history-list', (shown) => shown.includes('shown 1 to 4'));
  await click(page, 'history-newer');
  await text(page, 'history-list', (shown) => shown.includes('shown 5 to 14'));
  await shot(page, 'admin-channel');
  await page.click('#history-remove');
  await page.click('#history-remove');
  await text(page, 'history-list', (shown) => shown === 'Removed.');
  assert.deepEqual(page.faults, []);
  await page.close();
});

test('a connection is found by its user, and closed', async () => {
  const eve = await roost.connected('eve');
  await follow(eve, 'kept:of-eve');
  const ended = new Promise((resolve) => eve.once('disconnected', resolve));
  const page = await signedIn();
  await click(page, 'nav-connections');
  await write(page, 'connection-value', 'eve');
  await click(page, 'connection-find');
  const shown = await text(page, 'connection-list', (list) => list.includes(eve.id));
  assert.match(shown, /kept:of-eve/);
  assert.match(shown, /127\.0\.0\.1.*since .*websocket, json.*js/s);
  await shot(page, 'admin-connections');
  await click(page, 'connection-close');
  await click(page, 'connection-close');
  assert.equal((await ended).code, 3503);
  await click(page, 'connection-find');
  await text(page, 'connection-list', (list) => list.includes('no connection'));
  await click(page, 'nav-overview');
  await text(page, 'closes', (list) => list.includes('by api'));
  // Why it has ended is found by its user.
  await click(page, 'nav-closes');
  await write(page, 'close-user', 'eve');
  await click(page, 'close-find');
  await text(page, 'close-list', (list) => list.includes('3503 force disconnect') && list.includes(eve.id));
  assert.deepEqual(page.faults, []);
  await page.close();
});

test('connections by address, channel, age and queue; links and Back', async () => {
  const ann = await roost.connected('ann-linked');
  await follow(ann, 'kept:linked');
  const page = await signedIn();
  const found = (user) => text(page, 'connection-list', (list) => list.includes(user));
  for (const [by, value] of [['address', '127.0.0.1'], ['channel', 'kept:linked'], ['newest', '']]) {
    await page.goto(`${url()}#/connections?by=${by}&value=${value}`);
    await found('ann-linked');
  }
  await page.goto(`${url()}#/connections?by=queues`);
  await found('no connection');
  // A link of the page, and Back.
  await page.goto(`${url()}#/connections?by=channel&value=kept:linked`);
  await found('ann-linked');
  await page.evaluate(() => document.querySelector('[data-test="connection"] details').setAttribute('open', ''));
  await page.click('[data-test="connection"] details a');
  await page.waitForFunction(() => document.getElementById('channel-name').textContent === 'kept:linked');
  assert.match(page.url(), /#\/channels\?channel=kept%3Alinked$/);
  await page.goBack();
  await page.waitForSelector('#connections', { visible: true });
  await found('ann-linked');
  // The address is enough for a page that is loaded anew.
  await page.reload();
  await found('ann-linked');
  await click(page, 'nav-nodes');
  await text(page, 'node-list', (list) => list.includes('(this one)'));
  assert.deepEqual(page.faults, []);
  await page.close();
});

test('charts begin with the seconds that the node has kept', async () => {
  const page = await signedIn();
  const counted = await page.evaluate(async () => {
    const headers = { 'Content-Type': 'application/json', Authorization: `token ${sessionStorage.getItem('roost-token')}` };
    const body = JSON.stringify({ method: 'series' });
    const response = await fetch('admin/api', { method: 'POST', headers, body });
    return (await response.json()).result.seconds;
  });
  assert.ok(counted > 1, `${counted} seconds`);
  await page.close();
});

for (const [name, options] of Object.entries({
  'desktop-light': {},
  'desktop-dark': { dark: true },
  'phone-light': { width: 390, height: 844 },
  'phone-dark': { width: 390, height: 844, dark: true },
})) {
  test(`each section as ${name}: nothing is cut off, and a finger can hit it`, async () => {
    const client = await roost.connected(`of-${name}`);
    await follow(client, 'kept:shown');
    const page = await signedIn(options);
    await text(page, 'tile-clients', (shown) => /^\d/.test(shown));
    for (const [section, query] of [
      ['overview', ''],
      ['channels', '?channel=kept:shown'],
      ['connections', '?by=newest'],
      ['closes', ''],
      ['nodes', ''],
      ['namespaces', ''],
    ]) {
      await page.goto(`${url()}#/${section}${query}`);
      await page.waitForSelector(`#${section}`, { visible: true });
      await page.waitForFunction(
        (id) => document.getElementById(id).textContent.trim().length > 40,
        {},
        section,
      );
      const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      assert.ok(wide <= 0, `${section} is ${wide} px too wide`);
      const small = await page.evaluate(() =>
        [...document.querySelectorAll('button, input, select, .tabs a, summary')]
          .filter((target) => target.checkVisibility() && target.getBoundingClientRect().height < 44)
          .map((target) => target.id || target.textContent.trim()),
      );
      if (name.startsWith('phone')) assert.deepEqual(small, [], `${section}: targets below 44 px`);
      await shot(page, `admin-${name}-${section}`);
    }
    assert.deepEqual(page.faults, []);
    await page.close();
  });
}

test('it goes on when the node is started again, with the same secret or with the password', async () => {
  const page = await signedIn();
  await roost.down();
  await text(page, 'feed-state', (state) => state === 'reconnecting');
  await roost.up();
  // The secret is another one: the page asks for the password.
  await hook(page, 'password');
  await write(page, 'password', PASSWORD);
  await click(page, 'sign-in');
  await text(page, 'feed-state', (state) => state === 'live');
  await page.close();
});

test('keyboard, phone, dark', async () => {
  const page = await open(browser, { width: 360, height: 740, dark: true });
  await page.goto(url());
  await hook(page, 'password');
  // The form has the focus: a keyboard is enough.
  await page.keyboard.type(PASSWORD);
  await page.keyboard.press('Enter');
  await text(page, 'feed-state', (state) => state === 'live');
  await text(page, 'tile-clients', (shown) => /^\d/.test(shown));
  const names = await page.evaluate(async () => {
    const all = [...document.querySelectorAll('button, input, select, textarea, canvas')];
    const seen = all.filter((element) => element.checkVisibility());
    const named = (element) => element.ariaLabel || element.textContent.trim() || element.labels?.[0]?.textContent;
    return seen.map((element) => [element.id || element.textContent, Boolean(named(element)), element.tabIndex]);
  });
  for (const [id, named, tabIndex] of names) assert.ok(named && tabIndex >= 0, `${id}: ${named} ${tabIndex}`);
  for (const section of ['channels', 'connections', 'closes', 'nodes', 'namespaces', 'overview']) {
    await page.focus(`[data-view="${section}"]`);
    await page.keyboard.press('Enter');
    await page.waitForSelector(`#${section}`, { visible: true });
    const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert.ok(wide <= 0, `${section} is ${wide} px too wide`);
  }
  const ground = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  assert.equal(ground, 'rgb(17, 23, 20)');
  await shot(page, 'admin-phone-dark');
  assert.deepEqual(page.faults, []);
  await page.close();
});

test('headers keep others out', async () => {
  const response = await fetch(url());
  assert.match(response.headers.get('content-security-policy'), /default-src 'none'.*frame-ancestors 'none'/);
  assert.equal(response.headers.get('x-content-type-options'), 'nosniff');
  const page = await open(browser);
  // A page of another origin can neither read nor embed it.
  await page.goto('data:text/html,<title>another</title>');
  const asked = (script) => page.evaluate(script, url()).catch((error) => String(error));
  assert.match(await asked((there) => fetch(`${there}admin/init`).then((got) => got.text())), /Failed to fetch/);
  const closed = await asked(
    (there) =>
      new Promise((resolve) => {
        const socket = new WebSocket(`${there.replace('http', 'ws')}admin/websocket`);
        socket.onopen = () => resolve('open');
        socket.onclose = () => resolve('closed');
      }),
  );
  assert.equal(closed, 'closed');
  await page.close();
  const wrong = await fetch(`${url()}admin/api`, { method: 'POST', body: '{"method":"info"}' });
  assert.equal(wrong.status, 401);
  await until(async () => ((await fetch(`${url()}admin/nothing`)).status === 404 ? true : undefined), 'a 404');
});

/** A reverse proxy that serves a port below `/roost/`, WebSockets too, and nothing else; its address. */
async function below(port) {
  const inner = (url) => (url.startsWith('/roost/') ? url.slice('/roost'.length) : undefined);
  const front = createServer((incoming, outgoing) => {
    const path = inner(incoming.url);
    if (!path) return outgoing.writeHead(404).end();
    const { method, headers } = incoming;
    incoming.pipe(
      ask({ port, host: '127.0.0.1', path, method, headers }, (answer) => {
        outgoing.writeHead(answer.statusCode, answer.headers);
        answer.pipe(outgoing);
      }),
    );
  });
  front.on('upgrade', ({ url, rawHeaders }, socket) => {
    const path = inner(url);
    if (!path) return socket.end('HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n');
    const up = connect(port, '127.0.0.1', () => {
      const headers = rawHeaders.map((part, at) => part + (at % 2 ? '\r\n' : ': ')).join('');
      up.write(`GET ${path} HTTP/1.1\r\n${headers}\r\n`);
      up.pipe(socket).pipe(up);
    });
    up.on('error', () => socket.destroy());
    socket.on('error', () => up.destroy());
  });
  front.unref();
  front.listen(0, '127.0.0.1');
  await once(front, 'listening');
  return `http://127.0.0.1:${front.address().port}/roost/`;
}

for (const where of ['the public port', 'the internal port']) {
  test(`behind a path prefix, on ${where}`, async () => {
    const internal = where === 'the internal port' ? await freePort() : undefined;
    const flags = internal ? ['--http_server.internal_port', `${internal}`] : [];
    await withRoost({ config: CONFIG, flags }, async (node) => {
      const page = await open(browser);
      await page.goto(await below(internal ?? node.port));
      await write(page, 'password', PASSWORD);
      await click(page, 'sign-in');
      await text(page, 'feed-state', (state) => state === 'live');
      await text(page, 'tile-clients', (shown) => /^\d/.test(shown));
      assert.deepEqual(page.faults, []);
      await page.close();
    });
  });
}
