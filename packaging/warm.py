#!/usr/bin/env python3
"""Writes crates/broker/warm.txt: what of brokerd is executed by a broker that starts, serves a Hello and rests.

    cargo build --release -p broker -p broker-bench && packaging/warm.py [PROGRAM]

A breakpoint stands at the entry of every function of target/release/brokerd, or of another build of it, and is taken away when
it is met. x86-64 alone. To be run before a release: what it does not know lies apart, and each such function takes up to 64 KiB.
"""

import ctypes
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RELEASE = ROOT / "target/release"
LIST = ROOT / "crates/broker/warm.txt"

# Of a module so much must have been executed for all of it to be listed, by bytes. What is added to it is likely warm, too.
WHOLE_MODULE = 0.7

HEADER = """\
# What of brokerd is executed by a broker that starts, serves a Hello and rests, as names of linker sections: `text-*` is a
# pattern. The linker puts these side by side, so that what lies between them takes no memory (build.rs). A name that is missing
# or stale costs a few pages. Written by packaging/warm.py.
"""

PTRACE_TRACEME, PTRACE_CONT, PTRACE_GETREGS, PTRACE_SETREGS, PTRACE_DETACH, PTRACE_SETOPTIONS = 0, 7, 12, 13, 17, 0x4200
# Forks, vforks, clones and execs are told; what is traced ends with this process.
OPTIONS = 0x2 | 0x4 | 0x8 | 0x10 | 0x100000
EVENT_EXEC = 4
WALL = 0x40000000
REGISTERS = "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base gs_base ds es fs gs"

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


class Registers(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in REGISTERS.split()]


def ptrace(request, pid, data=0):
    return LIBC.ptrace(request, pid, 0, data)


def functions(program):
    """Address to size and names."""
    found = {}
    for line in subprocess.run(["nm", "-S", program], capture_output=True, text=True, check=True).stdout.splitlines():
        parts = line.split(" ", 3)
        if len(parts) == 4 and parts[0] and parts[2] in "tTwW" and int(parts[1], 16):
            found.setdefault(int(parts[0], 16), (int(parts[1], 16), set()))[1].add(parts[3])
    return found


def executed(program, arguments, known, drive):
    """The addresses that are met until the program ends; `drive` runs beside it and brings that about."""
    pid = os.fork()
    if pid == 0:
        ptrace(PTRACE_TRACEME, 0)
        os.execv(program, [program, *arguments])
    os.waitpid(pid, 0)
    ptrace(PTRACE_SETOPTIONS, pid, OPTIONS)
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    base = next(int(line.split("-")[0], 16) for line in maps if line.endswith(str(program)))

    def put(process, address, byte):
        with open(f"/proc/{process}/mem", "r+b", buffering=0) as memory:
            memory.seek(base + address)
            before = memory.read(1)
            memory.seek(base + address)
            memory.write(byte)
        return before

    original = {address: put(pid, address, b"\xcc") for address in known}
    met = {}
    ptrace(PTRACE_CONT, pid)
    driver = threading.Thread(target=drive, args=[pid])
    driver.start()
    while True:
        process, status = os.waitpid(-1, WALL)
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            if process == pid:
                break
            continue
        stopped, event = os.WSTOPSIG(status), status >> 16
        if event == EVENT_EXEC:
            ptrace(PTRACE_DETACH, process)
            continue
        if event or stopped == signal.SIGSTOP:
            ptrace(PTRACE_CONT, process)
            continue
        if stopped == signal.SIGTRAP:
            registers = Registers()
            ptrace(PTRACE_GETREGS, process, ctypes.addressof(registers))
            address = registers.rip - 1 - base
            stopped = 0
            if address in original:
                put(process, address, original[address])
                met[address] = True
                registers.rip -= 1
                ptrace(PTRACE_SETREGS, process, ctypes.addressof(registers))
        ptrace(PTRACE_CONT, process, stopped)
    driver.join()
    return list(met)


