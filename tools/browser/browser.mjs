// Headless Chromium for the tests, and pages that may not complain.

import { once } from 'node:events';
import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import puppeteer from 'puppeteer-core';
import { SECURE, within } from '../sdk/harness.mjs';

const here = path.dirname(fileURLToPath(import.meta.url));

/** Where screenshots go. */
const SHOTS = path.resolve(here, '../../target/screenshots');

const CANDIDATES = [process.env.CHROMIUM, '/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'];

export function launch() {
  const executablePath = CANDIDATES.find((candidate) => candidate && existsSync(candidate));
  if (!executablePath) throw new Error('there is no Chromium: CHROMIUM names one');
  // The tests' certificate is signed by nobody whom a browser knows.
  const trust = SECURE ? ['--ignore-certificate-errors'] : [];
  return puppeteer.launch({ executablePath, args: ['--no-sandbox', '--disable-dev-shm-usage', ...trust] });
}

/** A page of its own context, with all that went wrong on it in `faults`. */
export async function open(browser, { width = 1280, height = 900, dark = false } = {}) {
  const context = await browser.createBrowserContext();
  const page = await context.newPage();
  await page.setViewport({ width, height });
  await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: dark ? 'dark' : 'light' }]);
  page.faults = [];
  page.on('console', (message) => {
    if (['error', 'warn', 'assert'].includes(message.type())) page.faults.push(message.text());
  });
  page.on('pageerror', (error) => page.faults.push(String(error)));
  page.setDefaultTimeout(15_000);
  return page;
}

/** The element with this `data-test`, once it is seen. */
export const hook = (page, name) => page.waitForSelector(`[data-test="${name}"]`, { visible: true });

/** Waits until the text of a hook is what `is` wants, and returns it. */
export async function text(page, name, is = (seen) => seen !== '') {
  const read = () => page.$eval(`[data-test="${name}"]`, (element) => element.textContent).catch(() => '');
  const seen = (async () => {
    for (;;) {
      const now = await read();
      if (is(now)) return now;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  })();
  return within(seen, `the text of ${name}`).catch(async (error) => {
    throw new Error(`${error.message}, it is ${JSON.stringify(await read())}`);
  });
}

export async function click(page, name) {
  await (await hook(page, name)).click();
}

/** Writes into a field in place of what is in it. */
export async function write(page, name, value) {
  const field = await hook(page, name);
  await field.evaluate((element) => (element.value = ''));
  await field.type(value);
}

export async function shot(page, name) {
  mkdirSync(SHOTS, { recursive: true });
  await page.screenshot({ path: path.join(SHOTS, `${name}.png`), fullPage: true });
}

const DIST = new URL('../sdk/node_modules/centrifuge/dist/', import.meta.url);

/** The SDK as pages load it, by its encoding. */
export const SDKS = { json: 'centrifuge.js', protobuf: 'centrifuge.protobuf.js' };

/** A server of empty pages, and of the SDKs beside them: of another origin than any node. */
export async function servePages() {
  const server = createServer((request, response) => {
    const name = request.url.slice(1);
    const isSdk = Object.values(SDKS).includes(name);
    response.setHeader('Content-Type', isSdk ? 'text/javascript' : 'text/html');
    response.end(isSdk ? readFileSync(new URL(name, DIST)) : '<!doctype html><link rel="icon" href="data:,"><title>page</title>');
  });
  server.listen(0, 'localhost');
  await once(server, 'listening');
  return server;
}

/** A new page of such a server, with an SDK if one is named. */
export async function emptyPage(browser, server, sdk) {
  const opened = await open(browser);
  await opened.goto(`http://localhost:${server.address().port}/`);
  if (sdk) await opened.addScriptTag({ url: `/${sdk}` });
  return opened;
}
