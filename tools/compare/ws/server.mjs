// The npm package ws, with its two native helpers: /echo sends back, any other path is one room.
import { createServer } from 'node:http';
import { WebSocketServer } from 'ws';

const port = Number(process.argv[2]);
const server = createServer();
const room = new WebSocketServer({ noServer: true, perMessageDeflate: false });
const members = new Set();

server.on('upgrade', (request, socket, head) => {
  room.handleUpgrade(request, socket, head, (client) => {
    client.on('error', () => {});
    if (request.url === '/echo') {
      client.on('message', (data, isBinary) => client.send(data, { binary: isBinary }));
      return;
    }
    members.add(client);
    client.on('close', () => members.delete(client));
    client.on('message', (data, isBinary) => {
      for (const member of members) {
        if (member !== client) member.send(data, { binary: isBinary });
      }
    });
  });
});
server.listen({ port, host: '127.0.0.1', backlog: 65535 }, () => console.log(`listening on ${port}`));
