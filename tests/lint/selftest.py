# SPDX-License-Identifier: Apache-2.0
"""selftest: plants one violation of each check in a small tree of its own and expects to read of it;
the same tree without it must pass. Then the same for the program that runs tests."""

import os
import shutil
import stat
import subprocess
import tempfile

import docs
import includes
import shape
import tools

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
HEAD = "/* SPDX-License-Identifier: Apache-2.0 */\n/* %s: one thing. */\n"
ASSERT = "#define KVR_ASSERT(c) ((void)(c))\n"
API = '#define KVR_API __attribute__((visibility("default")))\nKVR_API int kvr_one(void);\n'

CLEAN = {
    "base/assert.h": HEAD % "assert.h" + ASSERT,
    "tiers/one.c": HEAD % "one.c" + "#include <stdlib.h>\n\n#include \"base/assert.h\"\n\n"
                   "int kvr_one(void);\n\nint kvr_one(void)\n{\n\tKVR_ASSERT(1);\n\treturn 0;\n}\n",
    "client/kvrecall.h": HEAD % "kvrecall.h" + API,
    "examples/minimal.c": HEAD % "minimal.c" + "int main(void)\n{\n\treturn 0;\n}\n",
    "README.md": "# One\n\n[one](tiers/one.c)\n\n```c\nint main(void)\n{\n\treturn 0;\n}\n```\n",
}

# check, file, its text (appended to a clean file), what must be said
TEXT = [
    (includes.check, "tiers/one.c", '#include "daemon/core.h"\n', "tiers/one.c:14: may not include"),
    (includes.check, "proto/two.c", '#include "kernels/device.h"\n', "may not include kernels"),
    (includes.check, "client/two.c", '#include "tiers/tier.h"\n', "may not include tiers"),
    (includes.check, "client/cli_two.c", '#include "proto/message.h"\n', "may not include proto"),
    (includes.check, "examples/two.c", '#include "base/list.h"\n', "may not include base"),
    (includes.check, "tests/kernels/two.c", '#include "tiers/tier.h"\n', "may not include tiers"),
    (includes.check, "daemon/two.c", '#include "two.h"\n', "name it from the top"),
    (includes.check, "daemon/request.c", "#include <nanomsg/nn.h>\n", "belongs to daemon/net"),
    (includes.check, "daemon/two.c", '#include "proto/kvrecall.pb-c.h"\n', "belongs to proto"),
    (includes.check, "tiers/two.c", "#include <cmocka.h>\n", "belongs to tests"),
    (includes.check, "tiers/two.c", "#include <zlib.h>\n", "has no owner"),
    (includes.check, "kernels/two.c", "#include <cuda_runtime.h>\n", "belongs to kernels/cuda"),
    (includes.check, "kernels/two.c", '#include "kernels/cuda/builtin.h"\n', "may not include kernels/cuda"),
    (includes.check, "kernels/cuda/two.cu", '#include "tiers/tier.h"\n', "may not include tiers"),
    (shape.check_heads, "kernels/cuda/two.cu", HEAD % "three.cu", "begin with /* two.cu:"),
    (shape.check_prints, "kernels/cuda/two.cu", 'void f(void)\n{\n\tprintf("");\n}\n', "two.cu:3: printf"),
    (shape.check_heads, "tiers/two.c", "int x;\n", "lacks SPDX"),
    (shape.check_heads, "tiers/two.c", HEAD % "three.c", "begin with /* two.c:"),
    (shape.check_lengths, "tiers/two.c", "\n" * 501 + "int x;\n", "502 lines"),
    (shape.check_lengths, "tiers/two.c", "void f(void)\n{\n" + "\t;\n" * 69 + "}\n", "71 lines"),
    (shape.check_assertions, "daemon/two.c", "int x;\n" * 10, "0 assertions in 10 lines"),
    (shape.check_later, "docs/two.md", "a TO" + "DO\n", "finish it"),
    (shape.check_prints, "kernels/two.c", 'void f(void)\n{\n\tprintf("");\n}\n', "two.c:3: printf"),
    (shape.check_prints, "client/two.c", "void f(void)\n{\n\texit(1);\n}\n", "two.c:3: exit"),
    (shape.check_names, "tiers/two.c", "static int kvr_two(void)\n", "kvr_two is static"),
    (docs.check_links, "docs/two.md", "[a](../gone.md)\n", "nothing at ../gone.md"),
    (docs.check_quotes, "README.md", "```c\nint other;\n```\n", "not the text of examples"),
]
BUILT = [
    (tools.check_format, "tiers/one.c", "int  x ;\n", "tiers/one.c:14"),
    (tools.check_format, "kernels/cuda/one.cu", "int  x ;\n", "kernels/cuda/one.cu:1"),
    (tools.check_headers, "base/two.h", HEAD % "two.h" + "size_t x;\n", "base/two.h:3"),
    (tools.check_headers, "base/two.h", HEAD % "two.h" + "extern int class;\n", "as c++17"),
    (tools.check_tidy, "tiers/two.c", "int f(int x);\nint f(int x)\n{\n"
     "\treturn x / (x - x);\n}\n", "tiers/two.c:4"),
]


