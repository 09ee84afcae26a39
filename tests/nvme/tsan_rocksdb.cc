// For ThreadSanitizer alone. Debian's RocksDB is not built for it: the sanitizer sees its frees and
// comparisons, not the atomics between its own threads, and takes one for a race with the other.
// What has a frame of RocksDB in it is left out; ours calls it from one thread at a time.
extern "C" const char* __tsan_default_suppressions();

extern "C" const char* __tsan_default_suppressions() {
  return "called_from_lib:librocksdb.so\nrace:librocksdb.so\n";
}
