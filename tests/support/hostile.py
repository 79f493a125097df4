"""Commits, pages and chunks that claim absurd sizes, or are bombs: what hostile writers leave."""

import json
from dataclasses import replace

from numcodecs import GZip, Zstd

from rapidin_storage import Cache, ObjectStore, canonical_json
from rapidin_storage.manifest import encode_page
from tests.support.damage import newest
from tests.support.stored import ARRAYS, ID

ABSURD = 2**40

BLOCK = 128 * 1024

ZSTD = b"\x28\xb5\x2f\xfd"


def frame_that_claims(size):
    """A zstd frame of one byte whose header promises another size (RFC 8878, 3.1.1)."""
    return ZSTD + b"\xe0" + size.to_bytes(8, "little") + b"\x09\0\0" + b"x"


def bomb(size):
    """A zstd frame that says nothing of its size and unpacks into so many zeros."""
    repeat = (BLOCK << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    last = (BLOCK << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\0"
    return ZSTD + b"\0\x38" + repeat * (size // BLOCK - 1) + last


def write_commit(root, body):
    """Add a commit without asking whether it makes sense."""
    path = root.folder / Cache(root, ID).log.path(4)
    path.write_bytes(body if isinstance(body, bytes) else canonical_json(body) + b"\n")


def following(root):
    """The JSON of an honest fourth commit."""
    last = newest(root).commit
    return json.loads(replace(last, number=4, parent=last.digest, lost=[]).encode())


def commit(**changes):
    return lambda root: write_commit(root, {**following(root), **changes})


def raw_commit(**changes):
    """Also with what canonical JSON cannot spell: NaN, surrogates."""

    def write(root):
        body = {**following(root), **changes}
        write_commit(root, json.dumps(body, sort_keys=True, separators=(",", ":")).encode() + b"\n")

    return write


def array(name, **changes):
    """One array's zarr.json changed; None removes a field."""

    def write(root):
        body = following(root)
        document = {**body["arrays"][name], **changes}
        body["arrays"][name] = {k: v for k, v in document.items() if v is not None}
        write_commit(root, body)

    return write


def reshaped(name, row_shape):
    shape = {"shape": [48, *row_shape]}
    grid = {"name": "regular", "configuration": {"chunk_shape": [8, *row_shape]}}
    return array(name, **shape, chunk_grid=grid)


def recut(slots, chunk_rows, pages=1):
    """All arrays with so many slots in such chunks, by a commit that is consistent in itself."""

    def write(root):
        body = following(root)
        for document in body["arrays"].values():
            document["shape"][0] = slots
            document["chunk_grid"]["configuration"]["chunk_shape"][0] = chunk_rows
        changes = {"slots": slots, "chunk_rows": chunk_rows, "pages": body["pages"] * pages}
        write_commit(root, body | changes)

    return write


def page_of(data):
    """Stored bytes as the only page."""

    def write(root):
        ref = ObjectStore(root).put(data)
        write_commit(root, {**following(root), "pages": [list(ref)]})

    return write


def page(change):
    """The only page's JSON, changed."""

    def write(root):
        honest = newest(root).manifest
        chunks = [
            {name: list(ref) for name, ref in honest.chunk(index).items()} for index in range(6)
        ]
        body = {"first": 0, "chunks": chunks}
        body = change(body) or body
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        page_of(bytes(Zstd().encode(data)))(root)

    return write


def chunk(name, ref):
    """Chunk 1 of an array becomes what `ref` says."""
    return page(lambda body: body["chunks"][1].update({name: ref}))


def renamed(name, to):
    return page(lambda body: body["chunks"][1].update({to: body["chunks"][1].pop(name)}))


def chunk_of(name, make):
    """Chunk 1 of an array becomes other bytes, rightly named by their digest."""

    def write(root):
        honest = ObjectStore(root).get(newest(root).manifest.chunk(1)[name])
        data = make(honest)
        ref = ObjectStore(root).put(data)
        chunk(name, list(ref))(root)

    return write


def swapped(name, other):
    def write(root):
        chunk(name, list(newest(root).manifest.chunk(1)[other]))(root)

    return write


def group_of(data):
    def write(root):
        write_commit(root, {**following(root), "group": list(ObjectStore(root).put(data))})

    return write


def bombs_of(codec, data):
    """An array whose commit names another codec, and whose chunks are all one bomb."""

    def write(root):
        ref = ObjectStore(root).put(data)
        honest = newest(root).manifest
        chunks = [{**honest.chunk(index), "loss": ref} for index in range(6)]
        body = following(root)
        body["pages"] = [list(ObjectStore(root).put(encode_page(0, chunks)))]
        body["arrays"]["loss"]["codecs"] = [BYTES, codec]
        write_commit(root, body)

    return write


def zstd(data):
    return bytes(Zstd().encode(data))


BYTES = {"name": "bytes", "configuration": {"endian": "little"}}

GZIP = {"name": "gzip", "configuration": {"level": 1}}

BLOSC = {
    "name": "blosc",
    "configuration": {
        "cname": "lz4", "clevel": 1, "shuffle": "noshuffle", "typesize": 1, "blocksize": 0
    },
}  # fmt: skip

NOBODY = "0" * 64

DEEP = b"[" * 200_000 + b"]" * 200_000

HOSTILE = {
    # Pages.
    "page: keys that lead outside": renamed("sketch", "../x"),
    "page: keys that lead to the root": renamed("loss", "/etc/passwd"),
    "page: a chunk without digests": renamed("digest", "digests"),
    "page: empty chunks": page(lambda body: {**body, "chunks": [{}] * 6}),
    "page: an object that nobody has": chunk("loss", [NOBODY, 41]),
    "page: an object outside": chunk("loss", ["../../../../etc/passwd", 41]),
    "page: a digest in capitals": chunk("loss", ["A" * 64, 41]),
    "page: a digest with a line break": chunk("loss", [NOBODY + "\n", 41]),
    "page: a number as digest": chunk("loss", [0, 41]),
    "page: no reference": chunk("loss", None),
    "page: a huge size": page(lambda body: body["chunks"][1]["loss"].__setitem__(1, 2**47)),
    "page: an absurd size": page(lambda body: body["chunks"][1]["loss"].__setitem__(1, 10**100)),
    "page: a negative size": page(lambda body: body["chunks"][1]["loss"].__setitem__(1, -1)),
    "page: a fraction as size": page(lambda body: body["chunks"][1]["loss"].__setitem__(1, 4.1)),
    "page: another first chunk": page(lambda body: {**body, "first": 1024}),
    "page: a negative first chunk": page(lambda body: {**body, "first": -1}),
    "page: a word as first chunk": page(lambda body: {**body, "first": "0"}),
    "page: too few chunks": page(lambda body: {**body, "chunks": body["chunks"][:5]}),
    "page: too many chunks": page(lambda body: {**body, "chunks": body["chunks"] * 2}),
    "page: far too many chunks": page(lambda body: {**body, "chunks": [{}] * 100_000}),
    "page: chunks that are lists": page(lambda body: {**body, "chunks": [[]] * 6}),
    "page: a list": page(lambda _: b"[]"),
    "page: null": page(lambda _: b"null"),
    "page: not JSON": page(lambda _: b"\xff\xfe not JSON"),
    "page: a huge number": page(lambda _: b'{"first": ' + b"9" * 10_000 + b"}"),
    "page: deep nesting": page(lambda _: DEEP),
    "page: not zstd": page_of(b"not zstd at all"),
    "page: empty": page_of(b""),
    "page: half a zstd frame": page_of(zstd(b'{"first":0,"chunks":[]}')[:-4]),
    "page: a frame that claims a terabyte": page_of(frame_that_claims(ABSURD)),
    "page: a frame that claims 200 MB": page_of(frame_that_claims(200 * 2**20)),
    "page: a bomb": page_of(bomb(2**30)),
    # Chunks.
    "chunk: a frame that claims a terabyte": chunk_of("loss", lambda _: frame_that_claims(ABSURD)),
    "chunk: a frame that claims 3 GB": chunk_of("loss", lambda _: frame_that_claims(3 * 2**30)),
    "chunk: a bomb": chunk_of("loss", lambda _: bomb(2**30)),
    "chunk: a byte too many": chunk_of("loss", lambda data: zstd(Zstd().decode(data) + b"x")),
    "chunk: a byte too few": chunk_of("loss", lambda data: zstd(Zstd().decode(data)[1:])),
    "chunk: a row too many": chunk_of("sketch", lambda data: zstd(Zstd().decode(data) + bytes(16))),
    "chunk: a row too few": chunk_of("sketch", lambda data: zstd(Zstd().decode(data)[16:])),
    "chunk: no row": chunk_of("loss", lambda _: zstd(b"")),
    "chunk: not zstd": chunk_of("sketch", lambda _: b"not zstd at all"),
    "chunk: not compressed": chunk_of("loss", lambda data: bytes(Zstd().decode(data))),
    "chunk: empty": chunk_of("digest", lambda _: b""),
    "chunk: half a frame": chunk_of("digest", lambda data: data[: len(data) // 2]),
    "chunk: a larger array's": swapped("loss", "digest"),
    "chunk: a smaller array's": swapped("digest", "loss"),
    # Commits.
    "commit: more slots than its pages hold": recut(slots=56, chunk_rows=8),
    "commit: a page too many": commit(pages=[[NOBODY, 1]] * 2),
    "commit: no page": commit(pages=[]),
    "commit: slots by the terabyte": recut(slots=2**39, chunk_rows=8),
    "commit: slots by the gigabyte": recut(slots=2**26, chunk_rows=8),
    "commit: chunks by the gigabyte": recut(slots=48, chunk_rows=2**26),
    "commit: chunks and slots by the terabyte": recut(2**40 - 1, 2**26, pages=16),
    "commit: smaller chunks": recut(slots=48, chunk_rows=4),
    "commit: negative slots": recut(slots=-1, chunk_rows=8),
    "commit: true slots": commit(slots=True),
    "commit: slots in words": commit(slots="48"),
    "commit: a fraction of slots": commit(slots=48.0),
    "commit: huge slots": commit(slots=10**400),
    "commit: more rows than slots": commit(rows=49),
    "commit: negative rows": commit(rows=-1),
    "commit: no rows in a chunk": recut(slots=48, chunk_rows=0),
    "commit: no parent": commit(parent=None),
    "commit: an empty list as parent": commit(parent=[]),
    "commit: another number": commit(number=5),
    "commit: a number in words": commit(number="4"),
    "commit: a newer format": commit(format=2),
    "commit: a format in words": commit(format="1"),
    "commit: no format": commit(format=None),
    "commit: an unknown field": commit(extra=1),
    "commit: a time that is none": commit(time=5),
    "commit: NaN": raw_commit(writer={"a": float("nan")}),
    "commit: infinity": raw_commit(writer={"a": float("inf")}),
    "commit: half a surrogate": raw_commit(writer={"a": "\ud800"}),
    "commit: half a surrogate as time": raw_commit(time="\ud800"),
    "commit: a writer that is a list": commit(writer=[]),
    "commit: a huge number": lambda root: write_commit(root, b'{"format":' + b"9" * 10_000 + b"}"),
    "commit: deep nesting": lambda root: write_commit(root, DEEP),
    "commit: arrays as a list": commit(arrays=[]),
    "commit: no arrays": commit(arrays={}),
    "commit: lost that is no digest": commit(lost=["../x"]),
    "commit: merged that is a number": commit(merged=7),
    "commit: group outside": commit(group=["../../etc/passwd", 1]),
    "commit: group that nobody has": commit(group=[NOBODY, 94]),
    # Arrays.
    "array: a name that leads outside": lambda root: write_commit(
        root,
        (lambda body: body | {"arrays": {**body["arrays"], "../x": body["arrays"]["loss"]}})(
            following(root)
        ),
    ),
    "array: no digests": lambda root: write_commit(
        root,
        (lambda body: {**body, "arrays": {n: body["arrays"][n] for n in ARRAYS}})(following(root)),
    ),
    "array: digests of other shape": reshaped("digest", [4, 8]),
    "array: digests that are too short": reshaped("digest", [31]),
    "array: digests that are too long": reshaped("digest", [33]),
    "array: digests that are numbers": reshaped("digest", []),
    "array: rows of nothing": reshaped("sketch", [0]),
    "array: negative rows": reshaped("sketch", [-16]),
    "array: absurdly long rows": reshaped("sketch", [2**30]),
    "array: absurd rows in all directions": reshaped("sketch", [2**30] * 4),
    "array: rows of 2 GB": reshaped("sketch", [2**28]),
    "array: another dtype": array("sketch", data_type="int16"),
    "array: a dtype that pickles": array("sketch", data_type="object"),
    "array: another byte order": array(
        "loss",
        codecs=[
            {"name": "bytes", "configuration": {"endian": "big"}},
            {"name": "zstd", "configuration": {"level": 1, "checksum": False}},
        ],
    ),
    "array: no codec": array("sketch", codecs=[]),
    "array: not compressed": array("loss", codecs=[BYTES]),
    "array: gzip instead of zstd": array("loss", codecs=[BYTES, GZIP]),
    "array: blosc instead of zstd": array("loss", codecs=[BYTES, BLOSC]),
    "array: a checksum on top": array("loss", codecs=[BYTES, GZIP, {"name": "crc32c"}]),
    "array: codecs in another order": array("loss", codecs=[GZIP, BYTES]),
    "array: a codec without settings": array("loss", codecs=[BYTES, {"name": "gzip"}]),
    "array: a codec with absurd settings": array(
        "loss", codecs=[BYTES, {"name": "zstd", "configuration": {"level": "x"}}]
    ),
    "array: a gzip bomb": bombs_of(GZIP, bytes(GZip(9).encode(bytes(2**30)))),
    "array: a blosc header that claims 2 GB": bombs_of(
        BLOSC, bytes([2, 1, 0, 1]) + (2**31 - 17).to_bytes(4, "little") + bytes(8)
    ),
    "array: a fill value that is none": array("loss", fill_value="x"),
    "array: a list as fill value": array("loss", fill_value=[]),
    "array: other chunk keys": array(
        "loss", chunk_key_encoding={"name": "default", "configuration": {"separator": "."}}
    ),
    "array: an unknown separator": array(
        "loss", chunk_key_encoding={"name": "default", "configuration": {"separator": "x"}}
    ),
    "array: absurd chunk keys": array(
        "loss", chunk_key_encoding={"name": "default", "configuration": 7}
    ),
    "array: names of other dimensions": array("loss", dimension_names=["a", "b", "c"]),
    "array: an unknown field": array("loss", surprise={"must_understand": True}),
    # Groups.
    "group: empty": group_of(b""),
    "group: a list": group_of(b"[]"),
    "group: null": group_of(b"null"),
    "group: not JSON": group_of(b"\xff{"),
    "group: an array": group_of(b'{"zarr_format": 3, "node_type": "array"}'),
    "group: an old Zarr": group_of(b'{"zarr_format": 2, "node_type": "group"}'),
    "group: attributes that are a list": group_of(
        b'{"zarr_format": 3, "node_type": "group", "attributes": [1]}'
    ),
    "group: deep nesting": group_of(DEEP),
    "group: a huge number": group_of(b'{"zarr_format": ' + b"9" * 10_000 + b"}"),
}

TOLERABLE = {
    "commit: an empty text as parent": commit(parent=""),
    "commit: false as parent": commit(parent=False),
    "array: another shape": reshaped("sketch", [4, 4]),
    "array: attributes that are a list": array("loss", attributes=[1]),
    "array: attributes missing": array("loss", attributes=None),
    "page: more keys, that lead outside": page(
        lambda body: body["chunks"][1].update({"../x": body["chunks"][1]["loss"]})
    ),
    "page: an unknown field": page(lambda body: {**body, "more": 1}),
    "page: false as first chunk": page(lambda body: {**body, "first": False}),
}

HARMLESS = {"an honest commit": commit()}
