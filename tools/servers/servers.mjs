// Servers of npm packages that echo or broadcast, until standard input ends:
// servers.mjs KIND [FOLDER]. With a FOLDER of cert.pem and key.pem the server speaks TLS.
// The first line of output is the port.
import { readFileSync } from "node:fs";
import http from "node:http";
import https from "node:https";

const [kind, folder] = process.argv.slice(2);

function listen(on) {
  const read = (name) => readFileSync(`${folder}/${name}.pem`);
  const server = folder
    ? https.createServer({ cert: read("cert"), key: read("key") })
    : http.createServer();
  on(server);
  server.listen(0, "127.0.0.1", () => console.log(server.address().port));
}

const kinds = {
  async "ws-echo"() {
    const { WebSocketServer } = await import("ws");
    const perMessageDeflate = { serverNoContextTakeover: true };
    listen((server) =>
      new WebSocketServer({ server, perMessageDeflate }).on("connection", (socket) =>
        socket.on("message", (data, binary) => socket.send(data, { binary })),
      ),
    );
  },
  async "ws-broadcast"() {
    const { WebSocketServer } = await import("ws");
    listen((server) => {
      const all = new WebSocketServer({ server });
      all.on("connection", (socket) =>
        socket.on("message", (data, binary) => {
          for (const other of all.clients) if (other !== socket) other.send(data, { binary });
        }),
      );
    });
  },
  // Each receiver loses messages 10 and 100, gets 20 twice, and 30 behind 31.
  async "ws-faulty"() {
    const { WebSocketServer } = await import("ws");
    listen((server) => {
      const all = new WebSocketServer({ server });
      let number = 0;
      let kept;
      all.on("connection", (socket) =>
        socket.on("message", (data, binary) => {
          number += 1;
          if (number === 30) kept = data;
          const faults = { 10: [], 100: [], 20: [data, data], 30: [], 31: [data, kept] };
          const sent = faults[number] ?? [data];
          for (const other of all.clients) {
            if (other !== socket) sent.forEach((one) => other.send(one, { binary }));
          }
        }),
      );
    });
  },
  async "socket.io"() {
    const { Server } = await import("socket.io");
    listen((server) =>
      new Server(server, { transports: ["websocket"] }).on("connection", (socket) => {
        socket.on("subscribe", (channel, acknowledge) => {
          socket.join(channel);
          acknowledge();
        });
        socket.on("publish", (channel, message) => socket.to(channel).emit("message", message));
      }),
    );
  },
};

process.stdin.resume().on("end", () => process.exit(0));
await kinds[kind]();
