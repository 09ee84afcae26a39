# find_package(kvclient) gives the target kvclient::kvclient. The library brings all that it needs.
include(${CMAKE_CURRENT_LIST_DIR}/kvclientTargets.cmake)
