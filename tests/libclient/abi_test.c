/* The C ABI from C11, every function of it: usage, refused arguments, and versions of structs.
 * Usage: abi_test SOCKET MODEL_FILE SECOND_SOCKET_THAT_NOBODY_SERVES. */
#include <kvclient/admin.h>
#include <kvclient/kvclient.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures = 0;
#define CHECK(condition)                                              \
  do {                                                                \
    if (!(condition)) {                                               \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      ++failures;                                                     \
    }                                                                 \
  } while (0)
#define REQUIRE(condition)      \
  do {                          \
    CHECK(condition);           \
    if (failures != 0) exit(1); \
  } while (0)

enum { kPages = 6, kPageTokens = 16 };

static kvc_client* Connect(const char* socket) {
  kvc_client_options options = {
      .struct_size = sizeof options, .socket_path = socket, .name = "abi"};
  kvc_client* client = NULL;
  kvc_error error;
  if (kvc_connect(&options, &client, &error) != KVC_OK) {
    fprintf(stderr, "connect: %s\n", error.message);
    exit(1);
  }
  return client;
}

static kvc_space_options Layout(void) {
  kvc_space_options options = {.struct_size = sizeof options};
  options.layout = (kvc_layout){.dtype = "f16",
                                .layers = 2,
                                .kv_heads = 2,
                                .head_size = 32,
                                .page_tokens = kPageTokens,
                                .planes = 2};
  return options;
}

static void TestNames(void) {
  CHECK(strcmp(kvc_code_name(KVC_NOT_FOUND), "not_found") == 0);
  CHECK(strcmp(kvc_code_name((kvc_code)99), "unknown") == 0);
  CHECK(strcmp(kvc_version(), EXPECTED_VERSION) == 0);
  CHECK(kvc_abi_version() == KVC_ABI_VERSION);
}

/* What was compiled against an older header knows less of a struct. */
static void TestStructSizes(const char* socket, const char* nobody) {
  kvc_client* client = NULL;
  kvc_error error;
  kvc_client_options options = {.struct_size = sizeof options, .socket_path = nobody};
  CHECK(kvc_connect(&options, &client, &error) == KVC_UNAVAILABLE);
  CHECK(error.code == KVC_UNAVAILABLE && strstr(error.message, nobody) != NULL);
  options.struct_size = 0;
  CHECK(kvc_connect(&options, &client, &error) == KVC_INVALID_ARGUMENT);
  CHECK(strstr(error.message, "struct_size") != NULL);
  /* A caller that knows no member after socket_path: what lies behind is not read. */
  options = (kvc_client_options){.struct_size = offsetof(kvc_client_options, name),
                                 .socket_path = socket,
                                 .name = (const char*)1,
                                 .timeout_ms = -5};
  REQUIRE(kvc_connect(&options, &client, &error) == KVC_OK);

  kvc_client_info info;
  memset(&info, 0xee, sizeof info);
  info.struct_size = offsetof(kvc_client_info, max_pins);
  CHECK(kvc_client_get_info(client, &info) == KVC_OK);
  CHECK(info.epoch == 1 && info.client_id != 0);
  CHECK(info.struct_size == offsetof(kvc_client_info, max_pins));
  CHECK(info.max_pins == 0xeeeeeeee); /* Not written: this caller does not have it. */
  /* A caller of a newer header, whose struct is longer. */
  struct {
    kvc_client_info known;
    uint64_t later;
  } longer;
  memset(&longer, 0xee, sizeof longer);
  longer.known.struct_size = sizeof longer;
  CHECK(kvc_client_get_info(client, &longer.known) == KVC_OK);
  CHECK(longer.known.max_pins != 0xeeeeeeee && longer.later == 0xeeeeeeeeeeeeeeee);
  info.struct_size = 0;
  CHECK(kvc_client_get_info(client, &info) == KVC_INVALID_ARGUMENT);
  CHECK(kvc_client_get_info(client, NULL) == KVC_INVALID_ARGUMENT);
  kvc_close(client);
}

