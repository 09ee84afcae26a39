/* libkvclient: the C interface of Terrace.
 *
 * An engine connects to the daemon of its host, attaches model weights, looks up KV pages and maps
 * them in place, and publishes the pages it computes. Looking up a resident page makes no system
 * call and copies nothing: the daemon's index is mapped read-only into this process, and a page
 * stays where it is while it is pinned.
 *
 *   kvc_client   one connection and one background thread; thread-safe
 *   kvc_reader   one thread's way to look pages up; used by one thread at a time
 *   kvc_space    where pages of one kind live; thread-safe, belongs to its client
 *   kvc_sequence the page keys of a growing list of tokens; used by one thread at a time
 *   kvc_pages    a set of pinned pages, readable until released; release from any thread
 *   kvc_grants   space for pages being written; used by one thread at a time
 *   kvc_fetch    pages on their way into memory; used by one thread at a time
 *   kvc_weights  an attached weight set, readable until detached; thread-safe
 *   kvc_device   memory of a GPU: device.h
 *   kvc_pool     KV of an engine that keeps it in memory of its own: pool.h
 *
 * Structs. Those that begin with `struct_size`, which the caller sets to sizeof, may grow: the
 * library reads and writes no more than that, so programs compiled against an older header keep
 * working. The others (kvc_error, kvc_key, kvc_layout, kvc_page, kvc_page_ref) stay as they are. A
 * NULL options pointer means all defaults, where the call allows it.
 *
 * Errors. Calls return a kvc_code. Where a `kvc_error*` is taken it may be NULL; on failure it gets
 * the same code and a message. A miss is not an error. No call aborts on bad input, none throws.
 *
 * Deadlines. Calls that talk to the daemon take `timeout_ms`: 0 means the client's default
 * (kvc_client_options), negative is refused. KVC_DEADLINE_EXCEEDED leaves the outcome open.
 *
 * Daemon death. What is pinned or attached stays mapped and readable. Every lookup misses
 * (KVC_MISS_DISCONNECTED) and every verb fails with KVC_UNAVAILABLE until the library has
 * reconnected by itself, which kvc_epoch() shows: the epoch grows with every daemon life,
 * and kvc_pages_epoch(), kvc_weights_epoch() say which one a mapping is of. Spaces are opened again
 * by the library; grants of an old life are lost (KVC_STALE at commit).
 *
 * Fork. Nothing of the daemon's memory is mapped in a forked child, and no handle may be used
 * there: calls that need the daemon or its memory fail with KVC_PERMISSION_DENIED, pins miss, and
 * releasing does nothing. Calls that only look at a handle's own values do not check it.
 *
 * The library keeps no global state, exports only what is declared here, in admin.h, device.h and
 * pool.h, and needs nothing at run time but libc, libstdc++ and libgcc. */
#ifndef KVCLIENT_KVCLIENT_H
#define KVCLIENT_KVCLIENT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(KVC_BUILDING)
#define KVC_API __attribute__((visibility("default")))
#else
#define KVC_API
#endif

#define KVC_ABI_VERSION 1

/* What the caller can do about a failure. The same numbers are used on the wire. */
typedef enum kvc_code {
  KVC_OK = 0,
  KVC_INVALID_ARGUMENT = 1,  /* can never succeed as written; the message names the field */
  KVC_NOT_FOUND = 2,         /* no such model, tensor, space, grant */
  KVC_ALREADY_EXISTS = 3,    /* taken; for a page: the first stays */
  KVC_MISMATCH = 4,          /* exists but differs; the message says in what */
  KVC_STALE = 5,             /* of an old generation, epoch or daemon life: open it again */
  KVC_EXHAUSTED = 6,         /* a budget or tier is full: release something, then retry */
  KVC_DEADLINE_EXCEEDED = 7, /* the outcome may be unknown */
  KVC_UNAVAILABLE = 8,       /* no daemon now: retry later */
  KVC_PERMISSION_DENIED = 9, /* not allowed to this process */
  KVC_DATA_LOSS = 10,        /* bytes did not check out */
  KVC_INTERNAL = 11          /* a failed system call, or a bug */
} kvc_code;

/* "not_found"; never NULL. */
KVC_API const char* kvc_code_name(kvc_code code);
/* Version of the library ("0.1.0") and of this ABI. */
KVC_API const char* kvc_version(void);
KVC_API uint32_t kvc_abi_version(void);

