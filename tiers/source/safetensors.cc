#include "tiers/source/safetensors.h"

#include <algorithm>
#include <array>
#include <unordered_set>
#include <utility>

#include "tiers/source/json_events.h"
#include "tiers/source/printable.h"

namespace terrace {
namespace {

struct DtypeWord {
  std::string_view word;
  uint64_t bytes;
};
constexpr std::array kDtypes = {
    DtypeWord{"BOOL", 1},    DtypeWord{"U8", 1},      DtypeWord{"I8", 1},  DtypeWord{"F8_E4M3", 1},
    DtypeWord{"F8_E5M2", 1}, DtypeWord{"F8_E8M0", 1}, DtypeWord{"I16", 2}, DtypeWord{"U16", 2},
    DtypeWord{"F16", 2},     DtypeWord{"BF16", 2},    DtypeWord{"I32", 4}, DtypeWord{"U32", 4},
    DtypeWord{"F32", 4},     DtypeWord{"F64", 8},     DtypeWord{"I64", 8}, DtypeWord{"U64", 8},
};
constexpr std::array<std::string_view, 3> kSubByteDtypes = {"F4", "F6_E2M3", "F6_E3M2"};

struct HeaderTensor {
  std::string name;
  std::string dtype;
  std::vector<uint64_t> shape;
  std::vector<uint64_t> offsets;
  bool has_dtype = false;
  bool has_shape = false;
  bool has_offsets = false;
};

// Accepts exactly the structure of a header; what it collects is checked afterwards.
class HeaderReader final : public JsonEvents {
 public:
  bool start_object(std::size_t) override {
    switch (at_) {
      case At::kFile:
        at_ = At::kHeader;
        return true;
      case At::kEntry:
        at_ = in_metadata_ ? At::kMetadata : At::kTensor;
        return true;
      default:
        return Unexpected("an object");
    }
  }

  bool end_object() override {
    switch (at_) {
      case At::kHeader:
        at_ = At::kEnd;
        return true;
      case At::kMetadata:
        at_ = At::kHeader;
        return true;
      case At::kTensor:
        at_ = At::kHeader;
        return Complete();
      default:
        return Unexpected("the end of an object");
    }
  }

  bool key(string_t& key) override {
    switch (at_) {
      case At::kHeader:
        return StartEntry(key);
      case At::kMetadata:
        metadata_key_ = key;
        if (metadata_keys_.size() == kMaxMetadataEntries) {
          return Refuse("__metadata__: more than " + std::to_string(kMaxMetadataEntries) +
                        " entries");
        }
        if (!metadata_keys_.insert(key).second) {
          return Refuse("__metadata__: duplicate name " + Quoted(key));
        }
        at_ = At::kMetadataValue;
        return true;
      case At::kTensor:
        return StartMember(key);
      default:
        return Unexpected("a member");
    }
  }

  bool string(string_t& value) override {
    if (at_ == At::kMetadataValue) {
      at_ = At::kMetadata;
      return true;
    }
    if (at_ != At::kDtype) return Unexpected("a string");
    tensors.back().dtype = value;
    at_ = At::kTensor;
    return true;
  }

  bool start_array(std::size_t) override {
    if (at_ == At::kShape) {
      at_ = At::kShapeItems;
    } else if (at_ == At::kOffsets) {
      at_ = At::kOffsetsItems;
    } else {
      return Unexpected("an array");
    }
    return true;
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (at_ == At::kShapeItems) {
      if (tensors.back().shape.size() == kMaxTensorRank) {
        return Refuse(Place() + " has more than " + std::to_string(kMaxTensorRank) + " dimensions");
      }
      tensors.back().shape.push_back(value);
      return true;
    }
    if (at_ != At::kOffsetsItems) return Unexpected("a number");
    if (tensors.back().offsets.size() == 2) return Refuse(Place() + " has more than two numbers");
    tensors.back().offsets.push_back(value);
    return true;
  }

  bool end_array() override {
    if (at_ == At::kOffsetsItems && tensors.back().offsets.size() != 2) {
      return Refuse(Place() + " has not two numbers");
    }
    at_ = At::kTensor;
    return true;
  }

