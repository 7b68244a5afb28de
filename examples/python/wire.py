"""The bytes of the broker's protocol, version 1, as PROTOCOL.md describes them: values to bytes and back.

A value is what the golden vectors call its meaning: a struct is a dict, a variant with fields is a dict with one key, a
variant without fields is its name, an option that is absent is None. No socket in here.
"""

from __future__ import annotations

import struct
from typing import Any, Dict, List, Optional, Tuple

MAGIC = b"PBRK"
VERSION = 1
PREAMBLE_BYTES = 10
LENGTH_BYTES = 4
FIRST_FRAME_MAX = 64 << 10
FRAME_MAX = 1 << 20


class WireError(Exception):
    """Bytes that are no value of the protocol, or a value that has no bytes."""


class Reader:
    """Hands out the bytes of a body from its beginning."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.at = 0

    def left(self) -> int:
        return len(self.body) - self.at

    def take(self, count: int) -> bytes:
        if count > self.left():
            raise WireError("the body ends in the middle of a value")
        self.at += count
        return self.body[self.at - count : self.at]


class Type:
    """How one kind of value is written and read."""

    def write(self, value: Any) -> bytes:
        raise NotImplementedError

    def read(self, reader: Reader) -> Any:
        raise NotImplementedError


class Unsigned(Type):
    """A number of 16, 32 or 64 bits; small ones take one byte."""

    FORMS = ((0xFB, 2), (0xFC, 4), (0xFD, 8))

    def __init__(self, bits: int) -> None:
        self.bits = bits

    def write(self, value: int) -> bytes:
        if not 0 <= value < 1 << self.bits:
            raise WireError(f"{value} does not fit {self.bits} bits")
        if value <= 250:
            return bytes([value])
        mark, size = next(form for form in self.FORMS if value < 1 << 8 * form[1])
        return bytes([mark]) + value.to_bytes(size, "little")

    def read(self, reader: Reader) -> int:
        first = reader.take(1)[0]
        if first <= 250:
            return first
        size = dict(self.FORMS).get(first)
        if size is None or size * 8 > self.bits:
            raise WireError(f"byte {first:#x} begins no number of {self.bits} bits")
        return int.from_bytes(reader.take(size), "little")


class Signed(Type):
    """A number of 32 bits with a sign: zigzag, so that small negative ones are short too."""

    BITS = Unsigned(32)

    def write(self, value: int) -> bytes:
        return self.BITS.write(2 * value if value >= 0 else -2 * value - 1)

    def read(self, reader: Reader) -> int:
        number = self.BITS.read(reader)
        return number // 2 if number % 2 == 0 else -(number + 1) // 2


class Flag(Type):
    """A bool."""

    def write(self, value: bool) -> bytes:
        return b"\x01" if value else b"\x00"

    def read(self, reader: Reader) -> bool:
        byte = reader.take(1)[0]
        if byte > 1:
            raise WireError(f"byte {byte:#x} is neither 0 nor 1")
        return byte == 1


class Text(Type):
    """A string."""

    def write(self, value: str) -> bytes:
        encoded = value.encode("utf-8")
        return U64.write(len(encoded)) + encoded

    def read(self, reader: Reader) -> str:
        encoded = reader.take(U64.read(reader))
        try:
            return encoded.decode("utf-8")
        except UnicodeDecodeError as error:
            raise WireError("a text is no UTF-8") from error


class Option(Type):
    """Something, or None."""

    def __init__(self, inner: Type) -> None:
        self.inner = inner

    def write(self, value: Any) -> bytes:
        return b"\x00" if value is None else b"\x01" + self.inner.write(value)

    def read(self, reader: Reader) -> Any:
        return self.inner.read(reader) if FLAG.read(reader) else None


class Sequence(Type):
    """A list."""

    def __init__(self, inner: Type) -> None:
        self.inner = inner

    def write(self, value: List[Any]) -> bytes:
        return U64.write(len(value)) + b"".join(map(self.inner.write, value))

    def read(self, reader: Reader) -> List[Any]:
        count = U64.read(reader)
        if count > reader.left():
            raise WireError("a list is longer than its body")
        return [self.inner.read(reader) for _ in range(count)]


class Pair(Type):
    """Two values, as a list of two."""

    def __init__(self, first: Type, second: Type) -> None:
        self.halves = (first, second)

    def write(self, value: List[Any]) -> bytes:
        if len(value) != 2:
            raise WireError(f"{len(value)} values are no pair")
        return b"".join(half.write(inner) for half, inner in zip(self.halves, value))

    def read(self, reader: Reader) -> List[Any]:
        return [half.read(reader) for half in self.halves]


class Struct(Type):
    """Fields, in the order in which they are given here."""

    def __init__(self, **fields: Type) -> None:
        self.fields = fields

    def write(self, value: Dict[str, Any]) -> bytes:
        if value.keys() != self.fields.keys():
            raise WireError(f"fields {sorted(value)} instead of {sorted(self.fields)}")
        return b"".join(field.write(value[name]) for name, field in self.fields.items())

    def read(self, reader: Reader) -> Dict[str, Any]:
        return {name: field.read(reader) for name, field in self.fields.items()}


class Enum(Type):
    """Variants, in the order in which they are given here; None is one without fields."""

    INDEX = Unsigned(32)

    def __init__(self, **variants: Optional[Type]) -> None:
        self.variants = variants
        self.names = list(variants)

    def write(self, value: Any) -> bytes:
        name, inner = variant(value)
        if name not in self.variants:
            raise WireError(f"{name} is none of {self.names}")
        fields = self.variants[name]
        return self.INDEX.write(self.names.index(name)) + (fields.write(inner) if fields else b"")

    def read(self, reader: Reader) -> Any:
        index = self.INDEX.read(reader)
        if index >= len(self.names):
            raise WireError(f"there is no variant {index} after {self.names}")
        name = self.names[index]
        fields = self.variants[name]
        return {name: fields.read(reader)} if fields else name


def variant(value: Any) -> Tuple[str, Any]:
    """The name of an enum's variant, and what is in it."""
    if isinstance(value, str):
        return value, None
    ((name, inner),) = value.items()
    return name, inner


