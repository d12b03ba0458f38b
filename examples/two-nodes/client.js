// Subscribes through the balancer and stays: node client.js NAME
const { Centrifuge } = require('centrifuge');

const name = process.argv[2];
const client = new Centrifuge('ws://127.0.0.1:8080/connection/websocket', {
  websocket: require('ws'),
  token: process.env.TOKEN,
  maxReconnectDelay: 1000,
});
const sub = client.newSubscription('news:1');
sub.on('subscribed', ({ wasRecovering, recovered }) =>
  console.log(name, wasRecovering ? `is back, recovered: ${recovered}` : 'is subscribed'));
sub.on('publication', ({ data, offset }) => console.log(name, 'got', data.text, 'at offset', offset));
sub.subscribe();
client.connect();