typedef struct kvc_error {
  kvc_code code;
  char message[500]; /* zero-terminated, cut if longer */
} kvc_error;

typedef struct kvc_client kvc_client;
typedef struct kvc_reader kvc_reader;
typedef struct kvc_space kvc_space;
typedef struct kvc_sequence kvc_sequence;
typedef struct kvc_pages kvc_pages;
typedef struct kvc_grants kvc_grants;
typedef struct kvc_fetch kvc_fetch;
typedef struct kvc_weights kvc_weights;
typedef struct kvc_device kvc_device; /* device.h */

/* A page key or a digest: 32 bytes. */
typedef struct kvc_key {
  uint8_t bytes[32];
} kvc_key;

/* ---- Client -------------------------------------------------------------------------------- */

typedef struct kvc_client_options {
  size_t struct_size;
  const char* socket_path; /* NULL: $XDG_RUNTIME_DIR/terrace/terraced.sock, else
                              /tmp/terrace-UID/terraced.sock, there only of a daemon of
                              this user or of root (else KVC_PERMISSION_DENIED) */
  const char* name;        /* shown by `terracectl clients`; NULL: the program's name */
  int32_t read_only;       /* not 0: never asks for grants */
  uint32_t max_pins;       /* wanted pin budget; 0: the daemon's default */
  int32_t timeout_ms;      /* default deadline of calls, and of connecting; 0: 10,000 */
  int32_t no_reconnect;    /* not 0: do not reconnect after the daemon is gone */
} kvc_client_options;

/* Connects. On success *client must be closed. Fails with KVC_UNAVAILABLE if no daemon listens. */
KVC_API kvc_code kvc_connect(const kvc_client_options* options, kvc_client** client,
                             kvc_error* error);
/* Unmaps everything and says goodbye. All handles made from this client must be gone before: those
 * that are not keep their memory mapped but count as released. NULL is allowed. */
KVC_API void kvc_close(kvc_client* client);

/* 0 while there is no daemon; else the number of the present daemon life, from 1. Any thread; reads
 * one word. */
KVC_API uint64_t kvc_epoch(const kvc_client* client);
/* Waits until connected (KVC_OK), closed, or the deadline; then the message has why the last
 * attempt failed, such as a daemon of another protocol version. */
KVC_API kvc_code kvc_wait_connected(kvc_client* client, int32_t timeout_ms, kvc_error* error);
/* An empty round trip. */
KVC_API kvc_code kvc_ping(kvc_client* client, int32_t timeout_ms, kvc_error* error);

typedef struct kvc_client_info {
  size_t struct_size;
  uint64_t epoch;
  uint64_t client_id;
  uint32_t max_pins;
  uint64_t max_pinned_bytes;
  uint32_t max_grants;
  uint64_t pinned_pages; /* now, by all readers */
  uint64_t pinned_bytes;
  uint64_t lookups; /* in the present daemon life; = hits + misses */
  uint64_t hits;
  uint64_t misses;
} kvc_client_info;
KVC_API kvc_code kvc_client_get_info(const kvc_client* client, kvc_client_info* info);

/* ---- Spaces -------------------------------------------------------------------------------- */

/* How the bytes of a page are laid out. A page has planes * layers * kv_heads * head_size *
 * page_tokens * (bytes of dtype) bytes; a rank's part has its share of heads and layers. */
typedef struct kvc_layout {
  const char* dtype; /* "bf16", "f16", "f8_e4m3", "f8_e5m2", "i8", "f32" */
  uint32_t layers;
  uint32_t kv_heads;
  uint32_t head_size;
  uint32_t page_tokens; /* 16 to 512 */
  uint32_t planes;      /* 2: keys and values; 1: one latent (MLA) */
  const char* order;    /* axes, outermost first; NULL: "layer,plane,token,head,dim" */
} kvc_layout;

