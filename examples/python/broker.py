#!/usr/bin/env python3
"""A client of the process broker, with nothing but Python's standard library.

As a module:

    with Broker() as broker:
        backend = broker.resolve("redis", "^7", progress=print)
        print(backend.endpoint, "is held until it is released or the session ends")
        stream = broker.connect("redis", "^7").stream

As a command: `python3 broker.py resolve redis@^7`; `--help` tells the rest. PROTOCOL.md says why things are done so.
"""

from __future__ import annotations

import collections
import dataclasses
import errno
import json
import math
import os
import pathlib
import select
import socket
import sys
import time
from typing import Any, Callable, Deque, Dict, Iterator, List, Optional, Set, Tuple

import wire

NAME, RELEASE = "broker.py", "0.1.0"

# Nothing heard for so long: the connection is dead.
SILENCE = 8.0
# How long one look at the socket waits at most. More than that of a silence is never counted at once, so that time in
# which this process was stopped does not count.
LOOK = 1.0
# How long a listener is waited for that is too busy to accept.
PATIENCE = 5.0
# How long the next broker is waited for after a drain, by a request without a deadline.
COMEBACK = 60.0
# How long a goodbye is respected at least, whatever it says.
ABSENCE = 0.1
# What the broker is given beyond a deadline: its own refusal says more than ours.
GRACE = 1.0

FATAL = {
    "service_unknown",
    "version_unsupported",
    "version_blocked",
    "spawn_failed",
    "peer_rejected",
    "protocol_unsupported",
    "malformed",
}

Progress = Callable[[Dict[str, Any]], None]


class BrokerError(Exception):
    """What keeps the broker from doing what it was asked."""


class NoBroker(BrokerError):
    """Nobody listens at any of the sockets."""


class NotPermitted(BrokerError):
    """This user may not connect to the broker's socket."""


class Disconnected(BrokerError):
    """The connection ended, or is dead; holds and requests ended with it."""


class Refused(BrokerError):
    """The broker's typed answer No."""

    def __init__(self, refusal: Dict[str, Any]) -> None:
        super().__init__(f"{refusal['reason']} ({refusal['code']})")
        self.code: str = refusal["code"]
        self.reason: str = refusal["reason"]
        self.retry_after_ms: Optional[int] = refusal["retry_after_ms"]
        # What the broker knows of the cause, and nothing that it does not know.
        self.evidence = {name: value for name, value in refusal["evidence"].items() if value not in (None, "", [])}

    @property
    def is_fatal(self) -> bool:
        """Whether asking again cannot help until somebody changes something."""
        return self.code in FATAL


@dataclasses.dataclass(frozen=True)
class Backend:
    """A backend, ready, and held by the session that asked for it."""

    request_id: int
    instance: str
    service: str
    version: str
    endpoint: str
    generation: int
    pid: Optional[int]
    # The socket that the broker connected, if it was asked to. It is the caller's to close.
    stream: Optional[socket.socket] = None


