/* Many reads, or hints, by one call of io_uring: for `python -m benchmarks.seqvault.ideas`. */

#include <linux/io_uring.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static int ring = -1;
static unsigned *tail, *mask, *order, *done_head, *done_tail, *done_mask;
static struct io_uring_sqe *asked;
static struct io_uring_cqe *done;

static char *map(size_t size, off_t what) {
  return mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, what);
}

/* Below 0: there is no io_uring here. */
int ring_open(unsigned entries) {
  struct io_uring_params p;
  memset(&p, 0, sizeof p);
  ring = syscall(SYS_io_uring_setup, entries, &p);
  if (ring < 0) return ring;
  char *sq = map(p.sq_off.array + 4 * p.sq_entries, IORING_OFF_SQ_RING);
  char *cq = map(p.cq_off.cqes + p.cq_entries * sizeof *done, IORING_OFF_CQ_RING);
  asked = (void *)map(p.sq_entries * sizeof *asked, IORING_OFF_SQES);
  tail = (void *)(sq + p.sq_off.tail);
  mask = (void *)(sq + p.sq_off.ring_mask);
  order = (void *)(sq + p.sq_off.array);
  done_head = (void *)(cq + p.cq_off.head);
  done_tail = (void *)(cq + p.cq_off.tail);
  done_mask = (void *)(cq + p.cq_off.ring_mask);
  done = (void *)(cq + p.cq_off.cqes);
  return ring;
}

static struct io_uring_sqe *next(long i, int operation, int64_t fd, int64_t offset, int64_t size) {
  unsigned place = (*tail + i) & *mask;
  struct io_uring_sqe *one = &asked[place];
  memset(one, 0, sizeof *one);
  one->opcode = operation;
  one->fd = fd;
  one->off = offset;
  one->len = size;
  one->user_data = i;
  order[place] = place;
  return one;
}

/* Hands `count` operations over and waits for all; how many have not the result that is wanted. */
static long finish(long count, const int64_t *wanted) {
  __atomic_store_n(tail, *tail + count, __ATOMIC_RELEASE);
  if (syscall(SYS_io_uring_enter, ring, count, count, IORING_ENTER_GETEVENTS, 0, 0) != count)
    return count;
  unsigned head = *done_head, end = __atomic_load_n(done_tail, __ATOMIC_ACQUIRE);
  long wrong = count - (end - head);
  for (; head != end; head++) {
    struct io_uring_cqe *one = &done[head & *done_mask];
    wrong += one->res != (wanted ? wanted[one->user_data] : 0);
  }
  __atomic_store_n(done_head, head, __ATOMIC_RELEASE);
  return wrong;
}

long ring_read(const int64_t *fds, const int64_t *offsets, const int64_t *sizes, char *out,
               const int64_t *places, long count) {
  for (long i = 0; i < count; i++)
    next(i, IORING_OP_READ, fds[i], offsets[i], sizes[i])->addr = (uintptr_t)(out + places[i]);
  return finish(count, sizes);
}

long ring_advise(const int64_t *fds, const int64_t *offsets, const int64_t *sizes, long count) {
  for (long i = 0; i < count; i++)
    next(i, IORING_OP_FADVISE, fds[i], offsets[i], sizes[i])->fadvise_advice = 3; /* WILLNEED */
  return finish(count, 0);
}
