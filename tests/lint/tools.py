# SPDX-License-Identifier: Apache-2.0
"""tools: checks that a compiler or a binary tool makes. They run `jobs` at a time."""

import hashlib
import os
import re
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor

import tree

# Products of one lane, or of a test's, are far below 2^32 (base/limits.h); a test may include the file
# whose inside it tests, and writes bytes that are no strings. The sanitizers run every test: the analyzer, the slow
# part of clang-tidy, is for the code that they cannot run through.
NO_WIDENING = "-bugprone-implicit-widening-of-multiplication-result"
TIDY_LESS = {
    "kernels": NO_WIDENING,
    "bench": NO_WIDENING,
    "examples": NO_WIDENING,
    "tests": NO_WIDENING + ",-clang-analyzer-*,-bugprone-suspicious-include,-bugprone-not-null-terminated-result",
}
CLANG_MAJOR = "14"  # Debian 12's; another version formats otherwise and finds other things
CXX_IDIOMS = ("-Wno-shadow", "-Wno-missing-field-initializers")


class Build:
    """What the Makefile says: the build folder, the compiler, its flags, the tools."""

    def __init__(self, env):
        self.folder = env.get("B", "build/gcc")
        self.compiler = shlex.split(env.get("CC", "gcc"))
        self.flags = shlex.split(env.get("FLAGS", ""))
        self.simd = {"_" + name.lower(): shlex.split(env.get("FLAGS_" + name, ""))
                     for name in ("AVX2", "AVX512", "AVX512BF16")}
        self.jobs = int(env.get("JOBS") or 1)
        self.clang_format = env.get("CLANG_FORMAT", "clang-format")
        self.clang_tidy = env.get("CLANG_TIDY", "clang-tidy")