  std::vector<HeaderTensor> tensors;

 private:
  enum class At : uint8_t {
    kFile,
    kHeader,
    kEntry,  // After the name of a tensor or "__metadata__".
    kMetadata,
    kMetadataValue,
    kTensor,
    kDtype,
    kShape,
    kShapeItems,
    kOffsets,
    kOffsetsItems,
    kEnd,
  };

  bool StartEntry(const std::string& name) {
    at_ = At::kEntry;
    in_metadata_ = name == "__metadata__";
    if (in_metadata_) {
      if (std::exchange(metadata_seen_, true)) return Refuse("duplicate name '__metadata__'");
      return true;
    }
    if (name.empty()) return Refuse("a tensor's name is empty");
    if (name.size() > kMaxTensorNameBytes) {
      return Refuse("tensor " + Quoted(name) + ": the name is longer than " +
                    std::to_string(kMaxTensorNameBytes) + " bytes");
    }
    if (HasControlCharacter(name)) {
      return Refuse("tensor " + Quoted(name) + ": the name has a control character");
    }
    if (tensors.size() == kMaxSourceTensors) {
      return Refuse("more than " + std::to_string(kMaxSourceTensors) + " tensors");
    }
    if (!names_.insert(name).second) return Refuse("duplicate tensor name " + Quoted(name));
    tensors.emplace_back().name = name;
    return true;
  }

  bool StartMember(const std::string& member) {
    HeaderTensor& tensor = tensors.back();
    bool* seen = nullptr;
    if (member == "dtype") {
      at_ = At::kDtype;
      seen = &tensor.has_dtype;
    } else if (member == "shape") {
      at_ = At::kShape;
      seen = &tensor.has_shape;
    } else if (member == "data_offsets") {
      at_ = At::kOffsets;
      seen = &tensor.has_offsets;
    } else {
      return Refuse("tensor " + Quoted(tensor.name) + ": unknown member " + Quoted(member));
    }
    if (std::exchange(*seen, true)) {
      return Refuse("tensor " + Quoted(tensor.name) + ": duplicate member " + Quoted(member));
    }
    return true;
  }

  bool Complete() {
    const HeaderTensor& tensor = tensors.back();
    const char* missing = !tensor.has_dtype     ? "dtype"
                          : !tensor.has_shape   ? "shape"
                          : !tensor.has_offsets ? "data_offsets"
                                                : nullptr;
    if (missing == nullptr) return true;
    return Refuse("tensor " + Quoted(tensor.name) + ": " + missing + " is missing");
  }

  std::string Place() const override {
    switch (at_) {
      case At::kEntry:
        return in_metadata_ ? "__metadata__" : "tensor " + Quoted(tensors.back().name);
      case At::kMetadata:
      case At::kMetadataValue:
        return "__metadata__: " + Quoted(metadata_key_);
      case At::kTensor:
        return "tensor " + Quoted(tensors.back().name);
      case At::kDtype:
        return "tensor " + Quoted(tensors.back().name) + ": dtype";
      case At::kShape:
      case At::kShapeItems:
        return "tensor " + Quoted(tensors.back().name) + ": shape";
      case At::kOffsets:
      case At::kOffsetsItems:
        return "tensor " + Quoted(tensors.back().name) + ": data_offsets";
      default:
        return "the header";
    }
  }

  std::string Wanted() const override {
    switch (at_) {
      case At::kMetadataValue:
      case At::kDtype:
        return "a string";
      case At::kShape:
      case At::kOffsets:
      case At::kShapeItems:
      case At::kOffsetsItems:
        return "an array of unsigned integers";
      default:
        return "an object";
    }
  }

