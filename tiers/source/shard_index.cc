#include "tiers/source/shard_index.h"

#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "tiers/source/json_events.h"
#include "tiers/source/printable.h"
#include "tiers/source/safetensors.h"

namespace terrace {
namespace {

Status Bad(std::string message) {
  return {Code::kInvalidArgument, std::move(message)};
}

std::string_view FileName(std::string_view path) {
  return path.substr(path.rfind('/') + 1);  // All of it where there is no slash.
}

// Accepts an object whose member "weight_map" is an object of strings; skips all other members.
class IndexReader final : public JsonEvents {
 public:
  static constexpr int kMaxDepth = 64;

  bool null() override { return Value("null"); }
  bool boolean(bool) override { return Value("a boolean"); }
  bool number_integer(number_integer_t) override { return Value("a number"); }
  bool number_unsigned(number_unsigned_t) override { return Value("a number"); }
  bool number_float(number_float_t, const string_t&) override { return Value("a number"); }

  bool string(string_t& value) override {
    if (!InMap()) return Value("a string");
    if (value.empty() || value.find('/') != std::string::npos || value == "." || value == ".." ||
        HasControlCharacter(value)) {
      return Refuse(Place() + ": " + Quoted(value) + " is not a plain file name");
    }
    entries.back().shard = value;
    return true;
  }

  bool start_object(std::size_t) override {
    if (InMap()) return Unexpected("an object");
    in_map_ = depth_ == 1 && at_map_;
    return Deeper();
  }
  bool end_object() override {
    --depth_;
    if (depth_ == 1) in_map_ = false;
    return true;
  }
  bool start_array(std::size_t) override {
    if (InMap() || AtMap()) return Unexpected("an array");
    return Deeper();
  }
  bool end_array() override {
    --depth_;
    return true;
  }

  bool key(string_t& key) override {
    if (InMap()) {
      if (entries.size() == kMaxSourceTensors) {
        return Refuse("weight_map: more than " + std::to_string(kMaxSourceTensors) + " tensors");
      }
      entries.push_back({.tensor = key, .shard = ""});
      if (!names_.insert(key).second) {
        return Refuse("weight_map: duplicate tensor name " + Quoted(key));
      }
    } else if (depth_ == 1) {
      at_map_ = key == "weight_map";
      if (at_map_ && std::exchange(seen, true)) return Refuse("duplicate member 'weight_map'");
    }
    return true;
  }

  std::vector<ShardedTensor> entries;
  bool seen = false;

 private:
  bool AtMap() const { return depth_ == 1 && at_map_; }
  bool InMap() const { return depth_ == 2 && in_map_; }
  bool Value(std::string_view what) { return InMap() || AtMap() ? Unexpected(what) : true; }
  bool Deeper() {
    if (++depth_ <= kMaxDepth) return true;
    return Refuse("nested deeper than " + std::to_string(kMaxDepth));
  }
  std::string Place() const override {
    return InMap() ? "weight_map: tensor " + Quoted(entries.back().tensor) : "weight_map";
  }
  std::string Wanted() const override { return InMap() ? "a file name" : "an object"; }

  int depth_ = 0;
  bool at_map_ = false;  // The member of the top level that is being read is weight_map.
  bool in_map_ = false;
  std::unordered_set<std::string> names_;
};

}  // namespace

Result<std::vector<ShardedTensor>> ParseShardIndex(std::string_view index) {
  if (index.size() > kMaxIndexBytes) {
    return Status(Code::kInvalidArgument,
                  "longer than " + std::to_string(kMaxIndexBytes) + " bytes");
  }
  IndexReader reader;
  RETURN_IF_ERROR(ParseJson(index, reader));
  if (!reader.seen) return Status(Code::kInvalidArgument, "weight_map is missing");
  return std::move(reader.entries);
}

Status CheckShardIndex(const std::vector<ShardedTensor>& index,
                       const std::vector<TensorSpec>& tensors,
                       const std::vector<SourceFile>& files) {
  std::unordered_map<std::string_view, uint32_t> file_of_name;
  for (uint32_t file = 0; file < files.size(); ++file) {
    const std::string_view name = FileName(files[file].path);
    if (!file_of_name.emplace(name, file).second) {
      return Bad("two of the files are called " + Quoted(name));
    }
  }
  std::unordered_map<std::string_view, uint32_t> file_of_tensor;
  for (const TensorSpec& tensor : tensors)
    file_of_tensor.emplace(tensor.name, tensor.file);

  std::vector<bool> named(files.size());
  for (const ShardedTensor& entry : index) {
    const auto file = file_of_name.find(entry.shard);
    if (file == file_of_name.end()) {
      return Bad("weight_map: tensor " + Quoted(entry.tensor) + " is in " + Quoted(entry.shard) +
                 ", which is not among the files");
    }
    named[file->second] = true;
    const auto found = file_of_tensor.find(entry.tensor);
    if (found == file_of_tensor.end() || found->second != file->second) {
      return Bad("weight_map: tensor " + Quoted(entry.tensor) + " is not in " +
                 Quoted(entry.shard) +
                 (found == file_of_tensor.end()
                      ? ", nor in another file"
                      : " but in " + Quoted(FileName(files[found->second].path))));
    }
  }
  // The index lists no tensor twice, so equal numbers mean equal sets.
  if (index.size() != tensors.size()) {
    std::unordered_set<std::string_view> listed;
    for (const ShardedTensor& entry : index)
      listed.insert(entry.tensor);
    for (const TensorSpec& tensor : tensors) {
      if (listed.count(tensor.name) == 0) {
        return Bad("weight_map: tensor " + Quoted(tensor.name) + " of " +
                   Quoted(FileName(files[tensor.file].path)) + " is not listed");
      }
    }
  }
  for (uint32_t file = 0; file < files.size(); ++file) {
    if (!named[file]) {
      return Bad("weight_map: names no tensor in " + Quoted(FileName(files[file].path)));
    }
  }
  return {};
}

}  // namespace terrace
