package oops

import "regexp"

// riscv shares "Unable to handle kernel ..." with arm64; the registers are
// __show_regs's, arch/riscv/kernel/process.c.
var riscv = architecture{
	rules: []rule{
		{
			kind: "bug", hint: "Kernel BUG [#", blame: blamePC, // handle_break, arch/riscv/kernel/traps.c: its first line is lost
			anchor: regexp.MustCompile(`Kernel BUG \[#\d+\]`), title: "kernel BUG",
		}, {
			kind: "oops", hint: "Oops - ", blame: blamePC, // do_trap_error, arch/riscv/kernel/traps.c
			anchor: regexp.MustCompile(`^Oops - ([A-Za-z][^\[]*[^\[ ]) \[#\d+\]`), title: "Oops: $1",
		}, {
			kind: "oops", hint: "Oops [#", blame: blamePC, // a page fault whose first line is lost
			anchor: regexp.MustCompile(`^Oops \[#\d+\]`), title: "Oops",
		}, {
			kind: "panic", hint: "Kernel stack overflow", blame: blameTrace, // handle_bad_stack
			anchor: regexp.MustCompile(`Kernel panic - not syncing: Kernel stack overflow`), title: "kernel panic: Kernel stack overflow",
		},
	},
	pc:     []*regexp.Regexp{regexp.MustCompile(`^epc ?: (?:[0-9a-f]{8,16} )?(?:(` + symbol + `)(?:\+0x| \()|0x[0-9a-f]+)`)},
	caller: []*regexp.Regexp{regexp.MustCompile(`^ra ?: (?:[0-9a-f]{8,16} )?(` + symbol + `)(?:\+0x| \()`)},
	trap:   []string{`handle_exception`, `ret_from_exception`, `do_irq`, `handle_riscv_irq`, `riscv_intc_irq`},
	entry:  []string{`do_trap_ecall_u`, `ret_from_syscall\w*`, `handle_syscall`, `smp_callin`, `syscall_handler`, `_*riscv_sys_\w+_wrapper`},
	report: []string{`do_trap_\w+`, `die_kernel_fault`, `handle_break`, `probe_single_step_handler`, `handle_page_fault`, `do_page_fault`, `handle_bad_stack`, `walk_stackframe`},
}
