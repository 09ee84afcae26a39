// Scrub: reads what is stored, round and round through the catalogue and at a low rate, so that
// bits that changed are found before somebody asks for the page. A page that does not check out is
// erased, as when a client's read finds it; one that the device cannot give stays.
//
// Owned by the engine; owner thread only. Limits: one batch under way (check_pages.h), and a round
// takes at least kRoundNs, so that a small store is not read all the time.
#pragma once

#include <cstdint>

#include "daemon/engine/store/check_pages.h"

namespace terrace {

class Scrub {
 public:
  static constexpr MonotonicNs kRoundNs = 60 * kNsPerSecond;

  // 0 bytes a second: never.
  Scrub(const CheckParts& parts, uint64_t bytes_per_second)
      : parts_(parts), bytes_per_second_(bytes_per_second) {}

  void Turn(bool others_read);

  // ---- Figures, since the start
  uint64_t bytes_per_second() const { return bytes_per_second_; }
  const Amount& read() const { return read_; }
  const uint64_t (&faults() const)[kReadFaults] { return faults_; }
  uint64_t rounds() const { return rounds_; }

 private:
  void EndRound(MonotonicNs now);
  void Checked(const PagesChecked& checked);

  const CheckParts parts_;
  const uint64_t bytes_per_second_;
  CheckPatience patience_;
  bool under_way_ = false;
  ItemId at_ = 0;
  MonotonicNs next_at_ = 0;
  MonotonicNs round_began_ = 0;  // 0: with the next batch.
  Amount read_;
  uint64_t faults_[kReadFaults] = {};
  uint64_t rounds_ = 0;
};

}  // namespace terrace
