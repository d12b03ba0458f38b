// Two clients that talk, and what to paste to have the same.

const byId = (id) => document.getElementById(id);

const CHANNEL = 'demo';
const SHOWN_MAX = 100;

const scheme = location.protocol === 'https:' ? 'wss' : 'ws';

/** A pane with a client of its own. */
function pane(name, path) {
  const id = name.toLowerCase();
  const state = document.createElement('span');
  state.dataset.test = `state-${id}`;
  state.setAttribute('role', 'status');
  const title = document.createElement('h2');
  title.append(name, state);
  const list = document.createElement('ol');
  list.dataset.test = `messages-${id}`;
  list.setAttribute('aria-live', 'polite');
  list.setAttribute('aria-label', `Messages to ${name}`);
  list.tabIndex = 0;
  const input = document.createElement('input');
  input.dataset.test = `input-${id}`;
  input.setAttribute('aria-label', `Message from ${name}`);
  input.placeholder = 'Say something';
  const send = document.createElement('button');
  send.dataset.test = `send-${id}`;
  send.textContent = 'Send';
  const form = document.createElement('form');
  form.append(input, send);
  const box = document.createElement('div');
  box.className = 'pane';
  box.dataset.test = `pane-${id}`;
  box.append(title, list, form);
  byId('panes').append(box);

  const say = (text) => {
    const item = document.createElement('li');
    item.textContent = text;
    list.append(item);
    if (list.childElementCount > SHOWN_MAX) list.firstElementChild.remove();
    list.scrollTop = list.scrollHeight;
  };

  const client = new Centrifuge(`${scheme}://${location.host}${path}`);
  const channel = client.newSubscription(CHANNEL);
  const show = () => {
    state.textContent = channel.state === 'subscribed' ? 'connected' : client.state;
  };
  for (const event of ['connecting', 'connected', 'disconnected']) client.on(event, show);
  for (const event of ['subscribing', 'subscribed', 'unsubscribed']) channel.on(event, show);
  channel.on('publication', ({ data }) => say(`${data?.from ?? '?'}: ${data?.text ?? JSON.stringify(data)}`));
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    const text = input.value;
    if (!text) return;
    input.value = '';
    try {
      await channel.publish({ from: name, text });
    } catch (error) {
      say(`Not sent: ${error.message}`);
    }
  });
  channel.subscribe();
  client.connect();
}

async function begin() {
  const { html, curl, websocket } = await (await fetch('/demo/snippet.json')).json();
  byId('html').textContent = html;
  if (curl) {
    byId('curl').textContent = curl;
    byId('shell').hidden = false;
  }
  if (typeof Centrifuge === 'undefined') {
    byId('missing').hidden = false;
    return;
  }
  pane('Ada', websocket);
  pane('Grace', websocket);
}

for (const button of document.querySelectorAll('[data-copies]')) {
  button.addEventListener('click', async () => {
    await navigator.clipboard.writeText(byId(button.dataset.copies).textContent);
    button.textContent = 'Copied';
    setTimeout(() => (button.textContent = 'Copy'), 2000);
  });
}

begin();
