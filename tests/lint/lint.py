#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""lint: every check that `make lint` makes, one line each; each counts as one test.

The Makefile hands over the build (B, CC, FLAGS, ...) in the environment. Names given as arguments
select checks. The checks are themselves checked: selftest.py plants a violation of each."""

import os
import sys
import time

sys.dont_write_bytecode = True

import docs
import includes
import selftest
import shape
import tools

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SHOWN = 40

CHECKS = {
    "selftest": lambda top, build: selftest.check(),
    "includes": lambda top, build: includes.check(top),
    "heads": lambda top, build: shape.check_heads(top),
    "lengths": lambda top, build: shape.check_lengths(top),
    "assertions": lambda top, build: shape.check_assertions(top),
    "later": lambda top, build: shape.check_later(top),
    "prints": lambda top, build: shape.check_prints(top),
    "names": lambda top, build: shape.check_names(top),
    "links": lambda top, build: docs.check_links(top),
    "quotes": lambda top, build: docs.check_quotes(top),
    "format": tools.check_format,
    "headers": tools.check_headers,
    "exported": tools.check_exported,
    "prefix": tools.check_prefix,
    "tidy": tools.check_tidy,
}


def main():
    build = tools.Build(os.environ)
    failed = 0
    names = sys.argv[1:] or list(CHECKS)
    unknown = [name for name in names if name not in CHECKS]
    if unknown:
        sys.exit("lint: no check %s; there are: %s" % (", ".join(unknown), " ".join(CHECKS)))
    for name in names:
        started = time.monotonic()
        try:
            problems = CHECKS[name](TOP, build)
        except OSError as error:
            problems = ["%s: %s" % (error.filename, error.strerror)]
        took = time.monotonic() - started
        failed += bool(problems)
        print("  %-7s %-32s %6.1f s%s" % ("FAILED" if problems else "ok", "lint/" + name, took,
                                        "  %d found" % len(problems) if problems else ""))
        for problem in problems[:SHOWN]:
            print("        | " + problem)
        if len(problems) > SHOWN:
            print("        | ... and %d more" % (len(problems) - SHOWN))
        sys.stdout.flush()
    if os.environ.get("RESULTS"):
        with open(os.environ["RESULTS"], "a", encoding="utf-8") as file:
            print(len(names) - failed, failed, 0, file=file)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
