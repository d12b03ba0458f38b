// The page: one client, one channel with history, presence and recovery.

const byId = (id) => document.getElementById(id);
const NODE = 'localhost:8000';

async function getToken(name) {
  const response = await fetch(`/token?name=${encodeURIComponent(name)}`);
  // Not allowed any more: the SDK stops, and doesn't come back.
  if (response.status === 403) throw new Centrifuge.UnauthorizedError('no access');
  if (!response.ok) throw new Error(`token: ${response.status}`);
  return (await response.json()).token;
}

function append(text, isEvent = false) {
  const item = document.createElement('li');
  if (isEvent) item.className = 'event';
  item.textContent = text;
  byId('list').append(item);
  byId('list').scrollTop = byId('list').scrollHeight;
}

function enter(name) {
  const client = new Centrifuge(
    [
      { transport: 'websocket', endpoint: `ws://${NODE}/connection/websocket` },
      // For networks that don't let WebSockets through.
      { transport: 'http_stream', endpoint: `http://${NODE}/connection/http_stream` },
    ],
    { emulationEndpoint: `http://${NODE}/emulation`, getToken: () => getToken(name) },
  );
  const sub = client.newSubscription('chat:lobby');
  const members = new Map();
  const showMembers = () => {
    const names = new Set([...members.values()].map(({ user }) => user));
    byId('here').textContent = `Here: ${[...names].sort().join(', ')}`;
  };

  const show = ({ data, info }) => append(`${info?.user ?? 'server'}: ${data.text}`);
  sub.on('publication', show);
  sub.on('join', ({ info }) => {
    members.set(info.client, info);
    showMembers();
  });
  sub.on('leave', ({ info }) => {
    members.delete(info.client);
    showMembers();
  });
  sub.on('subscribed', async ({ wasRecovering, recovered }) => {
    byId('state').textContent = 'connected';
    if (!wasRecovering || !recovered) {
      // The first time, or too long away: the list begins with the newest publications.
      byId('list').replaceChildren();
      const { publications } = await sub.history({ limit: 50, reverse: true });
      publications.reverse().forEach(show);
    }
    const { clients } = await sub.presence();
    members.clear();
    for (const [id, info] of Object.entries(clients)) members.set(id, info);
    showMembers();
  });
  sub.on('subscribing', () => (byId('state').textContent = 'connecting'));
  client.on('disconnected', ({ code, reason }) => (byId('state').textContent = `ended: ${code} ${reason}`));

  byId('send').addEventListener('submit', async (event) => {
    event.preventDefault();
    const text = byId('text').value;
    byId('text').value = '';
    await sub.publish({ text }).catch((error) => append(`not sent: ${error.message}`, true));
  });
  sub.subscribe();
  client.connect();
}

byId('enter').addEventListener('submit', (event) => {
  event.preventDefault();
  const name = byId('name').value.trim();
  if (!name) return;
  byId('enter').hidden = true;
  byId('room').hidden = false;
  enter(name);
});
