"""Requests whose callers are gone are not read, and under overload the others wait unread."""

import asyncio
import socket
import sys
import time

import pytest
from aiohttp import web

from serving.runtime.acceptor import Parking
from serving.runtime.http_server import HttpServer, first_byte_at

RANK = b"POST /v1/rank HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b"
LIVE = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
linux_only = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells of a peer before anything is read from it"
)


class Handled:
    """A server that notes what it was asked, with as much room as it is told."""

    def __init__(self, room=0, longest_seconds=60.0):
        self.room = room
        self.bodies: list[str] = []
        self.ages: list[float] = []
        parking = Parking(b"POST /v1/rank ", lambda: self.room, longest_seconds)
        self.http = HttpServer(self.answer, "127.0.0.1", 0, parking=parking)

    async def answer(self, request):
        self.ages.append(time.monotonic() - first_byte_at(request))
        self.bodies.append((await request.read()).decode() or request.path)
        self.room -= 1
        return web.Response(body=b"done")

    async def __aenter__(self):
        self.port = await self.http.start()
        return self

    async def __aexit__(self, *_):
        await self.http.stop()

    def send(self, data):
        """As another process would, while the loop does something else."""
        client = socket.create_connection(("127.0.0.1", self.port))
        client.sendall(data)
        client.setblocking(False)
        return client

    def rank(self, body):
        return self.send(RANK % (len(body), body.encode()))


async def until(condition):
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("waited in vain")


async def answer_of(client):
    return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 4096), 10)


def run(main):
    asyncio.run(asyncio.wait_for(main(), 20))


@linux_only
@pytest.mark.parametrize("room", [0, 1000])
def test_callers_who_are_gone_are_not_read(room):
    async def main():
        async with Handled(room) as server:
            for number in range(200):
                server.rank(str(number)).close()
            await until(lambda: server.http.dropped == 200)
            assert server.bodies == []
            assert (server.http.parked, server.http.connections) == (0, 0)

    run(main)


@linux_only
def test_callers_who_give_up_while_they_wait_are_not_read():
    async def main():
        async with Handled() as server:
            clients = [server.rank(str(number)) for number in range(50)]
            await until(lambda: server.http.parked == 50)
            for client in clients[:-1]:
                client.close()
            await until(lambda: server.http.parked == 1)
            server.room = 10
            assert (await answer_of(clients[-1])).endswith(b"done")
            assert server.bodies == ["49"]
            clients[-1].close()

    run(main)


def test_with_room_again_the_newest_are_read_and_no_more_than_there_is_room_for():
    async def main():
        async with Handled() as server:
            clients = [server.rank(str(number)) for number in range(20)]
            await until(lambda: server.http.parked == 20)
            server.room = 3
            await until(lambda: len(server.bodies) == 3)
            await asyncio.sleep(0.05)
            assert sorted(server.bodies, key=int) == ["17", "18", "19"]
            assert server.http.parked == 17
            for client in clients:
                client.close()

    run(main)


def test_health_does_not_wait_behind_requests_without_room():
    async def main():
        async with Handled(room=-1) as server:
            waiting = server.rank("one")
            assert (await answer_of(server.send(LIVE))).endswith(b"done")
            late = server.send(LIVE[:1])  # nothing that tells what it will be
            late.sendall(LIVE[1:])
            assert (await answer_of(late)).endswith(b"done")
            silent = server.send(b"")
            await asyncio.sleep(0.05)
            silent.sendall(LIVE)
            assert (await answer_of(silent)).endswith(b"done")
            assert server.bodies == ["/livez"] * 3
            waiting.close()

    run(main)


@pytest.mark.parametrize("room", [0, 2])
def test_callers_who_connect_first_and_ask_later_wait_unread_too(room):
    """On a busy machine a caller is not ready to send at once; many such came in past the room."""

    async def main():
        async with Handled(room) as server:
            clients = [server.send(b"") for _ in range(20)]
            await asyncio.sleep(0.05)
            for number, client in enumerate(clients):
                client.sendall(RANK % (2, b"%02d" % number))
            await until(lambda: (server.http.parked, len(server.bodies)) == (20 - room, room))
            for client in clients:
                client.close()

    run(main)


def test_a_caller_who_never_asks_is_handed_on():
    async def main():
        async with Handled(longest_seconds=0.05) as server:
            silent, other = server.send(b""), server.send(b"")
            await until(lambda: server.http.connections == 2)
            silent.sendall(LIVE)
            assert (await answer_of(silent)).endswith(b"done")
            other.close()
            await until(lambda: server.http.connections == 1)

    run(main)


def test_unread_requests_are_read_after_their_longest_time_and_when_the_server_stops():
    async def main():
        async with Handled(longest_seconds=0.1) as server:
            first = server.rank("first")
            assert (await answer_of(first)).endswith(b"done")
            assert server.ages[0] >= 0.09
        async with Handled() as server:
            second = server.rank("second")
            await until(lambda: server.http.parked == 1)
        assert (await answer_of(second)).endswith(b"done")
        first.close()
        second.close()

    run(main)


def test_headers_sent_byte_by_byte_take_up_no_room_for_long():
    async def main():
        async with Handled(room=2) as server:
            slow = [server.send(b"POST /v1/rank ") for _ in range(2)]
            await until(lambda: server.http.connections == 2)
            assert (await answer_of(server.rank("quick"))).endswith(b"done")
            for client in slow:
                client.close()

    run(main)


@linux_only
def test_the_first_byte_came_when_the_kernel_took_it():
    async def main():
        async with Handled(room=10) as server:
            client = server.rank("waits")
            time.sleep(0.3)  # the loop is held up
            assert (await answer_of(client)).endswith(b"done")
            assert server.ages[0] >= 0.25
            client.close()

    run(main)
