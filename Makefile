# kvrecall: GNU make, Debian 12 or Ubuntu.
#
#   make            build everything (quiet; V=1 shows the commands)
#   make deps       install what is missing, with apt
#   make demo       run a language model whose cache lives in kvrecalld
#   make check      lint, all tests (plain, ASan/UBSan, TSan), fuzzers
#   make help       the other targets, and the variables
#
# This file does not test for features: what a build needs is in PACKAGES below, what it found is
# printed at the start, and anything missing ends it with one line.

VERSION := 0.1.0
SOVERSION := 0

CC      ?= cc
ifeq ($(origin CC),default)
CC      := gcc
endif
SAN     ?=
OPT     ?= -O2 -g
FUZZ    ?=
V       ?=
JOBS    ?= $(shell nproc)

comma   := ,
BUILD   ?= build
variant := $(notdir $(firstword $(CC)))$(if $(SAN),-$(subst $(comma),-,$(SAN)))$(if $(FUZZ),-fuzz)
B       ?= $(BUILD)/$(variant)

DESTDIR ?=
prefix  ?= /usr
bindir  ?= $(prefix)/bin
libdir  ?= $(prefix)/lib$(addprefix /,$(shell $(CC) -print-multiarch 2>/dev/null))
includedir ?= $(prefix)/include
docdir  ?= $(prefix)/share/doc/kvrecall
unitdir ?= $(prefix)/lib/systemd/system
sysusersdir ?= $(prefix)/lib/sysusers.d
tmpfilesdir ?= $(prefix)/lib/tmpfiles.d
sysconfdir ?= /etc
mandir  ?= $(prefix)/share/man

Q := $(if $(V),,@)
say = $(if $(V),,@printf '  %-7s %s\n' '$(1)' '$(2)')

# ---- flags -----------------------------------------------------------------------------------

WARN := -Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Werror
HARDEN := -fstack-protector-strong -fstack-clash-protection -fcf-protection -fPIC
ifeq ($(SAN),)
HARDEN += -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2
else
SANFLAGS := -fsanitize=$(SAN) -fno-omit-frame-pointer -fno-sanitize-recover=all
# What a bench measures under a sanitizer means nothing: it is built to show that it runs (bench/tiny.h).
CPPFLAGS += -DKVR_BENCH_TINY
endif
ifneq ($(FUZZ),)
SANFLAGS += -fsanitize=fuzzer-no-link
endif
LINKHARDEN := -Wl,-z,relro,-z,now -Wl,-z,noexecstack -Wl,--as-needed
CPPFLAGS += -D_GNU_SOURCE -DKVR_BUILD_VERSION='"$(VERSION)"' -I. -Iclient -I$(B)/gen
CFLAGS_ALL = -std=c11 $(OPT) $(WARN) $(HARDEN) $(SANFLAGS) -fvisibility=hidden -pthread $(CFLAGS)
LDFLAGS_ALL = $(SANFLAGS) -pthread $(LINKHARDEN) $(LDFLAGS)

# SIMD versions of a kernel stand in files of their own, chosen at run time.
FLAGS_avx2   := -mavx2 -mfma -mf16c
FLAGS_avx512 := -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c
FLAGS_avx512bf16 := $(FLAGS_avx512) -mavx512bf16
simd_flags = $(if $(filter %_avx512bf16.c,$(1)),$(FLAGS_avx512bf16),$(if $(filter %_avx512.c,$(1)),$(FLAGS_avx512),$(if $(filter %_avx2.c,$(1)),$(FLAGS_avx2))))

# ---- what is made of what --------------------------------------------------------------------

