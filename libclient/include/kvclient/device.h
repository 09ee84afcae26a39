/* libkvclient on GPUs: weights and KV pages in device memory, mapped in place.
 *
 *   kvc_device   memory of one device of the daemon's; thread-safe
 *
 * Nothing here is linked with CUDA: the driver is opened when a device of the kind "cuda" is.
 * Memory is mapped in the device's primary context, which the CUDA runtime uses too: kernels of
 * this process can use the addresses, on that device. The calling thread's current context stays
 * what it was. A device of the kind "host" is memory of the host that stands for one, for tests:
 * its addresses are read and written by the program itself.
 *
 * Streams. The library knows nothing of the engine's streams, so the order is the caller's:
 *   - What is pinned or attached may be used by work that is launched after the call returned.
 *   - It is released, detached or unmapped only when the streams that use it are done with it.
 *   - Granted pages are committed only when the stream that wrote them was synchronised.
 *   - Weights are mapped for reading: a store into them is an error of the device, which ends the
 *     context. Pages too, except those that were granted, which are writable until committed.
 *
 * Memory that is asked back. The daemon cannot take back what a process maps, so it asks. Memory of
 * pages is let go of by the library, when nothing of it is pinned or granted. Weights are the
 * engine's to unmap: see kvc_device_next_request. Memory that was lost (the device was reset, or,
 * where it has no slabs, its process ended): lookups of its pages miss as KVC_MISS_UNMAPPED, and
 * tensors of its weights are KVC_STALE.
 *
 * Devices without slabs (a driver or platform that cannot share memory by descriptors; see
 * kvc_device_info.slabs). Memory is mapped where the driver puts it: kvc_device_base and
 * kvc_weights_remap are KVC_MISMATCH, kvc_weights_info.base is NULL, each block of weights has an
 * address of its own, and a tensor that lies in several has none (`data` is NULL). */
#ifndef KVCLIENT_DEVICE_H
#define KVCLIENT_DEVICE_H

#include <kvclient/kvclient.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct kvc_device_options {
  size_t struct_size;
  const char* uuid; /* "GPU-...", as nvidia-smi -L has it; NULL: by ordinal */
  int32_t ordinal;  /* that of the CUDA runtime in this process (CUDA_VISIBLE_DEVICES counts); of a
                       daemon that has no GPU, the place among its host devices */
} kvc_device_options;

/* Opens a device of the daemon's. On success *device must be closed. NULL options: ordinal 0.
 * KVC_NOT_FOUND: the daemon does not have it, or this process has no driver or no such device.
 * KVC_MISMATCH: the daemon is too old for devices, or this build or driver cannot map its memory.
 * KVC_UNAVAILABLE: the daemon does not know the device yet; retry later. */
KVC_API kvc_code kvc_device_open(kvc_client* client, const kvc_device_options* options,
                                 int32_t timeout_ms, kvc_device** device, kvc_error* error);
/* Not while another thread is in a call with it. Before kvc_close; what was made on it stays usable
 * and keeps it. NULL is allowed. */
KVC_API void kvc_device_close(kvc_device* device);

typedef struct kvc_device_info {
  size_t struct_size;
  uint32_t number; /* in the present daemon life, as in kvc_page.device; 0: the daemon has it not, or not yet */
  const char* uuid; /* strings live as long as the device is open */
  const char* name;
  const char* kind;        /* "cuda", "host" */
  int32_t slabs;           /* 0: memory is shared by legacy handles */
  uint64_t granularity;    /* bytes */
  uint64_t capacity_bytes; /* what the daemon may use of it */
} kvc_device_info;
KVC_API kvc_code kvc_device_get_info(const kvc_device* device, kvc_device_info* info);

/* Lookups of the reader prefer each page's copy on that device, and take the one in host memory
 * where there is none; kvc_page.device says which. NULL: host memory alone, as at first. Used by
 * the reader's thread. A daemon that is started anew may lack the device: then lookups find host
 * memory. KVC_INVALID_ARGUMENT: it is of another client. */
KVC_API kvc_code kvc_reader_set_device(kvc_reader* reader, kvc_device* device);

/* Start of the address range in which all pages of the space appear on the device: page i of
 * KVC_TABLE_BLOCK tables with that device lies at *base + i * page_bytes. It stays while the device
 * is open. KVC_MISMATCH: the device has no slabs. */
KVC_API kvc_code kvc_device_base(kvc_device* device, const kvc_space* space, const void** base);

/* ---- Weights that are asked back --------------------------------------------------------------
 */

typedef struct kvc_unmap_request {
  size_t struct_size;
  kvc_weights* weights; /* attached on this device by this process */
  int64_t deadline_ms;  /* from now; past it the daemon counts the memory as a zombie */
  int32_t lost;         /* not 0: the memory is gone; use it no more even before it is unmapped */
} kvc_unmap_request;

/* Readable (poll, epoll) while requests wait; the library's, not to be read from or closed. -1 if
 * the device is NULL. */
KVC_API int kvc_device_event_fd(const kvc_device* device);
/* Takes one request. `timeout_ms`: 0 does not wait. KVC_DEADLINE_EXCEEDED: there was none. The
 * engine answers by kvc_weights_unmap, when its streams are done with the weights; a detach answers
 * too. Any thread, while no other detaches the weights. */
KVC_API kvc_code kvc_device_next_request(kvc_device* device, int32_t timeout_ms,
                                         kvc_unmap_request* request, kvc_error* error);

/* Gives the memory of weights on a device back and keeps their addresses reserved: captured CUDA
 * graphs may be replayed again after kvc_weights_remap. `data` of tensors is NULL meanwhile.
 * Nothing happens if they are unmapped. As kvc_detach, not while another thread is in a call with
 * them. */
KVC_API kvc_code kvc_weights_unmap(kvc_weights* weights, int32_t timeout_ms, kvc_error* error);
/* Attaches them again, which loads them if need be, and maps them at the same addresses.
 * KVC_MISMATCH: content or places of the tensors are not what was attached, or the device has no
 * slabs. KVC_ALREADY_EXISTS: they are mapped. Else what kvc_attach fails with; then they are
 * unmapped as before. */
KVC_API kvc_code kvc_weights_remap(kvc_weights* weights, int32_t timeout_ms, kvc_error* error);

#ifdef __cplusplus
}
#endif

#endif /* KVCLIENT_DEVICE_H */
