"""How a program gets a place: wait until the server is awake, connect, try again when it is busy.

    pip install aiohttp
    python connect.py https://WORKSPACE--personaplex-server.modal.run "Hello from Python!"

Polling wakes a GPU that is paid by the second: do it only while somebody waits.
"""

import asyncio
import random
import re
import sys
import time

import aiohttp

PATIENCE = 600  # seconds for waking up; a first start may also download 17 GB
HANDSHAKE, TEXT, ERROR, SAY = 0, 2, 5, 7  # kinds of messages: the first byte


async def wait_until_awake(http: aiohttp.ClientSession, server: str) -> None:
    """Poll /healthz until 200. Until then it says how far it is, or nothing answers yet.

    A server that has failed for good says so on the socket.
    """
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            async with http.get(f"{server}/healthz") as answer:
                state = await answer.text()
                if answer.status == 200 or '"failed"' in state:
                    return
                print("waking:", state, file=sys.stderr)
        except aiohttp.ClientError as error:
            print("no answer yet:", error, file=sys.stderr)
        await asyncio.sleep(1 + random.random())
    raise TimeoutError(f"{server} did not wake up in {PATIENCE} s")


async def connect(http: aiohttp.ClientSession, server: str) -> aiohttp.ClientWebSocketResponse:
    """A socket that has said 0x00. A busy server says when to come back; add jitter to that."""
    while True:
        ws = await http.ws_connect(f"{server}/api?format=pcm16", compress=0)
        message = await ws.receive()
        if message.type is aiohttp.WSMsgType.BINARY and message.data[0] == HANDSHAKE:
            return ws
        reason = message.data[1:].decode() if message.type is aiohttp.WSMsgType.BINARY else ""
        await ws.close()
        if not reason.startswith("busy: "):
            raise ConnectionError(reason or "the server hung up without a reason")
        wait = re.search(r"retry in (\d+) s", reason)
        await asyncio.sleep((int(wait[1]) if wait else 3) + random.random())


async def main(server: str, text: str) -> None:
    """Have a text spoken and print what the agent says until the socket closes."""
    async with aiohttp.ClientSession() as http:
        await wait_until_awake(http, server)
        ws = await connect(http, server)
        await ws.send_bytes(bytes([SAY]) + text.encode())
        async for message in ws:  # 1 is audio: 24 kHz, mono, signed 16-bit
            if message.data[0] == TEXT:
                print(message.data[1:].decode(), end="", flush=True)
            elif message.data[0] == ERROR:
                print("server:", message.data[1:].decode(), file=sys.stderr)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1].rstrip("/"), sys.argv[2]))
