# SPDX-License-Identifier: Apache-2.0
"""tree: the files that the checks read, and their text without comments."""

import os
import re

FOLDERS = ("base", "kernels", "tiers", "proto", "client", "daemon", "tests", "bench", "examples",
           "python", "systemd", "docs")


def files(top, *suffixes):
    """Paths relative to the top, sorted. Build folders and hidden ones are not part of the tree."""
    found = [name for name in os.listdir(top)
             if name.endswith(suffixes) and os.path.isfile(os.path.join(top, name))]
    for folder in FOLDERS:
        for path, folders, names in os.walk(os.path.join(top, folder)):
            folders[:] = [f for f in folders if not f.startswith((".", "__"))]
            found += [os.path.relpath(os.path.join(path, name), top)
                      for name in names if name.endswith(suffixes)]
    return sorted(found)


def read(top, path):
    with open(os.path.join(top, path), encoding="utf-8", errors="replace") as file:
        return file.read()


def code(text):
    """C text with comments, strings and characters blanked; lines keep their numbers."""
    def blank(match):
        piece = match.group(0)
        if piece[0] in "\"'":
            return piece[0] + piece[0]
        return "\n" * piece.count("\n") or " "
    return re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', blank, text,
                  flags=re.S)


def matches(top, paths, pattern, blank=True):
    """(path, line number, match) of a pattern in the code (or the whole text) of files."""
    for path in paths:
        text = read(top, path)
        for number, line in enumerate((code(text) if blank else text).split("\n"), 1):
            for match in re.finditer(pattern, line):
                yield path, number, match
