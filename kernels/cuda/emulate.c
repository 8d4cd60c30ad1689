/* SPDX-License-Identifier: Apache-2.0 */
/* emulate.c: blocks and threads of a CUDA launch on one CPU thread; see emulate.h.
 *
 *            resume                 wait
 *   READY ───────────► (running) ─────────► AT_BARRIER, AT_WARP ──all are there──► READY
 *                          └──────────────► ENDED
 *
 * A fiber that has ended goes round in `begin` and takes the same thread of the next block. One that a faulty
 * launch leaves where it stands is never resumed: its stack is begun anew. No object of a kernel has a
 * destructor, so nothing is lost. */
#include "kernels/cuda/emulate.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "base/assert.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WITH_ADDRESS 1
#elif __has_feature(thread_sanitizer)
#define WITH_THREAD 1
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define WITH_ADDRESS 1
#elif defined(__SANITIZE_THREAD__)
#define WITH_THREAD 1
#endif

#if defined(WITH_ADDRESS)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#elif defined(WITH_THREAD)
#include <sanitizer/tsan_interface.h>
#endif

#define STACK_BYTES  (256u * 1024) /* a thread's, with what sanitizers add */
#define CANARY_BYTES 64u
#define CANARY       0xa5

enum state {
	READY,
	AT_BARRIER,
	AT_WARP,
	ENDED,
};

enum released {
	NOBODY,
	LANES,
	BLOCK,
};

struct thread {
	struct kvr_emulate_dim index;
	enum state state;
	struct kvr_emulate_site site; /* where it waits */
	uint32_t mask, source;        /* AT_WARP */
	uint64_t value;
	struct kvr_emulate_reply reply;
	uint8_t *stack; /* STACK_BYTES, the emulator's for good */
	bool round;     /* it stands in `begin` */
	ucontext_t context;
	void *fake;  /* AddressSanitizer's stack of this one, while it waits */
	void *fiber; /* ThreadSanitizer's idea of it */
};

/* An array of the block in hand, between canaries. */
struct shared {
	struct kvr_emulate_site site;
	uint8_t *memory;
	size_t bytes;
};

static struct {
	enum kvr_emulate_order order;
	uint64_t random;
	char fault[256]; /* empty: none */
	/* The launch. */
	void (*body)(void *argument);
	void *argument;
	uint32_t count; /* threads of a block */
	size_t dynamic_bytes;
	/* The block. */
	uint32_t ended, at_barrier;
	enum released released; /* by the thread that ran last */
	struct shared shared[KVR_EMULATE_SHARED_ARRAYS];
	uint32_t shared_count;
	size_t shared_bytes;
	/* The scheduler. */
	struct thread *self; /* NULL: none runs */
	ucontext_t context;
	void *fake, *fiber;
	const void *stack;
	size_t stack_bytes;
} emulator = {.random = 1};

static struct thread threads[KVR_EMULATE_THREADS_MAX];
static uint32_t turns[KVR_EMULATE_THREADS_MAX]; /* who runs when */

struct kvr_emulate_place kvr_emulate_place;

/* ---- faults and chance ----------------------------------------------------------------------- */

__attribute__((format(printf, 1, 2))) static void fault(const char *format, ...)
{
	va_list arguments;

	if (emulator.fault[0])
		return;
	va_start(arguments, format);
	vsnprintf(emulator.fault, sizeof(emulator.fault), format, arguments);
	va_end(arguments);
}

static uint64_t draw(void)
{
	emulator.random ^= emulator.random << 13;
	emulator.random ^= emulator.random >> 7;
	emulator.random ^= emulator.random << 17;
	return emulator.random * 0x2545f4914f6cdd1du;
}

/* Place `i` of `count` in the order in hand, where that is not random. */
static uint32_t turn(uint32_t i, uint32_t count)
{
	return emulator.order == KVR_EMULATE_FALLING ? count - 1 - i : i;
}

static void deal_turns(void)
{
	for (uint32_t i = 0; i < emulator.count; i++)
		turns[i] = turn(i, emulator.count);
	for (uint32_t i = emulator.count; emulator.order == KVR_EMULATE_RANDOM && i > 1; i--) {
		const uint32_t other = (uint32_t)((draw() >> 32) % i), swap = turns[i - 1];

		turns[i - 1] = turns[other];
		turns[other] = swap;
	}
}

/* ---- fibers ---------------------------------------------------------------------------------- */

