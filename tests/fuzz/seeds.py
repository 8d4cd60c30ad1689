#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""seeds: the first inputs of the fuzzers `slab`, `catalog` and `request`, made anew when a format changes; of requests
those alone that have a field which the corpus has not.

Usage: tests/fuzz/seeds.py DIR, which gets DIR/slab, DIR/catalog and DIR/request. Then, for each of them, an input that adds
nothing is left out:  build/fuzz/fuzz/slab -merge=1 tests/fuzz/corpus/slab DIR/slab

The fuzzers set checksums right (tests/fuzz/slab.c, catalog.c), so none is computed here. The catalog's file has
pages of 512 bytes, the least that LMDB's format knows: as small as a file with every kind of page can be."""

import os
import struct
import sys

PAGE = 4096
SLAB_VERSION = 2
CATALOG_VERSION = 2
DIVISORS = (2, 4, 5, 8)


def write(directory, name, data):
    with open(os.path.join(directory, name), "wb") as file:
        file.write(bytes(data))


# ---- slabs: the tables in tiers/slab.c ---------------------------------------------------------


def header():
    page = bytearray(64)
    page[0:8] = b"KVRSLAB\n"
    struct.pack_into("<I", page, 8, SLAB_VERSION)
    struct.pack_into("<16sQIII", page, 16, b"store", 77, 1, 3, 5000)
    return page


def geometry(tokens, merged, lanes=1):
    return (1, 2 * lanes, lanes, 8, 8, 3, tokens, 8, 4, merged)


def head(tokens, merged, dense, lanes=1, segment_tokens=64):
    page = bytearray(PAGE)
    page[0:8] = b"KVRHEAD\n"
    struct.pack_into("<I", page, 8, SLAB_VERSION)
    struct.pack_into("<Q", page, 16, 77)
    struct.pack_into("<II", page, 88, 0, tokens)
    page[136:137] = b"t"
    page[200:201] = b"m"
    struct.pack_into("<10I", page, 296, *geometry(segment_tokens, merged, lanes))
    struct.pack_into("<Q", page, 336, dense)
    return page


def aligned(array):
    data = struct.pack("<%dH" % len(array), *array)
    return data + bytes(-len(data) % 64)