typedef struct kvc_space_options {
  size_t struct_size;
  kvc_layout layout;
  const kvc_weights* weights;    /* the attached weights the KV is computed with; or NULL and: */
  const kvc_key* weights_digest; /* a digest the engine names; NULL: none */
  const char* model;             /* with weights_digest: the registered model that fences the space;
                                    NULL: none. Ignored with `weights`, which know their model */
  const kvc_key* adapter_digest; /* LoRA; NULL: none */
  const void* salt;              /* at most 64 bytes; prevents accidental hits, is no wall */
  size_t salt_bytes;
  uint8_t tp_rank; /* this rank's part of the page: tp_size must divide kv_heads (or kv_heads be */
  uint8_t tp_size; /* 1: every rank has it all), stages the layers. 0 sizes mean 1. */
  uint8_t stage;
  uint8_t stages;
} kvc_space_options;

/* Opens a space. KVC_MISMATCH names the field in which the layout differs from the one that this
 * space is open with. */
KVC_API kvc_code kvc_space_open(kvc_client* client, const kvc_space_options* options,
                                int32_t timeout_ms, kvc_space** space, kvc_error* error);
/* Opens a space that exists (open by somebody, or with pages) by its id, with the undivided part 0:
 * for tools. KVC_NOT_FOUND if there is none. */
KVC_API kvc_code kvc_space_open_existing(kvc_client* client, const kvc_key* id, int32_t timeout_ms,
                                         kvc_space** space, kvc_error* error);
KVC_API void kvc_space_close(kvc_space* space);

typedef struct kvc_space_info {
  size_t struct_size;
  kvc_key id;
  uint32_t page_tokens;
  uint64_t page_bytes; /* of this rank's part */
  const void* base;    /* start of the address range in which all pages of this size appear:
                          page i of KVC_TABLE_BLOCK tables lies at base + i * page_bytes. It stays
                          while the client does, over daemon lives */
} kvc_space_info;
KVC_API kvc_code kvc_space_get_info(const kvc_space* space, kvc_space_info* info);

/* ---- Page keys (docs/keys.md) ---------------------------------------------------------------- */

/* key = SHA-256(tag, space id, parent key, token count, extra length, token ids, extra): chained,
 * so a key stands for the whole prefix up to the end of its page. */

/* The key of one page. `parent` is NULL for the first page. `extra` (images, ...) may be NULL. */
KVC_API kvc_code kvc_page_key(const kvc_space* space, const kvc_key* parent, const uint32_t* tokens,
                              size_t token_count, const void* extra, size_t extra_bytes,
                              kvc_key* key);
/* Keys that the engine brings (vLLM block hashes, ...): 32 bytes, hashed with the space. */
KVC_API kvc_code kvc_foreign_key(const kvc_space* space, const uint8_t engine_key[32],
                                 kvc_key* key);

/* The keys of a growing sequence: each token is hashed once. */
KVC_API kvc_code kvc_sequence_create(const kvc_space* space, kvc_sequence** sequence);
KVC_API void kvc_sequence_destroy(kvc_sequence* sequence);
/* Appends tokens; full pages get their keys at once. */
KVC_API kvc_code kvc_sequence_append(kvc_sequence* sequence, const uint32_t* tokens, size_t count);
/* Extra key material of page `page_index`, which must not be full yet and may lie ahead; replaces
 * what was set. */
KVC_API kvc_code kvc_sequence_set_extra(kvc_sequence* sequence, size_t page_index,
                                        const void* extra, size_t extra_bytes);
/* Drops tokens from the end until `count` are left, and the extras of pages that begin at or after
 * there. */
KVC_API kvc_code kvc_sequence_truncate(kvc_sequence* sequence, size_t count);
KVC_API size_t kvc_sequence_tokens(const kvc_sequence* sequence);
/* Keys of full pages; valid until the next call that changes the sequence. */
KVC_API const kvc_key* kvc_sequence_keys(const kvc_sequence* sequence, size_t* count);
/* Key and token count of the partly filled last page; KVC_NOT_FOUND if the last page is full. */
KVC_API kvc_code kvc_sequence_partial(const kvc_sequence* sequence, kvc_key* key,
                                      uint32_t* valid_tokens);

/* ---- Lookup ---------------------------------------------------------------------------------- */

typedef enum kvc_miss {
  KVC_MISS_NONE = -1,        /* everything asked for was found */
  KVC_MISS_ABSENT = 0,       /* no such page */
  KVC_MISS_BEYOND = 1,       /* after the first missing page of a prefix */
  KVC_MISS_STALE = 2,        /* the generation or the space moved on: open the space again */
  KVC_MISS_BUSY = 3,         /* the entry kept changing */
  KVC_MISS_BUDGET = 4,       /* this client's pin budget is used up */
  KVC_MISS_DISCONNECTED = 5, /* no daemon */
  KVC_MISS_UNMAPPED = 6      /* the page's memory could not be mapped */
} kvc_miss;

