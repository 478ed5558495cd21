"""The filter of system calls that a box of the sandbox runs under."""

import struct

# Numbers of system calls that no completion needs and that would get around the limits: memory that no limit counts
# (memfd, System V shared memory, io_uring, bpf), namespaces and mounts (a fresh tmpfs is memory too), other processes,
# keys, sockets (vsock and others are not held back by a network namespace).
_FORBIDDEN = {
    "x86_64": {
        "arch": 0xC000003E,
        "clone": 56,
        "clone3": 435,
        "calls": (
            "57 58 41 101 310 311 312 272 308 165 166 155 161 319 447 29 30 31 67 64 65 66 68 69 70 71 321 250 248 "
            "249 323 298 425 426 427 246 320 175 313 176 303 304 428 429 430 431 432 433 442 179 167 168 169 163 227 "
            "305 159 434 438 424 240"
        ),
    },
    "aarch64": {
        "arch": 0xC00000B7,
        "clone": 220,
        "clone3": 435,
        "calls": (
            "198 117 270 271 272 97 268 40 39 41 51 279 447 194 195 196 197 190 191 192 193 186 187 188 189 280 219 "
            "217 218 282 241 425 426 427 104 294 105 273 106 264 265 428 429 430 431 432 433 442 60 224 225 142 89 "
            "112 266 171 434 438 424 180"
        ),
    },
}
_CLONE_THREAD = 0x10000


def system_call_filter(machine: str) -> bytes | None:
    """The seccomp program (classic BPF) that bubblewrap installs, or None on a machine whose call numbers are unknown.

    It kills on a foreign architecture, answers EPERM to what is forbidden, lets ``clone`` start threads but no
    processes, and answers ENOSYS to ``clone3`` (whose flags cannot be read here; the C library falls back to clone).
    """
    numbers = _FORBIDDEN.get(machine)
    if numbers is None:
        return None
    kill, allow, denied, unknown = 0x80000000, 0x7FFF0000, 0x00050000 | 1, 0x00050000 | 38
    load, equal, any_bit, at_least, give = 0x20, 0x15, 0x45, 0x35, 0x06

    def statement(code: int, k: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, if_true, if_false, k)

    program = [
        statement(load, 4),
        statement(equal, numbers["arch"], 1, 0),
        statement(give, kill),
        statement(load, 0),
        statement(at_least, 0x40000000, 0, 1),  # x86's third set of numbers
        statement(give, denied),
        statement(equal, numbers["clone3"], 0, 1),
        statement(give, unknown),
        statement(equal, numbers["clone"], 0, 4),
        statement(load, 16),
        statement(any_bit, _CLONE_THREAD, 0, 1),
        statement(give, allow),
        statement(give, denied),
    ]
    for number in numbers["calls"].split():
        program += [statement(equal, int(number), 0, 1), statement(give, denied)]
    return b"".join([*program, statement(give, allow)])