def summary(tokens, merged, dense, lanes=1):
    """From row_first on (kernels/segment.h): clusters of 8 in token order, sinks behind them."""
    rows = max(tokens - 4, 0)
    sinks = tokens - rows
    clusters = (rows + 7) // 8
    sets = [-(-rows // DIVISORS[i]) for i in range(4) if merged >> i & 1]
    first, token, stands = [], [], []
    for lane in range(lanes):
        first += [min(8 * i, rows) for i in range(clusters + 1)] + [tokens]
        token += [sinks + i for i in range(rows)] + list(range(sinks))
        for count in sets:
            if dense >> lane & 1 or count == 0:
                stands += [0] * count
            else:
                stands += [rows // count + (i < rows % count) for i in range(count)]
    return (aligned(first) + aligned(token) + aligned(stands) + aligned([clusters] * lanes) +
            aligned([1] * lanes))


def slabs(directory):
    sealed, as_it_is = b"\x01", b"\x00"
    write(directory, "header", sealed + header())
    write(directory, "wrong-checksum", as_it_is + head(40, 0, 0))
    for name, tokens, merged, dense, lanes in (
        ("head-and-summary", 40, 0, 0, 1),
        ("one-token", 1, 15, 0, 1),
        ("dense", 40, 0, 1, 1),
        ("merged", 40, 15, 0, 1),
        ("merged-and-dense", 23, 10, 2, 2),
    ):
        write(directory, name,
              sealed + head(tokens, merged, dense, lanes) + summary(tokens, merged, dense, lanes))


# ---- rows of the catalog: the tables in tiers/catalog_record.c ----------------------------------


def rows():
    """name: (table, key, value without its checksum)"""
    key, unit = b"\x07" * 32, struct.pack(">QHH", 4, 2, 3)
    store = struct.pack("<I16sQQ", SLAB_VERSION, b"", 1 << 30, 3)
    at = struct.pack("<IIIHHI", 1, 4096, 4000, 16, 9, 77)
    model = (b"t".ljust(64, b"\0") + b"m".ljust(64, b"\0") + bytes(32) + struct.pack("<I", 1) +
             struct.pack("<10I", *geometry(64, 5)) + struct.pack("<256Q", 1, *[0] * 255))
    return {
        "meta": (0, b"store", struct.pack("<I", CATALOG_VERSION) + store),
        "meta-newer": (0, b"store", struct.pack("<I", CATALOG_VERSION + 1) + store),
        "meta-older": (0, b"store", struct.pack("<I", CATALOG_VERSION - 1) + store),
        "commit": (0, b"commit", struct.pack("<QQQ", 9, 100, 8)),
        "tenant": (1, b"somebody", struct.pack("<Q", 12)),
        "model": (2, key, model),
        "segment": (3, key, struct.pack("<Q32s32sIIIII3I", 4, b"", b"", 64, 64, 3, 9, 6, 1, 2, 3)),
        "child": (4, key + struct.pack(">IQ", 1024, 4), key),
        "cluster": (5, unit, at),
        "slab": (6, struct.pack(">I", 5), struct.pack("<Q", 4)),
        "state": (7, struct.pack(">Q", 4), struct.pack("<QI32s", 99, 3, b"")),
        "use": (8, struct.pack(">QQ", 99, 4), b""),
        "merged": (9, unit, at[:14] + struct.pack("<HI", 4, 77)),
    }


# ---- a file of LMDB's: the tables in tiers/catalog_page.h ---------------------------------------

SMALL = 512
BRANCH, LEAF, OVERFLOW, META = 1, 2, 4, 8
BIG, TREE = 1, 2


def page_of(number, flags, nodes):
    """Nodes from the end upwards, the index behind the head."""
    page, upper, index = bytearray(SMALL), SMALL, []
    for node in nodes:
        node += bytes(len(node) % 2)
        upper -= len(node)
        page[upper:upper + len(node)] = node
        index.append(upper)
    struct.pack_into("<QHHHH", page, 0, number, 0, flags, 16 + 2 * len(index), upper)
    struct.pack_into("<%dH" % len(index), page, 16, *index)
    assert 16 + 2 * len(index) <= upper
    return page


def leaf_node(key, value, flags=0, length=None):
    return struct.pack("<IHH", len(value) if length is None else length, flags, len(key)) + key + value


def branch_node(key, below):
    return struct.pack("<IHH", below, 0, len(key)) + key


def tree(flags, depth, branches, leaves, overflow, count, root):
    return struct.pack("<IHHQQQQQ", 0, flags, depth, branches, leaves, overflow, count, root)


def meta_page(slot, transaction, free, main, last):
    page = bytearray(SMALL)
    struct.pack_into("<QHH", page, 0, slot, 0, META)
    struct.pack_into("<IIQQ", page, 16, 0xbeefc0de, 1, 0, 1 << 20)
    page[40:88], page[88:136] = free, main
    struct.pack_into("<QQ", page, 136, last, transaction)
    struct.pack_into("<I", page, 40, SMALL)
    return page


def file():
    names = ["child", "cluster", "merged", "meta", "model", "segment", "slab", "state", "tenant", "use"]
    empty, pages, trees = tree(0, 0, 0, 0, 0, 0, 2**64 - 1), {}, {}

    def units(number, clusters):
        at = rows()["cluster"][2] + b"crc!"
        nodes = [leaf_node(struct.pack(">QHH", 4, 2, i), at) for i in clusters]
        pages[number] = page_of(number, LEAF, nodes)

    units(4, range(0, 5))
    units(5, range(5, 9))
    pages[6] = page_of(6, BRANCH, [branch_node(b"", 4), branch_node(struct.pack(">QHH", 4, 2, 5), 5)])
    trees["cluster"] = tree(0, 2, 1, 2, 0, 9, 6)
    units(7, range(0, 4))
    trees["merged"] = tree(0, 1, 0, 1, 0, 4, 7)
    big = rows()["model"][2] + b"crc!"
    pages[8] = page_of(8, LEAF, [leaf_node(b"\x07" * 32, struct.pack("<Q", 9), BIG, len(big))])
    count = -(-(16 + len(big)) // SMALL)
    data = struct.pack("<QHHI", 9, 0, OVERFLOW, count) + big
    data += bytes(-len(data) % SMALL)
    for i in range(count):
        pages[9 + i] = data[SMALL * i:SMALL * (i + 1)]
    trees["model"] = tree(0, 1, 0, 1, count, 1, 8)
    last = 9 + count
    values = [leaf_node(name, value + b"crc!")
              for name, value in ((b"commit", rows()["commit"][2]), (b"store", rows()["meta"][2]))]
    pages[last] = page_of(last, LEAF, values)
    trees["meta"] = tree(0, 1, 0, 1, 0, 2, last)
    half = len(names) // 2
    for number, some in ((last + 1, names[:half]), (last + 2, names[half:])):
        pages[number] = page_of(number, LEAF, [
            leaf_node(name.encode(), trees.get(name, empty), TREE) for name in some])
    pages[last + 3] = page_of(last + 3, BRANCH, [
        branch_node(b"", last + 1), branch_node(names[half].encode(), last + 2)])
    main = tree(0, 2, 1, 2, 0, len(names), last + 3)
    pages[2] = page_of(2, LEAF, [leaf_node(struct.pack("<Q", 8), struct.pack("<QQ", 1, 3))])
    pages[3] = bytes(SMALL)
    free = tree(8, 1, 0, 1, 0, 1, 2)
    for slot, transaction in ((0, 8), (1, 9)):
        pages[slot] = meta_page(slot, transaction, free, main, last + 3)
    return b"".join(bytes(pages[number]) for number in range(last + 4))


def catalogs(directory):
    for name, (table, key, value) in rows().items():
        write(directory, name, bytes([table, len(key)]) + key + value)
    write(directory, "file", b"\xff" + file())


# ---- requests: proto/kvrecall.proto ------------------------------------------------------------


def varint(value):
    data = b""
    while value >= 128:
        data += bytes([value & 127 | 128])
        value >>= 7
    return data + bytes([value])


def message(fields):
    """Fields by number: bytes, or a number of any width."""
    data = b""
    for number, value in fields.items():
        if isinstance(value, bytes):
            data += varint(number << 3 | 2) + varint(len(value)) + value
        else:
            data += varint(number << 3) + varint(value)
    return data


def recall(item, more):
    """A recall of one layer: query, keys, values, weights, table in the region; then what is new."""
    item = {1: 1 << 20, 2: 1, 4: 64, 5: 4096, 6: 8192, 7: 12288, 9: 16384, **item}
    body = {1: message(item), 3: 3, 5: 96, 7: 128, 10: 1, **more}
    return message({1: 7, 2: 1 << 16, 3: b"s" * 16, 15: message(body)})


def requests(directory):
    budgets = struct.pack("<IfIf", 10, 0, 70, 0.5)
    write(directory, "recall-folded", recall({11: 20480, 12: 24576}, {13: 3}))
    write(directory, "recall-centroids", recall({8: 20480}, {11: 1, 13: 3, 14: 12}))
    write(directory, "recall-merged", recall({13: 128}, {8: 1, 9: 1, 13: 2, 15: 5}))
    write(directory, "recall-budgets", recall({10: budgets}, {2: 2}))


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for name, make in (("slab", slabs), ("catalog", catalogs), ("request", requests)):
        directory = os.path.join(sys.argv[1], name)
        os.makedirs(directory, exist_ok=True)
        make(directory)


if __name__ == "__main__":
    main()
