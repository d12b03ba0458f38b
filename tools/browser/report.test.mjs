// The page of roost-load --html in a real browser: light, dark, printed and on a phone.

import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { after, before, test } from 'node:test';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { Roost, SECRET, within } from '../sdk/harness.mjs';
import { launch, open, shot } from './browser.mjs';

const CONFIG = `
[[channel.namespaces]]
name = "load"
allow_subscribe_for_client = true
allow_publish_for_client = true
`;

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');
const program = path.resolve(process.env.PROGRAM ?? path.join(root, 'target/release/roost'));
const load = path.join(path.dirname(program), 'roost-load');

const roost = new Roost();
const folder = mkdtempSync(path.join(tmpdir(), 'roost-report-'));
const file = path.join(folder, 'report.html');
const agents = [];
let browser;

/** An agent, once it has printed its address. */
async function agent(env) {
  const child = spawn(load, ['agent', '--listen', '127.0.0.1:0'], { env, stdio: ['ignore', 'pipe', 'inherit'] });
  agents.push(child);
  const lines = createInterface({ input: child.stdout });
  for await (const line of lines) {
    const address = line.match(/127\.0\.0\.1:[1-9]\d*/);
    if (address) return address[0];
  }
  throw new Error('the agent has no address');
}

before(async () => {
  browser = await launch();
  await roost.begin({ config: CONFIG });
  const env = { ...process.env, ROOST_LOAD_TOKEN: 'a token of this test' };
  const names = [await within(agent(env), 'an agent'), await within(agent(env), 'an agent')];
  const url = `ws://127.0.0.1:${roost.port}/connection/websocket`;
  const flags = ['channels', '--url', url, '--secret', SECRET, '--channels', '4',
    '--connections', '40', '--subscribe', 'load:room'];
  flags.push('--rate', '400', '--duration', '4s', '--ping-every', '200ms', '--agents', names.join(','));
  flags.push('--fail-if', 'p99<1us', '--fail-if', 'sent<100000', '--html', file);
  flags.push('--pid', String(roost.nodes[0].child.pid));
  // The second condition holds: the page has to say so.
  await new Promise((resolve, reject) => {
    execFile(load, flags, { env }, (error, _, stderr) => {
      if (error?.code === 99) resolve();
      else reject(new Error(`roost-load: ${error}: ${stderr}`));
    });
  });
});
after(async () => {
  await browser?.close();
  agents.forEach((child) => child.kill());
  rmSync(folder, { recursive: true });
  if (roost.nodes) assert.equal(await roost.stop(), 0, 'exit code after SIGTERM');
});

/** The page, and that nothing on it is cut, comes from elsewhere or complains. */
async function shown(name, options, print = false) {
  const page = await open(browser, options);
  const requests = [];
  page.on('request', (request) => requests.push(request.url()));
  if (print) await page.emulateMediaType('print');
  await page.goto(pathToFileURL(file).href);
  const seen = await page.evaluate(() => ({
    wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    scripts: document.scripts.length,
    // Tables that show a part of themselves.
    narrow: [...document.querySelectorAll('.wide, .chart')].filter((of) => of.scrollWidth > of.clientWidth).length,
    agents: [...document.querySelectorAll('h2')].find((of) => of.textContent === 'Agents')
      ?.parentElement.querySelectorAll('tr').length,
    // Texts of a chart that reach over its border.
    cut: [...document.querySelectorAll('svg text')].filter((text) => {
      const [own, all] = [text.getBoundingClientRect(), text.ownerSVGElement.getBoundingClientRect()];
      return own.left < all.left - 1 || own.right > all.right + 1 || own.bottom > all.bottom + 1;
    }).map((text) => text.textContent),
    paper: getComputedStyle(document.body).backgroundColor,
  }));
  await shot(page, `report-${name}`);
  assert.equal(seen.wide, 0, `${name}: scrolls sideways`);
  // On a phone tables scroll by themselves.
  if (options.width !== 360) assert.equal(seen.narrow, 0, `${name}: tables that are cut`);
  assert.deepEqual(seen.cut, [], `${name}: texts that are cut`);
  assert.equal(seen.scripts, 0);
  assert.equal(seen.agents, 6, 'two tables of two agents');
  assert.deepEqual(requests.filter((url) => !url.startsWith('file:') && !url.startsWith('data:')), []);
  assert.equal(requests.length, 1, requests.join(' '));
  assert.deepEqual(page.faults, []);
  return { page, paper: seen.paper };
}

test('light, dark, printed and on a phone', async () => {
  const light = await shown('light', {});
  assert.match(await light.page.evaluate(() => document.body.textContent), /sent<100000/);
  const dark = await shown('dark', { dark: true });
  const print = await shown('print', { dark: true, width: 794 }, true);
  await shown('phone', { width: 360, height: 740 });
  assert.notEqual(dark.paper, light.paper);
  assert.equal(print.paper, light.paper, 'paper is white');
});