U16, U32, U64, I32 = Unsigned(16), Unsigned(32), Unsigned(64), Signed()
FLAG, TEXT = Flag(), Text()

DELIVERY = Enum(Endpoint=None, Connected=None)
ENDPOINT = Enum(Unix=Struct(path=TEXT), Tcp=Struct(host=TEXT, port=U16))
STATE = Enum(inactive=None, starting=None, ready=None, backoff=None, failed=None, stopping=None, quarantined=None)
EXIT = Enum(code=I32, signal=I32, unknown=None)
RECONNECT = Enum(After=Struct(ms=U64), Never=None)
CODE = Enum(
    service_unknown=None,
    version_unsupported=None,
    version_blocked=None,
    backend_unavailable=None,
    spawn_failed=None,
    start_timeout=None,
    rate_limited=None,
    overloaded=None,
    peer_rejected=None,
    shutting_down=None,
    protocol_unsupported=None,
    malformed=None,
    internal=None,
)
EVIDENCE = Struct(
    exit_code=Option(I32),
    signal=Option(I32),
    lived_ms=Option(U64),
    attempt=Option(U32),
    stderr=Option(TEXT),
    log_path=Option(TEXT),
    available=Sequence(TEXT),
)
REFUSAL = Struct(code=CODE, reason=TEXT, retry_after_ms=Option(U64), evidence=EVIDENCE)

