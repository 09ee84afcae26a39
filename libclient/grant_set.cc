#include "libclient/grant_set.h"

#include <algorithm>
#include <set>
#include <string>
#include <utility>

#include "libclient/finally.h"

namespace terrace::client {

Result<std::unique_ptr<GrantSet>> GrantSet::Ask(std::shared_ptr<Client> client, const Space& space,
                                                std::span<const Digest> keys,
                                                const GrantOptions& options, Deadline deadline) {
  ASSIGN_OR_RETURN(const Contact now, client->contact());
  const Binding& binding = space.binding();
  if (binding.life_epoch != now.life->epoch()) {
    return Status(Code::kStale, "the space could not be opened again after a reconnect");
  }
  messages::Grant request{.slot = binding.ref().slot,
                          .epoch = binding.ref().epoch,
                          .part = space.facts().part,
                          .keys = {reinterpret_cast<const char*>(keys.data()), keys.size_bytes()},
                          .deadline_ms = options.deadline_ms,
                          .parent = {},
                          .position = 0};
  if (options.device != nullptr) {
    ASSIGN_OR_RETURN(request.device, options.device->CheckedNumberIn(now.life->epoch()));
  }
  if (options.parent) {
    const auto& parent = options.parent->bytes;
    request.parent.assign(reinterpret_cast<const char*>(parent.data()), parent.size());
    request.position = options.position;
  }
  std::unique_ptr<GrantSet> set(new GrantSet(client, now.life));
  const auto ask = [&]() -> Result<Answer<messages::GrantReply>> {
    client->BeginGrant();
    const Finally end([&] { client->EndGrant(); });
    ASSIGN_OR_RETURN(auto answer, now.connection->Call(request, deadline));
    RETURN_IF_ERROR(set->Take(answer.reply, keys.size()));
    return answer;
  };
  ASSIGN_OR_RETURN(const auto answer, ask());
  RETURN_IF_ERROR(set->Map(answer, deadline));
  return set;
}

Status GrantSet::Take(const messages::GrantReply& reply, size_t count) {
  pages_.resize(reply.grants.size());
  for (size_t i = 0; i < pages_.size(); ++i)
    pages_[i].grant = reply.grants[i];
  life_->KnowGrants(Held());
  if (reply.codes.size() != count || reply.grants.size() != count ||
      reply.handles.size() != count) {
    return {Code::kDataLoss, "the daemon answered for another number of pages"};
  }
  for (size_t i = 0; i < count; ++i) {
    pages_[i].code = messages::PageCodeOf(reply.codes[i]);
    pages_[i].handle = reply.handles[i];
  }
  return {};
}

Status GrantSet::Map(const Answer<messages::GrantReply>& answer, Deadline deadline) {
  RETURN_IF_ERROR(client_->TakeArenas(*life_, answer.reply.arenas, answer.fds, true));
  std::set<uint32_t> missing;
  const auto find = [&](Page& page) {
    if (page.code != Code::kOk || page.data != nullptr) return true;
    page.data = life_->arenas().Borrow(page.handle);
    page.borrowed = page.data != nullptr;
    return page.borrowed;
  };
  for (Page& page : pages_) {
    if (!find(page)) missing.insert(shm::ArenaOf(page.handle));
  }
  if (missing.empty()) return {};
  // Their descriptors went with a reply that came too late, or did not fit into this one.
  RETURN_IF_ERROR(client_->MapArenas(*life_, {missing.begin(), missing.end()}, true, deadline));
  if (std::ranges::all_of(pages_, find)) return {};
  return {Code::kDataLoss, "the daemon granted pages in memory that it does not have"};
}

std::vector<uint64_t> GrantSet::Held() const {
  std::vector<uint64_t> held;
  for (const Page& page : pages_) {
    if (page.grant != 0) held.push_back(page.grant);
  }
  return held;
}

Status GrantSet::Commit(std::span<const uint32_t> valid_tokens, Deadline deadline) {
  messages::Commit request;
  std::vector<Page*> pages;
  for (size_t i = 0; i < pages_.size(); ++i) {
    if (pages_[i].code != Code::kOk || pages_[i].grant == 0) continue;
    pages.push_back(&pages_[i]);
    request.grants.push_back(pages_[i].grant);
    if (!valid_tokens.empty()) request.valid_tokens.push_back(valid_tokens[i]);
  }
  if (pages.empty()) return {};
  ASSIGN_OR_RETURN(const Contact now, client_->contact());
  if (now.life != life_) {
    for (Page* page : pages)
      *page = {.code = Code::kStale};
    return {Code::kStale, "the grants are of daemon life " + std::to_string(life_->epoch()) +
                              ", which is over: ask for new ones"};
  }
  // From here on they may be published, whatever is heard of it: they are written no more.
  for (Page* page : pages)
    page->data = nullptr;
  ASSIGN_OR_RETURN(const auto answer, now.connection->Call(request, deadline));
  if (answer.reply.codes.size() != pages.size()) {
    return {Code::kDataLoss, "the daemon answered for another number of pages"};
  }
  std::vector<uint64_t> over;
  for (size_t i = 0; i < pages.size(); ++i) {
    Page& page = *pages[i];
    page.code = messages::PageCodeOf(answer.reply.codes[i]);
    // What was refused is the writer's until it gives it back.
    if (page.code == Code::kOk || page.code == Code::kAlreadyExists ||
        page.code == Code::kNotFound) {
      over.push_back(std::exchange(page.grant, 0));
    }
  }
  life_->ForgetGrants(over);
  return {};
}

GrantSet::~GrantSet() {
  for (const Page& page : pages_) {
    if (page.borrowed) life_->arenas().Return(page.handle);
  }
  messages::Abort request{.grants = Held()};
  if (request.grants.empty()) return;
  const Result<Contact> now = client_->contact();
  if (now && now->life == life_) {
    const Deadline deadline = Deadline::In(client_->options().timeout_ms);
    // If it fails, the daemon asks for them again when their deadline passes.
    static_cast<void>(now->connection->Call(request, deadline).status());
  }
  life_->ForgetGrants(request.grants);
}

}  // namespace terrace::client