static void TestKeys(const kvc_space* space) {
  uint32_t tokens[kPages * kPageTokens + 3];
  for (uint32_t i = 0; i < sizeof tokens / sizeof *tokens; ++i)
    tokens[i] = i;
  kvc_sequence* sequence = NULL;
  REQUIRE(kvc_sequence_create(space, &sequence) == KVC_OK);
  CHECK(kvc_sequence_set_extra(sequence, 1, "image", 5) == KVC_OK);
  CHECK(kvc_sequence_append(sequence, tokens, kPageTokens) == KVC_OK);
  CHECK(kvc_sequence_append(sequence, tokens + kPageTokens, kPageTokens + 3) == KVC_OK);
  CHECK(kvc_sequence_set_extra(sequence, 0, "late", 4) == KVC_INVALID_ARGUMENT);
  CHECK(kvc_sequence_tokens(sequence) == 2 * kPageTokens + 3);
  size_t count = 0;
  const kvc_key* keys = kvc_sequence_keys(sequence, &count);
  REQUIRE(count == 2);
  kvc_key first, second, partial, expected;
  CHECK(kvc_page_key(space, NULL, tokens, kPageTokens, NULL, 0, &first) == KVC_OK);
  CHECK(kvc_page_key(space, &first, tokens + kPageTokens, kPageTokens, "image", 5, &second) ==
        KVC_OK);
  CHECK(memcmp(&keys[0], &first, sizeof first) == 0);
  CHECK(memcmp(&keys[1], &second, sizeof second) == 0);
  uint32_t valid = 0;
  CHECK(kvc_sequence_partial(sequence, &partial, &valid) == KVC_OK && valid == 3);
  CHECK(kvc_page_key(space, &second, tokens + 2 * kPageTokens, 3, NULL, 0, &expected) == KVC_OK);
  CHECK(memcmp(&partial, &expected, sizeof partial) == 0);
  CHECK(kvc_sequence_truncate(sequence, kPageTokens) == KVC_OK);
  CHECK(kvc_sequence_partial(sequence, &partial, &valid) == KVC_NOT_FOUND);
  CHECK(kvc_sequence_truncate(sequence, 1000) == KVC_INVALID_ARGUMENT);
  kvc_sequence_destroy(sequence);
  kvc_sequence_destroy(NULL);

  CHECK(kvc_page_key(space, NULL, tokens, 0, NULL, 0, &first) == KVC_INVALID_ARGUMENT);
  CHECK(kvc_page_key(space, NULL, tokens, 513, NULL, 0, &first) == KVC_INVALID_ARGUMENT);
  CHECK(kvc_page_key(space, NULL, tokens, 1, NULL, 7, &first) == KVC_INVALID_ARGUMENT);
  const uint8_t engine_key[32] = {7};
  CHECK(kvc_foreign_key(space, engine_key, &second) == KVC_OK);
  CHECK(memcmp(&first, &second, sizeof first) != 0);
}

static void Publish(kvc_client* client, const kvc_space* space, const kvc_key* keys) {
  kvc_grant_options options = {.struct_size = sizeof options, .deadline_ms = 60000};
  kvc_grants* grants = NULL;
  kvc_error error = {.code = KVC_OK, .message = ""};
  REQUIRE(kvc_grant(client, space, keys, kPages, &options, 0, &grants, &error) == KVC_OK);
  REQUIRE(kvc_grants_count(grants) == kPages);
  kvc_space_info info = {.struct_size = sizeof info};
  REQUIRE(kvc_space_get_info(space, &info) == KVC_OK);
  for (size_t i = 0; i < kPages; ++i) {
    REQUIRE(kvc_grants_code(grants, i) == KVC_OK && kvc_grants_data(grants, i) != NULL);
    memset(kvc_grants_data(grants, i), (int)i + 1, info.page_bytes);
  }
  CHECK(kvc_grants_code(grants, kPages) == KVC_INVALID_ARGUMENT);
  CHECK(kvc_grants_data(grants, kPages) == NULL);
  const uint32_t valid[kPages] = {16, 16, 16, 16, 16, 5};
  CHECK(kvc_commit(grants, valid, 0, &error) == KVC_OK);
  for (size_t i = 0; i < kPages; ++i) {
    CHECK(kvc_grants_code(grants, i) == KVC_OK);
    CHECK(kvc_grants_data(grants, i) == NULL);
  }
  CHECK(kvc_commit(grants, NULL, 0, &error) == KVC_OK); /* Nothing is left to publish. */
  kvc_grants_destroy(grants);
  kvc_grants_destroy(NULL);
}

