# SPDX-License-Identifier: Apache-2.0
"""includes: every #include against the drawing of the folders, and the owner of every library.

       daemon        client <-- python, examples
         |  |          |
       tiers |         |
         |  |          |
       kernels   proto |
             |     |
             base                                                                           """

import fnmatch
import re

import tree

# What a folder may include of the project. Tests may do what their folder may, and what is theirs.
BELOW = {
    "base": ("base",),
    "kernels": ("kernels", "base"),
    "tiers": ("tiers", "kernels", "base"),
    "proto": ("proto", "base"),
    "client": ("client", "proto", "base"),
    "daemon": ("daemon", "tiers", "kernels", "proto", "base"),
    "bench": ("bench", "examples", "daemon", "client", "tiers", "kernels", "proto", "base"),
}
# Tests of the daemon are its clients too; fuzzers feed whatever reads bytes from outside.
BELOW_TESTS = {
    "daemon": BELOW["bench"][2:],
    "fuzz": BELOW["bench"][2:],
}
# The public header is all that these see; the tool adds its own headers and the small ones of base.
PUBLIC = "client/kvrecall.h"
TOOL = ("client/cli.[ch]", "client/cli_*.[ch]")

# What CUDA sources begin with, and what runs them on a CPU: other code sees the launchers' headers alone.
CUDA = "kernels/cuda/*"
CUDA_INSIDE = ("kernels/cuda/builtin.h", "kernels/cuda/emulate.h")

# One owner for each external library. Tests and benches may use any: as a reference, or to be hostile.
OWNERS = {
    r"nanomsg/.*": ("daemon/net*.[ch]", "client/net*.[ch]"),
    r"protobuf-c/.*|.*\.pb-c\.h": ("proto/*",),
    r"sodium(/.*)?\.h": ("daemon/crypt.[ch]",),
    r"libconfig\.h": ("daemon/config*.[ch]",),
    r"isa-l(/.*)?\.h": ("kernels/crc.c",),
    r"cblas.*\.h|openblas.*": (),
    r"liburing(/.*)?\.h": ("tiers/nvme_ring.[ch]",),
    r"lmdb\.h": ("tiers/catalog_*.[ch]",),
    r"cuda.*|cublas.*|nv.*\.h": (CUDA,),
    r"systemd/.*": ("daemon/notify.[ch]",),
    r"jansson\.h": ("client/cli_json.[ch]",),
    r"cmocka\.h|setjmp\.h": (),
    r"faiss/.*|omp\.h": (),
}

# The C library and the kernel belong to everybody. What is not named here has no owner yet.
SYSTEM = set("""
    assert.h complex.h ctype.h errno.h fcntl.h fenv.h float.h getopt.h grp.h immintrin.h inttypes.h
    limits.h malloc.h math.h netdb.h poll.h pthread.h pwd.h sched.h semaphore.h signal.h stdalign.h
    stdarg.h stdatomic.h stdbool.h stddef.h stdint.h stdio.h stdlib.h stdnoreturn.h string.h
    strings.h syslog.h termios.h time.h ucontext.h unistd.h wchar.h cpuid.h dirent.h ftw.h glob.h spawn.h
    arpa/inet.h netinet/in.h netinet/tcp.h""".split())
SYSTEM_FOLDERS = ("sys/", "linux/", "asm/", "sanitizer/")


def allowed(path, include):
    folder = path.split("/")[0]
    target = include.split("/")[0]
    if folder in ("examples", "python"):
        return include == PUBLIC or include.rsplit("/", 1)[0] == path.rsplit("/", 1)[0]
    if any(fnmatch.fnmatch(path, pattern) for pattern in TOOL):
        return include == PUBLIC or any(fnmatch.fnmatch(include, pattern) for pattern in TOOL) or target == "base"
    if include in CUDA_INSIDE and not fnmatch.fnmatch(path, CUDA) and not path.startswith("tests/kernels/"):
        return False
    if folder == "tests":
        subject = path.split("/")[1]
        below = BELOW_TESTS.get(subject, BELOW.get(subject, ()))
        return target in below or include.startswith("tests/%s/" % subject)
    return target in BELOW.get(folder, ())


def owned(path, include):
    """None if the file may include it, else why not."""
    for pattern, owners in OWNERS.items():
        if re.fullmatch(pattern, include):
            if path.split("/")[0] in ("tests", "bench"):
                return None
            if any(fnmatch.fnmatch(path, owner) for owner in owners):
                return None
            return "belongs to " + (", ".join(owners) or "tests and benches")
    if include in SYSTEM or include.startswith(SYSTEM_FOLDERS):
        return None
    if path.endswith(".cc") and "." not in include:
        return None
    if include == "kvrecall.h" and path.split("/")[0] in ("examples", "python"):
        return None
    return "has no owner: give it one in tests/lint/includes.py"


def check(top):
    problems = []
    sources = tree.files(top, ".c", ".h", ".cu", ".cuh", ".cc")
    for path, line, match in tree.matches(top, sources, r'^\s*#\s*include\s*(<[^>]+>|"[^"]+"|\w+)', False):
        text = match.group(1)
        include = text.strip('<>"')
        if text[0] == '"' and not include.endswith(".pb-c.h"):
            if "/" not in include or include.startswith("."):
                problems.append('%s:%d: "%s": name it from the top folder' % (path, line, include))
            elif not allowed(path, include):
                problems.append("%s:%d: may not include %s" % (path, line, include))
        elif text[0] in '<"':
            why = owned(path, include)
            if why:
                problems.append("%s:%d: %s %s" % (path, line, include, why))
    return problems
