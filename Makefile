# kvrecall: GNU make, Debian 12 or Ubuntu.
#
#   make            build everything (quiet; V=1 shows the commands)
#   make deps       install what is missing, with apt
#   make demo       run a language model whose cache lives in kvrecalld
#   make check      lint, all tests (plain, ASan/UBSan, TSan), fuzzers
#   make help       the other targets and variables

VERSION := 0.1.0
SOVERSION := 0

CC      ?= cc
ifeq ($(origin CC),default)
CC      := gcc
endif
SAN     ?=
OPT     ?= -O2 -g
prefix  ?= /usr
DESTDIR ?=
V       ?=

comma   := ,
variant := $(notdir $(firstword $(CC)))$(if $(SAN),-$(subst $(comma),-,$(SAN)))
B       ?= build/$(variant)

Q := $(if $(V),,@)
say = $(if $(V),,@printf '  %-7s %s\n' '$(1)' '$(2)')

# ---- flags -----------------------------------------------------------------------------------

WARN := -Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Werror
HARDEN := -fstack-protector-strong -fstack-clash-protection -fcf-protection -fPIC
ifeq ($(SAN),)
HARDEN += -D_FORTIFY_SOURCE=2
else
SANFLAGS := -fsanitize=$(SAN) -fno-omit-frame-pointer -fno-sanitize-recover=all
endif
LINKHARDEN := -Wl,-z,relro,-z,now -Wl,-z,noexecstack -Wl,--as-needed
CPPFLAGS += -D_GNU_SOURCE -DKVR_BUILD_VERSION='"$(VERSION)"' -I. -I$(B)/gen
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

TOOL_SRC    := $(wildcard client/cli*.c)
MAIN_SRC    := daemon/main.c
CLIENT_SRC  := $(filter-out $(TOOL_SRC),$(call sources,client))
DAEMON_SRC  := $(filter-out $(MAIN_SRC),$(call sources,daemon))
KERNELS_SRC := $(call sources,kernels)
TIERS_SRC   := $(call sources,tiers)
PROTO_SRC   := $(call sources,proto)
TINYLM_SRC  := $(wildcard examples/tinylm/*.c)

LIB_KERNELS := $(B)/libkernels.a
LIB_TIERS   := $(B)/libtiers.a
LIB_PROTO   := $(B)/libproto.a
LIB_CLIENT  := $(B)/libclient.a
LIB_DAEMON  := $(B)/libdaemon.a
SHARED      := $(B)/libkvrecall.so.$(VERSION)

# External libraries, by the folder that owns them.
LD_KERNELS := -lm
LD_TIERS   := -ljemalloc
LD_PROTO   := -lprotobuf-c
LD_CLIENT  := -lnanomsg
LD_DAEMON  := -lnanomsg -lsodium -lconfig
LD_TOOL    := -ljansson

PROGRAMS := $(B)/kvrecalld $(B)/kvrecall $(B)/tinylm

TEST_SRC := $(wildcard tests/base/*.c tests/kernels/*.c tests/tiers/*.c tests/proto/*.c tests/client/*.c tests/daemon/*.c)
TESTS    := $(patsubst %.c,$(B)/%,$(filter-out %_util.c,$(TEST_SRC)))
BENCH_SRC := $(wildcard bench/*.c)
BENCHES  := $(patsubst %.c,$(B)/%,$(filter-out %_util.c,$(BENCH_SRC)))

.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: all
all: $(PROGRAMS) $(SHARED)

$(B)/%.o: %.c
	@mkdir -p $(@D)
	$(call say,CC,$<)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS_ALL) $(call simd_flags,$<) -MMD -MP -c $< -o $@

# Generated code is not ours to warn about.
$(B)/gen/%.pb-c.c $(B)/gen/%.pb-c.h &: %.proto
	@mkdir -p $(@D)
	$(call say,PROTO,$<)
	$(Q)protoc-c --c_out=$(B)/gen $<

$(B)/gen/proto/kvrecall.pb-c.o: $(B)/gen/proto/kvrecall.pb-c.c
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS_ALL) -w -c $< -o $@

$(call objects,$(PROTO_SRC)): $(B)/gen/proto/kvrecall.pb-c.h

define archive
	$(call say,AR,$@)
	$(Q)rm -f $@ && $(AR) rcs $@ $^
endef

$(LIB_KERNELS): $(call objects,$(KERNELS_SRC)) ; $(archive)
$(LIB_TIERS):   $(call objects,$(TIERS_SRC)) ; $(archive)
$(LIB_PROTO):   $(call objects,$(PROTO_SRC)) $(B)/gen/proto/kvrecall.pb-c.o ; $(archive)
$(LIB_CLIENT):  $(call objects,$(CLIENT_SRC)) ; $(archive)
$(LIB_DAEMON):  $(call objects,$(DAEMON_SRC)) ; $(archive)

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

$(SHARED): $(LIB_CLIENT) $(LIB_PROTO) client/kvrecall.map
	$(call say,LD,$@)
	$(Q)$(CC) -shared -Wl,-soname,libkvrecall.so.$(SOVERSION) \
		-Wl,--version-script=client/kvrecall.map \
		-Wl,--whole-archive $(LIB_CLIENT) -Wl,--no-whole-archive $(LIB_PROTO) \
		-o $@ $(LDFLAGS_ALL) $(LD_CLIENT) $(LD_PROTO)
	$(Q)ln -sf $(notdir $@) $(B)/libkvrecall.so.$(SOVERSION) && ln -sf $(notdir $@) $(B)/libkvrecall.so

# ---- tests and benches: a test links its folder and what lies below it ------------------------

NEED_base    :=
NEED_kernels := $(LIB_KERNELS)
NEED_tiers   := $(LIB_TIERS) $(LIB_KERNELS)
NEED_proto   := $(LIB_PROTO)
NEED_client  := $(LIB_CLIENT) $(LIB_PROTO)
NEED_daemon  := $(LIB_CLIENT) $(LIB_DAEMON) $(LIB_TIERS) $(LIB_KERNELS) $(LIB_PROTO)
LINK_base    := -lm
LINK_kernels := $(LD_KERNELS)
LINK_tiers   := $(LD_TIERS) $(LD_KERNELS)
LINK_proto   := $(LD_PROTO)
LINK_client  := $(LD_CLIENT) $(LD_PROTO)
LINK_daemon  := $(LD_CLIENT) $(LD_DAEMON) $(LD_TIERS) $(LD_KERNELS) $(LD_PROTO)

# tests/<folder>/*_util.c is shared by the tests of its folder.
define test_rules
$(B)/tests/$(1)/%: $(B)/tests/$(1)/%.o $(call objects,$(wildcard tests/$(1)/*_util.c)) $$(NEED_$(1))
	$$(link) $$(LINK_$(1)) -lcmocka
endef
$(foreach folder,base kernels tiers proto client daemon,$(eval $(call test_rules,$(folder))))

# The tests of the daemon start real daemons and tools.
$(filter $(B)/tests/daemon/% $(B)/tests/client/%,$(TESTS)): | $(B)/kvrecalld $(B)/kvrecall

$(B)/bench/%: $(B)/bench/%.o $(call objects,$(wildcard bench/*_util.c)) $(NEED_daemon)
	$(link) $(LINK_daemon) $(LD_BENCH_$*)
LD_BENCH_seal := -lfaiss -lopenblas -lstdc++

.PHONY: tests benches clean
tests: $(TESTS)
benches: $(BENCHES)
clean:
	rm -rf build

-include $(shell find $(B) -name '*.d' 2>/dev/null)
