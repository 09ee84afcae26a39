#!/usr/bin/env python3
"""A client written from docs/protocol.md, docs/shared_memory.md, docs/keys.md and the field numbers of
proto/wire.proto alone, without a line of libkvclient or protobuf: if those pages are enough to write a client,
this one works.

Usage: plain_client.py TERRACED. Starts that daemon in a folder of its own and goes through a client's life.
"""
import array
import hashlib
import json
import mmap
import os
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

U64 = 1 << 64
TAG = lambda text: text.encode().ljust(32, b"\0")
FIELD = lambda data: struct.pack("<Q", len(data)) + data


# ---- Messages: protobuf, as far as these need it.

def varint(number):
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(out + bytes([number]))


def message(*fields):
    """Of (number, value): integers, bytes, text, or a list of integers, which is packed."""
    out = b""
    for number, value in fields:
        if isinstance(value, (int, bool)):
            out += varint(number << 3) + varint(int(value))
            continue
        if isinstance(value, str):
            value = value.encode()
        if isinstance(value, list):
            value = b"".join(varint(item) for item in value)
        out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def read_varint(data, at):
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number, at


def fields_of(data):
    """number -> list of values; integers, or bytes."""
    fields, at = {}, 0
    while at < len(data):
        key, at = read_varint(data, at)
        if key & 7 == 0:
            value, at = read_varint(data, at)
        else:
            assert key & 7 == 2, "only varints and lengths are used"
            size, at = read_varint(data, at)
            value, at = data[at:at + size], at + size
        fields.setdefault(key >> 3, []).append(value)
    return fields


def packed(values):
    """A repeated number: packed or one by one."""
    numbers = []
    for value in values:
        if isinstance(value, int):
            numbers.append(value)
            continue
        at = 0
        while at < len(value):
            number, at = read_varint(value, at)
            numbers.append(number)
    return numbers


# ---- Frames

VERSION = 2  # Of the protocol.

HELLO, PING, GOODBYE, DIRECTORY, ARENAS, OPEN_SPACE = 2, 4, 6, 8, 10, 12
GRANT, COMMIT, ABORT, DROP, MODEL_ADD, LOAD, UNLOAD = 14, 16, 18, 20, 22, 26, 28
ATTACH, ATTACH_BLOCKS, DETACH, EVICT, REPORT, CLOSE_SPACE = 30, 32, 34, 36, 38, 40
PREFETCH, PERSIST, DEMOTE, FLUSH = 44, 46, 48, 50
STORE_CAPABILITY = 2


class Refused(Exception):
    def __init__(self, code, text):
        super().__init__(f"{code}: {text}")
        self.code, self.text = code, text