sources = $(wildcard $(1)/*.c)
objects = $(patsubst %.c,$(B)/%.o,$(1))

TOOL_SRC    := $(wildcard client/cli.c client/cli_*.c)
MAIN_SRC    := daemon/main.c
CLIENT_SRC  := $(filter-out $(TOOL_SRC),$(call sources,client))
DAEMON_SRC  := $(filter-out $(MAIN_SRC),$(call sources,daemon))
KERNELS_SRC := $(call sources,kernels)
TIERS_SRC   := $(call sources,tiers)
PROTO_SRC   := $(call sources,proto)
TINYLM_SRC  := $(wildcard examples/tinylm/*.c)
CUDA_SRC    := $(wildcard kernels/cuda/*.cu)

LIB_KERNELS := $(B)/libkernels.a
LIB_TIERS   := $(B)/libtiers.a
LIB_PROTO   := $(B)/libproto.a
LIB_CLIENT  := $(B)/libclient.a
LIB_DAEMON  := $(B)/libdaemon.a
LIB_TINYLM  := $(B)/libtinylm.a
SHARED      := $(B)/libkvrecall.so.$(VERSION)

# The CUDA kernels: a library where nvcc is found, and, for tests, C++ on the CPU anywhere (kernels/cuda/emulate.h).
NVCC        := $(or $(shell command -v nvcc),$(wildcard /usr/local/cuda/bin/nvcc),nvcc)
PLUGIN      := $(if $(SAN)$(FUZZ),,$(if $(findstring /,$(NVCC)),$(B)/libkvrecall-cuda.so))
LIB_EMULATED := $(B)/libemulated.a
emulated = $(patsubst %.cu,$(B)/emulated/%.o,$(1))

# External libraries, by the folder that owns them. Without liburing, threads do its work.
HAVE_URING := $(shell pkg-config --exists liburing 2>/dev/null && echo 1)
CPPFLAGS += $(if $(HAVE_URING),-DKVR_HAVE_URING)
LD_KERNELS := -lisal -lm
LD_TIERS   := $(if $(HAVE_URING),-luring) -llmdb
LD_PROTO   := -lprotobuf-c
LD_CLIENT  := -lnanomsg
LD_DAEMON  := -lnanomsg -lsodium -lconfig
LD_TOOL    := -ljansson -lm

PROGRAMS := $(B)/kvrecalld $(B)/kvrecall $(B)/tinylm $(B)/minimal

TEST_SRC := $(wildcard tests/base/*.c tests/kernels/*.c tests/tiers/*.c tests/proto/*.c tests/client/*.c tests/daemon/*.c \
	tests/bench/*.c)
TESTS    := $(patsubst %.c,$(B)/%,$(filter-out %_util.c,$(TEST_SRC)))
# The longest begin first, so that none of them runs alone at the end.
LONG_TESTS := $(addprefix $(B)/tests/,tiers/crash daemon/soak_load kernels/conformance tiers/crash_faults \
	tiers/catalog_damage tiers/store_verify kernels/recall tiers/catalog_cap tiers/catalog_crash daemon/cold)
TESTS    := $(LONG_TESTS) $(filter-out $(LONG_TESTS),$(TESTS))
# Those that any daemon must pass again with a store below it; those that run for long with KVR_SOAK.
STORED_TESTS := $(addprefix $(B)/tests/daemon/,crash credits lifetimes paths pressure resends sharing tool tool_forms tool_top values)
SOAKS    := $(addprefix $(B)/tests/daemon/,soak_crash soak_load damage) $(B)/tests/tiers/crash
BENCH_SRC := $(wildcard bench/*.c)
BENCHES  := $(patsubst %.c,$(B)/%,$(filter-out %_util.c,$(BENCH_SRC)))
QUALITY_SRC := $(wildcard bench/quality/*.c) bench/result_util.c client/cli_npy.c
QUALITY  := $(B)/bench/quality/main
FUZZ_SRC := $(wildcard tests/fuzz/*.c)
FUZZERS  := $(patsubst tests/%.c,$(B)/%,$(filter-out %_util.c,$(FUZZ_SRC)))

.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: all
all: $(PROGRAMS) $(SHARED) $(PLUGIN)

# ---- what is there: packages of Debian 12, Ubuntu 22.04 and 24.04 -----------------------------

PACKAGES := gcc g++ make pkg-config python3 protobuf-c-compiler libprotobuf-c-dev libnanomsg-dev \
	libsodium-dev libconfig-dev libjansson-dev libisal-dev liburing-dev liblmdb-dev \
	libopenblas-dev libcmocka-dev libfaiss-dev clang-14 clang-format-14 clang-tidy-14
# The sanitizers' and libFuzzer's runtime is a package of its own in some releases.
ifeq ($(wildcard /usr/lib/llvm-14/lib/clang/14*/lib/linux/libclang_rt.fuzzer-*.a),)
PACKAGES += libclang-rt-14-dev
endif

