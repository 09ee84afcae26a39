// WeightSet: an attached model: its manifest, and its blocks at their place of one address range.
//
// Constant once attached: any thread. What is attached stays mapped until the set ends, whatever
// becomes of the daemon.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/digest.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "libclient/client.h"
#include "libclient/manifest_view.h"
#include "libclient/mapped_range.h"

namespace terrace::client {

struct AttachSpec {
  std::string model;
  std::string version;  // Empty: the one added last.
  bool load = false;
  uint32_t first_layer = 0;
  uint32_t layer_count = 0;  // 0: everything.
  bool with_rest = false;    // The tensors outside layers too.
};

class WeightSet {
 public:
  // Two round trips, whatever the number of tensors and blocks.
  static Result<std::unique_ptr<WeightSet>> Attach(std::shared_ptr<Client> client,
                                                   const AttachSpec& spec, Deadline deadline);
  ~WeightSet();
  WeightSet(const WeightSet&) = delete;
  WeightSet& operator=(const WeightSet&) = delete;

  Client& client() const { return *client_; }
  uint64_t epoch() const { return life_epoch_; }
  const std::string& model() const { return model_; }
  const std::string& version() const { return version_; }
  const Digest& digest() const { return digest_; }
  const ManifestView& manifest() const { return view_; }
  const uint8_t* base() const { return image_.data(); }
  uint64_t mapped_bytes() const { return mapped_bytes_; }
  // nullptr if not all of its blocks were attached.
  const uint8_t* DataOf(const manifest::TensorRecord& record) const;

 private:
  WeightSet(std::shared_ptr<Client> client, std::string model)
      : client_(std::move(client)), model_(std::move(model)) {}

  Status ReadManifest(const Answer<messages::AttachReply>& answer);
  // Empty: all of them.
  std::vector<uint32_t> WantedBlocks(const AttachSpec& spec) const;
  Status MapBlocks(Connection& connection, std::vector<uint32_t> wanted, Deadline deadline);

  const std::shared_ptr<Client> client_;
  const std::string model_;
  uint64_t life_epoch_ = 0;
  uint64_t attachment_ = 0;
  std::string version_;
  Digest digest_;
  MappedRange manifest_;
  ManifestView view_;
  MappedRange image_;
  std::vector<bool> mapped_;  // A flag a block.
  uint64_t mapped_bytes_ = 0;
};

}  // namespace terrace::client