def output(command, top, text=None):
    """(status, what it printed); a tool that is not there is a status of 127."""
    try:
        done = subprocess.run(command, cwd=top, input=text, text=True, errors="replace",
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except OSError as error:
        return 127, "%s: %s" % (command[0], error.strerror)
    return done.returncode, done.stdout


def wrong_version(tool, top):
    text = output([tool, "--version"], top)[1]
    match = re.search(r"version (\d+)", text)
    if not match or match.group(1) != CLANG_MAJOR:
        return "%s: version %s, the tree is held to %s: install %s-%s" % (
            tool, match.group(1) if match else "unknown", CLANG_MAJOR,
            re.sub(r"-\d+$", "", os.path.basename(tool)), CLANG_MAJOR)
    return None


def diagnostics(text):
    """The `file:line:` lines of a compiler's output, else all of it."""
    lines = re.findall(r"^[^\s:]+:\d+:.*(?:error|warning):.*$", text, re.M)
    return lines or [line for line in text.split("\n") if line.strip()]


def each(items, jobs, work):
    with ThreadPoolExecutor(jobs) as pool:
        return [problem for problems in pool.map(work, items) for problem in problems]


def check_format(top, build):
    problem = wrong_version(build.clang_format, top)
    if problem:
        return [problem]

    def one(path):
        status, text = output([build.clang_format, "--dry-run", "-Werror", path], top)
        return diagnostics(text)[:3] if status else []
    return each(tree.files(top, ".c", ".h", ".cu", ".cuh"), build.jobs, one)


def tidy_flags(path, build):
    """The SIMD files are compiled with flags of their own."""
    for suffix, flags in build.simd.items():
        if path.endswith(suffix + ".c"):
            return build.flags + flags
    return build.flags


def check_tidy(top, build):
    """clang-tidy over every C file. What passed is remembered in the build folder by the hash of its
    preprocessed text, the settings and the flags."""
    problem = wrong_version(build.clang_tidy, top)
    if problem:
        return [problem]
    settings = tree.read(top, ".clang-tidy")
    passed = os.path.join(top, build.folder, "tidy")
    os.makedirs(passed, exist_ok=True)

    def one(path):
        flags = tidy_flags(path, build)
        status, text = output(build.compiler + flags + ["-E", "-C", path], top)
        name = hashlib.sha256("\0".join([settings, repr(TIDY_LESS), text] + flags).encode()).hexdigest()
        if status == 0 and os.path.exists(os.path.join(passed, name)):
            return []
        checks = "--checks=" + TIDY_LESS.get(path.split("/")[0], "")
        status, text = output([build.clang_tidy, "--quiet", checks, path, "--"] + flags, top)
        found = [os.path.relpath(line, os.path.abspath(top)) if line.startswith("/") else line[2:]
                 for line in re.findall(r"^(?:/|\./)[^\s:]+:\d+:\d+: (?:error|warning): .*$", text, re.M)]
        if status == 0 and not found:
            open(os.path.join(passed, name), "w").close()
            return []
        return found or ["%s:1: clang-tidy failed: %s" % (path, text.strip()[-300:])]
    # The longest first, so that no core waits at the end.
    paths = sorted(tree.files(top, ".c"), key=lambda p: -os.path.getsize(os.path.join(top, p)))
    return sorted(set(each(paths, build.jobs, one)))


def check_headers(top, build):
    """Each header compiles alone, as C11 and as C++17; but a *_body.h is text that others include with
    their own macros set. Two warnings are about C idioms that C++ has other words for."""
    def one(path):
        problems = []
        for language, standard in (("c", "c11"), ("c++", "c++17")):
            flags = [flag for flag in build.flags if flag != "-std=c11" and not (
                language == "c++" and flag in ("-Wstrict-prototypes", "-Wmissing-prototypes"))]
            status, text = output(build.compiler + flags + ["-Wno-unused-function",
                                  *(CXX_IDIOMS if language == "c++" else ()), "-std=" + standard, "-fsyntax-only", "-x", language, "-"], top,
                                  '#include "%s"\n' % path)
            if status:
                problems += ["%s (as %s)" % (line, standard) for line in diagnostics(text)[:3]]
        return problems
    return each([path for path in tree.files(top, ".h") if not path.endswith("_body.h")], build.jobs, one)


def symbols(path, *flags):
    """The names that a library defines for others, or None if it is not there."""
    status, text = output(["nm", "--defined-only", *flags, path], None)
    if status:
        return None
    return {line.split()[-1].split("@")[0] for line in text.split("\n")
            if re.match(r"[0-9a-f]+ [TDBRVWuC] ", line)}


def compare_exported(top, build, library, headers, declared):
    """The dynamic symbols of a library are exactly the functions that its headers declare as public."""
    public = set()
    for header in headers:
        public |= set(re.findall(declared, tree.code(tree.read(top, header)), re.M))
    exported = symbols(os.path.join(top, build.folder, library), "-D")
    if exported is None:
        return ["%s: was not built" % library]
    return (["%s: %s is exported, and not public" % (library, name) for name in sorted(exported - public)]
            + ["%s: %s is public, and not exported" % (library, name) for name in sorted(public - exported)])


def check_exported(top, build):
    """libkvrecall exports the KVR_API functions of kvrecall.h; the library of CUDA kernels, where there was an
    nvcc to build it, the launchers of kernels/cuda/."""
    problems = compare_exported(top, build, "libkvrecall.so", ["client/kvrecall.h"],
                                r"^KVR_API [^;(]*?(\w+)\(")
    if os.path.exists(os.path.join(top, build.folder, "libkvrecall-cuda.so")):
        headers = [path for path in tree.files(top, ".h") if path.startswith("kernels/cuda/")]
        problems += compare_exported(top, build, "libkvrecall-cuda.so", headers,
                                     r"^KVR_CUDA_API [^;(]*?(\w+)\(")
    return problems


def check_prefix(top, build):
    """What a file of ours shows to others begins with kvr_ (generated code: with kvrecall__)."""
    problems = []
    for library in ("kernels", "tiers", "proto", "client", "daemon"):
        names = symbols(os.path.join(top, build.folder, "lib%s.a" % library), "-g")
        if names is None:
            problems.append("lib%s.a: was not built" % library)
            continue
        problems += ["lib%s.a: %s is visible outside its file and lacks kvr_" % (library, name)
                     for name in sorted(names) if not name.startswith(("kvr_", "kvrecall__", "__odr", "__asan"))]
    return problems
