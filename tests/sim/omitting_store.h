// OmittingStore and OmittingJournal: what is below the engine, falsified so that the engine works
// as if it did not wait for one thing that it waits for. Everything else is passed on.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "tiers/sim/sim_journal.h"
#include "tiers/sim/sim_page_store.h"

namespace terrace {

// The thing that is not waited for.
enum class StoreOmission : uint8_t {
  kNothing,
  kEndOfRead,    // A read is overdue, and its slot is used although the device still writes to it.
  kSpaceRecord,  // Pages are written before what they mean is on record.
};

class OmittingStore final : public PageStore {
 public:
  OmittingStore(StoreOmission omission, SimPageStore& store) : omission_(omission), store_(store) {}

  Status Restore(const std::function<void(const StoredPage&)>& visit) override {
    return store_.Restore(visit);
  }
  std::vector<PlaceId> Allocate(uint32_t bytes, size_t count) override {
    return store_.Allocate(bytes, count);
  }
  void Release(PlaceId place) override { store_.Release(place); }
  uint64_t PlaceBytes(uint32_t bytes) const override { return store_.PlaceBytes(bytes); }
  bool writable() const override { return store_.writable(); }
  uint64_t free_bytes() const override { return store_.free_bytes(); }
  uint64_t capacity_bytes() const override { return store_.capacity_bytes(); }
  bool Readable(PlaceId place) const override { return store_.Readable(place); }
  void Write(std::vector<PageWrite> pages, MonotonicNs deadline,
             std::function<void(size_t, Result<uint64_t>)> done,
             std::function<void(size_t)> ended) override {
    store_.Write(std::move(pages), deadline, std::move(done), std::move(ended));
  }
  void Read(std::vector<PageRead> pages, MonotonicNs deadline,
            std::function<void(size_t, ReadFault, Status)> done,
            std::function<void(size_t)> ended) override {
    if (omission_ != StoreOmission::kEndOfRead) {
      return store_.Read(std::move(pages), deadline, std::move(done), std::move(ended));
    }
    const auto at_once = [done, ended](size_t i, ReadFault fault, Status status) {
      done(i, fault, std::move(status));
      ended(i);
    };
    store_.Read(std::move(pages), deadline, at_once, [](size_t) {});
  }
  void Erase(std::vector<StoredPage> pages, std::function<void(Status)> done) override {
    store_.Erase(std::move(pages), std::move(done));
  }
  void Flush(std::function<void(uint64_t, uint64_t)> progress,
             std::function<void(Status)> done) override {
    store_.Flush(std::move(progress), std::move(done));
  }
  void Check(std::vector<StoredPage> pages, Looks looks, MonotonicNs deadline,
             std::function<void(size_t, ReadFault, Status)> done) override {
    store_.Check(std::move(pages), looks, deadline, std::move(done));
  }
  void ListEntries(std::string after, size_t limit,
                   std::function<void(Result<Entries>)> done) override {
    store_.ListEntries(std::move(after), limit, std::move(done));
  }
  void FindEntries(std::vector<StoredPage> pages,
                   std::function<void(Result<std::vector<bool>>)> done) override {
    store_.FindEntries(std::move(pages), std::move(done));
  }
  void DropEntries(std::vector<StoredPage> pages, std::function<void(Status)> done) override {
    store_.DropEntries(std::move(pages), std::move(done));
  }
  void BeginCensus() override { store_.BeginCensus(); }
  void Name(PlaceId place) override { store_.Name(place); }
  std::vector<PlaceId> EndCensus() override { return store_.EndCensus(); }
  void Turn() override { store_.Turn(); }
  PageStoreReport Report() const override { return store_.Report(); }

 private:
  const StoreOmission omission_;
  SimPageStore& store_;
};

class OmittingJournal final : public Journal {
 public:
  OmittingJournal(StoreOmission omission, SimJournal& journal)
      : omission_(omission), journal_(journal) {}

  Result<std::vector<Record>> Load(std::string_view prefix) override {
    return journal_.Load(prefix);
  }
  void Put(std::string key, std::string value, std::function<void(Status)> done) override {
    if (omission_ != StoreOmission::kSpaceRecord) {
      return journal_.Put(std::move(key), std::move(value), std::move(done));
    }
    journal_.Put(std::move(key), std::move(value), [](const Status&) {});
    early_.push_back(std::move(done));
  }
  void Delete(std::string key, std::function<void(Status)> done) override {
    journal_.Delete(std::move(key), std::move(done));
  }
  // Says of what was put since the last call that it is on record.
  void AnswerEarly() {
    for (const auto& done : std::exchange(early_, {}))
      done({});
  }
  // Who waits has ended.
  void DropEarly() { early_.clear(); }

 private:
  const StoreOmission omission_;
  SimJournal& journal_;
  std::vector<std::function<void(Status)>> early_;
};

}  // namespace terrace
