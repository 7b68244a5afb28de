"""The command line of broker.py: results on stdout, words for people on stderr, exit codes as brokerctl's."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import sys
import threading
from typing import Any, Dict, List, Optional, Tuple

from broker import Backend, Broker, Disconnected, NoBroker, NotPermitted, PATIENCE, Refused

DONE, FAILED, USAGE, UNAVAILABLE, TRY_LATER, NOT_PERMITTED = 0, 1, 2, 69, 75, 77

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

STATES = {
    "starting": "starting",
    "backoff": "crashed, about to start again",
    "stopping": "waiting for its end",
}


def main(arguments: Optional[List[str]] = None) -> int:
    """Runs a command and returns its exit code."""
    options = parse(arguments)
    # Ctrl-C ends this as it ends any other program.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        with Broker(options.socket, options.timeout or PATIENCE) as broker:
            commands = {"resolve": resolve, "connect": connect, "status": status}
            commands[options.command](broker, options)
        return DONE
    except Refused as refusal:
        if options.json:
            emit(json.dumps({"refused": document(refusal)}))
        else:
            say("\n".join(explain(refusal)))
        return NOT_PERMITTED if refusal.code == "peer_rejected" else UNAVAILABLE if refusal.is_fatal else TRY_LATER
    except NotPermitted as error:
        return complain("this user may not connect to the broker", error, NOT_PERMITTED)
    except NoBroker as error:
        return complain("no broker is running", error, UNAVAILABLE)
    except Disconnected as error:
        return complain("the session ended", error, TRY_LATER)
    except BrokenPipeError:
        # Nobody reads any more, so there is nothing left to do.
        return DONE
    except OSError as error:
        return complain("failed", error, FAILED)


def parse(arguments: Optional[List[str]]) -> argparse.Namespace:
    """The command line; exits with 2 if it is none."""
    common = argparse.ArgumentParser(add_help=False)
    socket_help = "the broker's socket [default: $BROKER_SOCKET, else the usual places]"
    common.add_argument("--socket", metavar="PATH", help=socket_help)
    common.add_argument("--timeout", metavar="SECONDS", type=seconds, help="how long to wait")
    common.add_argument("--json", action="store_true", help="print JSON for programs")
    parser = argparse.ArgumentParser(prog="broker.py", description="A client of the process broker.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help_text in [
        ("resolve", "print a backend's endpoint, starting it if need be"),
        ("connect", "connect stdin and stdout to a backend, by a socket that the broker connected"),
    ]:
        command = commands.add_parser(name, parents=[common], help=help_text)
        command.add_argument("backend", metavar="SERVICE[@VERSION][/INSTANCE]", type=address)
        command.add_argument("-i", "--instance", type=instance)
    commands.add_parser("status", parents=[common], help="list the backends")
    options = parser.parse_args(arguments)
    if options.command != "status":
        service, requirement, named = options.backend
        if named and options.instance and named != options.instance:
            parser.error(f"the name says instance {named}, but --instance says {options.instance}")
        options.service, options.requirement = service, requirement
        options.instance = named or options.instance or "default"
    return options


def address(text: str) -> Tuple[str, str, Optional[str]]:
    """Service, requirement and instance of `SERVICE[@VERSION][/INSTANCE]`."""
    rest, has_instance, named = text.rpartition("/") if "/" in text else (text, "", "")
    service, has_requirement, requirement = rest.partition("@")
    if not NAME.fullmatch(service) or not requirement.isascii() or has_requirement and not requirement.strip():
        raise argparse.ArgumentTypeError(f"{text!r} names no backend")
    return service, requirement or "*", instance(named) if has_instance else None


def instance(text: str) -> str:
    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} names no instance")
    return text


def seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no time to wait")
    return number


def resolve(broker: Broker, options: argparse.Namespace) -> None:
    """Prints where a backend listens."""
    found = broker.resolve(options.service, options.requirement, options.instance, options.timeout, shown(options))
    if options.json:
        names = ("instance", "service", "version", "endpoint", "pid", "generation")
        emit(json.dumps({**{name: getattr(found, name) for name in names}, "state": "ready"}))
    else:
        emit(found.endpoint)


def connect(broker: Broker, options: argparse.Namespace) -> None:
    """Passes bytes between stdin, stdout and a backend, and holds the backend meanwhile."""
    found = broker.connect(options.service, options.requirement, options.instance, options.timeout, shown(options))
    with stream_of(found) as stream:
        # It may wait for ever for the next byte, and is left behind when the backend has nothing more to say.
        threading.Thread(target=feed, args=[stream], daemon=True).start()
        while True:
            chunk = stream.recv(1 << 16)
            if not chunk:
                break
            write(chunk)


def stream_of(found: Backend) -> socket.socket:
    if found.stream is None:
        raise Disconnected("the broker named an endpoint and connected nothing")
    return found.stream


def feed(stream: socket.socket) -> None:
    """Sends what stdin has, then the end of it."""
    try:
        while True:
            chunk = os.read(0, 1 << 16)
            if not chunk:
                break
            stream.sendall(chunk)
        stream.shutdown(socket.SHUT_WR)
    except OSError:
        # The backend listens no more; what it still says is read to its end.
        pass


def status(broker: Broker, options: argparse.Namespace) -> None:
    """Lists the backends."""
    report = broker.admin("Status")
    if options.json:
        emit(json.dumps(report))
        return
    for found in report["backends"]:
        name = f"{found['service']}@{found['version']}/{found['instance']}"
        emit(f"{name}  {found['state']}  {found['endpoint'] or '-'}  holds {found['holds']}")


def shown(options: argparse.Namespace) -> Any:
    """Prints each Progress as a line on stderr."""

    def show(progress: Dict[str, Any]) -> None:
        state = STATES.get(progress["state"], progress["state"])
        if progress["state"] == "starting" and progress["attempt"]:
            state = "starting again after a crash"
        said = f": {harmless(progress['status'])}" if progress["status"] else ""
        say(f"{options.service}@{progress['version']}: {state}, {humane(progress['elapsed_ms'])}{said}")

    return show


def explain(refusal: Refused) -> List[str]:
    """What happened, the evidence, and when to try again."""
    lines = [f"broker.py: refused: {harmless(refusal.reason)} ({refusal.code})"]
    evidence = refusal.evidence
    for name, label in [("exit_code", "exit code"), ("signal", "signal"), ("attempt", "attempt")]:
        if name in evidence:
            lines.append(f"  {label:<10}{evidence[name]}")
    if "lived_ms" in evidence:
        lines.append(f"  lived     {humane(evidence['lived_ms'])}")
    if "available" in evidence:
        lines.append(f"  installed {', '.join(evidence['available'])}")
    if "stderr" in evidence:
        lines.append("  wrote")
        lines += [f"    {harmless(line)}" for line in evidence["stderr"].splitlines()]
    if "log_path" in evidence:
        lines.append(f"  log       {harmless(evidence['log_path'])}")
    if refusal.retry_after_ms is not None:
        lines.append(f"  try again in {humane(refusal.retry_after_ms)}")
    return lines


def document(refusal: Refused) -> Dict[str, Any]:
    names = ("code", "reason", "retry_after_ms", "evidence")
    return {name: getattr(refusal, name) for name in names}


def humane(milliseconds: int) -> str:
    return f"{milliseconds} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"


def harmless(text: str) -> str:
    """What a daemon wrote, without what would move a terminal's cursor."""
    return "".join(char if char.isprintable() or char == "\t" else f"\\x{ord(char):02x}" for char in text)


def emit(text: str) -> None:
    """Prints a result."""
    write(f"{text}\n".encode())


def write(data: bytes) -> None:
    """Writes to stdout past Python's buffer, which would be flushed too late to know that nobody reads."""
    while data:
        data = data[os.write(1, data) :]


def say(text: str) -> None:
    """Prints a word for people."""
    print(text, file=sys.stderr, flush=True)


def complain(what: str, error: BaseException, code: int) -> int:
    say(f"broker.py: {what}: {error}")
    return code