# Expanded only where a recipe asks: a build that has found everything pays nothing for it.
packages_here    = $(shell dpkg-query -W -f='$${db:Status-Status}:$${Package}\n' $(PACKAGES) 2>/dev/null)
packages_missing = $(filter-out $(patsubst installed:%,%,$(filter installed:%,$(packages_here))),$(PACKAGES))
version_pc   = $(shell pkg-config --modversion $(1) 2>/dev/null)
version_tool = $(shell $(1) --version 2>/dev/null | grep -oE '[0-9]+\.[0-9]+(\.[0-9]+)?' | head -n 1)
version_faiss = $(shell sed -n 's/^.define FAISS_VERSION_[A-Z]* //p' /usr/include/faiss/Index.h \
	2>/dev/null | paste -sd .)
show = $(1) $(or $(strip $(2)),none)
show_pc = $(foreach library,$(1),$(call show,$(library),$(call version_pc,$(library)))$(comma))

NEEDED := nanomsg libprotobuf-c libsodium libconfig jansson libisal lmdb
needed_missing = $(foreach library,$(NEEDED),$(if $(call version_pc,$(library)),,$(library))) \
	$(if $(call version_tool,protoc-c),,protoc-c)

# Said once per build folder, and again when packages have changed.
$(B)/found: Makefile $(wildcard /var/lib/dpkg/status)
	@mkdir -p $(@D)
	@$(if $(strip $(needed_missing)),echo 'kvrecall: missing: $(strip $(needed_missing)): run make deps' >&2; exit 1)
	@printf '  %-9s %s\n' \
		compiler '$(call show,$(CC),$(call version_tool,$(CC)))' \
		libraries '$(call show_pc,$(NEEDED) liburing) $(call show,protoc-c,$(call version_tool,protoc-c))' \
		tests '$(call show_pc,cmocka) $(call show,clang,$(call version_tool,$(CLANG))), $(call show,clang-format,$(call version_tool,$(CLANG_FORMAT))), $(call show,clang-tidy,$(call version_tool,$(CLANG_TIDY)))' \
		benches '$(call show,faiss,$(version_faiss))' \
		cuda '$(call show,nvcc,$(call version_tool,$(NVCC)))$(if $(PLUGIN),,: its kernels run in tests alone)' \
		folder '$(B)' >$@
	$(if $(filter 0,$(MAKELEVEL)),@cat $@)

newest = $(firstword $(foreach tool,$(1)-14 $(1),$(shell command -v $(tool))) $(1))
CLANG        = $(call newest,clang)
CLANG_FORMAT = $(call newest,clang-format)
CLANG_TIDY   = $(call newest,clang-tidy)

# Installs what is missing; with nothing missing it is one dpkg-query. A package that this release
# does not know is passed over (its parts are elsewhere); the build will say if it is needed.
.PHONY: deps
deps:
	@command -v dpkg-query >/dev/null || { echo 'kvrecall: not a Debian system; needed are the equivalents of: $(PACKAGES)' >&2; exit 0; }; \
	missing='$(packages_missing)'; [ -n "$$missing" ] || exit 0; \
	echo "  APT     $$missing"; \
	root=; [ "$$(id -u)" = 0 ] || root=sudo; \
	if [ -n "$$root" ] && ! command -v sudo >/dev/null; then \
		echo "kvrecall: neither root nor sudo: run as root: apt-get install $$missing" >&2; exit 1; fi; \
	$$root apt-get update -qq || exit 1; \
	known=; for p in $$missing; do apt-cache show "$$p" >/dev/null 2>&1 && known="$$known $$p" || echo "  APT     no package $$p here"; done; \
	$$root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$known >/dev/null

