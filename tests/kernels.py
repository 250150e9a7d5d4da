"""What scripts/kernels.py finds wrong with compiled kernels. Run by tests/scripts.rs."""

import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "scripts"))
import kernels

LOG = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'norm' for 'sm_90'
ptxas         .     0 bytes stack frame, {spilled} bytes spill stores, 0 bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers
ptxas info    : Compiling entry function 'rope' for 'sm_90'
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers
"""
PTX = """.version 9.0
.visible .entry norm(
	.param .u64 norm_param_0
){bound}
{{
	.reg .b32 	%r<140>;
}}
.visible .entry rope(
	.param .u64 rope_param_0
)
{{
}}
"""


def problems(registers, bound="", spilled=0):
    return list(kernels.problems(LOG.format(registers=registers, spilled=spilled), PTX.format(bound=bound)))


class Kernels(unittest.TestCase):
    def test_a_block_has_registers_for_all_its_threads(self):
        self.assertEqual(problems(64), [])
        (found,) = problems(65)
        self.assertIn("norm cannot start: 72 registers for each of 1024 threads", found)
        # The threads are those of its own launch bound.
        self.assertEqual(problems(128, "\n.maxntid 512, 1, 1"), [])
        self.assertEqual(len(problems(129, "\n.maxntid 512, 1, 1")), 1)

    def test_registers_stay_out_of_memory(self):
        self.assertEqual(problems(40, spilled=8), ["8 bytes of registers in memory"])

    def test_a_warning_is_a_failure(self):
        warned = "norm(135): warning #128-D: loop is not reachable\n" + LOG.format(registers=40, spilled=0)
        self.assertEqual(list(kernels.problems(warned, PTX.format(bound=""))), ["the compiler warns"])

    def test_what_cannot_be_read_is_no_success(self):
        for log, ptx in [("", ""), (LOG.format(registers=40, spilled=0), ""), ("", PTX.format(bound=""))]:
            self.assertEqual(len(list(kernels.problems(log, ptx))), 1)


if __name__ == "__main__":
    unittest.main()
