package oops

import "regexp"

// arm64 prints where as "pc : F+0x1/0x2" (show_regs, arch/arm64/kernel/process.c);
// up to 4.10 as "PC is at F", and its "pc : [<addr>] lr : [<addr>]" names nothing.
var arm64 = architecture{
	rules: []rule{
		// die_kernel_fault, arch/arm64/mm/fault.c; arm, riscv, s390, mips and loongarch
		// print the same words, and old powerpc: arch/*/mm/fault.c.
		{
			kind: "oops", hint: "nable to handle kernel ", blame: blamePC,
			anchor: regexp.MustCompile(`Unable to handle kernel (?:(NULL pointer dereference|paging request)|([a-z -]+?)(?: (?:outside|without|with) [a-z ]+)? (?:at|in) virtual )`),
			title:  "BUG: unable to handle kernel $1$2",
		},
		// bad_mode and __panic_unhandled, arch/arm64/kernel/entry-common.c and traps.c;
		// arm64_serror_panic, panic_bad_stack.
		{
			kind: "panic", hint: "Kernel panic - not syncing: ", blame: blameTrap,
			anchor: regexp.MustCompile(`Kernel panic - not syncing: (Asynchronous SError Interrupt|kernel stack overflow|[Bb]ad mode|Unhandled exception)`), title: "kernel panic: $1",
		},
		// die, arch/arm64/kernel/traps.c, where the line that says more is lost.
		{
			kind: "bug", hint: "Internal error: Oops - BUG", blame: blamePC,
			anchor: regexp.MustCompile(`Internal error: Oops - BUG: [0-9a-f]+ \[#\d+\]`), title: "kernel BUG",
		}, {
			kind: "cfi", hint: "Internal error: Oops - CFI", blame: blamePC,
			anchor: regexp.MustCompile(`Internal error: Oops - CFI: [0-9a-f]+ \[#\d+\]`), title: "CFI failure",
		},
		// ubsan_handler, of UBSAN_TRAP.
		{
			kind: "ubsan", hint: "Internal error: UBSAN: ", blame: blamePC,
			anchor: regexp.MustCompile(`Internal error: UBSAN: ([\w/ -]+?): [0-9a-f]+ \[#\d+\]`), title: "UBSAN: $1",
		},
		// die: "Internal error: Oops - BRK: 00000000f2000001 [#1]",
		// without its first line or where there is none; arch/arm/kernel/traps.c.
		{
			kind: "oops", hint: "Internal error: Oops", blame: blamePC,
			anchor: regexp.MustCompile(`Internal error: Oops: [0-9a-f]+ \[#\d+\]`), title: "Oops",
		}, {
			kind: "oops", hint: "Internal error: ", blame: blamePC,
			anchor: regexp.MustCompile(`Internal error: (?:Oops - )?([A-Za-z][^:]*): [0-9a-f]+ \[#\d+\]`), title: "Oops: $1",
		},
	},
	pc: []*regexp.Regexp{
		regexp.MustCompile(`^pc : (?:\[<[0-9a-f]+>\] )?(?:(` + symbol + `)(?:\+0x| \()|0x[0-9a-f]+|\(null\))`),
		regexp.MustCompile(`^(?:PC|pc) is at (?:(` + symbol + `)(?:\+0x| \()|0x[0-9a-f]+|\(null\))`),
	},
	caller: []*regexp.Regexp{
		regexp.MustCompile(`^lr : (?:\[<[0-9a-f]+>\] )?(` + symbol + `)(?:\+0x| \()`),
		regexp.MustCompile(`^LR is at (` + symbol + `)(?:\+0x| \()`),
	},
	trap: []string{
		`_*el1h?_\w+`, `__bad_stack`,
	},
	entry: []string{
		`do_el0_svc\w*`, `_*el0t?_\w+`, `_*invoke_syscall`, `__primary_switched`, `secondary_start_kernel`, `__secondary_switched`, `ret_to_user`, `ret_fast_syscall`, `work_pending`, `do_notify_resume`,
	},
	report: []string{
		`arm64_(?:serror_panic|is_fatal_ras_serror|notify_die|force_sig_\w+)`, `do_(?:serror|mem_abort|translation_fault|page_fault|alignment_fault|sea|bad|sp_pc_abort|debug_exception|tag_\w+|undefinstr|undef|el1_\w+|el0_undef|cpu_irq_mask\w*)`, `_*do_kernel_fault`, `_*do_user_fault`, `die_kernel_fault`,
		`bug_handler`, `\w*brk_handler\w*`, `call_break_hook`, `early_brk64`, `panic_bad_stack`, `handle_bad_stack`, `bad_mode`, `__panic_unhandled`, `enter_from_kernel_mode`, `call_on_irq_stack`, `do_interrupt_handler`, `gic_handle_irq`, `cfi_handler`, `__switch_to`,
	},
}