static void TestSet(const kvc_pages* pages, const kvc_space_info* info) {
  CHECK(kvc_pages_count(pages) == kPages && kvc_pages_found(pages) == kPages);
  CHECK(kvc_pages_tokens(pages) == 5 * 16 + 5 && kvc_pages_epoch(pages) == 1);
  kvc_page page;
  CHECK(kvc_pages_get(pages, kPages, &page) == KVC_INVALID_ARGUMENT);
  uint64_t addresses[kPages];
  int32_t blocks[kPages];
  size_t written = 0;
  kvc_table_options options = {.struct_size = sizeof options, .format = KVC_TABLE_BLOCK};
  CHECK(kvc_pages_table(pages, NULL, addresses, kPages, &written) == KVC_OK && written == kPages);
  CHECK(kvc_pages_table(pages, &options, blocks, kPages, NULL) == KVC_OK);
  for (size_t i = 0; i < kPages; ++i) {
    REQUIRE(kvc_pages_get(pages, i, &page) == KVC_OK);
    const unsigned char* bytes = page.data;
    CHECK(page.bytes == info->page_bytes && page.valid_tokens == (i == 5 ? 5 : 16));
    CHECK(bytes[0] == i + 1 && bytes[page.bytes - 1] == i + 1);
    CHECK(addresses[i] == (uint64_t)(uintptr_t)bytes);
    CHECK((const unsigned char*)info->base + (uint64_t)blocks[i] * info->page_bytes == bytes);
  }
  options.format = (kvc_table_format)9;
  CHECK(kvc_pages_table(pages, &options, blocks, kPages, NULL) == KVC_INVALID_ARGUMENT);
}

static void TestPages(kvc_client* client, kvc_client* other) {
  kvc_error error;
  kvc_space *space = NULL, *existing = NULL;
  kvc_space_options layout = Layout();
  REQUIRE(kvc_space_open(client, &layout, 0, &space, &error) == KVC_OK);
  CHECK(kvc_space_open(client, NULL, 0, &existing, &error) == KVC_INVALID_ARGUMENT);
  layout.layout.dtype = "\xff";
  CHECK(kvc_space_open(client, &layout, 0, &existing, &error) == KVC_INVALID_ARGUMENT);
  CHECK(strstr(error.message, "layout.dtype") != NULL);
  layout = Layout();
  CHECK(kvc_space_open(client, &layout, -1, &existing, &error) == KVC_INVALID_ARGUMENT);
  kvc_space_info info = {.struct_size = sizeof info};
  REQUIRE(kvc_space_get_info(space, &info) == KVC_OK);
  REQUIRE(kvc_space_open_existing(other, &info.id, 0, &existing, &error) == KVC_OK);
  TestKeys(space);

  kvc_key keys[kPages];
  for (uint8_t i = 0; i < kPages; ++i) {
    const uint8_t name[32] = {42, i};
    REQUIRE(kvc_foreign_key(space, name, &keys[i]) == KVC_OK);
  }
  Publish(client, space, keys);

  kvc_reader *reader = NULL, *far = NULL;
  REQUIRE(kvc_reader_create(client, &reader, &error) == KVC_OK);
  REQUIRE(kvc_reader_create(other, &far, &error) == KVC_OK);
  kvc_page page;
  kvc_miss why = KVC_MISS_BUSY;
  const kvc_ticket ticket = kvc_pin(reader, space, &keys[2], &page, &why);
  REQUIRE(ticket != 0);
  CHECK(why == KVC_MISS_NONE && *(const unsigned char*)page.data == 3);
  kvc_unpin(reader, ticket);
  kvc_unpin(reader, 0);
  const kvc_key nothing = {{0}};
  CHECK(kvc_pin(reader, space, &nothing, NULL, &why) == 0 && why == KVC_MISS_ABSENT);
  CHECK(kvc_pin(NULL, space, &nothing, NULL, NULL) == 0);

  kvc_pages *prefix = NULL, *each = NULL, *imported = NULL;
  REQUIRE(kvc_lookup_prefix(reader, space, keys, kPages, &prefix, &why) == KVC_OK);
  CHECK(why == KVC_MISS_NONE);
  TestSet(prefix, &info);
  REQUIRE(kvc_lookup_each(reader, space, &nothing, 1, &each) == KVC_OK);
  CHECK(kvc_pages_count(each) == 1 && kvc_pages_found(each) == 0);
  CHECK(kvc_pages_get(each, 0, &page) == KVC_OK && page.data == NULL);
  kvc_pages_release(each);
  CHECK(kvc_lookup_each(reader, space, NULL, 1, &each) == KVC_INVALID_ARGUMENT);
  CHECK(kvc_lookup_prefix(reader, space, keys, (size_t)1 << 40, &each, NULL) ==
        KVC_INVALID_ARGUMENT);

  kvc_page_ref refs[kPages];
  size_t written = 0;
  CHECK(kvc_pages_export(prefix, refs, 2, &written) == KVC_EXHAUSTED && written == 2);
  CHECK(kvc_pages_export(prefix, refs, kPages, &written) == KVC_OK && written == kPages);
  kvc_pages_release(prefix);
  uint32_t dropped = 0;
  CHECK(kvc_drop(client, space, &keys[4], 1, 0, &dropped, &error) == KVC_OK && dropped == 1);
  CHECK(kvc_drop(client, existing, &keys[4], 1, 0, &dropped, &error) == KVC_INVALID_ARGUMENT);
  uint8_t gone[kPages];
  REQUIRE(kvc_pages_import(far, existing, refs, kPages, &imported, gone, &error) == KVC_OK);
  for (size_t i = 0; i < kPages; ++i)
    CHECK(gone[i] == (i == 4 ? 1 : 0));
  CHECK(kvc_pages_found(imported) == kPages - 1);
  kvc_pages_release(imported);
  kvc_pages_release(NULL);
  kvc_reader_destroy(far);
  kvc_reader_destroy(reader);
  kvc_reader_destroy(NULL);
  kvc_space_close(existing);
  kvc_space_close(space);
  kvc_space_close(NULL);
}

