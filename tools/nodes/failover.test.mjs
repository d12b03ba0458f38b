// Nodes that end, one after the other, while clients are connected over a balancer.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { follow, fresh, range, until } from '../sdk/harness.mjs';
import { addresses, clientsOfBoth, connected, freshUser, leave, nodes, ONLY_REDIS } from './system.mjs';

test('clients of a node that is killed go to the other', async () => {
  const user = freshUser();
  const [first] = nodes;
  const all = await clientsOfBoth(user);
  first.signal('SIGKILL');
  await first.ended();
  const there = () => nodes[1].connections(user).then((found) => (found.length === all.length ? true : undefined));
  await until(there, 'all clients on the second node');
  // Back again, it gets clients.
  await first.start();
  const reached = async () => {
    const again = await Promise.all(addresses.map((localAddress) => connected(user, { localAddress })));
    const found = await first.connections(user);
    leave(...again);
    return found.length > 0 ? true : undefined;
  };
  await until(reached, 'a client on the first node');
  leave(...all);
});

test('one node drains while the other serves, and nothing is lost', ONLY_REDIS, async () => {
  for (const [leaving, staying] of [nodes, [...nodes].reverse()]) {
    const user = freshUser();
    const channel = fresh('kept');
    const all = await clientsOfBoth(user);
    const inboxes = [];
    for (const made of all) inboxes.push((await follow(made, channel)).inbox);
    let published = 0;
    let drained = false;
    const publishing = (async () => {
      // A second longer than the drain.
      for (let more = 100; more > 0; published += 1) {
        await staying.api('publish', { channel, data: { number: published } });
        await new Promise((resolve) => setTimeout(resolve, 10));
        if (drained) more -= 1;
      }
    })();
    leaving.signal('SIGTERM');
    await leaving.ended();
    drained = true;
    await publishing;
    const wanted = range(0, published).map((number) => ({ number }));
    for (const inbox of inboxes) {
      await inbox.take(published);
      assert.deepEqual(inbox.items, wanted);
    }
    const found = await staying.connections(user);
    assert.equal(found.length, all.length);
    leave(...all);
    await leaving.start();
    // Until the balancer has it again.
    await until(async () => {
      const again = await Promise.all(addresses.map((localAddress) => connected(user, { localAddress })));
      const back = await leaving.connections(user);
      leave(...again);
      return back.length > 0 ? true : undefined;
    }, `clients on ${leaving.name}`);
  }
});