# ---- how ------------------------------------------------------------------------------------

$(B)/%.o: %.c | $(B)/found
	@mkdir -p $(@D)
	$(call say,CC,$<)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS_ALL) $(call simd_flags,$<) -MMD -MP -c $< -o $@

# Generated code is not ours to warn about.
$(B)/gen/%.pb-c.c $(B)/gen/%.pb-c.h &: %.proto | $(B)/found
	@mkdir -p $(@D)
	$(call say,PROTO,$<)
	$(Q)protoc-c --c_out=$(B)/gen $<

$(B)/gen/proto/kvrecall.pb-c.o: $(B)/gen/proto/kvrecall.pb-c.c
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS_ALL) -w -c $< -o $@

$(call objects,$(PROTO_SRC) $(wildcard tests/proto/*.c tests/fuzz/*.c)): $(B)/gen/proto/kvrecall.pb-c.h

define archive
	$(call say,AR,$@)
	$(Q)rm -f $@ && $(AR) rcs $@ $^
endef

$(LIB_KERNELS): $(call objects,$(KERNELS_SRC)) ; $(archive)
$(LIB_TIERS):   $(call objects,$(TIERS_SRC)) ; $(archive)
$(LIB_PROTO):   $(call objects,$(PROTO_SRC)) $(B)/gen/proto/kvrecall.pb-c.o ; $(archive)
$(LIB_CLIENT):  $(call objects,$(CLIENT_SRC)) ; $(archive)
$(LIB_DAEMON):  $(call objects,$(DAEMON_SRC)) ; $(archive)
$(LIB_TINYLM):  $(call objects,$(filter-out examples/tinylm/main.c,$(TINYLM_SRC))) ; $(archive)

define link
	@mkdir -p $(@D)
	$(call say,LD,$@)
	$(Q)$(CC) $(filter %.o,$^) -Wl,--start-group $(filter %.a,$^) -Wl,--end-group -o $@ $(LDFLAGS_ALL)
endef

$(B)/kvrecalld: $(call objects,$(MAIN_SRC)) $(LIB_DAEMON) $(LIB_TIERS) $(LIB_KERNELS) $(LIB_PROTO)
	$(link) $(LD_DAEMON) $(LD_TIERS) $(LD_KERNELS) $(LD_PROTO)

$(B)/kvrecall: $(call objects,$(TOOL_SRC)) $(LIB_CLIENT) $(LIB_PROTO)
	$(link) $(LD_CLIENT) $(LD_PROTO) $(LD_TOOL)

$(B)/tinylm: $(call objects,$(TINYLM_SRC)) $(LIB_CLIENT) $(LIB_PROTO)
	$(link) $(LD_CLIENT) $(LD_PROTO) -lm

$(B)/minimal: $(B)/examples/minimal.o $(LIB_CLIENT) $(LIB_PROTO)
	$(link) $(LD_CLIENT) $(LD_PROTO) -lm

$(SHARED): $(LIB_CLIENT) $(LIB_PROTO) client/kvrecall.map
	$(call say,LD,$@)
	$(Q)$(CC) -shared -Wl,-soname,libkvrecall.so.$(SOVERSION) \
		-Wl,--version-script=client/kvrecall.map \
		-Wl,--whole-archive $(LIB_CLIENT) -Wl,--no-whole-archive $(LIB_PROTO) \
		-o $@ $(LDFLAGS_ALL) $(LD_CLIENT) $(LD_PROTO)
	$(Q)ln -sf $(notdir $@) $(B)/libkvrecall.so.$(SOVERSION) && ln -sf $(notdir $@) $(B)/libkvrecall.so

# ---- kernels/cuda/ ----------------------------------------------------------------------------

# For sm_80 and sm_90, and as PTX for what is newer. What ptxas says of registers and spills is in *.report.
NVCCFLAGS ?=
CUDA_CODE := $(foreach arch,80 90,-gencode arch=compute_$(arch),code=sm_$(arch)) -gencode arch=compute_90,code=compute_90
$(B)/cuda/%.o: %.cu | $(B)/found
	@mkdir -p $(@D)
	$(call say,NVCC,$<)
	$(Q)$(NVCC) -std=c++17 -O3 -lineinfo $(CUDA_CODE) -Werror all-warnings -Xptxas -v \
		-Xcompiler -fPIC,-fvisibility=hidden,-fstack-protector-strong,-Wall,-Wextra,-Wno-missing-field-initializers -I. -MMD -MP $(NVCCFLAGS) \
		-c $< -o $@ 2>$(@:.o=.report) || { cat $(@:.o=.report) >&2; exit 1; }

$(B)/libkvrecall-cuda.so: $(patsubst %.cu,$(B)/cuda/%.o,$(CUDA_SRC)) kernels/cuda/kvrecall-cuda.map
	$(call say,LD,$@)
	$(Q)$(NVCC) -shared $(CUDA_CODE) $(filter %.o,$^) -o $@ -Xlinker --version-script=kernels/cuda/kvrecall-cuda.map \
		-Xlinker -z,relro,-z,now,-z,noexecstack

# Without what would need the C++ library: tests are linked as C. Two warnings are about C idioms.
CXX_OF_CC = $(patsubst gcc%,g++%,$(patsubst clang%,clang++%,$(patsubst cc,c++,$(firstword $(CC))))) $(wordlist 2,9,$(CC))
CXXFLAGS_ALL = -std=c++17 $(OPT) -Wall -Wextra -Wconversion -Wno-shadow -Wno-missing-field-initializers -Werror $(HARDEN) \
	$(SANFLAGS) $(if $(findstring undefined,$(SAN)),-fno-sanitize=vptr$(if $(findstring clang,$(CC)),$(comma)function)) -fno-exceptions -fno-rtti -fvisibility=hidden
$(B)/emulated/%.o: %.cu | $(B)/found
	@mkdir -p $(@D)
	$(call say,CXX,$<)
	$(Q)$(CXX_OF_CC) $(CPPFLAGS) $(CXXFLAGS_ALL) -MMD -MP -x c++ -c $< -o $@

$(LIB_EMULATED): $(call emulated,$(CUDA_SRC)) $(call objects,$(call sources,kernels/cuda)) ; $(archive)

# ---- tests and benches: a test links its folder and what lies below it ------------------------

NEED_base    :=
NEED_kernels := $(LIB_EMULATED) $(LIB_KERNELS)
NEED_tiers   := $(LIB_TIERS) $(LIB_KERNELS)
NEED_proto   := $(LIB_PROTO)
NEED_client  := $(LIB_CLIENT) $(LIB_PROTO)
NEED_daemon  := $(LIB_CLIENT) $(LIB_DAEMON) $(LIB_TIERS) $(LIB_KERNELS) $(LIB_PROTO)
NEED_bench   := $(call objects,$(filter-out bench/quality/main.c,$(QUALITY_SRC))) $(LIB_TINYLM) $(LIB_KERNELS)
LINK_base    := -lm
LINK_kernels := $(LD_KERNELS)
LINK_tiers   := $(LD_TIERS) $(LD_KERNELS)
LINK_proto   := $(LD_PROTO)
LINK_client  := $(LD_CLIENT) $(LD_PROTO)
LINK_bench   := $(LD_KERNELS)
LINK_daemon  := $(LD_CLIENT) $(LD_DAEMON) $(LD_TIERS) $(LD_KERNELS) $(LD_PROTO)

# tests/<folder>/*_util.c is shared by the tests of its folder.
define test_rules
$(B)/tests/$(1)/%: $(B)/tests/$(1)/%.o $(call objects,$(wildcard tests/$(1)/*_util.c)) \
		$(call emulated,$(wildcard tests/$(1)/*_util.cu)) $$(NEED_$(1))
	$$(link) $$(LINK_$(1)) -lcmocka
endef
$(foreach folder,base kernels tiers proto client daemon bench,$(eval $(call test_rules,$(folder))))

# The tests of the daemon start real daemons and tools; that of the unit installs all there is.
$(B)/tests/daemon/unit: | $(PROGRAMS) $(SHARED) $(B)/libkvrecall.a
$(filter $(B)/tests/daemon/% $(B)/tests/client/%,$(TESTS)): | $(B)/kvrecalld $(B)/kvrecall

$(QUALITY): $(call objects,$(QUALITY_SRC)) $(LIB_TINYLM) $(LIB_KERNELS)
	$(link) $(LD_KERNELS)

$(B)/bench/%: $(B)/bench/%.o $(call objects,$(wildcard bench/*_util.c)) $(LIB_TINYLM) $(NEED_daemon)
	$(link) $(LINK_daemon) $(LD_BENCH_$*)

# C++ stands only where a bench's reference is a C++ library; sanitizers leave it alone.
$(B)/bench/%.o: bench/%.cc | $(B)/found
	@mkdir -p $(@D)
	$(call say,CXX,$<)
	$(Q)g++ -std=c++17 $(OPT) -Wall -Wextra -Werror -fPIC -I. -MMD -MP -c $< -o $@
$(B)/bench/seal: $(B)/bench/seal_faiss.o
LD_BENCH_seal := -lfaiss -lopenblas -lgomp -lstdc++
# A reference that is to be as fast as a compiler makes it.
$(B)/bench/soft_match_util.o: override CFLAGS += -O3

# A fuzzer may call anything. Build with CC=clang SAN=address,undefined FUZZ=1, or `make fuzz`.
$(B)/fuzz/%: $(B)/tests/fuzz/%.o $(call objects,$(wildcard tests/fuzz/*_util.c)) $(NEED_daemon)
	$(link) $(LINK_daemon) -fsanitize=fuzzer

.PHONY: tests benches fuzzers
tests: $(TESTS)
benches: $(BENCHES) $(QUALITY)
fuzzers: $(FUZZERS)

# ---- what to do with it ----------------------------------------------------------------------

# RESULTS collects `passed failed skipped`, a line per run (tests/check adds them up).
RESULTS ?=
CHECKS ?=
TEST_JOBS ?= 1
FUZZ_SECONDS ?= 20
PARALLEL = $(if $(findstring jobserver,$(MAKEFLAGS)),,-j$(JOBS))
FUZZ_MAKE = $(MAKE) --no-print-directory CC=$(CLANG) SAN=address,undefined FUZZ=1 \
	OPT='-O1 -g' B=$(BUILD)/fuzz

.PHONY: demo check lint run-lint test run-tests run-tests-stored run-benches soak fuzz run-fuzzers bench bench-quality deps-quality
demo: deps
	@$(MAKE) --no-print-directory $(PARALLEL) all
	@examples/tinylm/demo.sh $(B)

check: deps
	@BUILD=$(BUILD) JOBS=$(JOBS) MAKE=$(MAKE) CLANG=$(CLANG) FUZZ_SECONDS=$(FUZZ_SECONDS) tests/check

lint: all
	@$(MAKE) --no-print-directory run-lint
run-lint: export FLAGS := $(CPPFLAGS) -std=c11 $(WARN)
run-lint: export FLAGS_AVX2 := $(FLAGS_avx2)
run-lint: export FLAGS_AVX512 := $(FLAGS_avx512)
run-lint: export FLAGS_AVX512BF16 := $(FLAGS_avx512bf16)
run-lint:
	@B='$(B)' CC='$(CC)' RESULTS='$(RESULTS)' JOBS='$(JOBS)' CLANG_FORMAT='$(CLANG_FORMAT)' \
		CLANG_TIDY='$(CLANG_TIDY)' python3 tests/lint/lint.py $(CHECKS)

test: all tests
	@$(MAKE) --no-print-directory run-tests
run-tests:
	@tests/run $(if $(RESULTS),--results $(RESULTS)) --jobs $(TEST_JOBS) $(TESTS)
run-tests-stored: $(STORED_TESTS)
	@tests/run $(if $(RESULTS),--results $(RESULTS)) --jobs $(TEST_JOBS) --store $(STORED_TESTS)

# Crashes, damage and load for long: an hour, and some 150 GB written to $$KVR_TEST_DIR (/tmp).
soak: all $(SOAKS)
	@KVR_SOAK=1 KVR_CRASH_SEEDS=2000 tests/run $(if $(RESULTS),--results $(RESULTS)) --timeout 7200 --say $(SOAKS)

run-benches:
	@tests/run $(if $(RESULTS),--results $(RESULTS)) --jobs $(TEST_JOBS) --bench $(BENCHES) $(QUALITY)

fuzz:
	@$(FUZZ_MAKE) $(PARALLEL) fuzzers
	@$(FUZZ_MAKE) run-fuzzers
run-fuzzers:
	@tests/run $(if $(RESULTS),--results $(RESULTS)) --jobs $(JOBS) --fuzz $(FUZZ_SECONDS) $(FUZZERS)

# One JSON object per line on stdout, and nothing else: everything a person reads goes to stderr.
bench: deps
	@$(MAKE) --no-print-directory $(PARALLEL) all benches >&2
	@if [ -x bench/run.sh ]; then exec bench/run.sh $(B); fi; \
	status=0; for bench in $(BENCHES); do $$bench || status=1; done; exit $$status

# The same form on stdout; a table, quality.json and plots in $(B)/quality.
# The plots' packages are Debian's, and so is the Python that sees them.
PYTHON ?= /usr/bin/python3
PLOT_PACKAGES := python3-numpy python3-matplotlib
SOFT_MATCH := $(filter %/soft_match,$(BENCHES))
deps-quality: deps
	@$(MAKE) --no-print-directory PACKAGES='$(PLOT_PACKAGES)' deps >&2

bench-quality: deps-quality
	@$(MAKE) --no-print-directory $(PARALLEL) $(QUALITY) $(SOFT_MATCH) >&2
	@$(QUALITY) --out $(B)/quality
	@set -e; for bench in $(SOFT_MATCH); do $$bench; done
	@$(PYTHON) bench/quality/plot.py $(B)/quality && echo 'tables and plots: $(B)/quality' >&2

# The static library has no symbols but the public ones: hidden ones become local.
$(B)/libkvrecall.a: $(call objects,$(CLIENT_SRC) $(PROTO_SRC)) $(B)/gen/proto/kvrecall.pb-c.o
	$(call say,AR,$@)
	$(Q)$(LD) -r $^ -o $(B)/libkvrecall.o && objcopy --localize-hidden $(B)/libkvrecall.o
	$(Q)rm -f $@ && $(AR) rcsD $@ $(B)/libkvrecall.o

define PC_FILE
Name: kvrecall
Description: client of kvrecalld, the key/value cache that is recalled by query
Version: $(VERSION)
Cflags: -I$(includedir)
Libs: -L$(libdir) -lkvrecall
Libs.private: $(LD_CLIENT) $(LD_PROTO) -pthread
endef

# Written at every install: prefix may be another one.
.PHONY: $(B)/kvrecall.pc
$(B)/kvrecall.pc: | $(B)/found
	$(file >$@,$(PC_FILE))

INSTALL ?= install
installed = $(bindir)/kvrecalld $(bindir)/kvrecall $(includedir)/kvrecall.h \
	$(libdir)/libkvrecall.so.$(VERSION) $(libdir)/libkvrecall.so.$(SOVERSION) $(libdir)/libkvrecall.so \
	$(libdir)/libkvrecall.a $(libdir)/pkgconfig/kvrecall.pc $(unitdir)/kvrecalld.service \
	$(sysusersdir)/kvrecall.conf $(tmpfilesdir)/kvrecall.conf $(patsubst docs/%,$(mandir)/man1/%,$(wildcard docs/*.1))

# Paths in what systemd reads are those of this prefix.
placed = sed -e 's|/usr/bin/kvrecalld|$(bindir)/kvrecalld|' -e 's|/etc/kvrecall|$(sysconfdir)/kvrecall|' \
	-e 's|/usr/share/doc/kvrecall|$(docdir)|'

# A configuration that is there is left alone, by install and by uninstall; so is the store.
.PHONY: install run-install uninstall clean help
install: all $(B)/libkvrecall.a
	@$(MAKE) --no-print-directory run-install
run-install: $(B)/kvrecall.pc
	$(Q)$(INSTALL) -d $(addprefix $(DESTDIR),$(bindir) $(includedir) $(libdir)/pkgconfig $(unitdir) $(sysusersdir) \
		$(tmpfilesdir) $(sysconfdir)/kvrecall $(mandir)/man1 $(docdir))
	$(Q)$(INSTALL) $(B)/kvrecalld $(B)/kvrecall $(DESTDIR)$(bindir)
	$(Q)$(INSTALL) -m 644 client/kvrecall.h $(DESTDIR)$(includedir)
	$(Q)$(INSTALL) -m 644 $(SHARED) $(B)/libkvrecall.a $(DESTDIR)$(libdir)
	$(Q)ln -sf libkvrecall.so.$(VERSION) $(DESTDIR)$(libdir)/libkvrecall.so.$(SOVERSION)
	$(Q)ln -sf libkvrecall.so.$(SOVERSION) $(DESTDIR)$(libdir)/libkvrecall.so
	$(Q)$(INSTALL) -m 644 $(B)/kvrecall.pc $(DESTDIR)$(libdir)/pkgconfig
	$(Q)$(placed) systemd/kvrecalld.service >$(DESTDIR)$(unitdir)/kvrecalld.service
	$(Q)$(placed) systemd/kvrecall.sysusers >$(DESTDIR)$(sysusersdir)/kvrecall.conf
	$(Q)$(placed) systemd/kvrecall.tmpfiles >$(DESTDIR)$(tmpfilesdir)/kvrecall.conf
	$(Q)chmod 644 $(addprefix $(DESTDIR),$(unitdir)/kvrecalld.service $(sysusersdir)/kvrecall.conf $(tmpfilesdir)/kvrecall.conf)
	$(Q)$(INSTALL) -m 644 README.md CHANGELOG.md LICENSE $(wildcard docs/*.md) examples/minimal.c $(DESTDIR)$(docdir)
	$(Q)$(foreach page,$(wildcard docs/*.1),$(INSTALL) -m 644 $(page) $(DESTDIR)$(mandir)/man1;)
	$(Q)[ -e $(DESTDIR)$(sysconfdir)/kvrecall/kvrecalld.conf ] || \
		$(INSTALL) -m 644 systemd/kvrecalld.conf $(DESTDIR)$(sysconfdir)/kvrecall

uninstall:
	rm -f $(addprefix $(DESTDIR),$(installed))
	rm -rf $(DESTDIR)$(docdir)

clean:
	rm -rf build

help:
	@printf '%s\n' \
	'make             build everything (V=1 shows the commands)' \
	'make deps        install what is missing, with apt' \
	'make demo        run a language model whose cache lives in kvrecalld' \
	'make check       lint, all tests (plain, ASan/UBSan, TSan), 20 s of each fuzzer' \
	'make lint        format, clang-tidy, layering, headers alone, exported symbols, size, assertions' \
	'make test        build and run the tests of one variant (SAN=..., TESTS=build/gcc/tests/base/list)' \
	'make soak        kill -9, damage and load, an hour of it (in check: two minutes)' \
	'make fuzz        build and run the fuzzers (FUZZ_SECONDS=20)' \
	'make bench       one JSON object per line on stdout' \
	'make bench-quality   what each way of recall loses, on real keys: table, JSON, plots' \
	'make install     DESTDIR= prefix=/usr bindir= libdir= sysconfdir= ...; make uninstall' \
	'make clean       remove build/' \
	'' \
	'CC=clang         another compiler            SAN=address,undefined | thread   sanitizers' \
	'OPT="-O2 -g"     optimisation                CFLAGS= CPPFLAGS= LDFLAGS=       appended' \
	'B=build/gcc      the build folder; every combination of CC and SAN has its own' \
	'JOBS=2           what check, demo, fuzz and bench run side by side'

-include $(shell find $(B) -name '*.d' 2>/dev/null)