static void CountCalls(void* context, uint64_t done, uint64_t total) {
  (void)done;
  (void)total;
  ++*(int*)context;
}

static void TestWeightsAndAdmin(kvc_client* client, const char* file) {
  kvc_error error;
  kvc_model_added added = {.struct_size = sizeof added};
  REQUIRE(kvc_model_add(client, "abi", "1", file, 0, &added, &error) == KVC_OK);
  CHECK(added.tensors == 1 && added.files == 1);
  CHECK(kvc_model_add(client, NULL, "1", file, 0, &added, &error) == KVC_INVALID_ARGUMENT);
  int calls = 0;
  kvc_loaded loaded = {.struct_size = sizeof loaded};
  CHECK(kvc_load(client, "abi", NULL, CountCalls, &calls, 0, &loaded, &error) == KVC_OK);
  CHECK(strcmp(loaded.version, "1") == 0);
  kvc_weights* weights = NULL;
  REQUIRE(kvc_attach(client, "abi", NULL, 0, &weights, &error) == KVC_OK);
  kvc_weights_info info = {.struct_size = sizeof info};
  CHECK(kvc_weights_get_info(weights, &info) == KVC_OK);
  CHECK(info.tensors == 1 && strcmp(info.model, "abi") == 0);
  CHECK(memcmp(&info.digest, &loaded.digest, sizeof info.digest) == 0);
  CHECK(kvc_weights_epoch(weights) == kvc_epoch(client));
  kvc_tensor tensor = {.struct_size = sizeof tensor};
  CHECK(kvc_weights_find(weights, "nothing", &tensor) == KVC_NOT_FOUND);
  CHECK(kvc_weights_at(weights, 1, &tensor) == KVC_NOT_FOUND);
  REQUIRE(kvc_weights_at(weights, 0, &tensor) == KVC_OK);
  char name[64] = "";
  memcpy(name, tensor.name, tensor.name_bytes);
  REQUIRE(kvc_weights_find(weights, name, &tensor) == KVC_OK);
  CHECK(tensor.data != NULL && tensor.bytes == 8 && memcmp(tensor.data, "terrace!", 8) == 0);
  kvc_detach(weights);
  kvc_detach(NULL);
  kvc_unloaded unloaded = {.struct_size = sizeof unloaded};
  CHECK(kvc_unload(client, "abi", "1", 0, &unloaded, &error) == KVC_OK);
  CHECK(unloaded.freed_bytes > 0 && unloaded.held_bytes == 0);
  CHECK(kvc_model_remove(client, "abi", NULL, 0, &error) == KVC_OK);
  CHECK(kvc_model_remove(client, "abi", NULL, 0, &error) == KVC_NOT_FOUND);
  kvc_evicted evicted = {.struct_size = sizeof evicted};
  CHECK(kvc_evict(client, 0, 0, &evicted, &error) == KVC_OK && evicted.pages > 0);
  kvc_report_options options = {.struct_size = sizeof options, .what = "status"};
  char* json = NULL;
  CHECK(kvc_report(client, &options, 0, &json, &error) == KVC_OK && json[0] == '{');
  kvc_free(json);
  kvc_free(NULL);
}

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  TestNames();
  TestStructSizes(argv[1], argv[3]);
  kvc_client* client = Connect(argv[1]);
  kvc_client* other = Connect(argv[1]);
  kvc_error error;
  CHECK(kvc_epoch(client) == 1 && kvc_epoch(NULL) == 0);
  CHECK(kvc_wait_connected(client, 0, &error) == KVC_OK);
  CHECK(kvc_ping(client, 0, &error) == KVC_OK);
  CHECK(kvc_ping(client, -1, &error) == KVC_INVALID_ARGUMENT);
  CHECK(kvc_ping(NULL, 0, NULL) == KVC_INVALID_ARGUMENT);
  TestPages(client, other);
  TestWeightsAndAdmin(client, argv[2]);
  kvc_close(other);
  kvc_close(client);
  kvc_close(NULL);
  return failures == 0 ? 0 : 1;
}