def serve_once(folder):
    """What the broker is started with, and what is done to it."""
    for name in ["state", "services.d"]:
        (folder / name).mkdir()
    # A number, a word, a duration and a size: each has a parser.
    (folder / "broker.toml").write_text(
        'cgroups = "auto"\nidle_exit = "never"\n[log]\nlevel = "info"\n'
        '[limits]\nbackends = 1000\nfirst_message_timeout = "60s"\n'
    )
    command = f'["{RELEASE}/bench-daemon", "--unix", "{{endpoint}}"]'
    (folder / "services.d/warm.toml").write_text(
        f'[service]\nname = "warm"\n\n[[version]]\nversion = "1.0.0"\ncommand = {command}\n'
        '[readiness]\nhard_ceiling = "60s"\n[log]\nmax_bytes = "16MiB"\n'
    )
    places = {"config": "broker.toml", "socket": "run/broker.sock", "services": "services.d", "state-dir": "state"}
    arguments = [word for option, place in places.items() for word in (f"--{option}", str(folder / place))]

    def drive(pid):
        environment = {"PATH": os.environ["PATH"], "BROKER_SOCKET": str(folder / "run/broker.sock")}
        try:
            while not (folder / "run/broker.sock").exists():
                time.sleep(0.01)
            for _ in range(3):
                resolve = [RELEASE / "brokerctl", "resolve", "warm"]
                subprocess.run(resolve, env=environment, stdout=subprocess.DEVNULL, check=True)
        finally:
            os.kill(pid, signal.SIGINT)

    return arguments, drive


def pattern(name):
    """The name without what another build may have otherwise: hashes of types and crates, what a compiler's pass appended."""
    name = re.sub(r"\.(\d+|(part|constprop|isra|cold|llvm)\..*)$", "", name)
    name = re.sub(r"17h[0-9a-f]{16}E$", "17h*", name)
    return re.sub(r"Cs[0-9A-Za-z]+_", "Cs*_", name)


def path(name):
    """`_ZN3foo3barE` as its parts, each with its length."""
    parts, rest = [], name.removeprefix("_ZN")
    while rest != name and (length := re.match(r"\d+", rest)):
        end = length.end() + int(length.group())
        parts.append(rest[:end])
        rest = rest[end:]
    return parts[:-1]


def patterns(known, met):
    """Of modules that are executed as good as whole the module, else each function, as they are met."""
    sizes, warm = {}, {}
    for address, (size, names) in known.items():
        parts = path(min(names))
        for depth in range(2, len(parts)):
            module = "_ZN" + "".join(parts[:depth])
            sizes[module] = sizes.get(module, 0) + size
            warm[module] = warm.get(module, 0) + (size if address in met else 0)
    listed = {}
    for address in met:
        for name in sorted(known[address][1]):
            parts = path(name)
            modules = ["_ZN" + "".join(parts[:depth]) for depth in range(2, len(parts))]
            whole = next((m for m in modules if m in sizes and warm[m] >= WHOLE_MODULE * sizes[m]), None)
            listed[f"{whole}*" if whole else pattern(name)] = True
    return list(listed)


def main():
    program = Path(sys.argv[1]) if len(sys.argv) > 1 else RELEASE / "brokerd"
    known = functions(program)
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        arguments, drive = serve_once(Path(folder))
        os.environ.clear()
        os.environ.update(PATH="/usr/bin:/bin", HOME=folder)
        met = executed(program, arguments, known, drive)
    listed = patterns(known, dict.fromkeys(met))
    LIST.write_text(HEADER + "".join(f"{line}\n" for line in listed))
    share = sum(known[address][0] for address in met) / sum(size for size, _ in known.values())
    print(f"{len(met)} of {len(known)} functions are warm, {share:.0%} of the code, in {len(listed)} patterns")


if __name__ == "__main__":
    main()
