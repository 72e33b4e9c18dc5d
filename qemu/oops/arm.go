package oops

import "regexp"

// arm is 32 bits; where and from where are as on arm64 before 4.10:
// __show_regs, arch/arm/kernel/process.c.
var arm = architecture{
	rules: []rule{
		// do_DataAbort and do_PrefetchAbort, arch/arm/mm/fault.c; a program's own
		// fault ends with it, the kernel's is followed by "Internal error".
		{
			kind: "oops", hint: "Unhandled ", blame: blamePC,
			anchor: regexp.MustCompile(`Unhandled (fault|prefetch abort): ([^(]*[^( ])`), title: "Unhandled $1: $2",
			proof: regexp.MustCompile(`^Internal error: `),
		}, {
			kind: "oops", hint: "Alignment trap: not handling", blame: blamePC, // arch/arm/mm/alignment.c
			anchor: regexp.MustCompile(`Alignment trap: not handling instruction`), title: "Alignment trap",
			proof: regexp.MustCompile(`^Internal error: `),
		}, {
			kind: "oops", hint: "Internal error: : ", blame: blamePC, // an abort whose first line is lost
			anchor: regexp.MustCompile(`Internal error: : [0-9a-f]+ \[#\d+\]`), title: "Oops",
		},
	},
	trap:  []string{`__(?:dabt|pabt|irq|und|fiq)_(?:svc|usr)`},
	entry: []string{`ret_from_fork`, `ret_slow_syscall`, `vector_swi`, `secondary_startup\w*`},
	report: []string{
		`unwind_backtrace`, `c_backtrace`, `do_(?:DataAbort|PrefetchAbort|bad_area|undefinstr)`, `arm_notify_die`, `handle_fault`, `die_kernel_fault`, `handle_domain_irq`, `generic_handle_arch_irq`,
	},
}
