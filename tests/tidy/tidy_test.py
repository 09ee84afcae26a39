#!/usr/bin/env python3
"""The include check finds what it is there to find."""
import sys
import unittest

import tidy


class TidyTest(unittest.TestCase):
    def problems(self, path, line):
        return list(tidy.problems_of(path, line + "\n"))

    def test_allowed_directions_pass(self):
        self.assertEqual(self.problems("daemon/engine/a.cc", '#include "tiers/tier.h"'), [])
        self.assertEqual(self.problems("libclient/a.cc", '#include "base/status.h"'), [])
        self.assertEqual(self.problems("cli/a.cc", "#include <kvclient/admin.h>"), [])

    def test_forbidden_directions_are_named(self):
        self.assertTrue(self.problems("base/a.cc", '#include "proto/frame.h"'))
        self.assertTrue(self.problems("daemon/engine/a.cc", '#include "tiers/host/host_tier.h"'))
        self.assertTrue(self.problems("cli/a.cc", '#include "libclient/connection.h"'))
        self.assertTrue(self.problems("libclient/a.cc", '#include "tests/support/x.h"'))

    def test_heavy_libraries_have_one_door(self):
        self.assertTrue(self.problems("daemon/engine/a.cc", "#include <boost/asio.hpp>"))
        self.assertTrue(self.problems("libclient/a.cc", '#include "proto/wire.pb.h"'))
        self.assertTrue(self.problems("tiers/nvme/a.cc", "#include <liburing.h>"))
        self.assertTrue(self.problems("tiers/nvme/a.cc", "#include <isa-l/crc.h>"))
        self.assertEqual(self.problems("daemon/service/a.cc", "#include <boost/asio.hpp>"), [])
        self.assertEqual(self.problems("tiers/io/a.cc", "#include <liburing.h>"), [])
        self.assertEqual(self.problems("kernels/a.cc", "#include <isa-l/crc.h>"), [])

    def test_cuda_stays_behind_the_device_interface(self):
        self.assertTrue(self.problems("tiers/device/gpu_addresses.cc", "#include <cuda.h>"))
        self.assertTrue(self.problems("kernels/a.cu", "#include <cuda_runtime.h>"))
        self.assertTrue(self.problems("daemon/service/a.cc", '#include "tiers/device/cuda_driver.h"'))
        self.assertTrue(self.problems("daemon/engine/a.cc", '#include "tiers/device/gpu.h"'))
        self.assertTrue(self.problems("tiers/device/cuda_gpu.cc", "#include <dlfcn.h>"))
        self.assertEqual(self.problems("tiers/device/cuda_device.cc", "#include <cuda.h>"), [])
        self.assertEqual(self.problems("tiers/device/cuda_driver.cc", "#include <dlfcn.h>"), [])
        self.assertEqual(self.problems("daemon/service/a.cc", '#include "tiers/device/cuda_gpu.h"'), [])
        self.assertEqual(self.problems("kernels/a.cu", '#include "kernels/paged_copy_launch.h"'), [])


if __name__ == "__main__":
    sys.exit(unittest.main())
