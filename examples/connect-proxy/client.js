// Connects with a cookie, as a browser does for the page's site: SESSION=... node client.js
const { Centrifuge } = require('centrifuge');
const WebSocket = require('ws');

class WithCookie extends WebSocket {
  constructor(url, protocols) {
    super(url, protocols, { headers: { Cookie: `session=${process.env.SESSION}` } });
  }
}

const client = new Centrifuge('ws://127.0.0.1:8000/connection/websocket', { websocket: WithCookie });
client.on('subscribed', ({ channel }) => console.log(`subscribed to ${channel}`));
client.on('publication', ({ channel, data }) => {
  console.log(channel, JSON.stringify(data));
  client.disconnect();
});
client.on('disconnected', ({ code, reason }) => {
  console.log(`disconnected: ${code} ${reason}`);
  process.exitCode = code >= 4500 ? 1 : 0;
});
client.connect();
