"""What the two boxes of the sandbox say to each other: frames of strictly decoded, tagged, plain data.

This file runs inside the boxes, where there is nothing but Python's standard library; it imports little, since every
import is paid for at every verdict. Decoding builds plain data and :class:`Reference` only, whatever the bytes are.
"""

import os

MAX_FRAME = 16 * 1024 * 1024
MAX_DEPTH = 100
_HEX = b"0123456789abcdef"


class ProtocolError(Exception):
    """The other side sent what the protocol does not allow, or stopped talking."""


class Unsendable(Exception):
    """A value that cannot cross."""


class Reference:
    """An object that stays on its side. ``owner`` is "candidate" or "tests", ``key`` its number there."""

    __slots__ = ("key", "owner")

    def __init__(self, owner, key):
        self.owner, self.key = owner, key


def _well_known(value):
    """Values of a few standard types as (name, plain data), else None."""
    kind = type(value)
    module, name = kind.__module__, kind.__qualname__
    if kind is type and value.__module__ == "builtins":
        return "type", value.__name__
    if module == "collections":
        if name in ("Counter", "OrderedDict"):
            return name, list(dict.items(value))
        if name == "defaultdict":
            return "dict", list(dict.items(value))
        if name == "deque":
            return name, list(value)
    if (module, name) == ("decimal", "Decimal"):
        return name, str(value)
    if (module, name) == ("fractions", "Fraction"):
        return name, [value.numerator, value.denominator]
    if module == "datetime":
        if name in ("date", "datetime", "time"):
            return name, value.isoformat()
        if name == "timedelta":
            return name, [value.days, value.seconds, value.microseconds]
    return None


def _rebuild(name, data):
    if name == "type":
        import builtins

        kind = getattr(builtins, data, None)
        if type(kind) is not type:
            raise ProtocolError(f"no built-in type {data!r}")
        return kind
    if name == "dict":
        return dict(data)
    if name in ("Counter", "OrderedDict", "deque"):
        import collections

        return getattr(collections, name)(dict(data) if name == "Counter" else data)
    if name == "Decimal":
        import decimal

        return decimal.Decimal(data)
    if name == "Fraction":
        import fractions

        return fractions.Fraction(*data)
    if name in ("date", "datetime", "time", "timedelta"):
        import datetime

        kind = getattr(datetime, name)
        return kind(*data) if name == "timedelta" else kind.fromisoformat(data)
    raise ProtocolError(f"unknown kind {name!r}")


def encode(value, refer):
    """``value`` as bytes. What is not plain data goes to ``refer(value)``, which gives a Reference or raises."""
    parts = []
    _encode(value, refer, parts.append, 0)
    return b"".join(parts)


def _encode(value, refer, put, depth):
    if depth > MAX_DEPTH:
        raise Unsendable("nested too deeply")
    kind = type(value)
    if value is None:
        put(b"N")
    elif kind is bool:
        put(b"T" if value else b"F")
    elif kind is int:
        put(b"i%x;" % value if value >= 0 else b"i-%x;" % -value)
    elif kind is float:
        put(b"f%s;" % value.hex().encode())
    elif kind is str:
        data = value.encode("utf-8", "surrogatepass")
        put(b"s%x;" % len(data))
        put(data)
    elif kind is bytes or kind is bytearray:
        put(b"%s%x;" % (b"b" if kind is bytes else b"y", len(value)))
        put(bytes(value))
    elif kind in _CONTAINERS:
        put(b"%s%x;" % (_CONTAINERS[kind], len(value)))
        for item in value:
            _encode(item, refer, put, depth + 1)
    elif kind is dict:
        put(b"d%x;" % len(value))
        for key, item in value.items():
            _encode(key, refer, put, depth + 1)
            _encode(item, refer, put, depth + 1)
    elif kind is range or kind is slice:
        put(b"r" if kind is range else b"c")
        for item in (value.start, value.stop, value.step):
            _encode(item, refer, put, depth + 1)
    elif kind is complex:
        put(b"j")
        for item in (value.real, value.imag):
            _encode(item, refer, put, depth + 1)
    elif kind is Reference:
        put(b"%s%x;" % (b"h" if value.owner == "candidate" else b"k", value.key))
    else:
        known = _well_known(value)
        if known is None:
            _encode(refer(value), refer, put, depth)
        else:
            put(b"w")
            _encode(known[0], refer, put, depth + 1)
            _encode(known[1], refer, put, depth + 1)


