#include "bench/trace.h"

#include <nlohmann/json.hpp>
#include <string>
#include <unordered_set>

namespace terrace::bench {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kMostTokens = 1ull << 32;

Status Malformed(std::string_view field, std::string_view what) {
  return {Code::kInvalidArgument, "field '" + std::string(field) + "' " + std::string(what)};
}

Result<uint64_t> Number(const Json& object, const char* field, uint64_t most) {
  const auto found = object.find(field);
  if (found == object.end()) return Malformed(field, "is missing");
  if (!found->is_number_unsigned()) return Malformed(field, "is not a whole number from 0");
  const uint64_t value = found->get<uint64_t>();
  if (value > most) return Malformed(field, "is over " + std::to_string(most));
  return value;
}

}  // namespace

Result<TraceRequest> ParseTraceLine(std::string_view line) {
  const Json object = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (object.is_discarded()) return Status(Code::kInvalidArgument, "not valid JSON");
  if (!object.is_object()) return Status(Code::kInvalidArgument, "not a JSON object");
  TraceRequest request;
  ASSIGN_OR_RETURN(request.timestamp_ms, Number(object, "timestamp", UINT64_MAX));
  ASSIGN_OR_RETURN(request.input_length, Number(object, "input_length", kMostTokens));
  ASSIGN_OR_RETURN(request.output_length, Number(object, "output_length", kMostTokens));
  const auto ids = object.find("hash_ids");
  if (ids == object.end()) return Malformed("hash_ids", "is missing");
  if (!ids->is_array()) return Malformed("hash_ids", "is not an array");
  for (const Json& id : *ids) {
    if (!id.is_number_unsigned()) {
      return Malformed("hash_ids", "holds something else than whole numbers from 0");
    }
    request.hash_ids.push_back(id.get<uint64_t>());
  }
  const uint64_t blocks = (request.input_length + kTraceBlockTokens - 1) / kTraceBlockTokens;
  if (request.hash_ids.size() != blocks) {
    return Malformed("hash_ids", "has " + std::to_string(request.hash_ids.size()) +
                                     " ids, but input_length needs " + std::to_string(blocks));
  }
  return request;
}

Result<std::vector<TraceRequest>> ParseTrace(std::istream& in, size_t limit) {
  std::vector<TraceRequest> requests;
  std::string line;
  for (size_t number = 1; requests.size() < limit && std::getline(in, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    Result<TraceRequest> request = ParseTraceLine(line);
    if (!request) return std::move(request).error().WithContext("line " + std::to_string(number));
    requests.push_back(*std::move(request));
  }
  if (in.bad()) return Status(Code::kDataLoss, "the trace could not be read to its end");
  return requests;
}

uint32_t TokensOfBlock(const TraceRequest& request, size_t index) {
  const uint64_t before = index * uint64_t{kTraceBlockTokens};
  return static_cast<uint32_t>(
      std::min<uint64_t>(kTraceBlockTokens, request.input_length - before));
}

TraceCeiling CeilingOf(const std::vector<TraceRequest>& requests) {
  TraceCeiling ceiling;
  std::unordered_set<uint64_t> seen;
  for (const TraceRequest& request : requests) {
    bool prefix = true;
    for (size_t i = 0; i < request.hash_ids.size(); ++i) {
      prefix = prefix && seen.contains(request.hash_ids[i]);
      if (prefix) {
        ++ceiling.hits;
        ceiling.tokens += TokensOfBlock(request, i);
      }
    }
    ceiling.blocks += request.hash_ids.size();
    seen.insert(request.hash_ids.begin(), request.hash_ids.end());
  }
  return ceiling;
}

}  // namespace terrace::bench
