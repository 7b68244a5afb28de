"""The session with a broker that is played here, for what a real one seldom does.

`python3 -m unittest test_session`.
"""

from __future__ import annotations

import pathlib
import socket
import tempfile
import threading
import unittest
import unittest.mock
from typing import Any, Callable, List, Optional

import broker
import wire
from broker import Broker, Disconnected, Refused

NOTHING: Any = {**dict.fromkeys(wire.EVIDENCE.fields), "available": []}
LONG = 60.0


def refused(request_id: int, code: str) -> Any:
    refusal = {"code": code, "reason": "no", "retry_after_ms": None, "evidence": NOTHING}
    return {"Refused": {"request_id": request_id, "refusal": refusal}}


def negotiated(request_id: int, connected: bool = False) -> Any:
    place = {"Unix": {"path": "/nowhere"}}
    names = {"instance": "default", "service": "x", "version": "1.0.0", "endpoint": place, "generation": 1, "pid": None}
    return {"Negotiated": {"request_id": request_id, **names, "connected": connected}}


def go_away(seconds: Optional[int]) -> Any:
    return {"GoAway": {"reconnect": "Never" if seconds is None else {"After": {"ms": seconds * 1000}}}}


class Peer:
    """The broker's side of one connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.input = connection.makefile("rb")

    def greet(self, written: int = wire.VERSION) -> None:
        self.connection.sendall(wire.preamble(written))

    def say(self, message: Any, *descriptors: int) -> None:
        frame = wire.frame(wire.SERVER_MESSAGE, message)
        socket.send_fds(self.connection, [frame], list(descriptors)) if descriptors else self.connection.sendall(frame)

    def hear_preamble(self) -> None:
        wire.read_preamble(self.input.read(wire.PREAMBLE_BYTES))

    def hear(self) -> Any:
        length = wire.body_length(self.input.read(wire.LENGTH_BYTES))
        return wire.message(wire.CLIENT_MESSAGE, self.input.read(length))

    def hear_hello(self) -> int:
        """The preamble and the Hello behind it, answered with a preamble."""
        self.hear_preamble()
        hello = self.hear()["Hello"]
        self.greet()
        return int(hello["request_id"])


class Session(unittest.TestCase):
    """What a client makes of what it hears."""

    def play(self, *parts: Callable[[Peer], None]) -> Broker:
        """A client of a broker that plays these parts, one on each connection."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = str(pathlib.Path(folder.name, "s"))
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        listener.listen()
        faults: List[BaseException] = []

        def run() -> None:
            try:
                with listener:
                    for part in parts:
                        connection, _ = listener.accept()
                        peer = Peer(connection)
                        with connection, peer.input:
                            connection.settimeout(LONG)
                            part(peer)
            except BaseException as fault:
                faults.append(fault)

        thread = threading.Thread(target=run)
        thread.start()
        client = Broker(path, LONG)

        def end() -> None:
            client.close()
            thread.join(LONG)
            self.assertEqual((faults, thread.is_alive()), ([], False))

        self.addCleanup(end)
        return client

    def test_a_version_that_is_not_known_is_refused(self) -> None:
        def part(peer: Peer) -> None:
            peer.hear_preamble()
            peer.connection.sendall(wire.MAGIC + b"\x05\x00\x07\x00\x00\x00")

        with self.assertRaises(Refused) as raised:
            self.play(part).resolve("x")
        self.assertEqual(raised.exception.code, "protocol_unsupported")
        self.assertIn("5 to 7", str(raised.exception))

    def test_a_connection_refused_as_a_whole_says_why(self) -> None:
        closed = threading.Event()

        def part(peer: Peer) -> None:
            peer.greet()
            peer.say(refused(0, "rate_limited"))
            peer.connection.shutdown(socket.SHUT_RDWR)
            closed.set()

        client = self.play(part)
        closed.wait(LONG)
        with self.assertRaises(Refused) as raised:
            client.resolve("x")
        self.assertEqual(raised.exception.code, "rate_limited")

    def test_a_stranger_is_no_broker(self) -> None:
        with self.assertRaisesRegex(Disconnected, "broke the protocol"):
            self.play(lambda peer: peer.connection.sendall(b"HTTP/1.1 400 Bad Request\r\n")).resolve("x")

    def test_a_connected_socket_that_does_not_come_is_an_error(self) -> None:
        with self.assertRaisesRegex(Disconnected, "did not come"):
            self.play(lambda peer: peer.say(negotiated(peer.hear_hello(), connected=True))).connect("x")

    def test_connected_sockets_come_in_order(self) -> None:
        ours, theirs = socket.socketpair()
        stray, strays_end = socket.socketpair()

        def part(peer: Peer) -> None:
            request_id = peer.hear_hello()
            peer.say({"Pong": {"nonce": 5}}, stray.fileno())
            stray.close()
            # It was announced by no frame, so it is closed when the next bytes come.
            peer.say("Heartbeat")
            strays_end.settimeout(LONG)
            self.assertEqual(strays_end.recv(1), b"")
            # A frame in two halves: the descriptor comes with the first.
            frame = wire.frame(wire.SERVER_MESSAGE, negotiated(request_id, connected=True))
            socket.send_fds(peer.connection, [frame[:3]], [theirs.fileno()])
            peer.connection.sendall(frame[3:])

        with ours, theirs, strays_end:
            stream = self.play(part).connect("x").stream
            assert stream is not None
            with stream:
                stream.sendall(b"hello")
                self.assertEqual(ours.recv(5), b"hello")
                self.assertFalse(stream.get_inheritable())

    def test_lost_descriptors_end_the_session(self) -> None:
        pairs = [socket.socketpair() for _ in range(4)]

        def part(peer: Peer) -> None:
            peer.say(negotiated(peer.hear_hello(), connected=True), *(kept.fileno() for kept, _ in pairs))

        with self.assertRaisesRegex(Disconnected, "lost"):
            self.play(part).connect("x")
        for kept, end in pairs:
            kept.close()
            with end:
                end.settimeout(LONG)
                self.assertEqual(end.recv(1), b"", "none is left open")

    def test_an_answer_that_nobody_waits_for_is_released(self) -> None:
        def part(peer: Peer) -> None:
            request_id = peer.hear_hello()
            peer.say(negotiated(99))
            self.assertEqual(peer.hear(), {"Release": {"request_id": 99}})
            peer.say(negotiated(request_id))

        self.assertEqual(self.play(part).resolve("x").version, "1.0.0")

    def test_a_request_whose_caller_was_interrupted_is_released(self) -> None:
        def part(peer: Peer) -> None:
            request_id = peer.hear_hello()
            progress = {"version": "1.0.0", "state": "starting", "attempt": 0, "elapsed_ms": 0, "status": None}
            peer.say({"Progress": {"request_id": request_id, **progress}})
            self.assertEqual(peer.hear(), {"Release": {"request_id": request_id}})
            peer.say(negotiated(peer.hear()["Hello"]["request_id"]))

        def interrupt(_: Any) -> None:
            raise KeyboardInterrupt

        client = self.play(part)
        with self.assertRaises(KeyboardInterrupt):
            client.resolve("x", progress=interrupt)
        client.resolve("x")

    def test_a_silent_broker_is_asked_before_it_is_given_up(self) -> None:
        def part(peer: Peer) -> None:
            request_id = peer.hear_hello()
            for sign_of_life in ["Heartbeat", {"Pong": {"nonce": 0}}]:
                peer.say(sign_of_life)
                self.assertEqual(peer.hear(), {"Ping": {"nonce": 0}})
            peer.say(negotiated(request_id))

        self.play(part).resolve("x")

    def test_silence_ends_the_session(self) -> None:
        over = threading.Event()

        def part(peer: Peer) -> None:
            peer.hear_hello()
            over.wait(LONG)

        with unittest.mock.patch.object(broker, "SILENCE", 1.0):
            with self.assertRaisesRegex(Disconnected, "nothing was heard"):
                self.play(part).resolve("x")
        over.set()

    def test_a_drain_is_followed_and_the_hello_said_again(self) -> None:
        def goes(peer: Peer) -> None:
            request_id = peer.hear_hello()
            peer.say(go_away(0))
            peer.say(refused(request_id, "shutting_down"))

        def goes_abruptly(peer: Peer) -> None:
            peer.hear_hello()
            peer.say(go_away(0))

        self.play(goes, goes_abruptly, goes, lambda peer: peer.say(negotiated(peer.hear_hello()))).resolve("x")

    def test_a_refusal_without_a_drain_is_final(self) -> None:
        with self.assertRaises(Refused):
            self.play(lambda peer: peer.say(refused(peer.hear_hello(), "shutting_down"))).resolve("x")
        with self.assertRaises(Disconnected):
            self.play(lambda peer: None if peer.hear_hello() else None).resolve("x")

    def test_a_broker_that_goes_for_good_is_not_looked_for(self) -> None:
        def goes(peer: Peer) -> None:
            request_id = peer.hear_hello()
            peer.say(go_away(None))
            peer.say(refused(request_id, "shutting_down"))

        client = self.play(goes)
        with self.assertRaises(Refused):
            client.resolve("x")
        with self.assertRaisesRegex(Disconnected, "for good"):
            client.resolve("x")

    def test_holds_are_not_lost_in_silence(self) -> None:
        def goes(peer: Peer) -> None:
            peer.say(negotiated(peer.hear_hello()))
            peer.say(go_away(0))
            peer.say(refused(peer.hear()["Hello"]["request_id"], "shutting_down"))

        client = self.play(goes, lambda peer: peer.say(negotiated(peer.hear_hello())))
        client.resolve("held")
        with self.assertRaises(Refused):
            client.resolve("x")
        with self.assertRaises(Disconnected):
            list(client.events())
        # Now it is known that nothing is held any more.
        client.resolve("held")


if __name__ == "__main__":
    unittest.main()