/* From the running fiber to the scheduler. */
static void leave(struct thread *thread)
{
#if defined(WITH_ADDRESS)
	__sanitizer_start_switch_fiber(&thread->fake, emulator.stack, emulator.stack_bytes);
#elif defined(WITH_THREAD)
	__tsan_switch_to_fiber(emulator.fiber, 0);
#endif
	swapcontext(&thread->context, &emulator.context);
#if defined(WITH_ADDRESS)
	__sanitizer_finish_switch_fiber(thread->fake, NULL, NULL);
#endif
}

/* The first function of every fiber. */
static void begin(void)
{
#if defined(WITH_ADDRESS)
	__sanitizer_finish_switch_fiber(NULL, &emulator.stack, &emulator.stack_bytes);
#endif
	for (;;) {
		emulator.body(emulator.argument);
		emulator.self->state = ENDED;
		emulator.self->round = true;
		emulator.ended++;
		leave(emulator.self);
	}
}

/* From the scheduler to a fiber, until that waits or ends. */
static void resume(struct thread *thread)
{
	emulator.self = thread;
	kvr_emulate_place.thread = thread->index;
#if defined(WITH_ADDRESS)
	__sanitizer_start_switch_fiber(&emulator.fake, thread->stack, STACK_BYTES);
#elif defined(WITH_THREAD)
	__tsan_switch_to_fiber(thread->fiber, 0);
#endif
	swapcontext(&emulator.context, &thread->context);
#if defined(WITH_ADDRESS)
	__sanitizer_finish_switch_fiber(emulator.fake, NULL, NULL);
#endif
	emulator.self = NULL;
}

/* Lets the running fiber go no further than here, if the launch is faulty. */
static void wait_for(enum state state, struct kvr_emulate_site site)
{
	struct thread *thread = emulator.self;

	thread->state = emulator.fault[0] ? ENDED : state;
	thread->site = site;
	leave(thread);
}

/* Begins the stack of a thread anew. */
static bool thread_begin(struct thread *thread)
{
	if (!thread->stack) {
		void *stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

		if (stack == MAP_FAILED) {
			fault("no memory for the stack of a thread");
			return false;
		}
		thread->stack = stack;
	}
#if defined(WITH_ADDRESS)
	__asan_unpoison_memory_region(thread->stack, STACK_BYTES);
#elif defined(WITH_THREAD)
	if (thread->fiber)
		__tsan_destroy_fiber(thread->fiber);
	thread->fiber = __tsan_create_fiber(0);
#endif
	getcontext(&thread->context);
	thread->context.uc_stack.ss_sp = thread->stack;
	thread->context.uc_stack.ss_size = STACK_BYTES;
	thread->context.uc_link = NULL;
	makecontext(&thread->context, begin, 0);
	return true;
}

/* ---- waiting for each other ------------------------------------------------------------------ */

static bool same_site(struct kvr_emulate_site a, struct kvr_emulate_site b)
{
	return a.line == b.line && strcmp(a.file, b.file) == 0;
}

void kvr_emulate_barrier(struct kvr_emulate_site site)
{
	KVR_ASSERT(emulator.self);
	if (++emulator.at_barrier < emulator.count) {
		wait_for(AT_BARRIER, site);
		return;
	}
	/* The last one. It waits its turn, too. */
	for (uint32_t i = 0; i < emulator.count; i++) {
		struct thread *other = &threads[i];

		if (other == emulator.self)
			continue;
		if (!same_site(other->site, site)) /* N1 */
			fault("thread %u is at the barrier %s:%d, thread %u at %s:%d", i,
				other->site.file, other->site.line,
				(uint32_t)(emulator.self - threads), site.file, site.line);
		other->state = READY;
	}
	emulator.at_barrier = 0;
	emulator.released = BLOCK;
	wait_for(READY, site);
}

/* Answers all lanes of a mask, which are there. */
static void answer(struct thread *warp, uint32_t mask)
{
	uint32_t votes = 0;

	emulator.released = LANES;
	for (uint32_t lane = 0; lane < KVR_EMULATE_WARP; lane++)
		if (mask >> lane & 1)
			votes |= (uint32_t)(warp[lane].value != 0) << lane;
	for (uint32_t lane = 0; lane < KVR_EMULATE_WARP; lane++) {
		if (!(mask >> lane & 1))
			continue;
		warp[lane].state = READY;
		warp[lane].reply.votes = votes;
		warp[lane].reply.value = warp[warp[lane].source].value;
	}
}

