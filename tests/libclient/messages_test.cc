// Our encoding of the wire messages against protoc's classes, field by field.
#include "libclient/messages.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/random.h"
#include "libclient/admin_messages.h"
#include "proto/wire.pb.h"

namespace terrace {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

std::string Text(Random& random) {
  std::string text(1 + random.Below(20), ' ');
  for (char& c : text)
    c = static_cast<char>('a' + random.Below(26));
  return text;
}

// Gives `field` a value, and repeated ones several.
void Fill(Message* message, const FieldDescriptor* field, Random& random) {
  const Reflection* reflection = message->GetReflection();
  const auto number32 = [&] { return static_cast<uint32_t>(random() >> random.Below(31)) | 1; };
  const auto number64 = [&] { return (random() >> random.Below(63)) | 1; };
  const auto fill_all = [&](Message* nested) {
    for (int i = 0; i < nested->GetDescriptor()->field_count(); ++i) {
      Fill(nested, nested->GetDescriptor()->field(i), random);
    }
  };
  const uint64_t count = field->is_repeated() ? 1 + random.Below(5) : 1;
  for (uint64_t i = 0; i < count; ++i) {
    switch (field->cpp_type()) {
      case FieldDescriptor::CPPTYPE_UINT32:
        field->is_repeated() ? reflection->AddUInt32(message, field, number32())
                             : reflection->SetUInt32(message, field, number32());
        break;
      case FieldDescriptor::CPPTYPE_UINT64:
        field->is_repeated() ? reflection->AddUInt64(message, field, number64())
                             : reflection->SetUInt64(message, field, number64());
        break;
      case FieldDescriptor::CPPTYPE_BOOL:
        reflection->SetBool(message, field, true);
        break;
      case FieldDescriptor::CPPTYPE_STRING:
        field->is_repeated() ? reflection->AddString(message, field, Text(random))
                             : reflection->SetString(message, field, Text(random));
        break;
      case FieldDescriptor::CPPTYPE_MESSAGE:
        fill_all(field->is_repeated() ? reflection->AddMessage(message, field)
                                      : reflection->MutableMessage(message, field));
        break;
      default:
        FAIL() << "a kind of field that the codec does not know: " << field->full_name();
    }
  }
}

// What a member holds, in a form that can be compared with what protoc's classes hold.
std::string Show(uint64_t value) {
  return std::to_string(value) + ";";
}
std::string Show(const std::string& value) {
  return value + ";";
}
template <class T>
std::string Show(const std::vector<T>& values);
template <class M>
  requires requires(const M& m) { M::Fields(m); }
std::string Show(const M& message) {
  return std::apply([](const auto&... member) { return (std::string() + ... + Show(member)); },
                    M::Fields(message));
}
template <class T>
std::string Show(const std::optional<T>& value) {
  return value ? Show(*value) : "";
}
template <class T>
std::string Show(const std::vector<T>& values) {
  std::string shown;
  for (const T& value : values)
    shown += Show(value);
  return shown;
}

std::string ShowField(const Message& message, const FieldDescriptor* field);
std::string ShowAll(const Message& message) {
  std::string shown;
  for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
    shown += ShowField(message, message.GetDescriptor()->field(i));
  }
  return shown;
}
std::string ShowField(const Message& message, const FieldDescriptor* field) {
  const Reflection* reflection = message.GetReflection();
  const int count = field->is_repeated() ? reflection->FieldSize(message, field) : 1;
  std::string shown;
  for (int i = 0; i < count; ++i) {
    const bool many = field->is_repeated();
    switch (field->cpp_type()) {
      case FieldDescriptor::CPPTYPE_UINT32:
        shown += Show(many ? reflection->GetRepeatedUInt32(message, field, i)
                           : reflection->GetUInt32(message, field));
        break;
      case FieldDescriptor::CPPTYPE_UINT64:
        shown += Show(many ? reflection->GetRepeatedUInt64(message, field, i)
                           : reflection->GetUInt64(message, field));
        break;
      case FieldDescriptor::CPPTYPE_BOOL:
        shown += Show(reflection->GetBool(message, field));
        break;
      case FieldDescriptor::CPPTYPE_STRING:
        shown += Show(many ? reflection->GetRepeatedString(message, field, i)
                           : reflection->GetString(message, field));
        break;
      default:
        if (many || reflection->HasField(message, field)) {
          shown += ShowAll(many ? reflection->GetRepeatedMessage(message, field, i)
                                : reflection->GetMessage(message, field));
        }
    }
  }
  return shown;
}

