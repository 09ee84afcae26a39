// The header of a safetensors file: what is accepted, and where each tensor's bytes lie.
//
// A file is a u64 (little-endian) with the length of the header, the header, and the data. The
// header is a JSON object: tensor name -> {"dtype", "shape", "data_offsets": [begin, end]}, and
// "__metadata__" -> an object of strings. Offsets count from the first byte of the data; the
// tensors' ranges cover the data exactly, without overlap, hole or rest.
// https://github.com/huggingface/safetensors describes the format.
//
// We are stricter than the format in four points, each of which would otherwise leave a doubt about
// what the bytes mean: members of a tensor that we do not know, names without a character or with
// control characters, more than kMaxTensorRank dimensions, and types of less than a byte are
// refused.
//
// Thread safety: functions without state.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "tiers/tier.h"

namespace terrace {

inline constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // As in the reference implementation.
inline constexpr size_t kMaxSourceTensors = 1u << 18;
// Of all its tensors: who plans with the names sorts and copies them on one thread.
inline constexpr size_t kMaxSourceNameBytes = 64u << 20;
inline constexpr size_t kMaxMetadataEntries = 1u << 16;
inline constexpr size_t kHeaderLengthBytes = 8;

// Bytes of one element, or 0 for a word that is not a supported dtype.
uint64_t DtypeBytes(std::string_view dtype);

// The tensors of a header in the order of their data; file_offset counts from the start of the
// file. `data_bytes` is what the file holds after the header. Errors name the field, not the file.
Result<std::vector<TensorSpec>> ParseSafetensorsHeader(std::string_view header, uint64_t data_bytes,
                                                       uint32_t file);

}  // namespace terrace