struct kvr_emulate_reply kvr_emulate_exchange(
	uint32_t mask, uint32_t source, uint64_t value, struct kvr_emulate_site site)
{
	struct thread *self = emulator.self;
	const uint32_t at = (uint32_t)(self - threads), lane = at % KVR_EMULATE_WARP;
	struct thread *warp = self - lane;
	const uint32_t left = emulator.count - (at - lane);
	const uint32_t lanes = left < KVR_EMULATE_WARP ? (1u << left) - 1 : UINT32_MAX;
	bool all = true;

	if (!(mask >> lane & 1) || mask & ~lanes)
		fault("%s:%d: thread %u gives the mask %08x: its warp has %08x", site.file,
			site.line, at, mask, lanes);
	else if (source >= KVR_EMULATE_WARP || !(mask >> source & 1)) /* N2 */
		fault("%s:%d: thread %u reads lane %u, which the mask %08x lacks", site.file,
			site.line, at, source, mask);
	self->mask = mask;
	self->source = source;
	self->value = value;
	self->site = site;
	self->state = AT_WARP;
	for (uint32_t i = 0; i < KVR_EMULATE_WARP && !emulator.fault[0]; i++) {
		if (!(mask >> i & 1))
			continue;
		if (warp[i].state != AT_WARP || warp[i].mask != mask)
			all = false;
		else if (!same_site(warp[i].site, site)) /* N1 */
			fault("lane %u is at %s:%d, lane %u at %s:%d", i, warp[i].site.file,
				warp[i].site.line, lane, site.file, site.line);
	}
	if (all && !emulator.fault[0])
		answer(warp, mask);
	wait_for(self->state, site);
	return self->reply;
}

/* ---- shared memory --------------------------------------------------------------------------- */

static struct shared *add_shared(size_t bytes, struct kvr_emulate_site site)
{
	struct shared *shared = &emulator.shared[emulator.shared_count];
	void *memory;

	if (emulator.shared_count == KVR_EMULATE_SHARED_ARRAYS ||
		bytes > KVR_EMULATE_SHARED_MAX - emulator.shared_bytes) {
		fault("%s:%d: a block has %u bytes of shared memory in %u arrays at most", /* N4 */
			site.file, site.line, KVR_EMULATE_SHARED_MAX, KVR_EMULATE_SHARED_ARRAYS);
		return NULL;
	}
	if (posix_memalign(&memory, CANARY_BYTES, bytes + 2 * (size_t)CANARY_BYTES)) {
		fault("%s:%d: no memory", site.file, site.line);
		return NULL;
	}
	*shared = (struct shared){.site = site, .memory = memory, .bytes = bytes};
	memset(memory, CANARY, bytes + 2 * (size_t)CANARY_BYTES);
	for (size_t i = 0; i < bytes; i++) /* N3 */
		shared->memory[CANARY_BYTES + i] = (uint8_t)(draw() >> 56);
#if defined(WITH_ADDRESS)
	__asan_poison_memory_region(memory, CANARY_BYTES);
	__asan_poison_memory_region(shared->memory + CANARY_BYTES + bytes, CANARY_BYTES);
#endif
	emulator.shared_count++;
	emulator.shared_bytes += bytes;
	return shared;
}

void *kvr_emulate_shared(size_t bytes, struct kvr_emulate_site site)
{
	struct shared *shared = NULL;

	for (uint32_t i = 0; i < emulator.shared_count && !shared; i++)
		if (same_site(emulator.shared[i].site, site))
			shared = &emulator.shared[i];
	if (!shared)
		shared = add_shared(bytes > 0 ? bytes : emulator.dynamic_bytes, site);
	if (!shared) {
		wait_for(ENDED, site);
		return NULL;
	}
	KVR_ASSERT(bytes == 0 || bytes == shared->bytes);
	return shared->memory + CANARY_BYTES;
}

static void drop_shared(void)
{
	for (uint32_t i = 0; i < emulator.shared_count; i++) {
		const struct shared *shared = &emulator.shared[i];

#if defined(WITH_ADDRESS)
		__asan_unpoison_memory_region(
			shared->memory, shared->bytes + 2 * (size_t)CANARY_BYTES);
#endif
		for (size_t at = 0; at < CANARY_BYTES; at++)
			if (shared->memory[at] != CANARY ||
				shared->memory[CANARY_BYTES + shared->bytes + at] != CANARY)
				fault("a write beyond the shared array of %s:%d", /* N3 */
					shared->site.file, shared->site.line);
		free(shared->memory);
	}
	emulator.shared_count = 0;
	emulator.shared_bytes = 0;
}