  At at_ = At::kFile;
  bool in_metadata_ = false;
  bool metadata_seen_ = false;
  std::string metadata_key_;
  std::unordered_set<std::string> metadata_keys_;
  std::unordered_set<std::string> names_;
};

Status BadTensor(std::string_view name, std::string what) {
  return {Code::kInvalidArgument, "tensor " + Quoted(name) + ": " + std::move(what)};
}

// The range's length must be what dtype and shape demand.
Status CheckSize(const HeaderTensor& tensor) {
  uint64_t bytes = DtypeBytes(tensor.dtype);
  if (bytes == 0) {
    const bool sub_byte = std::find(kSubByteDtypes.begin(), kSubByteDtypes.end(), tensor.dtype) !=
                          kSubByteDtypes.end();
    return BadTensor(tensor.name,
                     "dtype " + Quoted(tensor.dtype) +
                         (sub_byte ? " has elements of less than a byte, which are not "
                                     "supported"
                                   : " is unknown"));
  }
  for (size_t i = 0; i < tensor.shape.size(); ++i) {
    if (__builtin_mul_overflow(bytes, tensor.shape[i], &bytes)) {
      return BadTensor(tensor.name,
                       "shape: the size overflows 64 bits at dimension " + std::to_string(i));
    }
  }
  const uint64_t begin = tensor.offsets[0];
  const uint64_t end = tensor.offsets[1];
  if (begin > end) {
    return BadTensor(tensor.name, "data_offsets: begin " + std::to_string(begin) +
                                      " is after end " + std::to_string(end));
  }
  if (end - begin != bytes) {
    return BadTensor(tensor.name, "data_offsets: " + std::to_string(end - begin) +
                                      " bytes, but dtype and shape make " + std::to_string(bytes));
  }
  return {};
}

// The ranges, in order, must cover [0, data_bytes) exactly.
Status CheckCoverage(const std::vector<HeaderTensor>& tensors, uint64_t data_bytes) {
  uint64_t covered = 0;
  std::string_view before;
  for (const HeaderTensor& tensor : tensors) {
    const uint64_t begin = tensor.offsets[0];
    const uint64_t end = tensor.offsets[1];
    if (end > data_bytes) {
      return BadTensor(tensor.name, "data_offsets: end " + std::to_string(end) +
                                        " is beyond the data of " + std::to_string(data_bytes) +
                                        " bytes (is the file truncated?)");
    }
    if (begin < covered) {
      return BadTensor(tensor.name, "data_offsets: overlap those of " + Quoted(before) + " by " +
                                        std::to_string(covered - begin) + " bytes");
    }
    if (begin > covered) {
      return BadTensor(tensor.name, "data_offsets: leave a hole of " +
                                        std::to_string(begin - covered) + " bytes at " +
                                        std::to_string(covered));
    }
    covered = end;
    before = tensor.name;
  }
  if (covered != data_bytes) {
    return {Code::kInvalidArgument, "data_offsets: " + std::to_string(data_bytes - covered) +
                                        " bytes at the end of the file belong to no tensor"};
  }
  return {};
}

}  // namespace

uint64_t DtypeBytes(std::string_view dtype) {
  for (const DtypeWord& known : kDtypes) {
    if (known.word == dtype) return known.bytes;
  }
  return 0;
}

Result<std::vector<TensorSpec>> ParseSafetensorsHeader(std::string_view header, uint64_t data_bytes,
                                                       uint32_t file) {
  HeaderReader reader;
  RETURN_IF_ERROR(ParseJson(header, reader));
  for (const HeaderTensor& tensor : reader.tensors)
    RETURN_IF_ERROR(CheckSize(tensor));
  // Empty ranges come before the one that starts where they lie, so that coverage can be counted.
  std::stable_sort(
      reader.tensors.begin(), reader.tensors.end(),
      [](const HeaderTensor& a, const HeaderTensor& b) { return a.offsets < b.offsets; });
  RETURN_IF_ERROR(CheckCoverage(reader.tensors, data_bytes));

  const uint64_t data_start = kHeaderLengthBytes + header.size();
  std::vector<TensorSpec> specs;
  specs.reserve(reader.tensors.size());
  for (HeaderTensor& tensor : reader.tensors) {
    specs.push_back({.name = std::move(tensor.name),
                     .dtype = std::move(tensor.dtype),
                     .shape = std::move(tensor.shape),
                     .file = file,
                     .file_offset = data_start + tensor.offsets[0],
                     .bytes = tensor.offsets[1] - tensor.offsets[0]});
  }
  return specs;
}

}  // namespace terrace
