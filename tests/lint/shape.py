# SPDX-License-Identifier: Apache-2.0
"""shape: what a file looks like: its head, its length, its functions, its assertions, its names."""

import re

import tree

FILE_LINES = 500
FUNCTION_LINES = 70
ASSERTED = ("tiers", "proto", "daemon")
ASSERTIONS_PER_1000 = 25
LIBRARIES = ("base", "kernels", "tiers", "proto", "client")
SPDX = "SPDX-License-Identifier: Apache-2.0"
# Spelled in halves, so that this file passes its own check.
LATER = r"\b(TO" + "DO|FIX" + "ME|XX" + "X|HA" + r"CK)\b"


def check_heads(top):
    """Every file begins with its licence; a C file goes on with its name and what it is for (a
    test may go straight on with its goal)."""
    problems = []
    for path in tree.files(top, ".c", ".h", ".cu", ".py", ".sh", ".proto"):
        lines = tree.read(top, path).split("\n")
        if not any(SPDX in line for line in lines[:2]):
            problems.append("%s:1: the head lacks %s" % (path, SPDX))
        elif path.endswith((".c", ".h", ".cu")):
            name = path.rsplit("/", 1)[-1]
            first = re.escape(name) + ("|Goal" if path.startswith("tests/") else "")
            if not re.match(r"/\* (%s): \S" % first, lines[1]):
                problems.append("%s:2: begin with /* %s: what it is for" % (path, name))
    return problems


def check_lengths(top):
    problems = []
    for path in tree.files(top, ".c", ".h", ".py", ".sh", ".cu", ".proto", "Makefile"):
        lines = tree.read(top, path).rstrip("\n").split("\n")
        if len(lines) > FILE_LINES:
            problems.append("%s:1: %d lines, %d are allowed" % (path, len(lines), FILE_LINES))
        first = 0
        for number, line in enumerate(lines if path.endswith((".c", ".h", ".cu")) else [], 1):
            # clang-format leaves a brace in the first column to functions alone.
            if line == "{":
                first = number
            elif line.startswith("}") and first:
                if number - first + 1 > FUNCTION_LINES:
                    problems.append("%s:%d: function of %d lines, %d are allowed"
                                    % (path, first, number - first + 1, FUNCTION_LINES))
                first = 0
    return problems


def assertions(top, folder):
    """(assertions, non-blank lines) of a folder."""
    count = lines = 0
    for path in tree.files(top, ".c", ".h"):
        if path.startswith(folder + "/"):
            text = tree.read(top, path)
            lines += sum(1 for line in text.split("\n") if line.strip())
            count += len(re.findall(r"\b(?:KVR_ASSERT|KVR_STATIC_ASSERT|_Static_assert)\(",
                                    tree.code(text)))
    return count, lines


def check_assertions(top):
    problems = []
    for folder in ASSERTED:
        count, lines = assertions(top, folder)
        if count * 1000 < lines * ASSERTIONS_PER_1000:
            problems.append("%s:1: %d assertions in %d lines: %.1f per 1000, at least %d are wanted"
                            % (folder, count, lines, 1000 * count / lines, ASSERTIONS_PER_1000))
    return problems


def check_later(top):
    paths = tree.files(top, ".c", ".h", ".py", ".sh", ".proto", ".md", ".cu", ".service", ".conf",
                       "Makefile", "run", "check")
    return ["%s:%d: %s: finish it" % (path, line, match.group(0))
            for path, line, match in tree.matches(top, paths, LATER, False)]


def check_prints(top):
    """Libraries return errors. Only the daemon and the tools write or end the process; base/assert.h
    is the one exception."""
    paths = [path for path in tree.files(top, ".c", ".h", ".cu")
             if path.split("/")[0] in LIBRARIES and path != "base/assert.h"
             and not re.match(r"client/cli(_\w+)?\.[ch]$", path)]
    pattern = (r"(?<![\w.>])(f?printf|dprintf|vf?printf|f?puts|f?putc|putchar|perror|syslog|errx?|warnx?"
               r"|_?exit|_Exit|quick_exit|abort)\s*\(")
    return ["%s:%d: %s: only daemon/ and the tools print or exit" % (path, line, match.group(1))
            for path, line, match in tree.matches(top, paths, pattern)]


def check_names(top):
    """kvr_ if and only if visible outside the file: the half that text shows; symbols show the other."""
    paths = [path for path in tree.files(top, ".c", ".cu") if path.split("/")[0] in LIBRARIES + ("daemon",)]
    return ["%s:%d: %s is static: it does without the prefix" % (path, line, match.group(1))
            for path, line, match in tree.matches(
                top, paths, r"^static [^=;(]*\b(kvr_\w+)(?=\(|\[| =|;)")]