/* At most 64 readers a client. */
KVC_API kvc_code kvc_reader_create(kvc_client* client, kvc_reader** reader, kvc_error* error);
/* Sets that it pinned stay pinned until released. Tickets of kvc_pin are to be given back before:
 * with the reader gone they cannot be, and their pages stay pinned, and count against the pin
 * budget, until the client is closed. */
KVC_API void kvc_reader_destroy(kvc_reader* reader);

typedef struct kvc_page {
  const void* data; /* page_bytes readable bytes */
  uint64_t bytes;
  uint32_t valid_tokens; /* page_tokens for a full page */
  uint32_t device;       /* 0: `data` is host memory; else an address of the reader's device, whose
                            number this is (kvc_reader_set_device) */
} kvc_page;

/* Hit path for one page: pins it and fills *page, returns a ticket for kvc_unpin; 0 is a miss,
 * whose reason is in *why (may be NULL). No system call, no allocation, except the first time that
 * an arena or a new directory is met: then it asks the daemon, and waits for the answer for at most
 * the client's default deadline. So do the lookups below. */
typedef uint64_t kvc_ticket;
KVC_API kvc_ticket kvc_pin(kvc_reader* reader, const kvc_space* space, const kvc_key* key,
                           kvc_page* page, kvc_miss* why);
/* Ends a pin of kvc_pin. Any thread; `reader` is the one that pinned, and must still exist. */
KVC_API void kvc_unpin(kvc_reader* reader, kvc_ticket ticket);

/* Longest prefix: pins the first pages of `keys` that are all there, none beyond the first missing
 * one. *pages may be an empty set; it must be released in any case when KVC_OK is returned. `why`
 * (may be NULL) says what ended the prefix. */
KVC_API kvc_code kvc_lookup_prefix(kvc_reader* reader, const kvc_space* space, const kvc_key* keys,
                                   size_t count, kvc_pages** pages, kvc_miss* why);
/* All of `keys` that are there: the set has `count` places, those of missing pages are empty
 * (data NULL). */
KVC_API kvc_code kvc_lookup_each(kvc_reader* reader, const kvc_space* space, const kvc_key* keys,
                                 size_t count, kvc_pages** pages);

KVC_API size_t kvc_pages_count(const kvc_pages* pages);    /* places */
KVC_API size_t kvc_pages_found(const kvc_pages* pages);    /* pinned pages */
KVC_API uint64_t kvc_pages_tokens(const kvc_pages* pages); /* sum of valid tokens */
KVC_API uint64_t kvc_pages_epoch(const kvc_pages* pages);
KVC_API kvc_code kvc_pages_get(const kvc_pages* pages, size_t index, kvc_page* page);
/* Unpins and frees the set. Any thread. NULL is allowed. */
KVC_API void kvc_pages_release(kvc_pages* pages);

/* An engine's block table, filled from a pinned set. */
typedef enum kvc_table_format {
  KVC_TABLE_ADDRESS = 0, /* uint64_t: address of each page, 0 for an empty place */
  KVC_TABLE_BLOCK = 1    /* int32_t: index from kvc_space_info.base, or from kvc_device_base with
                            `device`; -1 for an empty place, and for a page in other memory */
} kvc_table_format;
typedef struct kvc_table_options {
  size_t struct_size;
  kvc_table_format format; /* NULL options: KVC_TABLE_ADDRESS, flat, all places */
  size_t first;            /* first place of the set to write */
  size_t count;            /* places; 0: to the end */
  size_t leaf_size; /* two-level: entries of one leaf; 0: flat. `table` is then an array of pointers
                       to leaves of that many entries, provided by the caller; the entry for place
                       `first` + i goes to leaf i / leaf_size at i % leaf_size */
  const kvc_device* device; /* KVC_TABLE_BLOCK: whose pages are numbered; NULL: host memory's */
} kvc_table_options;
/* Writes at most `capacity` entries (for two levels: leaves) and says in *written how many entries.
 * KVC_EXHAUSTED if that is not enough for what was asked. */
