// Connects with TOKEN, subscribes to CHANNEL with SUB_TOKEN, and ends: node client.js
const { Centrifuge } = require('centrifuge');

const { TOKEN: token, SUB_TOKEN, CHANNEL } = process.env;
const url = 'ws://127.0.0.1:8000/connection/websocket';
const client = new Centrifuge(url, { websocket: require('ws'), token });

const fail = (context) => {
  console.error(JSON.stringify(context));
  process.exit(1);
};
client.on('disconnected', fail);

const sub = client.newSubscription(CHANNEL, { token: SUB_TOKEN });
sub.on('unsubscribed', fail);
sub.on('subscribed', async () => {
  const { clients } = await sub.presence();
  console.log(`user ${Object.values(clients)[0].user} is in ${CHANNEL}`);
  process.exit(0);
});
sub.subscribe();
client.connect();