class Broker:
    """A session with the broker: one connection, one request at a time. Not for several threads at once."""

    def __init__(self, path: Optional[str] = None, patience: float = PATIENCE) -> None:
        """Dials this socket, or else the first in the usual places that can be connected to."""
        self.path, self._socket = dial(candidates(path), time.monotonic() + patience)
        self._last_id = 0
        self._begin()

    def _begin(self) -> None:
        """A new connection knows nothing of the one before."""
        self._inbox = bytearray()
        self._descriptors: Deque[int] = collections.deque()
        self._events: Deque[Tuple[int, Any]] = collections.deque()
        self._holds: Set[int] = set()
        self._awaited: Optional[int] = None
        self._has_spoken = False
        self._is_greeted = False
        self._silence = 0.0
        self._has_pinged = False
        # The broker said goodbye: when, and after how many seconds it wants to be asked again; None is never.
        self._going: Optional[Tuple[float, Optional[float]]] = None

    def close(self) -> None:
        """Ends the session, and with it every hold."""
        while self._descriptors:
            os.close(self._descriptors.popleft())
        self._holds.clear()
        self._socket.close()

    def __enter__(self) -> Broker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def resolve(
        self,
        service: str,
        requirement: str = "*",
        instance: str = "default",
        deadline: Optional[float] = None,
        progress: Optional[Progress] = None,
        found_dead: Optional[int] = None,
        delivery: str = "Endpoint",
    ) -> Backend:
        """Asks for a backend, which is started if need be, and holds it from the answer on.

        `deadline` is in seconds; `progress` is called with each Progress while the request waits. A drain of the broker
        is followed to the next one, unless something is held here: holds end with their connection, and whoever has
        some must know of it.
        """
        until = None if deadline is None else time.monotonic() + deadline
        while True:
            holds_nothing = not self._holds
            if self._going and holds_nothing:
                self._come_back(until)
            hello = {
                "request_id": self._next_id(),
                "instance": instance,
                "service": service,
                "version_requirement": requirement,
                "client": {"name": NAME, "version": RELEASE},
                "deadline_ms": None if until is None else milliseconds(until - time.monotonic()),
                "delivery": delivery,
                "found_dead": found_dead,
            }
            try:
                return self._ask(hello, until, progress)
            except Refused as refusal:
                if refusal.code != "shutting_down" or not (holds_nothing and self._is_expected_back()):
                    raise
            except Disconnected:
                if not (holds_nothing and self._is_expected_back()):
                    raise

    def connect(
        self,
        service: str,
        requirement: str = "*",
        instance: str = "default",
        deadline: Optional[float] = None,
        progress: Optional[Progress] = None,
    ) -> Backend:
        """The same with a socket in it that the broker connected, which works where the endpoint cannot be seen."""
        return self.resolve(service, requirement, instance, deadline, progress, delivery="Connected")

    def release(self, backend: Backend) -> None:
        """Gives a hold up. A connected socket stays open."""
        self._holds.discard(backend.request_id)
        self._send({"Release": {"request_id": backend.request_id}})

    def ping(self, timeout: float = SILENCE) -> None:
        """Asks for a sign of life and waits for it; TimeoutError says that none came in time."""
        until = time.monotonic() + timeout
        nonce = self._next_id()
        self._send({"Ping": {"nonce": nonce}})
        while self._receive(until) != ("Pong", {"nonce": nonce}, None):
            pass

    def events(self, timeout: Optional[float] = None) -> Iterator[Tuple[int, Any]]:
        """What happens to the backends that are held, each with the hold's request_id; ends when nothing has happened
        for that many seconds."""
        while True:
            until = None if timeout is None else time.monotonic() + timeout
            try:
                while not self._events:
                    self._receive(until)
            except TimeoutError:
                return
            yield self._events.popleft()

    def admin(self, request: Any) -> Any:
        """An operator's order or report, such as `"Status"`: the document that answers it."""
        request_id = self._next_id()
        self._send({"Admin": {"request_id": request_id, "request": request}})
        while True:
            name, value, _ = self._receive(None)
            if name == "AdminReply" and value["request_id"] == request_id:
                return json.loads(value["json"])
            if name == "Refused" and value["request_id"] == request_id:
                raise Refused(value["refusal"])

    def _ask(self, hello: Dict[str, Any], until: Optional[float], progress: Optional[Progress]) -> Backend:
        """Says Hello and waits for the final answer."""
        request_id = hello["request_id"]
        self._awaited = request_id
        try:
            self._send({"Hello": hello})
            while True:
                name, value, descriptor = self._receive(None if until is None else until + GRACE)
                if name == "Refused" and value["request_id"] == request_id:
                    raise Refused(value["refusal"])
                if name == "Progress" and value["request_id"] == request_id and progress:
                    progress(value)
                if name == "Negotiated" and value["request_id"] == request_id:
                    self._holds.add(request_id)
                    return backend(value, descriptor)
        except TimeoutError:
            # The broker does not even keep the deadline that it was told. The end of the session gives the request up.
            self.close()
            raise Disconnected("the broker did not answer in time") from None
        except (Refused, Disconnected):
            raise
        except BaseException:
            # The caller was interrupted, or what it made of the progress failed. Before the broker's preamble has come
            # nothing may be sent; then the answer is released when it comes.
            if self._is_greeted:
                self._send({"Release": {"request_id": request_id}})
            raise
        finally:
            self._awaited = None

    def _receive(self, until: Optional[float]) -> Tuple[str, Any, Optional[int]]:
        """The next message, and the descriptor that came with it. What concerns the session is noted on the way."""
        while True:
            message = self._parse()
            if message is not None:
                break
            self._read(until)
        name, value = wire.variant(message)
        descriptor = None
        if name == "Negotiated" and value["connected"]:
            if not self._descriptors:
                self.close()
                raise Disconnected("a connected socket was announced and did not come")
            descriptor = self._descriptors.popleft()
        if name == "Negotiated" and value["request_id"] != self._awaited:
            # It crossed its release, or its caller was interrupted: nobody wants it any more.
            self._send({"Release": {"request_id": value["request_id"]}})
            if descriptor is not None:
                os.close(descriptor)
        elif name == "Event":
            self._events.append((value["request_id"], value["event"]))
            if value["event"] == "Stopped":
                self._holds.discard(value["request_id"])
        elif name == "GoAway":
            kind, after = wire.variant(value["reconnect"])
            self._going = (time.monotonic(), after["ms"] / 1000 if kind == "After" else None)
        elif name == "Refused" and value["request_id"] == 0:
            raise Refused(value["refusal"])
        return name, value, descriptor

    def _parse(self) -> Any:
        """The next message, if all of it has arrived."""
        try:
            if not self._is_greeted:
                if len(self._inbox) < wire.PREAMBLE_BYTES:
                    return None
                self._greeted(wire.read_preamble(self._take(wire.PREAMBLE_BYTES)))
            if len(self._inbox) < wire.LENGTH_BYTES:
                return None
            length = wire.body_length(bytes(self._inbox[: wire.LENGTH_BYTES]))
            if len(self._inbox) < wire.LENGTH_BYTES + length:
                return None
            self._take(wire.LENGTH_BYTES)
            return wire.message(wire.SERVER_MESSAGE, self._take(length))
        except wire.WireError as error:
            self.close()
            raise Disconnected(f"the broker broke the protocol: {error}") from error

    def _take(self, count: int) -> bytes:
        taken = bytes(self._inbox[:count])
        del self._inbox[:count]
        return taken

    def _greeted(self, preamble: Dict[str, int]) -> None:
        """This side knows one version of the protocol; a broker that does not know it cannot be talked to."""
        self._is_greeted = True
        if preamble["written"] != wire.VERSION:
            self.close()
            reason = "the broker speaks versions {lowest} to {highest} of the protocol".format(**preamble)
            nothing = dict.fromkeys(wire.EVIDENCE.fields)
            refusal = {"reason": f"{reason}, this client {wire.VERSION}", "retry_after_ms": None, "evidence": nothing}
            raise Refused({"code": "protocol_unsupported", **refusal})

    def _read(self, until: Optional[float]) -> None:
        """Waits for bytes and takes them, with the descriptors that come with them."""
        self._wait(until)
        if not self._inbox:
            # No frame is half here, so whatever came with the ones before was announced by none.
            while self._descriptors:
                os.close(self._descriptors.popleft())
        room = socket.CMSG_SPACE(4)
        try:
            data, control, flags, _ = self._socket.recvmsg(1 << 16, room, socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            self.close()
            raise Disconnected(f"the connection to the broker broke: {error.strerror}") from error
        for level, kind, payload in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                usable = len(payload) - len(payload) % 4
                self._descriptors.extend(memoryview(payload[:usable]).cast("i"))
        if flags & socket.MSG_CTRUNC or not data:
            self.close()
            raise Disconnected("a connected socket was lost on its way" if data else "the broker closed the connection")
        self._inbox += data
        self._silence, self._has_pinged = 0.0, False

    def _wait(self, until: Optional[float]) -> None:
        """Waits until there is something to read. A broker that is heard nothing of is asked, then given up."""
        looker = select.poll()
        looker.register(self._socket, select.POLLIN)
        while True:
            left = LOOK if until is None else until - time.monotonic()
            look = min(max(left, 0.0), LOOK)
            if looker.poll(look * 1000):
                return
            if left <= 0:
                raise TimeoutError
            self._silence += look
            if self._silence >= SILENCE:
                self.close()
                raise Disconnected(f"nothing was heard of the broker for {SILENCE:.0f} seconds")
            if self._silence >= SILENCE / 2 and self._is_greeted and not self._has_pinged:
                self._has_pinged = True
                self._send({"Ping": {"nonce": 0}})

    def _send(self, message: Any) -> None:
        """Sends a message, behind the preamble if it is the first."""
        data = wire.frame(wire.CLIENT_MESSAGE, message)
        if not self._has_spoken:
            self._has_spoken = True
            data = wire.preamble() + data
        try:
            self._socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            # What the broker said before it closed is still to be read, and says more than that it closed.
            pass
        except OSError as error:
            raise Disconnected(f"the session is over: {error.strerror}") from error

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _is_expected_back(self) -> bool:
        """Whether the broker said goodbye, and when to come again."""
        return self._going is not None and self._going[1] is not None

    def _come_back(self, until: Optional[float]) -> None:
        """Connects to the next broker, once the time has come that this one gave."""
        assert self._going is not None
        since, pause = self._going
        self.close()
        if pause is None:
            raise Disconnected("the broker went for good")
        give_up = time.monotonic() + COMEBACK if until is None else until
        time.sleep(max(0.0, min(since + max(pause, ABSENCE), give_up) - time.monotonic()))
        pause = 0.05
        while True:
            try:
                _, self._socket = dial([self.path], give_up)
                break
            except NoBroker as error:
                if time.monotonic() + pause >= give_up:
                    raise Disconnected("the broker went, and none has come in its place") from error
            time.sleep(pause)
            pause = min(pause * 2, 1.0)
        self._begin()


def backend(negotiated: Dict[str, Any], descriptor: Optional[int]) -> Backend:
    """A Negotiated, as its receiver keeps it."""
    kind, place = wire.variant(negotiated["endpoint"])
    endpoint = f"unix:{place['path']}" if kind == "Unix" else f"tcp:{place['host']}:{place['port']}"
    connected = None
    if descriptor is not None:
        connected = socket.socket(fileno=descriptor)
        connected.setblocking(True)
    fields = {name: negotiated[name] for name in ("request_id", "instance", "service", "version", "generation", "pid")}
    return Backend(endpoint=endpoint, stream=connected, **fields)


def candidates(path: Optional[str]) -> List[str]:
    """Where a broker may listen, in the order in which it is looked for."""
    named = path or os.environ.get("BROKER_SOCKET")
    if named:
        return [named]
    places = ["/run/broker/broker.sock"]
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.geteuid() != 0:
        places.insert(0, str(pathlib.Path(runtime, "broker/broker.sock")))
    return places


def dial(paths: List[str], give_up: float) -> Tuple[str, socket.socket]:
    """Connects to the first socket at which somebody listens."""
    tried = []
    denied: Optional[OSError] = None
    for path in paths:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connect_patiently(connection, path, give_up)
            return path, connection
        except OSError as error:
            connection.close()
            tried.append(f"{path}: {error.strerror or error}")
            if isinstance(error, PermissionError):
                denied = error
            elif isinstance(error, TimeoutError):
                raise Disconnected(f"the broker at {path} is too busy to accept") from error
    if denied:
        raise NotPermitted("; ".join(tried)) from denied
    raise NoBroker("; ".join(tried))


def connect_patiently(connection: socket.socket, path: str, give_up: float) -> None:
    """Connects. A listener whose backlog is full answers EAGAIN and leaves the socket as it was."""
    pause = 0.001
    connection.setblocking(False)
    while True:
        try:
            connection.connect(path)
            break
        except BlockingIOError:
            if time.monotonic() >= give_up:
                raise TimeoutError(errno.ETIMEDOUT, "the backlog stays full") from None
        time.sleep(pause)
        pause = min(pause * 2, 0.05)
    connection.setblocking(True)


def milliseconds(seconds: float) -> int:
    """Rounded up: a wait that is not over stays one."""
    return max(0, math.ceil(seconds * 1000))


if __name__ == "__main__":
    # The command line is a client like any other, which imports this file as a module.
    import cli

    sys.exit(cli.main())