KVC_API kvc_code kvc_pages_table(const kvc_pages* pages, const kvc_table_options* options,
                                 void* table, size_t capacity, size_t* written);

/* A pinned set as plain values for another client of the tenant (the other ranks of a request). */
typedef struct kvc_page_ref {
  kvc_key space;
  kvc_key key;
  uint32_t valid_tokens;
  uint32_t reserved;
} kvc_page_ref;
KVC_API kvc_code kvc_pages_export(const kvc_pages* pages, kvc_page_ref* refs, size_t capacity,
                                  size_t* written);
/* Pins the pages of `refs` in this client, this space's part of each. `gone[i]` (may be NULL) is 1
 * where the page is no longer there. KVC_MISMATCH if a ref is of another space. */
KVC_API kvc_code kvc_pages_import(kvc_reader* reader, const kvc_space* space,
                                  const kvc_page_ref* refs, size_t count, kvc_pages** pages,
                                  uint8_t* gone, kvc_error* error);

/* ---- Publishing ------------------------------------------------------------------------------ */

typedef struct kvc_grant_options {
  size_t struct_size;
  uint32_t deadline_ms;  /* until commit; 0: the daemon's default. A page whose deadline passed is
                            refused at commit and its memory returns when the set is destroyed */
  const kvc_key* parent; /* where the first of `keys` stands in its chain, the others following it:
                            the key of the page before it, all zero if there is none; NULL: not
                            told. Pages of a chain are stored side by side and fetched together */
  uint32_t position;     /* pages before the first key in its chain */
  kvc_device* device;    /* in whose memory the pages are to lie; NULL: in host memory */
} kvc_grant_options;

/* Space for `count` pages (at most 512), one message. Pages get their own code: KVC_OK, or
 * KVC_ALREADY_EXISTS (nothing to do), or KVC_EXHAUSTED. */
KVC_API kvc_code kvc_grant(kvc_client* client, const kvc_space* space, const kvc_key* keys,
                           size_t count, const kvc_grant_options* options, int32_t timeout_ms,
                           kvc_grants** grants, kvc_error* error);
KVC_API size_t kvc_grants_count(const kvc_grants* grants);
KVC_API kvc_code kvc_grants_code(const kvc_grants* grants, size_t index);
/* page_bytes writable bytes, on the device that was asked for; NULL where there is no grant, and
 * after commit. */
KVC_API void* kvc_grants_data(kvc_grants* grants, size_t index);
/* Publishes every granted page, one message; `valid_tokens` (may be NULL: all full) has one number
 * a page. Nothing may be written to the pages after the first call that sent them, whatever it
 * returned: others may read them already. Afterwards kvc_grants_code says what became of each:
 * KVC_OK, KVC_ALREADY_EXISTS (another page of that key was first; this one is freed), KVC_STALE,
 * KVC_DEADLINE_EXCEEDED.
 * If the call itself fails after it was sent (KVC_DEADLINE_EXCEEDED, KVC_UNAVAILABLE), the pages
 * may be published already: kvc_grants_data is NULL, and the call may be repeated, in which case
 * KVC_NOT_FOUND stands for pages that had been. KVC_STALE: the daemon life of the grants is over.
 */
KVC_API kvc_code kvc_commit(kvc_grants* grants, const uint32_t* valid_tokens, int32_t timeout_ms,
                            kvc_error* error);
/* Gives back what was not committed, by a message for which it waits at most the client's default
 * deadline, and frees the set. kvc_space_close and kvc_detach wait in the same way. */
KVC_API void kvc_grants_destroy(kvc_grants* grants);

/* The durable acknowledgement of pages that were committed: KVC_OK when each survives what the
 * daemon's `store.durability` says. At most 512 keys. codes[i], where `codes` is not NULL: KVC_OK;
 * KVC_NOT_FOUND (not in memory, and not stored); KVC_EXHAUSTED (the store got no room for it in
 * time, or its budget of writes is used up); KVC_UNAVAILABLE (its device takes no writes). With
 * `codes` NULL the call fails with the first of these. The call itself: KVC_UNAVAILABLE, the daemon
 * has no page store; KVC_MISMATCH, its durability is "none", or it is too old to have one. */
