// Two browsers talk in the chat of examples/chat, which runs already: node chat.mjs URL

import assert from 'node:assert/strict';
import { launch, open, shot } from './browser.mjs';

const [url] = process.argv.slice(2);
const browser = await launch();
try {
  const enter = async (name, options) => {
    const page = await open(browser, options);
    await page.goto(url);
    await page.type('#name', name);
    await page.keyboard.press('Enter');
    await page.waitForFunction(() => document.getElementById('state').textContent === 'connected');
    return page;
  };
  const shows = (page, id, words) =>
    page.waitForFunction((id, words) => document.getElementById(id).textContent.includes(words), {}, id, words);
  const ada = await enter('Ada');
  await ada.type('#text', 'first');
  await ada.keyboard.press('Enter');
  await shows(ada, 'list', 'Ada: first');
  // A phone, which comes later: it has the history.
  const grace = await enter('Grace', { width: 360, height: 740 });
  await shows(grace, 'list', 'Ada: first');
  await shows(ada, 'here', 'Here: Ada, Grace');
  await grace.type('#text', 'hello Ada');
  await grace.keyboard.press('Enter');
  await shows(ada, 'list', 'Grace: hello Ada');
  const [page, window] = await grace.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  assert.ok(page <= window, `${page} pixels of ${window}`);
  await shot(grace, 'chat-phone');
  assert.deepEqual([ada.faults, grace.faults], [[], []]);
} finally {
  await browser.close();
}
