# SPDX-License-Identifier: Apache-2.0
"""docs: links lead somewhere, and the engine that README shows is one that is compiled."""

import os
import re

import tree


def check_links(top):
    problems = []
    for path, line, match in tree.matches(top, tree.files(top, ".md"), r"\]\(([^)#\s]+)[^)]*\)", False):
        target = match.group(1)
        if not re.match(r"[a-z]+:", target) and not os.path.exists(
                os.path.join(top, os.path.dirname(path), target)):
            problems.append("%s:%d: nothing at %s" % (path, line, target))
    return problems


def check_quotes(top):
    """Every C block of README.md stands in examples/minimal.c, word for word."""
    blocks = re.findall(r"^```c\n(.*?)^```", tree.read(top, "README.md"), re.M | re.S)
    source = tree.read(top, "examples/minimal.c")
    problems = ["README.md:1: a C block is not the text of examples/minimal.c: %s" % block.split("\n")[0]
                for block in blocks if block not in source]
    return problems or ([] if blocks else ["README.md:1: shows no engine in C"])