KVC_API kvc_code kvc_persist(kvc_client* client, const kvc_space* space, const kvc_key* keys,
                             size_t count, int32_t timeout_ms, kvc_code* codes, kvc_error* error);

/* ---- Fetching -------------------------------------------------------------------------------- */

typedef struct kvc_prefetch_options {
  size_t struct_size;
  uint32_t deadline_ms;  /* until when the daemon answers, and holds the pages for this client to
                            look up; 0: the daemon's default */
  uint32_t min_percent;  /* if fewer of the keys can be had than this, nothing is fetched; 0: any */
  uint32_t recompute_us; /* what recomputing one page costs: only as many of the first keys are
                            fetched as come sooner than that; 0: all that can be had */
  kvc_device* device;    /* into whose memory; NULL: into host memory */
} kvc_prefetch_options;

/* Asks for pages that lie in the page store to be brought into memory, and returns: one message.
 * `keys` (at most 512) are the first or next pages of one chain, in its order; what follows a page
 * that is nowhere is left where it is. Where too much is being read already a page waits for its
 * turn, until the deadline. `timeout_ms` is for sending. KVC_EXHAUSTED, from kvc_wait: 32 of this
 * client wait already.
 *
 * What was brought, or was there, is held for this client: it stays in memory until one of its
 * readers has found it in a lookup that began after the daemon had the prefetch, or until the
 * deadline. A page that is pinned already is held all the same. Two prefetches of one page are one
 * hold, which the first such lookup ends. Held pages and pinned ones share the client's pin budget:
 * beyond it pages are not held (KVC_EXHAUSTED), and holds end early, those first whose deadline is
 * next, where the client pins others. */
KVC_API kvc_code kvc_prefetch(kvc_client* client, const kvc_space* space, const kvc_key* keys,
                              size_t count, const kvc_prefetch_options* options, int32_t timeout_ms,
                              kvc_fetch** fetch, kvc_error* error);
/* Waits for the answer. *worth (may be NULL): so many of the first keys were in memory already or
 * worth fetching. codes[i] (`codes` may be NULL, else has an element a key): KVC_OK, the page is in
 * memory and held as kvc_prefetch says; else it was not brought: KVC_NOT_FOUND, KVC_EXHAUSTED (no
 * memory for it, or over the pin budget), KVC_UNAVAILABLE (its device does not answer),
 * KVC_DATA_LOSS (it did not check out), KVC_STALE, KVC_DEADLINE_EXCEEDED.
 * KVC_DEADLINE_EXCEEDED of the call itself: it may be called again. */
KVC_API kvc_code kvc_wait(kvc_fetch* fetch, int32_t timeout_ms, size_t* worth, kvc_code* codes,
                          kvc_error* error);
/* Waits until one of several fetches of one client is answered, in whatever order they were asked
 * for: *index (not NULL) is its place among the `count` (1 to 256) `fetches`, and kvc_wait of it
 * returns at once; with answers that came together it need not ask the kernel. No other thread
 * waits for any of them meanwhile. KVC_DEADLINE_EXCEEDED: none is; *index is as it was. */
KVC_API kvc_code kvc_wait_any(kvc_fetch* const* fetches, size_t count, int32_t timeout_ms,
                              size_t* index, kvc_error* error);
/* Need not have been waited for: then the pages come all the same. NULL is allowed. */
KVC_API void kvc_fetch_destroy(kvc_fetch* fetch);

/* Makes pages, stored ones too, findable no more; at most 512 keys. *dropped may be NULL. When it
 * returns nobody finds them, but the store erases its copy a little later. If the daemon or the
 * host dies before, the page may be found again after the restart, with the bytes it had, whatever
 * `store.durability` says: drop it again where that matters. Unless that is "power", the loss of
 * the host's power may undo the erasure as well. */
KVC_API kvc_code kvc_drop(kvc_client* client, const kvc_space* space, const kvc_key* keys,
                          size_t count, int32_t timeout_ms, uint32_t* dropped, kvc_error* error);

/* ---- Weights --------------------------------------------------------------------------------- */

