#include "libclient/messages.h"

#include <protozero/pbf_reader.hpp>
#include <protozero/pbf_writer.hpp>

#include "libclient/admin_messages.h"

namespace terrace::messages {
namespace {

using protozero::pbf_reader;
using protozero::pbf_wire_type;
using protozero::pbf_writer;

// ---- Writing. As in proto3, a field at its default value is not written.

void Write(pbf_writer& writer, uint32_t number, uint32_t value) {
  if (value != 0) writer.add_uint32(number, value);
}
void Write(pbf_writer& writer, uint32_t number, uint64_t value) {
  if (value != 0) writer.add_uint64(number, value);
}
void Write(pbf_writer& writer, uint32_t number, bool value) {
  if (value) writer.add_bool(number, true);
}
void Write(pbf_writer& writer, uint32_t number, const std::string& value) {
  if (!value.empty()) writer.add_bytes(number, value);
}
void Write(pbf_writer& writer, uint32_t number, const std::vector<uint32_t>& values) {
  writer.add_packed_uint32(number, values.begin(), values.end());
}
void Write(pbf_writer& writer, uint32_t number, const std::vector<uint64_t>& values) {
  writer.add_packed_uint64(number, values.begin(), values.end());
}
void Write(pbf_writer& writer, uint32_t number, const std::vector<std::string>& values) {
  for (const std::string& value : values)
    writer.add_bytes(number, value);
}
template <class Message>
void Write(pbf_writer& writer, uint32_t number, const std::optional<Message>& nested) {
  if (!nested) return;
  std::string bytes;
  Encode(*nested, &bytes);
  writer.add_message(number, bytes);
}
template <class Message>
void Write(pbf_writer& writer, uint32_t number, const std::vector<Message>& nested) {
  for (const Message& message : nested)
    Write(writer, number, std::optional(message));
}

// ---- Reading. Each returns false when the field on the wire is not of the member's kind; protobuf
// takes such a field for an unknown one and so do we.

bool Read(pbf_reader& reader, uint32_t* value) {
  if (reader.wire_type() != pbf_wire_type::varint) return false;
  // As protobuf reads it: a longer number is cut.
  *value = static_cast<uint32_t>(reader.get_uint64());
  return true;
}
bool Read(pbf_reader& reader, uint64_t* value) {
  if (reader.wire_type() != pbf_wire_type::varint) return false;
  *value = reader.get_uint64();
  return true;
}
bool Read(pbf_reader& reader, bool* value) {
  if (reader.wire_type() != pbf_wire_type::varint) return false;
  *value = reader.get_uint64() != 0;
  return true;
}
bool Read(pbf_reader& reader, std::string* value) {
  if (reader.wire_type() != pbf_wire_type::length_delimited) return false;
  const protozero::data_view view = reader.get_view();
  value->assign(view.data(), view.size());
  return true;
}
bool Read(pbf_reader& reader, std::vector<std::string>* values) {
  return Read(reader, &values->emplace_back()) || (values->pop_back(), false);
}
// Numbers come packed; a parser must take them one by one too.
template <class Number>
bool ReadNumbers(pbf_reader& reader, std::vector<Number>* values) {
  if (reader.wire_type() == pbf_wire_type::varint) {
    values->push_back(static_cast<Number>(reader.get_uint64()));
    return true;
  }
  if (reader.wire_type() != pbf_wire_type::length_delimited) return false;
  for (const uint64_t value : reader.get_packed_uint64()) {
    values->push_back(static_cast<Number>(value));
  }
  return true;
}
bool Read(pbf_reader& reader, std::vector<uint32_t>* values) {
  return ReadNumbers(reader, values);
}
bool Read(pbf_reader& reader, std::vector<uint64_t>* values) {
  return ReadNumbers(reader, values);
}

template <class Message>
void Merge(pbf_reader reader, Message* message);

template <class Message>
bool Read(pbf_reader& reader, std::optional<Message>* nested) {
  if (reader.wire_type() != pbf_wire_type::length_delimited) return false;
  if (!*nested) nested->emplace();
  Merge(reader.get_message(), &**nested);  // Two pieces of one field add up, as in protobuf.
  return true;
}
template <class Message>
bool Read(pbf_reader& reader, std::vector<Message>* nested) {
  if (reader.wire_type() != pbf_wire_type::length_delimited) return false;
  Merge(reader.get_message(), &nested->emplace_back());
  return true;
}

template <class Message>
void Merge(pbf_reader reader, Message* message) {
  auto fields = Message::Fields(*message);
  while (reader.next()) {
    bool known = false;
    std::apply(
        [&](auto&... field) {
          uint32_t number = 0;
          static_cast<void>(
              ((++number == reader.tag() && (known = Read(reader, &field), true)) || ...));
        },
        fields);
    if (!known) reader.skip();
  }
}

}  // namespace

template <class Message>
void Encode(const Message& message, std::string* out) {
  pbf_writer writer(*out);
  [[maybe_unused]] uint32_t number = 0;
  std::apply([&](const auto&... field) { (Write(writer, ++number, field), ...); },
             Message::Fields(message));
}

template <class Message>
bool Decode(std::string_view bytes, Message* message) {
  *message = Message();
  try {
    Merge(pbf_reader(bytes.data(), bytes.size()), message);
  } catch (const protozero::exception&) {
    return false;
  }
  return true;
}

#define TERRACE_CODEC(Message)                        \
  template void Encode(const Message&, std::string*); \
  template bool Decode(std::string_view, Message*)
TERRACE_CODEC(Error);
TERRACE_CODEC(Hello);
TERRACE_CODEC(HelloReply);
TERRACE_CODEC(Ping);
TERRACE_CODEC(PingReply);
TERRACE_CODEC(Goodbye);
TERRACE_CODEC(GoodbyeReply);
TERRACE_CODEC(Directory);
TERRACE_CODEC(DirectoryReply);
TERRACE_CODEC(Arena);
TERRACE_CODEC(Arenas);
TERRACE_CODEC(ArenasReply);
TERRACE_CODEC(Layout);
TERRACE_CODEC(OpenSpace);
TERRACE_CODEC(OpenSpaceReply);
TERRACE_CODEC(CloseSpace);
TERRACE_CODEC(CloseSpaceReply);
TERRACE_CODEC(Grant);
TERRACE_CODEC(GrantReply);
TERRACE_CODEC(Commit);
TERRACE_CODEC(CommitReply);
TERRACE_CODEC(Abort);
TERRACE_CODEC(AbortReply);
TERRACE_CODEC(Drop);
TERRACE_CODEC(DropReply);
TERRACE_CODEC(Prefetch);
TERRACE_CODEC(PrefetchReply);
TERRACE_CODEC(Persist);
TERRACE_CODEC(PersistReply);
TERRACE_CODEC(ModelAdd);
TERRACE_CODEC(ModelAddReply);
TERRACE_CODEC(ModelRemove);
TERRACE_CODEC(ModelRemoveReply);
TERRACE_CODEC(ModelAccess);
TERRACE_CODEC(ModelAccessReply);
TERRACE_CODEC(Load);
TERRACE_CODEC(ProgressEvent);
TERRACE_CODEC(LoadReply);
TERRACE_CODEC(Unload);
TERRACE_CODEC(UnloadReply);
TERRACE_CODEC(Attach);
TERRACE_CODEC(AttachReply);
TERRACE_CODEC(AttachBlocks);
TERRACE_CODEC(AttachBlocksReply);
TERRACE_CODEC(AttachWait);
TERRACE_CODEC(AttachWaitReply);
TERRACE_CODEC(Detach);
TERRACE_CODEC(DetachReply);
TERRACE_CODEC(Evict);
TERRACE_CODEC(EvictReply);
TERRACE_CODEC(Demote);
TERRACE_CODEC(DemoteReply);
TERRACE_CODEC(Promote);
TERRACE_CODEC(PromoteReply);
TERRACE_CODEC(Fsck);
TERRACE_CODEC(FsckReply);
TERRACE_CODEC(Flush);
TERRACE_CODEC(FlushReply);
TERRACE_CODEC(Report);
TERRACE_CODEC(ReportReply);
TERRACE_CODEC(GrantExpiredEvent);
TERRACE_CODEC(UnmapEvent);
TERRACE_CODEC(Devices);
TERRACE_CODEC(Device);
TERRACE_CODEC(DevicesReply);
TERRACE_CODEC(LetGo);
TERRACE_CODEC(LetGoReply);
TERRACE_CODEC(PoolAdd);
TERRACE_CODEC(PoolAddReply);
TERRACE_CODEC(PoolRemove);
TERRACE_CODEC(PoolRemoveReply);
TERRACE_CODEC(PoolPages);
TERRACE_CODEC(PoolStore);
TERRACE_CODEC(PoolStoreReply);
TERRACE_CODEC(PoolFetch);
TERRACE_CODEC(PoolFetchReply);
TERRACE_CODEC(UnmapWantedEvent);
#undef TERRACE_CODEC

}  // namespace terrace::messages
