#include "daemon/service/tenants.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace terrace {
namespace {

using testing::HasSubstr;

class TenantsTest : public testing::Test {
 protected:
  TenantsTest() {
    tenants_.Open([this](const std::string& name) -> Result<TenantId> {
      if (full_) return Status(Code::kExhausted, "no more tenants");
      return ids_.emplace(name, static_cast<TenantId>(ids_.size() + 1)).first->second;
    });
  }
  static Config Example() {
    Config config;
    config.sockets = {{.path = "/any"},
                      {.path = "/a", .tenant = "a", .role = Role::kReader},
                      {.path = "/admin", .admin = true}};
    config.peers = {{.gid = 500, .tenant = "a", .role = Role::kReader},
                    {.uid = 10, .tenant = "a"},
                    {.uid = 11, .tenant = "b"},
                    {.gid = 600, .tenant = "b"},
                    {.uid = 12, .tenant = "ops", .role = Role::kAdmin}};
    return config;
  }
  // "tenant" and "/writer" and "/admin" as they apply, or the refusal.
  std::string Who(uid_t uid, const std::string& socket, const std::vector<gid_t>& groups = {},
                  gid_t gid = 1) {
    const Result<Identity> identity = tenants_.IdentityOf({uid, gid, groups, socket});
    if (!identity) {
      EXPECT_EQ(identity.error().code(), Code::kPermissionDenied);
      return identity.error().message();
    }
    EXPECT_EQ(identity->tenant, ids_.at(identity->tenant_name));
    return identity->tenant_name + (identity->may_write ? "/writer" : "") +
           (identity->may_administer ? "/admin" : "");
  }

  bool full_ = false;
  std::map<std::string, TenantId> ids_;
  Tenants tenants_;
};

TEST_F(TenantsTest, InUserModeEverybodyMayDoEverything) {
  Config config;
  config.socket = "/run/x.sock";
  ASSERT_EQ(tenants_.Replace(config), Status());
  EXPECT_EQ(Who(12345, "/run/x.sock"), "default/writer/admin");
  EXPECT_THAT(tenants_.Isolation(), HasSubstr("user mode"));
}

TEST_F(TenantsTest, AUserIsMoreThanAGroupAndAGroupMoreThanASocket) {
  ASSERT_EQ(tenants_.Replace(Example()), Status());
  EXPECT_EQ(Who(10, "/any"), "a/writer");
  EXPECT_EQ(Who(10, "/any", {600}), "a/writer");
  EXPECT_EQ(Who(99, "/any", {}, 600), "b/writer");
  EXPECT_EQ(Who(99, "/any", {3, 600, 700}), "b/writer");
  EXPECT_EQ(Who(99, "/any", {600}, 500), "a");  // Of two groups, the [[peer]] that stands first.
  EXPECT_EQ(Who(99, "/a"), "a");                // The socket's tenant, as a reader.
  EXPECT_EQ(Who(10, "/a"), "a/writer");         // Its own role, for it is of that tenant.
  EXPECT_THAT(tenants_.Isolation(), HasSubstr("3 tenants"));
}

TEST_F(TenantsTest, WhoeverIsUnknownOrOfAnotherTenantIsRefusedWithAReason) {
  ASSERT_EQ(tenants_.Replace(Example()), Status());
  EXPECT_EQ(Who(99, "/any"),
            "peer: user 99 has no tenant here: no [[peer]] names it or a group of it");
  EXPECT_EQ(Who(11, "/a"),
            "peer: user 11 is of tenant 'b', and this socket is of tenant 'a' alone");
  EXPECT_EQ(Who(99, "/a", {600}),
            "peer: user 99 is of tenant 'b', and this socket is of tenant 'a' alone");
  EXPECT_THAT(Who(10, "/gone"), HasSubstr("not in the configuration"));
  // Root is nobody in particular.
  EXPECT_THAT(Who(0, "/any"), HasSubstr("no tenant"));
}

TEST_F(TenantsTest, AnAdminIsOneOnlyOnASocketForAdmins) {
  ASSERT_EQ(tenants_.Replace(Example()), Status());
  EXPECT_EQ(Who(12, "/admin"), "ops/writer/admin");
  EXPECT_EQ(Who(12, "/any"), "ops/writer");
  EXPECT_EQ(Who(10, "/admin"), "a/writer");
  Config config = Example();
  config.sockets.push_back(
      {.path = "/root-only", .tenant = "ops", .role = Role::kAdmin, .admin = true});
  ASSERT_EQ(tenants_.Replace(config), Status());
  EXPECT_EQ(Who(99, "/root-only"), "ops/writer/admin");
}

TEST_F(TenantsTest, AReplacementThatFailsChangesNobody) {
  ASSERT_EQ(tenants_.Replace(Example()), Status());
  Config config = Example();
  config.peers[1].tenant = "new";
  full_ = true;
  const Status status = tenants_.Replace(config);
  EXPECT_EQ(status.code(), Code::kExhausted);
  EXPECT_THAT(status.message(), HasSubstr("tenant: no more tenants"));
  EXPECT_EQ(Who(10, "/any"), "a/writer");
  full_ = false;
  ASSERT_EQ(tenants_.Replace(config), Status());
  EXPECT_EQ(Who(10, "/any"), "new/writer");
}

TEST_F(TenantsTest, IsolationSaysWhenATenantRunsAsWhoeverOwnsTheMemory) {
  Config config = Example();
  config.peers.push_back({.uid = 0, .tenant = "b"});
  ASSERT_EQ(tenants_.Replace(config), Status());
  EXPECT_THAT(tenants_.Isolation(), HasSubstr("root"));
}

}  // namespace
}  // namespace terrace
