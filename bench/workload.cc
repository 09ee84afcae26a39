#include "bench/workload.h"

#include <string>

#include "bench/content.h"
#include "bench/statistics.h"

namespace terrace::bench {
namespace {

Status SendTimes(Link& link, const std::vector<double>& times) {
  RETURN_IF_ERROR(link.Send(static_cast<uint64_t>(times.size())));
  return link.SendBytes(times.data(), times.size() * sizeof(double));
}

Status ReceiveTimes(Link& link, std::vector<double>* times) {
  ASSIGN_OR_RETURN(const uint64_t count, link.Receive<uint64_t>());
  const size_t before = times->size();
  times->resize(before + count);
  return link.ReceiveBytes(times->data() + before, count * sizeof(double));
}

}  // namespace

void WorkTotals::Add(const WorkTotals& other) {
  requests += other.requests;
  pages += other.pages;
  hits += other.hits;
  tokens += other.tokens;
  tokens_reused += other.tokens_reused;
  published += other.published;
  already_present += other.already_present;
  not_stored += other.not_stored;
  verified_bytes += other.verified_bytes;
  wrong_bytes += other.wrong_bytes;
  wrong_tokens += other.wrong_tokens;
}

Status EngineWorker::Serve(std::span<const kvc_key> keys, std::span<const uint32_t> tokens) {
  kvc_pages* made = nullptr;
  const Stopwatch watch;
  const kvc_code code =
      kvc_lookup_prefix(reader_, space_, keys.data(), keys.size(), &made, nullptr);
  const double us = watch.Us();
  if (code != KVC_OK) return {static_cast<Code>(code), "kvc_lookup_prefix"};
  Pages pages(made);
  const size_t found = kvc_pages_found(made);
  lookup_us_.push_back(us);
  if (found > 0) hit_us_.push_back(us / static_cast<double>(found));
  ++totals_.requests;
  totals_.pages += keys.size();
  totals_.hits += found;
  for (const uint32_t count : tokens)
    totals_.tokens += count;
  Verify(made, keys, tokens);
  pages.reset();
  return Publish(keys.subspan(found), tokens.subspan(found));
}

void EngineWorker::Verify(const kvc_pages* pages, std::span<const kvc_key> keys,
                          std::span<const uint32_t> tokens) {
  for (size_t i = 0; i < kvc_pages_found(pages); ++i) {
    kvc_page page{};
    if (kvc_pages_get(pages, i, &page) != KVC_OK) {
      ++totals_.wrong_tokens;  // A place of the prefix that cannot be read is as wrong.
      continue;
    }
    totals_.tokens_reused += page.valid_tokens;
    totals_.wrong_tokens += page.valid_tokens != tokens[i];
    totals_.verified_bytes += page.bytes;
    totals_.wrong_bytes +=
        WrongBytes(keys[i], {static_cast<const uint8_t*>(page.data), page.bytes});
  }
}

Status EngineWorker::Publish(std::span<const kvc_key> keys, std::span<const uint32_t> tokens) {
  ASSIGN_OR_RETURN(
      const Published published,
      Put(client_, space_, {.keys = keys, .valid_tokens = tokens},
          [&](size_t index, std::span<uint8_t> page) { FillContent(keys[index], page); }));
  totals_.published += published.committed;
  totals_.already_present += published.present;
  totals_.not_stored += published.refused;
  return {};
}

Status EngineWorker::Tell(Link& link) const {
  RETURN_IF_ERROR(link.Send(totals_));
  RETURN_IF_ERROR(SendTimes(link, lookup_us_));
  return SendTimes(link, hit_us_);
}

Status WorkOutcome::Hear(Link& link) {
  ASSIGN_OR_RETURN(const WorkTotals totals, link.Receive<WorkTotals>());
  totals_.Add(totals);
  RETURN_IF_ERROR(ReceiveTimes(link, &lookup_us_));
  return ReceiveTimes(link, &hit_us_);
}

Figures WorkOutcome::ToFigures() const {
  const auto number = [](uint64_t value) { return static_cast<double>(value); };
  const double pages = number(totals_.pages);
  return {{"requests", number(totals_.requests), "count"},
          {"pages_asked", pages, "count"},
          {"hits", number(totals_.hits), "count"},
          {"hit_ratio", pages == 0 ? 0 : number(totals_.hits) / pages, "ratio"},
          {"tokens", number(totals_.tokens), "count"},
          {"tokens_not_recomputed", number(totals_.tokens_reused), "count"},
          {"lookup_us_p50", Percentile(lookup_us_, 0.5), "us"},
          {"lookup_us_p90", Percentile(lookup_us_, 0.9), "us"},
          {"lookup_us_p99", Percentile(lookup_us_, 0.99), "us"},
          {"hit_us_p50", Percentile(hit_us_, 0.5), "us"},
          {"hit_us_p99", Percentile(hit_us_, 0.99), "us"},
          {"pages_published", number(totals_.published), "count"},
          {"pages_already_present", number(totals_.already_present), "count"},
          {"pages_not_stored", number(totals_.not_stored), "count"},
          {"verified_bytes", number(totals_.verified_bytes), "bytes"},
          {"wrong_bytes", number(totals_.wrong_bytes), "bytes"},
          {"wrong_token_counts", number(totals_.wrong_tokens), "count"}};
}

Status WorkOutcome::Check() const {
  if (totals_.wrong_bytes == 0 && totals_.wrong_tokens == 0) return {};
  return {Code::kDataLoss, std::to_string(totals_.wrong_bytes) + " wrong bytes and " +
                               std::to_string(totals_.wrong_tokens) +
                               " wrong token counts were mapped"};
}

Result<Figures> MemoryFigures(kvc_client* client) {
  ASSIGN_OR_RETURN(const uint64_t capacity, StatusNumber(client, "/host/capacity_bytes"));
  ASSIGN_OR_RETURN(const uint64_t used, StatusNumber(client, "/host/used_bytes"));
  ASSIGN_OR_RETURN(const uint64_t linked, StatusNumber(client, "/host/linked_bytes"));
  ASSIGN_OR_RETURN(const uint64_t blocks, StatusNumber(client, "/host/block_bytes"));
  ASSIGN_OR_RETURN(const uint64_t evicted, StatusNumber(client, "/pages/evicted"));
  return Figures{{"host_capacity_bytes", static_cast<double>(capacity), "bytes"},
                 {"host_used_bytes", static_cast<double>(used), "bytes"},
                 {"kv_bytes", static_cast<double>(linked), "bytes"},
                 {"weight_bytes", static_cast<double>(blocks), "bytes"},
                 {"evicted_pages", static_cast<double>(evicted), "count"}};
}

}  // namespace terrace::bench