_CONTAINERS = {list: b"l", tuple: b"t", set: b"S", frozenset: b"Z"}
_BUILDERS = {b"l": list, b"t": tuple, b"S": set, b"Z": frozenset}


def decode(data, resolve):
    """The value that ``data`` holds; ``resolve(reference)`` gives the object of a Reference on this side.

    Raises ProtocolError on anything that :func:`encode` would not have written.
    """
    try:
        value, end = _decode(data, 0, resolve, 0)
    except ProtocolError:
        raise
    except Exception as cause:
        raise ProtocolError(f"malformed data: {type(cause).__name__}: {cause}") from None
    if end != len(data):
        raise ProtocolError("bytes after the value")
    return value


def _integer(data, start):
    end = data.index(b";", start, start + MAX_FRAME)
    text = data[start:end]
    digits = text[1:] if text[:1] == b"-" else text
    if not digits or digits.translate(None, _HEX):
        raise ProtocolError("malformed integer")
    return int(text, 16), end + 1


def _count(data, start):
    count, position = _integer(data, start)
    if not 0 <= count <= len(data) - position:
        raise ProtocolError("a length beyond the frame")
    return count, position


def _decode(data, start, resolve, depth):
    if depth > MAX_DEPTH:
        raise ProtocolError("nested too deeply")
    tag, position = data[start : start + 1], start + 1
    if tag == b"i":
        return _integer(data, position)
    if tag == b"s":
        count, position = _count(data, position)
        return data[position : position + count].decode("utf-8", "surrogatepass"), position + count
    if tag == b"N":
        return None, position
    if tag == b"T":
        return True, position
    if tag == b"F":
        return False, position
    if tag == b"f":
        end = data.index(b";", position, position + 64)
        return float.fromhex(data[position:end].decode("ascii")), end + 1
    if tag in _BUILDERS:
        count, position = _count(data, position)
        items = []
        for _ in range(count):
            item, position = _decode(data, position, resolve, depth + 1)
            items.append(item)
        return (items if tag == b"l" else _BUILDERS[tag](items)), position
    if tag == b"d":
        count, position = _count(data, position)
        result = {}
        for _ in range(count):
            key, position = _decode(data, position, resolve, depth + 1)
            result[key], position = _decode(data, position, resolve, depth + 1)
        return result, position
    if tag in (b"b", b"y"):
        count, position = _count(data, position)
        chunk = data[position : position + count]
        return (bytes(chunk) if tag == b"b" else bytearray(chunk)), position + count
    if tag in (b"h", b"k"):
        key, position = _integer(data, position)
        return resolve(Reference("candidate" if tag == b"h" else "tests", key)), position
    if tag in (b"r", b"c"):
        items = []
        for _ in range(3):
            item, position = _decode(data, position, resolve, depth + 1)
            items.append(item)
        return (range if tag == b"r" else slice)(*items), position
    if tag == b"j":
        real, position = _decode(data, position, resolve, depth + 1)
        imaginary, position = _decode(data, position, resolve, depth + 1)
        return complex(real, imaginary), position
    if tag == b"w":
        name, position = _decode(data, position, resolve, depth + 1)
        content, position = _decode(data, position, resolve, depth + 1)
        return _rebuild(name, content), position
    raise ProtocolError(f"unknown tag {tag!r}")


def send(descriptor, data):
    """Write one frame. Raises ProtocolError where nobody reads any more, Unsendable where it is too long."""
    if len(data) > MAX_FRAME:
        raise Unsendable("more than 16 MiB at once")
    view = memoryview(len(data).to_bytes(4, "big") + data)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError as cause:
        raise ProtocolError(f"the other side is gone: {cause}") from None


def receive(descriptor, limit=MAX_FRAME):
    """Read one frame. Raises ProtocolError at the end of the stream and on a frame longer than ``limit``."""
    size = int.from_bytes(_exactly(descriptor, 4), "big")
    if size > limit:
        raise ProtocolError(f"a frame of {size} bytes")
    return _exactly(descriptor, size)


def _exactly(descriptor, size):
    chunks = []
    while size:
        try:
            chunk = os.read(descriptor, min(size, 1 << 20))
        except OSError as cause:
            raise ProtocolError(f"the other side is gone: {cause}") from None
        if not chunk:
            raise ProtocolError("the other side is gone")
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)


def settle(limits, uid):
    """First act inside a box: silence the standard streams, take on the limits, leave root's place for ``uid``."""
    import resource

    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, name), (value, value))
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