def plant(top, path, text):
    path = os.path.join(top, path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)


def tree_of(top, *more):
    for path, text in list(CLEAN.items()) + list(more):
        plant(top, path, text)
    shutil.copy(os.path.join(TOP, ".clang-format"), top)
    shutil.copy(os.path.join(TOP, ".clang-tidy"), top)


def expect(problems, want, name):
    """What is wrong with the check's answer; `want` None stands for silence."""
    if want is None:
        return ["%s: finds in a clean tree: %s" % (name, p) for p in problems]
    if not any(want in problem for problem in problems):
        return ["%s: misses what was planted: %s; says %s" % (name, want, problems)]
    return []


def try_checks(cases, *arguments):
    problems = []
    for check, path, text, want in cases:
        with tempfile.TemporaryDirectory() as top:
            tree_of(top, (path, text))
            problems += expect(check(top, *arguments), want, check.__name__)
    for check in {case[0] for case in cases}:
        with tempfile.TemporaryDirectory() as top:
            tree_of(top)
            problems += expect(check(top, *arguments), None, check.__name__)
    return problems


def try_symbols(build):
    """A library that exports what it should not, lacks what it should have, and names it badly."""
    problems = []
    one = "KVR_API int kvr_one(void) { return 0; } "
    cuda = "KVR_CUDA_API int kvr_cuda_one(void); "
    for source, name, want in ((one, "libkvrecall.so", None),
                               (one + "int kvr_two(void) { return 0; }", "libkvrecall.so", "kvr_two is exported"),
                               ("int kvr_other(void) { return 0; }", "libkvrecall.so", "kvr_one is public"),
                               ("int kvr_cuda_one(void) { return 0; }", "libkvrecall-cuda.so", None),
                               ("int kvr_cuda_two(void) { return 0; }", "libkvrecall-cuda.so", "kvr_cuda_two is exported"),
                               ("int kvr_cuda_two(void) { return 0; }", "libkvrecall-cuda.so", "kvr_cuda_one is public")):
        with tempfile.TemporaryDirectory() as top:
            tree_of(top, ("b/x.c", API + source + "\n"), ("b/y.c", API + one + "\n"),
                    ("kernels/cuda/one.h", HEAD % "one.h" + cuda + "\n"))
            os.chdir(top)
            for library, text in (("libkvrecall.so", "b/y.c"), (name, "b/x.c")):
                subprocess.run(build.compiler + ["-shared", "-fPIC", "-o", "b/" + library, text], check=True)
            build.folder = "b"
            problems += expect(tools.check_exported(top, build), want, "check_exported")
            os.chdir(TOP)
    return problems


# What a program prints, how it ends, and what the runner must count: passed, failed, skipped.
PROGRAMS = [
    ("echo '[       OK ] a'; echo '[  PASSED  ] 1 test(s).'", "1 0 0"),
    ("echo '[       OK ] a'; echo '[  FAILED  ] 2 test(s), listed below:'; exit 2", "1 2 0"),
    ("echo '[       OK ] a'; echo 'skipped: no GPU'; echo '[  SKIPPED ] 1 test(s), listed below:'", "1 0 1"),
    ("echo '[       OK ] a'; echo '[  SKIPPED ] 1 test(s), listed below:'", "1 1 1"),
    ("echo '[       OK ] a'; kill -SEGV $$", "1 1 0"),
    ("echo '[       OK ] a'; exit 3", "1 1 0"),
    ("echo nothing", "0 1 0"),
    ("echo '[       OK ] a'; sleep 60", "1 1 0"),
    ("echo '[       OK ] a'; sleep 60 & exit 0", "1 1 0"),
]


def try_runner():
    problems = []
    for body, want in PROGRAMS:
        with tempfile.TemporaryDirectory() as top:
            program = os.path.join(top, "program")
            results = os.path.join(top, "results")
            plant(top, "program", "#!/bin/sh\n%s\n" % body)
            os.chmod(program, stat.S_IRWXU)
            subprocess.run([os.path.join(TOP, "tests", "run"), "--timeout", "2", "--results", results, program],
                           stdout=subprocess.DEVNULL)
            with open(results, encoding="utf-8") as file:
                got = file.read().strip()
            if got != want:
                problems.append("tests/run: counts %s instead of %s for: %s" % (got, want, body))
    return problems


def check():
    build = tools.Build(dict(os.environ, FLAGS="-I. -std=c11 -Wall -Wextra -Werror", JOBS="1"))
    build.folder = "build"
    return try_checks(TEXT) + try_checks(BUILT, build) + try_symbols(build) + try_runner()