// One message: ours and protoc's, and what each member of ours is called.
struct Case {
  std::string name;
  std::function<std::unique_ptr<Message>()> make;
  // Decodes with ours, encodes again; appends name and content of every member.
  struct Decoded {
    bool ok = false;
    std::string again;
    std::vector<std::pair<std::string, std::string>> members;
  };
  std::function<Decoded(const std::string&)> decode;
};

template <class Ours>
struct Member {
  std::string name;
  std::function<std::string(const Ours&)> show;
};

template <class Ours, class Protoc>
Case MakeCase(std::string name, std::vector<Member<Ours>> members) {
  const auto decode = [members = std::move(members)](const std::string& bytes) {
    Case::Decoded decoded;
    Ours message;
    decoded.ok = messages::Decode(bytes, &message);
    messages::Encode(message, &decoded.again);
    for (const auto& member : members) {
      decoded.members.emplace_back(member.name, member.show(message));
    }
    return decoded;
  };
  return {std::move(name), [] { return std::make_unique<Protoc>(); }, decode};
}

#define FIELD(Kind, member)                                         \
  Member<messages::Kind> {                                          \
    #member, [](const messages::Kind& m) { return Show(m.member); } \
  }
#define MESSAGE(Kind, ...)                              \
  cases.push_back(MakeCase<messages::Kind, wire::Kind>( \
      #Kind, std::vector<Member<messages::Kind>>{__VA_ARGS__}));

std::vector<Case> Cases() {
  std::vector<Case> cases;
  MESSAGE(Error, FIELD(Error, code), FIELD(Error, message))
  MESSAGE(Hello, FIELD(Hello, version_min), FIELD(Hello, version_max), FIELD(Hello, name),
          FIELD(Hello, writer), FIELD(Hello, resume_client), FIELD(Hello, resume_token),
          FIELD(Hello, max_pins), FIELD(Hello, capabilities))
  MESSAGE(HelloReply, FIELD(HelloReply, version), FIELD(HelloReply, client),
          FIELD(HelloReply, token), FIELD(HelloReply, life), FIELD(HelloReply, resumed),
          FIELD(HelloReply, tenant), FIELD(HelloReply, writer), FIELD(HelloReply, max_pins),
          FIELD(HelloReply, max_pinned_bytes), FIELD(HelloReply, max_grants),
          FIELD(HelloReply, host_capacity_bytes), FIELD(HelloReply, daemon_version),
          FIELD(HelloReply, capabilities))
  MESSAGE(Ping)
  MESSAGE(PingReply)
  MESSAGE(Goodbye)
  MESSAGE(GoodbyeReply)
  MESSAGE(Directory)
  MESSAGE(DirectoryReply, FIELD(DirectoryReply, directory_id))
  MESSAGE(Arena, FIELD(Arena, id), FIELD(Arena, bytes), FIELD(Arena, page_bytes),
          FIELD(Arena, tier), FIELD(Arena, writable), FIELD(Arena, device), FIELD(Arena, handle))
  MESSAGE(Arenas, FIELD(Arenas, ids), FIELD(Arenas, writable))
  MESSAGE(ArenasReply, FIELD(ArenasReply, arenas))
  MESSAGE(Layout, FIELD(Layout, dtype), FIELD(Layout, layers), FIELD(Layout, kv_heads),
          FIELD(Layout, head_size), FIELD(Layout, page_tokens), FIELD(Layout, planes),
          FIELD(Layout, order))
  MESSAGE(OpenSpace, FIELD(OpenSpace, weights_digest), FIELD(OpenSpace, adapter_digest),
          FIELD(OpenSpace, salt), FIELD(OpenSpace, layout), FIELD(OpenSpace, model),
          FIELD(OpenSpace, space_id))
  MESSAGE(OpenSpaceReply, FIELD(OpenSpaceReply, space_id), FIELD(OpenSpaceReply, slot),
          FIELD(OpenSpaceReply, epoch), FIELD(OpenSpaceReply, generation_index),
          FIELD(OpenSpaceReply, generation), FIELD(OpenSpaceReply, page_bytes),
          FIELD(OpenSpaceReply, layout))
  MESSAGE(CloseSpace, FIELD(CloseSpace, slot), FIELD(CloseSpace, epoch))
  MESSAGE(CloseSpaceReply)
  MESSAGE(Grant, FIELD(Grant, slot), FIELD(Grant, epoch), FIELD(Grant, part), FIELD(Grant, keys),
          FIELD(Grant, deadline_ms), FIELD(Grant, parent), FIELD(Grant, position),
          FIELD(Grant, device))
  MESSAGE(GrantReply, FIELD(GrantReply, codes), FIELD(GrantReply, grants),
          FIELD(GrantReply, handles), FIELD(GrantReply, arenas))
  MESSAGE(Commit, FIELD(Commit, grants), FIELD(Commit, valid_tokens))
  MESSAGE(CommitReply, FIELD(CommitReply, codes))
  MESSAGE(Abort, FIELD(Abort, grants))
  MESSAGE(AbortReply)
  MESSAGE(Drop, FIELD(Drop, slot), FIELD(Drop, epoch), FIELD(Drop, part), FIELD(Drop, keys))
  MESSAGE(DropReply, FIELD(DropReply, dropped))
  MESSAGE(Prefetch, FIELD(Prefetch, slot), FIELD(Prefetch, epoch), FIELD(Prefetch, part),
          FIELD(Prefetch, keys), FIELD(Prefetch, deadline_ms), FIELD(Prefetch, min_percent),
          FIELD(Prefetch, recompute_us), FIELD(Prefetch, device))
  MESSAGE(PrefetchReply, FIELD(PrefetchReply, codes), FIELD(PrefetchReply, worth))
  MESSAGE(Persist, FIELD(Persist, slot), FIELD(Persist, epoch), FIELD(Persist, part),
          FIELD(Persist, keys))
  MESSAGE(PersistReply, FIELD(PersistReply, codes))
  MESSAGE(ModelAdd, FIELD(ModelAdd, name), FIELD(ModelAdd, version), FIELD(ModelAdd, files),
          FIELD(ModelAdd, index), FIELD(ModelAdd, import_image))
  MESSAGE(ModelAddReply, FIELD(ModelAddReply, tensors), FIELD(ModelAddReply, bytes),
          FIELD(ModelAddReply, blocks), FIELD(ModelAddReply, durable),
          FIELD(ModelAddReply, why_not), FIELD(ModelAddReply, imported),
          FIELD(ModelAddReply, why_not_imported))
  MESSAGE(ModelRemove, FIELD(ModelRemove, name), FIELD(ModelRemove, version))
  MESSAGE(ModelRemoveReply)
  MESSAGE(ModelAccess, FIELD(ModelAccess, name), FIELD(ModelAccess, tenant),
          FIELD(ModelAccess, granted))
  MESSAGE(ModelAccessReply)
  MESSAGE(Load, FIELD(Load, name), FIELD(Load, version), FIELD(Load, device))
  MESSAGE(ProgressEvent, FIELD(ProgressEvent, done_bytes), FIELD(ProgressEvent, total_bytes))
  MESSAGE(LoadReply, FIELD(LoadReply, version), FIELD(LoadReply, bytes), FIELD(LoadReply, digest),
          FIELD(LoadReply, device))
  MESSAGE(Unload, FIELD(Unload, name), FIELD(Unload, version), FIELD(Unload, device))
  MESSAGE(UnloadReply, FIELD(UnloadReply, freed_bytes), FIELD(UnloadReply, held_bytes))
  MESSAGE(Attach, FIELD(Attach, name), FIELD(Attach, version), FIELD(Attach, load),
          FIELD(Attach, deadline_ms), FIELD(Attach, early), FIELD(Attach, device))
  MESSAGE(AttachReply, FIELD(AttachReply, attachment), FIELD(AttachReply, version),
          FIELD(AttachReply, digest), FIELD(AttachReply, manifest_bytes),
          FIELD(AttachReply, arriving), FIELD(AttachReply, device))
  MESSAGE(AttachBlocks, FIELD(AttachBlocks, attachment), FIELD(AttachBlocks, blocks))
  MESSAGE(AttachBlocksReply, FIELD(AttachBlocksReply, blocks), FIELD(AttachBlocksReply, last),
          FIELD(AttachBlocksReply, handles))
  MESSAGE(AttachWait, FIELD(AttachWait, attachment), FIELD(AttachWait, blocks),
          FIELD(AttachWait, deadline_ms))
  MESSAGE(AttachWaitReply, FIELD(AttachWaitReply, arriving), FIELD(AttachWaitReply, digest))
  MESSAGE(Detach, FIELD(Detach, attachment))
  MESSAGE(DetachReply)
  MESSAGE(Evict, FIELD(Evict, bytes))
  MESSAGE(EvictReply, FIELD(EvictReply, pages), FIELD(EvictReply, blocks), FIELD(EvictReply, bytes))
  MESSAGE(Demote, FIELD(Demote, bytes), FIELD(Demote, device))
  MESSAGE(DemoteReply, FIELD(DemoteReply, pages), FIELD(DemoteReply, bytes))
  MESSAGE(Promote, FIELD(Promote, tenant), FIELD(Promote, space_id), FIELD(Promote, bytes),
          FIELD(Promote, no_wait))
  MESSAGE(PromoteReply, FIELD(PromoteReply, pages), FIELD(PromoteReply, bytes))
  MESSAGE(Fsck, FIELD(Fsck, read_data), FIELD(Fsck, repair))
  MESSAGE(FsckReply, FIELD(FsckReply, json))
  MESSAGE(Flush)
  MESSAGE(FlushReply)
  MESSAGE(Report, FIELD(Report, what), FIELD(Report, space), FIELD(Report, limit))
  MESSAGE(ReportReply, FIELD(ReportReply, json))
  MESSAGE(GrantExpiredEvent, FIELD(GrantExpiredEvent, grants))
  MESSAGE(UnmapEvent, FIELD(UnmapEvent, arenas))
  MESSAGE(Devices)
  MESSAGE(Device, FIELD(Device, number), FIELD(Device, uuid), FIELD(Device, name),
          FIELD(Device, kind), FIELD(Device, slabs), FIELD(Device, granularity),
          FIELD(Device, serving), FIELD(Device, capacity_bytes))
  MESSAGE(DevicesReply, FIELD(DevicesReply, devices))
  MESSAGE(LetGo, FIELD(LetGo, arenas))
  MESSAGE(LetGoReply)
  MESSAGE(PoolAdd, FIELD(PoolAdd, device), FIELD(PoolAdd, bytes), FIELD(PoolAdd, handle))
  MESSAGE(PoolAddReply, FIELD(PoolAddReply, pool))
  MESSAGE(PoolRemove, FIELD(PoolRemove, pool))
  MESSAGE(PoolRemoveReply)
  MESSAGE(PoolPages, FIELD(PoolPages, pool), FIELD(PoolPages, bases),
          FIELD(PoolPages, block_stride), FIELD(PoolPages, block_bytes),
          FIELD(PoolPages, page_first), FIELD(PoolPages, slot), FIELD(PoolPages, epoch),
          FIELD(PoolPages, part), FIELD(PoolPages, keys), FIELD(PoolPages, blocks),
          FIELD(PoolPages, blocks_per_page), FIELD(PoolPages, valid_tokens),
          FIELD(PoolPages, parent), FIELD(PoolPages, position), FIELD(PoolPages, deadline_ms))
  MESSAGE(PoolStore, FIELD(PoolStore, pages))
  MESSAGE(PoolStoreReply, FIELD(PoolStoreReply, codes))
  MESSAGE(PoolFetch, FIELD(PoolFetch, pages))
  MESSAGE(PoolFetchReply, FIELD(PoolFetchReply, codes))
  MESSAGE(UnmapWantedEvent, FIELD(UnmapWantedEvent, device), FIELD(UnmapWantedEvent, arenas),
          FIELD(UnmapWantedEvent, attachments), FIELD(UnmapWantedEvent, deadline_ms),
          FIELD(UnmapWantedEvent, lost))
  return cases;
}

TEST(Messages, EveryMessageOfTheProtocolIsThere) {
  EXPECT_EQ(Cases().size(),
            static_cast<size_t>(wire::Error::descriptor()->file()->message_type_count()));
}

TEST(Messages, EveryFieldIsReadIntoTheMemberOfItsName) {
  Random random(1);
  for (const Case& c : Cases()) {
    const auto empty = c.make();
    const auto* descriptor = empty->GetDescriptor();
    ASSERT_EQ(c.decode("").members.size(), static_cast<size_t>(descriptor->field_count()))
        << c.name;
    for (int i = 0; i < descriptor->field_count(); ++i) {
      const auto message = c.make();
      Fill(message.get(), descriptor->field(i), random);
      const auto decoded = c.decode(message->SerializeAsString());
      ASSERT_TRUE(decoded.ok);
      for (const auto& [name, shown] : decoded.members) {
        const FieldDescriptor* field = descriptor->FindFieldByName(name);
        ASSERT_NE(field, nullptr) << c.name << "." << name;
        EXPECT_EQ(shown, ShowField(*message, field)) << c.name << "." << name;
      }
    }
  }
}

TEST(Messages, OurBytesAreThoseOfProtoc) {
  Random random(2);
  for (int round = 0; round < 50; ++round) {
    for (const Case& c : Cases()) {
      const auto message = c.make();
      for (int i = 0; i < message->GetDescriptor()->field_count(); ++i) {
        if (random.Chance(3, 4)) Fill(message.get(), message->GetDescriptor()->field(i), random);
      }
      const std::string bytes = message->SerializeAsString();
      const auto decoded = c.decode(bytes);
      EXPECT_TRUE(decoded.ok) << c.name;
      EXPECT_EQ(decoded.again, bytes) << c.name;
      const auto read_back = c.make();
      ASSERT_TRUE(read_back->ParseFromString(decoded.again)) << c.name;
      EXPECT_EQ(ShowAll(*read_back), ShowAll(*message)) << c.name;
    }
  }
}

TEST(Messages, UnknownFieldsAreSkipped) {
  wire::LoadReply foreign;
  foreign.set_version("v");
  const std::string known = foreign.SerializeAsString();
  // Fields 1000 to 1003 of every wire type that proto3 has.
  const std::string unknown(
      "\xc0\x3e\x05"
      "\xc9\x3e"
      "12345678"
      "\xd2\x3e\x03"
      "abc"
      "\xdd\x3e"
      "1234",
      25);
  messages::LoadReply reply;
  ASSERT_TRUE(messages::Decode(unknown + known + unknown, &reply));
  EXPECT_EQ(reply.version, "v");
}

TEST(Messages, AFieldOfAnotherWireTypeIsUnknown) {
  // Field 2 of LoadReply is a number; here it comes as text.
  messages::LoadReply reply;
  ASSERT_TRUE(messages::Decode(std::string_view("\x12\x01x\x0a\x01v", 6), &reply));
  EXPECT_EQ(reply.bytes, 0u);
  EXPECT_EQ(reply.version, "v");
}

TEST(Messages, NumbersMayComeUnpacked) {
  messages::CommitReply reply;
  ASSERT_TRUE(messages::Decode(std::string_view("\x08\x03\x08\x04", 4), &reply));
  EXPECT_EQ(reply.codes, (std::vector<uint32_t>{3, 4}));
}

// Cut anywhere, a message is refused or decoded as what protoc's classes make of it.
TEST(Messages, TruncatedInputIsJudgedAsByProtoc) {
  Random random(3);
  int refused = 0;
  for (const Case& c : Cases()) {
    const auto message = c.make();
    for (int i = 0; i < message->GetDescriptor()->field_count(); ++i) {
      Fill(message.get(), message->GetDescriptor()->field(i), random);
    }
    const std::string bytes = message->SerializeAsString();
    for (size_t cut = 0; cut < bytes.size(); ++cut) {
      const auto parsed = c.make();
      const bool protoc_ok = parsed->ParseFromString(bytes.substr(0, cut));
      const auto decoded = c.decode(bytes.substr(0, cut));
      ASSERT_EQ(decoded.ok, protoc_ok) << c.name << " cut at " << cut;
      if (protoc_ok) {
        EXPECT_EQ(decoded.again, parsed->SerializeAsString()) << c.name << " cut at " << cut;
      }
      refused += protoc_ok ? 0 : 1;
    }
  }
  EXPECT_GT(refused, 100);
}

TEST(Messages, GarbageNeverCrashesTheDecoder) {
  Random random(4);
  const std::vector<Case> cases = Cases();
  for (int round = 0; round < 20000; ++round) {
    std::string bytes(random.Below(40), '\0');
    for (char& c : bytes)
      c = static_cast<char>(random());
    const Case& c = cases[random.Below(cases.size())];
    const auto decoded = c.decode(bytes);
    if (decoded.ok) {
      EXPECT_TRUE(c.decode(decoded.again).ok);
    }
  }
}

}  // namespace
}  // namespace terrace