class Connection:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(60)
        self.socket.connect(path)
        self.bytes, self.fds, self.request = b"", [], 0

    def send(self, kind, body=b"", fds=()):
        self.request += 1
        frame = struct.pack("<IHHQ", len(body), kind, len(fds), self.request) + body
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = self.socket.sendmsg([frame], control)
        if sent < len(frame):
            self.socket.sendall(frame[sent:])
        return self.request

    def receive(self):
        """(type, request, message, descriptors) of the next frame."""
        while True:
            if len(self.bytes) >= 16:
                length, kind, fds, request = struct.unpack("<IHHQ", self.bytes[:16])
                if len(self.bytes) >= 16 + length:
                    body, self.bytes = self.bytes[16:16 + length], self.bytes[16 + length:]
                    taken, self.fds = self.fds[:fds], self.fds[fds:]
                    assert len(taken) == fds, "descriptors come with the first byte of their frame"
                    return kind, request, body, taken
            data, control, _, _ = self.socket.recvmsg(65536, socket.CMSG_SPACE(253 * 4))
            assert data, "the daemon closed the connection"
            self.bytes += data
            for level, kind, value in control:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    numbers = array.array("i")
                    numbers.frombytes(value[:len(value) // 4 * 4])
                    self.fds += list(numbers)

    def call(self, kind, body=b"", fds=()):
        """The reply's fields and descriptors; events that come before it are passed over."""
        request = self.send(kind, body, fds)
        while True:
            got, of, reply, descriptors = self.receive()
            if got > 100:
                continue
            assert of == request
            if got == 1:
                error = fields_of(reply)
                raise Refused(error[1][0], error[2][0].decode())
            assert got == kind + 1
            return fields_of(reply), descriptors


def expect_refused(code, call, word):
    try:
        call()
    except Refused as refused:
        assert refused.code == code and word in refused.text, refused
        return
    raise AssertionError(f"was not refused with {code}")


# ---- Shared memory

class Words:
    """64-bit words of a mapping. One thread, and every access is a whole word."""

    def __init__(self, fd, writable):
        size = os.fstat(fd).st_size
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self.memory = mmap.mmap(fd, size, mmap.MAP_SHARED, access)
        self.words = memoryview(self.memory).cast("Q")

    def __getitem__(self, offset):
        return self.words[offset // 8]

    def __setitem__(self, offset, value):
        self.words[offset // 8] = value


class DirectoryView:
    def __init__(self, fd):
        self.words = Words(fd, False)
        assert self.words.memory[:8] == b"TRRCDIR1" and self.words[8] == 2
        self.capacity = self.words[24]
        assert self.capacity >= 1024 and self.capacity & (self.capacity - 1) == 0

    def home(self, key0, space_word, part):
        mixed = ((space_word ^ part << 20) * 0x9E3779B97F4A7C15) % U64
        return (key0 ^ mixed >> 32) % self.capacity

    def find(self, key, space_word, part=0):
        """(offset of the entry, handle), or None."""
        words = struct.unpack("<4Q", key)
        line = self.home(words[0], space_word, part)
        for _ in range(128):
            at = 274432 + 64 * line
            handle = self.words[at]
            if (handle and all(self.words[at + 8 + 8 * i] == words[i] for i in range(4))
                    and self.words[at + 40] == space_word and self.words[at + 48] % (1 << 32) == part):
                return at, handle
            if self.words[at + 56] >> 32 == 0:
                return None
            line = (line + 1) % self.capacity
        return None


class Client:
    def __init__(self, path):
        self.connection = Connection(path)
        reply, (channel, directory) = self.connection.call(
            HELLO, message((1, VERSION), (2, VERSION), (3, "plain"), (4, True), (8, STORE_CAPABILITY)))
        assert reply[1] == [VERSION] and reply[7] == [1]
        assert reply[13] == [STORE_CAPABILITY]
        self.id, self.token = reply[2][0], reply[3][0]
        self.tenant = reply[6][0].decode()
        self.channel = Words(channel, True)
        assert self.channel.memory[:8] == b"TRRCHNN1" and self.channel[16] == self.id
        assert len(self.channel.memory) == 2650112
        assert self.channel[24] == reply[8][0] // 8
        self.directory = DirectoryView(directory)
        self.arenas = {}

    def add_arenas(self, records, fds):
        for record, fd in zip(records, fds):
            arena = fields_of(record)
            writable = arena.get(5, [0])[0] == 1
            access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
            self.arenas[arena[1][0]] = (mmap.mmap(fd, arena[2][0], mmap.MAP_SHARED, access), arena[3][0])
            os.close(fd)

    def page(self, handle):
        """Memory of the page that a handle names."""
        arena, slot = handle >> 44, handle >> 24 & 0xFFFFF
        if arena not in self.arenas:
            reply, fds = self.connection.call(ARENAS, message((1, [arena])))
            self.add_arenas(reply.get(1, []), fds)
        memory, page_bytes = self.arenas[arena]
        return memoryview(memory)[slot * page_bytes:(slot + 1) * page_bytes]

    def pin(self, space, key, part=0):
        """A hit, step by step: (page's bytes, valid tokens), or None. The pin is word 0 of line 0."""
        self.channel[128] = 1
        self.channel[192] = 1
        self.channel[64] = 1
        self.count(0)
        while True:
            found = self.directory.find(key, space.word, part)
            if found:
                at, handle = found
                assert self.channel[1216] == 0
                self.channel[1216] = handle
                if self.directory.words[at] != handle:
                    self.channel[1216] = 0
                    continue
            if self.directory.words[64]:
                self.channel[1216] = 0
                _, (fd,) = self.connection.call(DIRECTORY)
                self.directory = DirectoryView(fd)
                continue
            break
        if not found:
            self.count(5)  # absent
            return None
        words = self.directory.words
        assert words[128 + 8 * space.generation_index] == space.generation
        assert words[8320 + 64 * space.slot + 32] == space.epoch
        self.count(2)  # a hit in host memory
        size, tokens = words[at + 48] >> 32, words[at + 56] % (1 << 24)
        return bytes(self.page(handle)[:size]), tokens

    def unpin(self):
        self.channel[1216] = 0

    def count(self, counter):
        self.channel[525504 + 8 * counter] += 1

    def report(self, what):
        reply, _ = self.connection.call(REPORT, message((1, what)))
        return json.loads(reply[1][0])


class Space:
    LAYOUT = ("bf16", 2, 2, 32, 16, 2, "layer,plane,token,head,dim")

    def __init__(self, client, salt):
        dtype, layers, heads, head_size, tokens, planes, order = self.LAYOUT
        layout = message((1, dtype), (2, layers), (3, heads), (4, head_size), (5, tokens), (6, planes),
                         (7, order))
        reply, _ = client.connection.call(OPEN_SPACE, message((3, salt), (4, layout)))
        self.id = reply[1][0]
        self.slot, self.epoch = reply.get(2, [0])[0], reply[3][0]
        self.generation_index, self.generation = reply.get(4, [0])[0], reply.get(5, [0])[0]
        self.page_bytes = reply[6][0]
        self.word = self.slot | self.epoch << 32
        assert self.page_bytes == planes * layers * heads * head_size * tokens * 2
        numbers = struct.pack("<5I", layers, heads, head_size, tokens, planes)
        assert self.id == hashlib.sha256(
            TAG("terrace space id v1") + FIELD(client.tenant.encode()) + FIELD(bytes(32))
            + FIELD(bytes(32)) + FIELD(salt.encode()) + FIELD(dtype.encode()) + numbers
            + FIELD(order.encode())).digest()

    def key(self, parent, tokens):
        return hashlib.sha256(TAG("terrace page key v1") + self.id + parent
                              + struct.pack("<II", len(tokens), 0)
                              + struct.pack(f"<{len(tokens)}I", *tokens)).digest()


# ---- A client's life

def pages(client, other):
    space, theirs = Space(client, "plain"), Space(other, "plain")
    assert space.id == theirs.id
    first = space.key(bytes(32), list(range(16)))
    second = space.key(first, list(range(100, 109)))  # Partly filled.
    assert client.pin(space, first) is None
    reply, fds = client.connection.call(
        GRANT, message((1, space.slot), (2, space.epoch), (4, first + second)))
    assert packed(reply[1]) == [0, 0]
    grants, handles = packed(reply[2]), packed(reply[3])
    client.add_arenas(reply.get(4, []), fds)
    for handle, fill in zip(handles, (b"\x11", b"\x22")):
        client.page(handle)[:] = fill * space.page_bytes
    assert other.pin(theirs, first) is None, "a page is invisible until it is committed"
    reply, _ = client.connection.call(COMMIT, message((1, grants), (2, [16, 9])))
    assert packed(reply[1]) == [0, 0]
    assert other.pin(theirs, first) == (b"\x11" * space.page_bytes, 16)
    # Pinned, it outlives its being dropped; unpinned it is found no more.
    reply, _ = client.connection.call(DROP, message((1, space.slot), (2, space.epoch), (4, first)))
    assert reply[1] == [1]
    assert client.report("status")["pages"]["limbo"] == 1
    other.unpin()
    assert other.pin(theirs, first) is None
    assert other.pin(theirs, second) == (b"\x22" * space.page_bytes, 9)
    other.unpin()
    # Two more grants: one for a page that is there, one that is given back.
    third = space.key(bytes(32), [7] * 16)
    reply, fds = client.connection.call(
        GRANT, message((1, space.slot), (2, space.epoch), (4, second + third)))
    assert packed(reply[1]) == [3, 0], "already_exists"
    client.connection.call(ABORT, message((1, [packed(reply[2])[1]])))
    counters = next(entry for entry in client.report("clients")["clients"] if entry["id"] == other.id)
    assert counters["lookups"]["lookups"] == 4 and counters["lookups"]["hits"]["host"] == 2
    assert counters["lookups"]["misses"]["absent"] == 2
    client.connection.call(CLOSE_SPACE, message((1, space.slot), (2, space.epoch)))
    expect_refused(9, lambda: client.connection.call(
        GRANT, message((1, space.slot), (2, space.epoch), (4, third))), "open")


def stored(client):
    """Pages of a chain go to the store, leave memory, and come back."""
    space = Space(client, "stored")
    keys = [space.key(bytes(32), list(range(16)))]
    for first in (16, 32):
        keys.append(space.key(keys[-1], list(range(first, first + 16))))
    at = [(1, space.slot), (2, space.epoch)]
    reply, fds = client.connection.call(
        GRANT, message(*at, (4, b"".join(keys)), (6, bytes(32)), (7, 0)))
    client.add_arenas(reply.get(4, []), fds)
    for i, handle in enumerate(packed(reply[3])):
        client.page(handle)[:] = bytes([i + 1]) * space.page_bytes
    client.connection.call(COMMIT, message((1, packed(reply[2]))))
    unknown = bytes(31) + b"?"
    reply, _ = client.connection.call(PERSIST, message(*at, (4, b"".join(keys) + unknown)))
    assert packed(reply[1]) == [0, 0, 0, 2], "three are durable, one is nowhere"
    client.connection.call(EVICT)
    assert client.pin(space, keys[0]) is None
    # Less than half of what is asked for is there: nothing is fetched.
    prefetch = lambda *more: client.connection.call(PREFETCH, message(*at, (5, 60000), *more))[0]
    reply = prefetch((4, b"".join(keys) + unknown * 4), (6, 50))
    assert packed(reply[1]) == [2] * 7 and reply.get(2, [0]) == [0]
    # What follows a gap is left where it is.
    reply = prefetch((4, keys[0] + unknown + keys[1]))
    assert packed(reply[1]) == [0, 2, 2] and reply[2] == [1]
    reply = prefetch((4, b"".join(keys)))
    assert packed(reply[1]) == [0, 0, 0] and reply[2] == [3]
    for i, key in enumerate(keys):
        assert client.pin(space, key) == (bytes([i + 1]) * space.page_bytes, 16)
        client.unpin()
    expect_refused(1, lambda: prefetch((4, keys[0]), (6, 101)), "min_percent")
    client.connection.call(FLUSH)
    tier = client.report("tiers")["tiers"][1]
    assert tier["tier"] == "nvme" and tier["pages"] >= 3 and tier["promoted"]["pages"] == 3
    client.connection.call(DEMOTE)
    reply, _ = client.connection.call(DROP, message(*at, (4, keys[2])))
    assert reply[1] == [1], "of the store, too"
    assert packed(prefetch((4, keys[2]))[1]) == [2]
    client.connection.call(CLOSE_SPACE, message(*at))


def weights(client, folder):
    tensors = {"b.10": ("U8", [3], b"xyz"), "b.9": ("F32", [2, 1], b"12345678"), "empty": ("U8", [0], b"")}
    header, data = {}, b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    with open(path, "rb") as file:
        reply, _ = client.connection.call(
            MODEL_ADD, message((1, "m"), (2, "v1"), (3, str(path))), [file.fileno()])
    assert reply[1] == [3] and reply[2] == [len(data)] and reply[3] == [1]
    expect_refused(2, lambda: client.connection.call(ATTACH, message((1, "m"))), "not loaded")
    loaded, _ = client.connection.call(LOAD, message((1, "m")))
    expected = hashlib.sha256(TAG("terrace weights v1"))
    for name in sorted(tensors):
        dtype, shape, content = tensors[name]
        expected.update(FIELD(name.encode()) + FIELD(dtype.encode()) + struct.pack("<I", len(shape))
                        + struct.pack(f"<{len(shape)}Q", *shape) + hashlib.sha256(content).digest())
    assert loaded[3][0] == expected.digest()
    attached, (manifest_fd,) = client.connection.call(ATTACH, message((1, "m")))
    attachment = attached[1][0]
    manifest = mmap.mmap(manifest_fd, attached[4][0], mmap.MAP_SHARED, mmap.PROT_READ)
    magic, version, count, image_bytes, block_bytes, blocks = struct.unpack_from("<8sIIQQI", manifest)
    strings, = struct.unpack_from("<Q", manifest, 40)
    assert (magic, version, count, blocks) == (b"TRRCMAN1", 1, 3, 1)
    assert manifest[56:88] == expected.digest()
    reply, (block_fd,) = client.connection.call(ATTACH_BLOCKS, message((1, attachment)))
    assert packed(reply.get(1, [0])) == [0] and reply[2] == [1]
    block = mmap.mmap(block_fd, 0, mmap.MAP_SHARED, mmap.PROT_READ)
    offsets = {}
    for i in range(count):
        at = 88 + 112 * i
        offset, size = struct.unpack_from("<QQ", manifest, at)
        rank, name_at, name_bytes, _ = struct.unpack_from("<IIII", manifest, at + 80)
        name = manifest[strings + name_at:strings + name_at + name_bytes].decode()
        dtype, shape, content = tensors[name]
        assert manifest[at + 96:at + 112].rstrip(b"\0").decode() == dtype
        assert list(struct.unpack_from(f"<{rank}Q", manifest, at + 16)) == shape
        assert offset % 256 == 0 and block[offset:offset + size] == content
        offsets[name] = offset
    assert offsets["b.9"] < offsets["b.10"], "the natural order of names"
    client.connection.call(DETACH, message((1, attachment)))
    client.connection.call(UNLOAD, message((1, "m"), (2, "v1")))


def errors(client, path):
    expect_refused(1, lambda: client.connection.call(98), "98")
    expect_refused(1, lambda: client.connection.call(OPEN_SPACE, b"\xff\xff"), "OpenSpace")
    expect_refused(1, lambda: client.connection.call(HELLO, message((1, VERSION), (2, VERSION))), "hello")
    client.connection.call(PING)
    for version in VERSION - 1, VERSION + 1:
        other = Connection(path)
        hello = message((1, version), (2, version))
        expect_refused(4, lambda: other.call(HELLO, hello), f"this client version {version}")
    silent = Connection(path)
    expect_refused(1, lambda: silent.call(PING), "hello")


def resume(client, path):
    """A client that lost its connection comes back; another token does not."""
    client.connection.socket.close()
    again = Connection(path)
    hello = lambda token: message((1, VERSION), (2, VERSION), (5, client.id), (6, token))
    expect_refused(5, lambda: again.call(HELLO, hello(client.token ^ 1)), "resume_client")
    reply, (directory,) = again.call(HELLO, hello(client.token))
    assert reply[5] == [1] and reply[2] == [client.id]
    client.connection = again
    client.directory = DirectoryView(directory)
    client.connection.call(PING)


def main():
    with tempfile.TemporaryDirectory(prefix="terrace-test-") as name:
        folder = pathlib.Path(name)
        path = str(folder / "t.sock")
        log = open(folder / "log", "w+")
        config = folder / "terraced.toml"
        (folder / "nvme").mkdir(mode=0o700)
        config.write_text(f'[[nvme]]\npath = "{folder}/nvme"\ncapacity = "64MiB"\n')
        daemon = subprocess.Popen(
            [sys.argv[1], "--config", str(config), "--socket", path, "--state-dir", str(folder / "state"),
             "--host-capacity", "64MiB"],
            stderr=log)
        try:
            deadline = time.monotonic() + 60
            while not os.path.exists(path):
                assert daemon.poll() is None and time.monotonic() < deadline, "terraced does not serve"
                time.sleep(0.01)
            client, other = Client(path), Client(path)
            pages(client, other)
            stored(client)
            weights(client, folder)
            errors(client, path)
            resume(client, path)
            client.connection.call(GOODBYE)
            assert other.report("status")["clients"]["count"] == 1
            other.connection.call(GOODBYE)
        finally:
            daemon.send_signal(signal.SIGTERM)
            code = daemon.wait(60)
            log.seek(0)
            sys.stderr.write(log.read())
        assert code == 0, f"terraced ended with {code}"


if __name__ == "__main__":
    main()
