"""Every golden vector, read into its meaning and written back: `python3 -m unittest test_vectors`."""

from __future__ import annotations

import json
import pathlib
import unittest
from typing import Any, Iterator, Tuple

import wire

VECTORS = pathlib.Path(__file__).resolve().parents[2] / "crates/broker-proto/golden/v1.txt"
MEANS = "# means "


def vectors() -> Iterator[Tuple[str, bytes, Any]]:
    """Name, bytes and meaning of each vector."""
    lines = VECTORS.read_text(encoding="utf-8").splitlines()
    for line, below in zip(lines, lines[1:] + [""]):
        if " = " in line and not line.startswith("#"):
            name, digits = line.split(" = ")
            if not below.startswith(MEANS):
                raise ValueError(f"{name} has no meaning")
            yield name, bytes.fromhex(digits), json.loads(below[len(MEANS) :])


def messages() -> Iterator[Tuple[str, wire.Type, bytes, Any]]:
    """The same of each message, with its kind."""
    kinds = {"client": wire.CLIENT_MESSAGE, "server": wire.SERVER_MESSAGE}
    for name, data, meaning in vectors():
        sender = name.split(".")[0]
        if sender != "preamble":
            yield name, kinds[sender], data, meaning


class Vectors(unittest.TestCase):
    """The bytes and what they mean."""

    def test_there_are_vectors(self) -> None:
        self.assertGreater(len(list(messages())), 50)

    def test_bytes_are_read_as_what_they_mean(self) -> None:
        for name, kind, data, meaning in messages():
            with self.subTest(name):
                prefix, body = data[: wire.LENGTH_BYTES], data[wire.LENGTH_BYTES :]
                self.assertEqual(wire.body_length(prefix), len(body))
                self.assertEqual(wire.message(kind, body), meaning)

    def test_meanings_are_written_as_their_bytes(self) -> None:
        for name, kind, data, meaning in messages():
            with self.subTest(name):
                self.assertEqual(wire.frame(kind, meaning).hex(), data.hex())

    def test_preambles(self) -> None:
        found = [(data, meaning) for name, data, meaning in vectors() if name.startswith("preamble.")]
        self.assertEqual(len(found), 2)
        for data, meaning in found:
            self.assertEqual(wire.read_preamble(data), meaning)
            self.assertEqual(wire.preamble(meaning["written"]), data)


class NoMessages(unittest.TestCase):
    """Bytes that mean nothing."""

    def test_a_body_cut_short_is_an_error(self) -> None:
        for name, kind, data, _ in messages():
            body = data[wire.LENGTH_BYTES :]
            for length in range(len(body)):
                with self.subTest(name, length=length), self.assertRaises(wire.WireError):
                    wire.message(kind, body[:length])

    def test_bytes_after_the_message_are_an_error(self) -> None:
        for name, kind, data, _ in messages():
            with self.subTest(name), self.assertRaises(wire.WireError):
                wire.message(kind, data[wire.LENGTH_BYTES :] + b"\x00")

    def test_numbers_keep_to_their_width(self) -> None:
        wide = [(wire.U16, "fc00000100"), (wire.U32, "fd0000000001000000"), (wire.U64, "fe"), (wire.U64, "ff")]
        for kind, text in wide:
            with self.subTest(text), self.assertRaises(wire.WireError):
                kind.read(wire.Reader(bytes.fromhex(text)))
        for number in [1 << 64, -1]:
            with self.subTest(number), self.assertRaises(wire.WireError):
                wire.U64.write(number)
        for number in [1 << 31, -(1 << 31) - 1]:
            with self.subTest(number), self.assertRaises(wire.WireError):
                wire.I32.write(number)
        for number in [0, -1, 1, 256, (1 << 31) - 1, -(1 << 31)]:
            self.assertEqual(wire.I32.read(wire.Reader(wire.I32.write(number))), number)

    def test_flags_options_and_variants_are_what_they_are(self) -> None:
        for kind, text in [(wire.FLAG, "02"), (wire.Option(wire.U16), "0201"), (wire.STATE, "07"), (wire.TEXT, "01ff")]:
            with self.subTest(text), self.assertRaises(wire.WireError):
                kind.read(wire.Reader(bytes.fromhex(text)))

    def test_a_claimed_length_is_checked_first(self) -> None:
        with self.assertRaises(wire.WireError):
            wire.body_length(b"\xff\xff\xff\xff")
        for kind in [wire.TEXT, wire.Sequence(wire.TEXT)]:
            with self.assertRaises(wire.WireError):
                kind.read(wire.Reader(bytes.fromhex("fdffffffffffffffff")))

    def test_a_stranger_is_known_by_its_first_bytes(self) -> None:
        with self.assertRaises(wire.WireError):
            wire.read_preamble(b"HTTP/1.1 4")


if __name__ == "__main__":
    unittest.main()
