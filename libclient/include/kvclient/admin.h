/* The operator's side of libkvclient: what terracectl is built on.
 *
 * Same conventions as kvclient.h. Calls are thread-safe. Strings that a call returns in `char**`
 * are freed with kvc_free. */
#ifndef KVCLIENT_ADMIN_H
#define KVCLIENT_ADMIN_H

#include <kvclient/kvclient.h>

#ifdef __cplusplus
extern "C" {
#endif

KVC_API void kvc_free(void* memory);

/* Called now and then, on the calling thread while it waits; may be NULL wherever one is taken. */
typedef void (*kvc_progress)(void* context, uint64_t done_bytes, uint64_t total_bytes);

/* A report as JSON text, UTF-8 (docs/protocol.md has the members). */
typedef struct kvc_report_options {
  size_t struct_size;
  const char* what;  /* "status", "models", "spaces", "clients", "pages" */
  const char* space; /* pages: hexadecimal id of a space, or NULL for all */
  uint32_t limit;    /* pages: at most so many; 0: 100 */
} kvc_report_options;
KVC_API kvc_code kvc_report(kvc_client* client, const kvc_report_options* options,
                            int32_t timeout_ms, char** json, kvc_error* error);

typedef struct kvc_model_added {
  size_t struct_size;
  uint32_t tensors;
  uint32_t blocks;
  uint64_t bytes;
  uint32_t files;
  int32_t durable;   /* 1: survives a restart of the daemon */
  char why_not[500]; /* if not: what keeps it from that */
  int32_t imported;  /* 1: the daemon has an image file of it */
  char why_not_imported[500]; /* of kvc_model_import, if not: what keeps it from that */
} kvc_model_added;
/* Registers a model from `path`: a safetensors file, a Hugging Face directory (sharded, with its
 * index), or a model folder of the hub cache. This process opens the files and passes their
 * descriptors, so the daemon needs no right to the path; to survive a restart it does. */
KVC_API kvc_code kvc_model_add(kvc_client* client, const char* name, const char* version,
                               const char* path, int32_t timeout_ms, kvc_model_added* added,
                               kvc_error* error);
/* The same, and then loads it and writes its image to a file of the daemon's, which later loads read
 * instead: as fast as the device is, for as many bytes more on it. A model whose image cannot be
 * written is registered all the same. The same again after that only writes what is missing. */
KVC_API kvc_code kvc_model_import(kvc_client* client, const char* name, const char* version,
                                  const char* path, int32_t timeout_ms, kvc_model_added* added,
                                  kvc_error* error);
/* The same, told how far its loading is. */
KVC_API kvc_code kvc_model_import_with_progress(kvc_client* client, const char* name,
                                                const char* version, const char* path,
                                                kvc_progress progress, void* context,
                                                int32_t timeout_ms, kvc_model_added* added,
                                                kvc_error* error);
/* version NULL: all versions. */
KVC_API kvc_code kvc_model_remove(kvc_client* client, const char* name, const char* version,
                                  int32_t timeout_ms, kvc_error* error);

/* Whether a tenant may attach the model's weights, all versions of it. A new model is granted to
 * the tenant of who adds it. Revoking takes back nothing that is attached; further attaches and
 * loads by that tenant fail with KVC_PERMISSION_DENIED. Both are content when it is so already, and
 * last as long as the model. KVC_NOT_FOUND: no such model, or the tenant is not in the daemon's
 * configuration. KVC_MISMATCH: the daemon is too old to know of this. */
KVC_API kvc_code kvc_model_grant(kvc_client* client, const char* name, const char* tenant,
                                 int32_t timeout_ms, kvc_error* error);
KVC_API kvc_code kvc_model_revoke(kvc_client* client, const char* name, const char* tenant,
                                  int32_t timeout_ms, kvc_error* error);

typedef struct kvc_loaded {
  size_t struct_size;
  uint64_t bytes;
  kvc_key digest;
  char version[132];
  uint32_t device; /* in whose memory they are, from 1; 0: that of the host */
} kvc_loaded;
KVC_API kvc_code kvc_load(kvc_client* client, const char* name, const char* version,
                          kvc_progress progress, void* context, int32_t timeout_ms,
                          kvc_loaded* loaded, kvc_error* error);

typedef struct kvc_unloaded {
  size_t struct_size;
  uint64_t freed_bytes;
  uint64_t held_bytes; /* of blocks that clients still hold: freed when they let go */
} kvc_unloaded;
KVC_API kvc_code kvc_unload(kvc_client* client, const char* name, const char* version,
                            int32_t timeout_ms, kvc_unloaded* unloaded, kvc_error* error);

/* A device whose memory the daemon has; NULL in its place: the only one there is, or, to load, the
 * daemon's choice. */
typedef struct kvc_device_choice {
  size_t struct_size;
  const char* device; /* its number, from 1, or its UUID; or NULL */
} kvc_device_choice;
/* Brings the weights into memory of a device, by way of host memory, both at once; `progress` tells
 * what the device has. Otherwise as kvc_load. Of several devices the daemon chooses, for admins
 * alone, among those that serve and are for a tenant that may attach the model: the one that has
 * the weights, else the one with the most room beside what is there, else where the most can be
 * made; *loaded says which. KVC_NOT_FOUND: no such model, or no such device. KVC_UNAVAILABLE: the
 * device does not serve. KVC_EXHAUSTED: no room beside what is attached there.
 * KVC_PERMISSION_DENIED: it is kept for other tenants. KVC_MISMATCH: the daemon is too old to know of this. */
KVC_API kvc_code kvc_load_to_device(kvc_client* client, const char* name, const char* version,
                                    const kvc_device_choice* choice, kvc_progress progress,
                                    void* context, int32_t timeout_ms, kvc_loaded* loaded,
                                    kvc_error* error);
/* Out of the memory of the device alone. Who has them attached there is asked to let go.
 * KVC_INVALID_ARGUMENT: there are several devices, and none was chosen; the message names them. */
KVC_API kvc_code kvc_unload_from_device(kvc_client* client, const char* name, const char* version,
                                        const kvc_device_choice* choice, int32_t timeout_ms,
                                        kvc_unloaded* unloaded, kvc_error* error);

typedef struct kvc_evicted {
  size_t struct_size;
  uint64_t pages;
  uint64_t blocks;
  uint64_t bytes;
} kvc_evicted;
/* Evicts at least `bytes` of what nobody holds; 0: all of it. */
KVC_API kvc_code kvc_evict(kvc_client* client, uint64_t bytes, int32_t timeout_ms,
                           kvc_evicted* evicted, kvc_error* error);

typedef struct kvc_demoted {
  size_t struct_size;
  uint64_t pages;
  uint64_t bytes;
} kvc_demoted;
/* Takes pages out of memory that nobody holds, the least used first, at least `bytes` of them (0:
 * all), each when it is in the page store. What cannot be stored stays in memory.
 * KVC_UNAVAILABLE: the daemon has no page store. KVC_EXHAUSTED: another call is at it. */
KVC_API kvc_code kvc_demote(kvc_client* client, uint64_t bytes, int32_t timeout_ms,
                            kvc_demoted* demoted, kvc_error* error);

/* The same, told how far it is. */
KVC_API kvc_code kvc_demote_with_progress(kvc_client* client, uint64_t bytes, kvc_progress progress,
                                          void* context, int32_t timeout_ms, kvc_demoted* demoted,
                                          kvc_error* error);

typedef struct kvc_promote_options {
  size_t struct_size;
  const char* tenant;   /* NULL: of all tenants */
  const kvc_key* space; /* NULL: of all spaces */
  uint64_t bytes;       /* at most about so many; 0: as many as there is room for */
  int32_t no_wait;      /* 1: returns when it has begun, with zeros in `promoted` */
} kvc_promote_options;
typedef struct kvc_promoted {
  size_t struct_size;
  uint64_t pages;
  uint64_t bytes;
} kvc_promoted;
/* Brings pages from the page store into memory that is free, those used last first, until there is
 * no room for the next: nothing leaves memory for them. They are not held.
 * KVC_UNAVAILABLE: the daemon has no page store. KVC_EXHAUSTED: another call is at it.
 * KVC_NOT_FOUND: no such tenant, or no such space in the store. KVC_MISMATCH: the daemon is too old
 * to know of this. */
KVC_API kvc_code kvc_promote(kvc_client* client, const kvc_promote_options* options,
                             kvc_progress progress, void* context, int32_t timeout_ms,
                             kvc_promoted* promoted, kvc_error* error);

typedef struct kvc_fsck_options {
  size_t struct_size;
  int32_t read_data; /* 1: reads every page, behind all other reads */
  int32_t repair;    /* 1: bad pages are erased, entries and slots of no page freed */
} kvc_fsck_options;
/* Checks the page store while it serves: index, catalogue and slots against each other, and every
 * page's bytes if asked to. `json`: what was found (docs/protocol.md has the members). The check
 * ends with the process that asked for it.
 * KVC_UNAVAILABLE: the daemon has no page store, or its index cannot be read now. KVC_EXHAUSTED:
 * another call is at it. KVC_MISMATCH: the daemon is too old to know of this. */
KVC_API kvc_code kvc_fsck(kvc_client* client, const kvc_fsck_options* options,
                          kvc_progress progress, void* context, int32_t timeout_ms, char** json,
                          kvc_error* error);

/* Returns when every page that was durable before (kvc_persist) survives the loss of power too,
 * whatever the daemon's `store.durability`. */
KVC_API kvc_code kvc_flush(kvc_client* client, int32_t timeout_ms, kvc_error* error);
/* The same; `progress`, which may be NULL, is told how many bytes of such pages do already. */
KVC_API kvc_code kvc_flush_with_progress(kvc_client* client, kvc_progress progress, void* context,
                                         int32_t timeout_ms, kvc_error* error);

#ifdef __cplusplus
}
#endif

#endif /* KVCLIENT_ADMIN_H */
