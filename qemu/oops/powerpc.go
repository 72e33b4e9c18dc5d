package oops

import "regexp"

// powerpc prints "NIP [addr] F" and "LR [addr] F" (show_regs,
// arch/powerpc/kernel/process.c); the first frame of a trace is often the link
// register's, "(unreliable)".
var powerpc = architecture{
	rules: []rule{
		// bad_page_fault, arch/powerpc/mm/fault.c.
		{
			kind: "oops", hint: "ernel NULL pointer dereference", blame: blamePC,
			anchor: regexp.MustCompile(`BUG: Kernel NULL pointer dereference`), title: "BUG: unable to handle kernel NULL pointer dereference",
		}, {
			kind: "oops", hint: "nable to handle kernel ", blame: blamePC,
			anchor: regexp.MustCompile(`(?:BUG: )?Unable to handle kernel (data access|instruction fetch|unaligned access|unknown fault)`), title: "BUG: unable to handle kernel $1",
		}, {
			// __die, arch/powerpc/kernel/traps.c, behind the line that says more.
			kind: "oops", hint: ", sig: ", blame: blamePC,
			anchor: regexp.MustCompile(`Oops: (.+?), sig: \d+ \[#\d+\]`), title: "Oops: $1",
		},
	},
	pc: []*regexp.Regexp{
		regexp.MustCompile(`^NIP \[[0-9a-f]+\] (?:(` + symbol + `)(?:\+0x| \()|0x[0-9a-f]+)`),
		regexp.MustCompile(`^--- (?:interrupt|Exception): \w+ at (` + symbol + `)\+0x`),
	},
	caller: []*regexp.Regexp{regexp.MustCompile(`^LR \[[0-9a-f]+\] (` + symbol + `)(?:\+0x| \()`)},
	trap:   []string{`(?:decrementer|hardware_interrupt|data_access|instruction_access|program_check|performance_monitor|system_reset|machine_check|doorbell_super)_common\w*`, `interrupt_return\w*`},
	entry:  []string{`system_call_(?:exception|common|vectored_common)`, `ret_from_kernel_\w*thread`, `ret_from_syscall`, `start_here_common`, `system_call`, `start_secondary\w*`},
	report: []string{`_*bad_page_fault`, `exception_(?:common|handler)\w*`, `program_check_exception`, `do_program_check`, `___do_page_fault`, `__do_page_fault`, `_exception\w*`, `system_reset_exception`, `timer_interrupt`, `soft_nmi_\w+`},
}
