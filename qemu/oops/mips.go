package oops

import "regexp"

// mips prints where as "epc : addr F+0x1/0x2" and "ra : addr F+0x1/0x2"
// (__show_regs, arch/mips/kernel/traps.c).
var mips = architecture{
	rules: []rule{
		{
			kind: "bug", hint: "ernel bug detected", blame: blamePC, // do_trap_or_bp, arch/mips/kernel/traps.c; loongarch's alike
			anchor: regexp.MustCompile(`Kernel bug detected ?\[#\d+\]`), title: "kernel BUG",
		}, {
			kind: "oops", hint: "[#", blame: blamePC, // die, arch/mips/kernel/traps.c and arch/loongarch/kernel/traps.c
			anchor: regexp.MustCompile(`^Oops\[#\d+\]`), title: "Oops",
		}, {
			kind: "oops", hint: "[#", blame: blamePC,
			anchor: regexp.MustCompile(`^(?:Oops - )?([A-Z][A-Za-z ]+)\[#\d+\]:`), title: "Oops: $1",
		}, {
			kind: "oops", hint: " bus error, ", blame: blamePC, // do_be
			anchor: regexp.MustCompile(`^((?:Data|Instruction) bus error), epc == `), title: "Oops: $1",
			proof: regexp.MustCompile(`^Oops\[#`),
		},
	},
	pc:     []*regexp.Regexp{regexp.MustCompile(`^epc +: +[0-9a-f]{8,16} (?:(` + symbol + `)(?:\+0x)|0x[0-9a-f]+)`)},
	caller: []*regexp.Regexp{regexp.MustCompile(`^ra +: +[0-9a-f]{8,16} (` + symbol + `)\+0x`)},
	trap:   []string{`handle_int`, `rollback_handle_int`, `except_vec_\w+`, `handle_(?:tlb[lms]|ade[ls]|sys|bp|ri|tr)\w*`, `tlb_do_page_fault_\d`, `ret_from_irq`},
	entry:  []string{`syscall_common`, `handle_sys(?:64|n32)?`, `ret_from_kernel_thread`, `stack_done`},
	report: []string{`do_(?:trap_or_bp|bp|tr|ri|ade|be)`, `__do_page_fault`, `plat_irq_dispatch`},
}
