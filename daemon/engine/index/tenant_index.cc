#include "daemon/engine/tenant_index.h"

#include "daemon/engine/index/index_on.h"

namespace terrace {

Result<std::unique_ptr<TenantIndex>> MakeTenantIndex(DirectoryMemory& memory) {
  return IndexOn<shm::StdAtomics>::Make(memory);
}

}  // namespace terrace