HELLO = Struct(
    request_id=U64,
    instance=TEXT,
    service=TEXT,
    version_requirement=TEXT,
    client=Struct(name=TEXT, version=TEXT),
    deadline_ms=Option(U64),
    delivery=DELIVERY,
    found_dead=Option(U64),
)
TARGET = Struct(instance=TEXT, service=TEXT, version_requirement=TEXT)
SELECTION = Struct(instance=Option(TEXT), service=Option(TEXT), version_requirement=Option(TEXT))
WORK = Enum(Command=Struct(argv=Sequence(TEXT)), Service=Struct(target=TARGET))
PROCESS_SPEC = Struct(
    id=Option(TEXT),
    work=WORK,
    environment=Sequence(Pair(TEXT, TEXT)),
    working_directory=Option(TEXT),
    timeout_ms=Option(U64),
    max_attempts=Option(U32),
)
ADMIN_REQUEST = Enum(
    Status=None,
    Services=None,
    Start=Struct(target=TARGET, deadline_ms=Option(U64)),
    Stop=Struct(selection=SELECTION, deadline_ms=Option(U64)),
    Restart=Struct(selection=SELECTION, deadline_ms=Option(U64)),
    Drain=Struct(selection=SELECTION),
    Logs=Struct(selection=SELECTION),
    Reload=None,
    Shutdown=None,
    Events=Struct(selection=SELECTION, after=Option(TEXT), wait_ms=Option(U64)),
    Release=Struct(selection=SELECTION),
    HandOver=None,
    Run=Struct(spec=PROCESS_SPEC),
    Wait=Struct(id=TEXT, wait_ms=Option(U64)),
    Processes=Struct(id=Option(TEXT)),
    Cancel=Struct(id=TEXT, reason=TEXT),
    Prune=Struct(id=Option(TEXT), older_than_ms=Option(U64)),
)
CLIENT_MESSAGE = Enum(
    Hello=HELLO,
    Release=Struct(request_id=U64),
    Ping=Struct(nonce=U64),
    Admin=Struct(request_id=U64, request=ADMIN_REQUEST),
)

NEGOTIATED = Struct(
    request_id=U64,
    instance=TEXT,
    service=TEXT,
    version=TEXT,
    endpoint=ENDPOINT,
    generation=U64,
    pid=Option(U32),
    connected=FLAG,
)
PROGRESS = Struct(
    request_id=U64, version=TEXT, state=STATE, attempt=U32, elapsed_ms=U64, status=Option(TEXT)
)
EVENT = Enum(
    Exited=Struct(generation=U64, exit=EXIT, lived_ms=U64),
    Restarting=Struct(delay_ms=U64),
    Ready=Struct(generation=U64, endpoint=ENDPOINT),
    Failed=Struct(refusal=REFUSAL),
    Draining=None,
    Stopped=None,
    Resumable=None,
)
SERVER_MESSAGE = Enum(
    Negotiated=NEGOTIATED,
    Refused=Struct(request_id=U64, refusal=REFUSAL),
    Progress=PROGRESS,
    Event=Struct(request_id=U64, event=EVENT),
    GoAway=Struct(reconnect=RECONNECT),
    Pong=Struct(nonce=U64),
    AdminReply=Struct(request_id=U64, json=TEXT),
    Heartbeat=None,
)


def frame(kind: Type, message: Any) -> bytes:
    """A message of that kind as a frame: its length, and its body."""
    body = kind.write(message)
    if len(body) > FRAME_MAX:
        raise WireError(f"a message of {len(body)} bytes is longer than a frame may be")
    return struct.pack("<I", len(body)) + body


def message(kind: Type, body: bytes) -> Any:
    """The one message of that kind that a frame's body is."""
    reader = Reader(body)
    value = kind.read(reader)
    if reader.left():
        raise WireError(f"{reader.left()} bytes are left after the message")
    return value


def body_length(prefix: bytes) -> int:
    """How long the body is that follows these four bytes."""
    (length,) = struct.unpack("<I", prefix)
    if length > FRAME_MAX:
        raise WireError(f"a frame of {length} bytes is longer than a frame may be")
    return int(length)


def preamble(written: int = VERSION) -> bytes:
    """What this side says before its first frame."""
    return struct.pack("<4sHHH", MAGIC, VERSION, VERSION, written)


def read_preamble(data: bytes) -> Dict[str, int]:
    """What the other side says before its first frame: ten bytes."""
    magic, lowest, highest, written = struct.unpack("<4sHHH", data)
    if magic != MAGIC:
        raise WireError(f"the peer does not speak this protocol: it began with {magic!r}")
    return {"lowest": lowest, "highest": highest, "written": written}
