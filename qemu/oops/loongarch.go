package oops

import "regexp"

// loongarch has mips's words for its exceptions (arch/loongarch/kernel/traps.c), its
// page faults are "CPU N Unable to handle kernel paging request at virtual address".
var loongarch = architecture{
	pc: []*regexp.Regexp{
		regexp.MustCompile(`^(?:ERA|era) *: +[0-9a-f]{8,16} (?:(` + symbol + `)(?:\+0x)|0x[0-9a-f]+)`),
	},
	caller: []*regexp.Regexp{regexp.MustCompile(`^ra *: +[0-9a-f]{8,16} (` + symbol + `)\+0x`)},
	trap:   []string{`handle_vint`, `handle_(?:ale|bce|bp|fpe|lbt|ri|sys|watch|reserved|adem|adef)\w*`, `handle_loongarch_irq`, `do_vint`},
	entry:  []string{`do_syscall`, `handle_syscall`, `smpboot_entry`, `kernel_entry`, `ret_from_kernel_thread_asm`},
	report: []string{`do_(?:ale|bce|bp|ri|watch|reserved)`, `show_backtrace\w*`},
}
