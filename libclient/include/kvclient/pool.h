/* libkvclient for engines that keep a KV pool of their own.
 *
 *   kvc_pool   memory of a device that the engine owns and has KV blocks in; thread-safe
 *
 * An engine whose kernels read KV in blocks of its own pool (a paged KV cache) need not move it
 * into the daemon's pages: it tells the daemon of the pool once, and from then on has blocks
 * gathered into pages, which are published, and pages scattered into blocks. The daemon's mover
 * does both on the device; nothing passes through the host. The pool stays the engine's.
 *
 * A block is what the pool has of a number of tokens. It lies in pieces, segments: K and V of each
 * layer, or one of each layer where K and V lie together. Segment s of block b is `block_bytes` at
 *
 *     bases[s] + b * block_stride
 *
 * With B bytes of K (or of V) of one block and layer, L layers, N blocks:
 *
 *     the engine's tensor                   segments  bases                        stride  bytes
 *     a layer [2, N, B]                     2 L       layer, layer + N B, ...      B       B
 *     a layer [N, 2, B]                     L         layer, ...                   2 B     2 B
 *     a layer [N, B] for K, one for V       2 L       K, V of each layer           B       B
 *     a layer [N, B] (MLA)                  L         layer, ...                   B       B
 *     one [N, L, 2, B]                      1         0                            2 L B   2 L B
 *
 * All of these are multiples of 16. A page has blocks_per_page blocks, in either order; its bytes
 * are segments * blocks_per_page * block_bytes. Engines that share pages agree on the order and on
 * what a segment holds; that is what the layout of a space stands for.
 *
 * Streams. The library knows nothing of the engine's streams:
 *   - kvc_pool_store: the stream that wrote the blocks is synchronised before the call. Until it
 *     returns nobody writes them.
 *   - kvc_pool_fetch: nothing that runs uses the blocks during the call. Work that is launched
 * after it returned sees what was fetched.
 *   - After an error that leaves open whether the daemon has ended its work (KVC_DEADLINE_EXCEEDED,
 *     KVC_UNAVAILABLE) it may still read or write the blocks. They may be used again when
 *     kvc_pool_remove has returned KVC_OK: what was stored by then was stored whole, and nothing
 *     follows.
 *
 * A pool is known to the daemon it was added to. KVC_STALE: that one ended, or the memory was lost
 * to it (the device was reset): close the pool and add it again. What was published stays. When the
 * engine's process ends, its pools go with it. */
#ifndef KVCLIENT_POOL_H
#define KVCLIENT_POOL_H

#include <kvclient/device.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct kvc_pool kvc_pool;

/* Either `data` or `fd`. With `data` the library finds out how to share what lies there: memory of
 * cuMemCreate by its handle, which was made for CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, other
 * memory (cudaMalloc) by a legacy IPC handle, for as long as it is not freed; of both only whole
 * granules (kvc_device_info.granularity) of the one allocation that `data` lies in. Memory of
 * cudaMallocAsync, and a range of several allocations, cannot be shared. */
typedef struct kvc_pool_memory {
  size_t struct_size;
  const void* data; /* device address in this process; bases of layouts count from it */
  int32_t fd;     /* `data` NULL: a descriptor of the memory, which stays the caller's: an exported
                     handle, or for a device of the kind "host" a memfd that is sealed against
                     shrinking; bases count from its beginning */
  uint64_t bytes; /* from data on; of a descriptor all that it has, in whole granules */
} kvc_pool_memory;

/* On success *pool must be closed. At most 16 of a client.
 * KVC_MISMATCH: the memory cannot be shared so, or not with this device. KVC_EXHAUSTED: there are
 * too many pools. */
KVC_API kvc_code kvc_pool_add(kvc_device* device, const kvc_pool_memory* memory, int32_t timeout_ms,
                              kvc_pool** pool, kvc_error* error);
/* Returns KVC_OK when nothing of the daemon uses the memory any more; calls that wait end with
 * KVC_NOT_FOUND. The handle stays to be closed. */
KVC_API kvc_code kvc_pool_remove(kvc_pool* pool, int32_t timeout_ms, kvc_error* error);
/* Removes it first, within a second; the memory is to be freed only after kvc_pool_remove returned
 * KVC_OK. Not while another thread is in a call with it. Before kvc_device_close. NULL is allowed.
 */
KVC_API void kvc_pool_close(kvc_pool* pool);

typedef struct kvc_pool_layout {
  size_t struct_size;
  const uint64_t* bases; /* one a segment */
  size_t segments;       /* 1 to 4096 */
  uint64_t block_stride; /* bytes, at least block_bytes */
  uint64_t block_bytes;  /* of one segment of one block */
  uint32_t blocks_per_page;
  int32_t page_first; /* order of a page: [block][segment]; 0: [segment][block] */
} kvc_pool_layout;

typedef struct kvc_pool_pages {
  size_t struct_size;
  const kvc_key* keys;
  size_t count;           /* 1 to 512 */
  const uint32_t* blocks; /* count * blocks_per_page, those of a page in the order of its tokens */
  const uint32_t* valid_tokens; /* to store: one a page, 0 for a full one; NULL: all are full */
  const kvc_key* parent;        /* to store: as in kvc_grant_options */
  uint32_t position;
} kvc_pool_pages;

/* Gathers blocks into pages of the pool's device, and publishes them. Blocks behind a page's valid
 * tokens are not read. codes (NULL is allowed): KVC_OK, KVC_ALREADY_EXISTS (it stays),
 * KVC_EXHAUSTED (no memory of the device), KVC_DEADLINE_EXCEEDED, KVC_STALE (the model was replaced
 * meanwhile), KVC_UNAVAILABLE (the mover failed). Returns KVC_OK with `codes`; without them the
 * first of the pages' that is neither KVC_OK nor KVC_ALREADY_EXISTS. KVC_PERMISSION_DENIED: the
 * client only reads. KVC_INVALID_ARGUMENT: the layout does not fit the space or the pool. */
KVC_API kvc_code kvc_pool_store(kvc_pool* pool, const kvc_space* space,
                                const kvc_pool_layout* layout, const kvc_pool_pages* pages,
                                int32_t timeout_ms, kvc_code* codes, kvc_error* error);
/* Scatters pages into blocks, from wherever they are: they are brought to the device first. keys
 * are a chain; as of kvc_prefetch nothing behind a gap is fetched. codes as of kvc_wait; the blocks
 * of other pages than KVC_OK have any bytes. Blocks behind a page's valid tokens are not written.
 */
KVC_API kvc_code kvc_pool_fetch(kvc_pool* pool, const kvc_space* space,
                                const kvc_pool_layout* layout, const kvc_pool_pages* pages,
                                int32_t timeout_ms, kvc_code* codes, kvc_error* error);

#ifdef __cplusplus
}
#endif

#endif /* KVCLIENT_POOL_H */
