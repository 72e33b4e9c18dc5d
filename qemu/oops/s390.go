package oops

import "regexp"

// s390 prints where behind the program status word, "Krnl PSW : mask addr (F+0x1/0x2)"
// (show_registers, arch/s390/kernel/dumpstack.c).
var s390 = architecture{
	rules: []rule{
		{
			kind: "oops", hint: " ilc:", blame: blamePC, // die, arch/s390/kernel/dumpstack.c
			anchor: regexp.MustCompile(`^Oops: [0-9a-f]{4} ilc:\d \[#\d+\]`), title: "Oops",
		}, {
			kind: "oops", hint: " ilc:", blame: blamePC,
			anchor: regexp.MustCompile(`^([A-Za-z][A-Za-z -]+): [0-9a-f]{4} ilc:\d \[#\d+\]`), title: "Oops: $1",
		},
	},
	pc: []*regexp.Regexp{
		regexp.MustCompile(`^Krnl PSW : [0-9a-f]{16} [0-9a-f]{16} \((?:\[<[0-9a-f]+>\] )?(?:(` + symbol + `)(?:\+0x)|0x[0-9a-f]+)`),
	},
	trap:   []string{`pgm_check_handler`, `io_int_handler`, `ext_int_handler`, `mcck_int_handler`, `ext_no_vtime`, `io_no_vtime`, `do_ext_irq`, `do_io_irq`},
	entry:  []string{`__do_syscall`, `system_call`, `do_syscall`, `ret_from_fork\w*`, `__ret_from_fork`, `kernel_thread_starter`, `smp_start_secondary`},
	report: []string{`__do_pgm_check`, `do_protection_exception`, `do_dat_exception`, `do_exception`, `handle_fault_error_nolock`, `monitor_event_exception`, `illegal_op`},
}