typedef struct kvc_attach_options {
  size_t struct_size;
  const char* version;  /* NULL: the one added last */
  int32_t load;         /* not 0: load the model first if it is not in memory */
  uint32_t first_layer; /* chosen layers: [first_layer, first_layer + layer_count), and with */
  uint32_t layer_count; /* `with_rest` the tensors outside layers too. layer_count 0: everything */
  int32_t with_rest;
  int32_t early;      /* not 0, with `load`: do not wait for the blocks; see kvc_model_wait */
  kvc_device* device; /* not NULL: the weights are to be in its memory, and `data` and `base` are
                         its addresses; not with `early`. See device.h */
} kvc_attach_options;

/* Attaches a model's weights: two round trips, whatever the number of tensors. Pages are mapped
 * read-only and shared by all who attach.
 *
 * With `early` the call returns as soon as the daemon knows where each tensor will lie, while its
 * load goes on: names, shapes and info are there at once, `data` of a tensor is NULL until the
 * blocks that it lies in have come and were waited for. Of a model that is loaded already, `early`
 * changes nothing. */
KVC_API kvc_code kvc_attach(kvc_client* client, const char* model,
                            const kvc_attach_options* options, int32_t timeout_ms,
                            kvc_weights** weights, kvc_error* error);
/* Not while another thread is in a call with these weights. */
KVC_API void kvc_detach(kvc_weights* weights);

#define KVC_ALL_BLOCKS UINT32_MAX

/* Waits until block number `block` of early attached weights (0 to kvc_weights_info.blocks - 1) is
 * complete and mapped; KVC_ALL_BLOCKS: until all attached blocks are, and the whole model was
 * checked, from which on kvc_weights_info.digest is known and spaces can be opened with the
 * weights. Returns at once for what is there already. Any thread, several at a time.
 *
 * A block that came is compared with the checks on record, where there are any. Of a model that is
 * loaded for the first time there are none: such bytes are what the files hold, and whether those
 * are what the hub published is known only when the whole load is done.
 *
 * KVC_INVALID_ARGUMENT: no such block, or one outside of the attached layers.
 * KVC_DEADLINE_EXCEEDED: after timeout_ms; the load goes on, wait again.
 * KVC_UNAVAILABLE: no daemon now; what was mapped stays. KVC_EXHAUSTED: too many wait; try again.
 * KVC_STALE: another life of the daemon: attach again. KVC_PERMISSION_DENIED: not granted any more.
 * Any other code is that of the load, which has failed (KVC_DATA_LOSS: the files are not what they
 * should be), as is that of every later wait: use nothing of these weights, and detach them. */
KVC_API kvc_code kvc_model_wait(kvc_weights* weights, uint32_t block, int32_t timeout_ms,
                                kvc_error* error);
/* Likewise for all blocks of the tensor of that name; KVC_NOT_FOUND: there is none. */
KVC_API kvc_code kvc_model_wait_tensor(kvc_weights* weights, const char* name, int32_t timeout_ms,
                                       kvc_error* error);

typedef struct kvc_weights_info {
  size_t struct_size;
  const char* model; /* strings live as long as the attachment */
  const char* version;
  kvc_key digest; /* content digest (docs/keys.md); zeros while the first load runs */
  uint64_t epoch;
  size_t tensors;
  uint64_t bytes;        /* of the whole image */
  uint64_t mapped_bytes; /* of the blocks mapped here */
  uint32_t layers;
  uint32_t blocks;
  const void* base; /* of the image; only mapped blocks are readable */
} kvc_weights_info;
KVC_API kvc_code kvc_weights_get_info(const kvc_weights* weights, kvc_weights_info* info);
KVC_API uint64_t kvc_weights_epoch(const kvc_weights* weights);

typedef struct kvc_tensor {
  size_t struct_size;
  const char* name; /* not zero-terminated: name_bytes long */
  size_t name_bytes;
  const char* dtype; /* the safetensors word: "BF16", "F32", ... */
  uint32_t rank;
  uint64_t shape[8];
  const void*
      data; /* C order, 256-byte aligned; NULL if its blocks were not attached, or have not come */
  uint64_t bytes;
} kvc_tensor;
/* By name (binary search in the mapped manifest) or by index in the order of names. */
KVC_API kvc_code kvc_weights_find(const kvc_weights* weights, const char* name, kvc_tensor* tensor);
KVC_API kvc_code kvc_weights_at(const kvc_weights* weights, size_t index, kvc_tensor* tensor);

#ifdef __cplusplus
}
#endif

#endif /* KVCLIENT_KVCLIENT_H */
