"""A server of the PyPI package websockets that echoes or broadcasts, as servers.mjs:
servers.py KIND [FOLDER]."""

import asyncio
import ssl
import sys

from websockets.asyncio.server import broadcast, serve
from websockets.exceptions import ConnectionClosed


async def main(kind, folder=None):
    """Serves until standard input ends."""
    everyone = set()

    async def handler(socket):
        everyone.add(socket)
        try:
            async for message in socket:
                if kind == "echo":
                    await socket.send(message)
                else:
                    broadcast(everyone - {socket}, message)
        except ConnectionClosed:
            pass
        finally:
            everyone.discard(socket)

    context = None
    if folder:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(f"{folder}/cert.pem", f"{folder}/key.pem")
    async with serve(handler, "127.0.0.1", 0, ssl=context, compression=None) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


asyncio.run(main(*sys.argv[1:]))
