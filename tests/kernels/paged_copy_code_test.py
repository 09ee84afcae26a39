#!/usr/bin/env python3
"""The check of the kernels' code finds what it is there to find."""
import unittest

import paged_copy_code

LOAD = "ld.global.cs.v4.u32 {%r1,%r2,%r3,%r4}, [%rd1];\n"
STORE = "st.global.cs.v4.u32 [%rd2], {%r1,%r2,%r3,%r4};\n"
SOUND = LOAD * 4 + STORE * 4
WIDE_SASS = "LDG.E.EF.128 R4, [R2.64] ;\n" * 4 + "@!P0 STG.E.EF.128 [R2.64], R4 ;\n" * 4


def ptx(gather, scatter=SOUND):
    return f".visible .entry TerraceGatherPages(\n{gather}.entry TerraceScatterPages(\n{scatter}"


def sass(gather):
    return f"Function : TerraceGatherPages\n{gather}\nFunction : TerraceScatterPages\n{WIDE_SASS}"


class PagedCopyCodeTest(unittest.TestCase):
    def test_wide_code_passes(self):
        self.assertEqual(list(paged_copy_code.ptx_problems(ptx(SOUND))), [])
        self.assertEqual(list(paged_copy_code.sass_problems(sass(WIDE_SASS))), [])

    def test_narrow_accesses_are_named(self):
        for narrow in ("ld.global.u32", "ld.global.nc.v2.u32", "st.global.u8", "st.global.v4.u16"):
            self.assertTrue(any(narrow in problem for problem in
                                paged_copy_code.ptx_problems(ptx(SOUND + narrow + " %r1;\n"))))
        self.assertTrue(any("LDG.E.64" in problem for problem in
                            paged_copy_code.sass_problems(sass(WIDE_SASS + "LDG.E.64 R4 ;\n"))))

    def test_too_few_a_mixed_order_and_a_missing_kernel_are_named(self):
        self.assertTrue(list(paged_copy_code.ptx_problems(ptx(LOAD + STORE))))
        self.assertTrue(list(paged_copy_code.ptx_problems(ptx((LOAD + STORE) * 4))))
        self.assertTrue(list(paged_copy_code.ptx_problems(".entry TerraceGatherPages(\n" + SOUND)))


if __name__ == "__main__":
    unittest.main()