/* ---- launches -------------------------------------------------------------------------------- */

/* No thread is ready, and some have not ended. (N1) */
static void fault_stuck(void)
{
	for (uint32_t i = 0; i < emulator.count; i++) {
		const struct thread *thread = &threads[i];

		if (thread->state == AT_BARRIER)
			fault("thread %u waits at the barrier %s:%d, to which only %u of %u "
			      "threads came",
				i, thread->site.file, thread->site.line, emulator.at_barrier,
				emulator.count);
		else if (thread->state == AT_WARP)
			fault("thread %u waits at %s:%d for other lanes of the mask %08x", i,
				thread->site.file, thread->site.line, thread->mask);
	}
}

static void run_block(void)
{
	for (uint32_t i = 0; i < emulator.count; i++) {
		const struct kvr_emulate_dim size = kvr_emulate_place.threads;
		struct thread *thread = &threads[i];

		thread->index = (struct kvr_emulate_dim){
			i % size.x, i / size.x % size.y, i / size.x / size.y};
		thread->state = READY;
		if (!thread->round && !thread_begin(thread))
			return;
		thread->round = false;
	}
	emulator.ended = 0;
	emulator.at_barrier = 0;
	emulator.released = BLOCK;
	while (emulator.ended < emulator.count && !emulator.fault[0]) {
		bool ran = false;

		for (uint32_t i = 0; i < emulator.count && !emulator.fault[0]; i++) {
			if (emulator.released == BLOCK)
				deal_turns();
			if (emulator.released != NOBODY)
				i = 0; /* who is first in the order goes on first */
			emulator.released = NOBODY;
			if (threads[turns[i]].state != READY)
				continue;
			resume(&threads[turns[i]]);
			ran = true;
		}
		if (!ran && emulator.ended < emulator.count)
			fault_stuck();
	}
	drop_shared();
}

void kvr_emulate_launch(struct kvr_emulate_dim blocks, struct kvr_emulate_dim size,
	size_t dynamic_bytes, void (*body)(void *argument), void *argument)
{
	const uint64_t count = (uint64_t)size.x * size.y * size.z;
	const uint64_t all = (uint64_t)blocks.x * blocks.y * blocks.z;
	uint64_t first = 0;

	KVR_ASSERT(!emulator.self);
	if (emulator.fault[0])
		return;
	if (count == 0 || count > KVR_EMULATE_THREADS_MAX || size.z > 64 || all == 0 ||
		blocks.x > INT32_MAX || blocks.y > UINT16_MAX || blocks.z > UINT16_MAX ||
		dynamic_bytes > KVR_EMULATE_SHARED_MAX) { /* N4 */
		fault("a launch of %u x %u x %u blocks of %u x %u x %u threads with %zu bytes: "
		      "no device takes it",
			blocks.x, blocks.y, blocks.z, size.x, size.y, size.z, dynamic_bytes);
		return;
	}
#if defined(WITH_THREAD)
	emulator.fiber = __tsan_get_current_fiber();
#endif
	emulator.body = body;
	emulator.argument = argument;
	emulator.count = (uint32_t)count;
	emulator.dynamic_bytes = dynamic_bytes;
	kvr_emulate_place.threads = size;
	kvr_emulate_place.blocks = blocks;
	if (emulator.order == KVR_EMULATE_RANDOM)
		first = (draw() >> 32) % all;
	for (uint64_t i = 0; i < all && !emulator.fault[0]; i++) {
		const uint64_t turned = (first + i) % all;
		const uint64_t at = emulator.order == KVR_EMULATE_FALLING ? all - 1 - i : turned;

		kvr_emulate_place.block = (struct kvr_emulate_dim){(uint32_t)(at % blocks.x),
			(uint32_t)(at / blocks.x % blocks.y), (uint32_t)(at / blocks.x / blocks.y)};
		run_block();
	}
}

void kvr_emulate_begin(enum kvr_emulate_order order, uint64_t seed)
{
	KVR_ASSERT(!emulator.self);
	emulator.order = order;
	emulator.random = seed * 0x9e3779b97f4a7c15u + 1;
	emulator.fault[0] = '\0';
}

const char *kvr_emulate_fault(void)
{
	return emulator.fault[0] ? emulator.fault : NULL;
}
