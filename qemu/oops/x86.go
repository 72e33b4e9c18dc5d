package oops

import "regexp"

// x86 is x86-64 and x86-32.
var x86 = architecture{
	rules: []rule{
		// IBT and jump labels say what failed in their own line; the BUG or invalid
		// opcode behind it is the same crash. arch/x86/kernel/cet.c and jump_label.c.
		{
			kind: "ibt", hint: "Missing ENDBR: ", blame: blameLine,
			anchor: regexp.MustCompile(`Missing ENDBR: ` + inF), title: "missing ENDBR",
		}, {
			kind: "bug", hint: "jump_label: Fatal ", blame: blameLine,
			anchor: regexp.MustCompile(`jump_label: Fatal kernel bug, unexpected op at ` + inF),
			title:  "jump_label: unexpected op",
		},
		// Page faults: arch/x86/mm/fault.c. Up to 5.0 "unable to handle kernel ...".
		{
			kind: "oops", hint: "kernel NULL pointer dereference", blame: blamePC,
			anchor: regexp.MustCompile(`BUG: (?:unable to handle )?kernel NULL pointer dereference`),
			title:  "BUG: unable to handle kernel NULL pointer dereference",
		}, {
			kind: "oops", hint: "nable to handle ", blame: blamePC,
			anchor: regexp.MustCompile(`BUG: unable to handle (?:page fault\b|kernel paging request)`),
			title:  "BUG: unable to handle kernel paging request",
		},
		// arch/x86/kernel/traps.c, arch/x86/mm/extable.c.
		{
			kind: "panic", hint: "PANIC: double fault", blame: blamePC,
			anchor: regexp.MustCompile(`PANIC: double fault`), title: "PANIC: double fault",
		}, {
			kind: "panic", hint: "PANIC: early exception", blame: blamePC, end: endOfTask,
			anchor: regexp.MustCompile(`PANIC: early exception`), title: "PANIC: early exception",
		},
		// Exceptions: __die_header in arch/x86/kernel/dumpstack.c; "Oops: " stands
		// before all of them since 6.10. The user-space form has "ip:" in place of
		// the error code: "traps: prog[12] general protection fault ip:...".
		{
			kind: "oops", hint: "[#", blame: blamePC,
			anchor: regexp.MustCompile(`(?:(general protection fault)|\b(stack segment|divide error|invalid opcode|int3))(?:,? .*)?: [0-9a-f]{4}\b`),
			not:    userFault, title: "$1$2",
		}, {
			kind: "oops", hint: "divide_error", blame: blamePC, // 5.9
			anchor: regexp.MustCompile(`\bdivide_error: [0-9a-f]{4} \[#\d+\]`), title: "divide error",
		}, {
			kind: "oops", hint: "Oops: ", blame: blamePC, // a page fault whose first line is lost
			anchor: regexp.MustCompile(`Oops: (?:Oops: )?[0-9a-f]{4,16} \[#\d+\]`), title: "Oops",
		}, {
			kind: "oops", hint: "[#", blame: blamePC,
			anchor: regexp.MustCompile(`(?:\bOops: |^)([A-Za-z#][^:]*): [0-9a-f]{4} \[#\d+\]`),
			not:    userFault, title: "Oops: $1",
		},
	},
	// show_ip in arch/x86/kernel/dumpstack.c. A selector that ends in privilege
	// level 3 is user space's. Before 4.12 with addresses, before 4.0 "EIP is at".
	pc: []*regexp.Regexp{
		regexp.MustCompile(`^[RE]?IP: (?:[0-9a-f]{3}[0-24-689ac-e]:)?(?:\[<[0-9a-f]+>\] *)*(?:(` + symbol + `)(?:\+0x| \()|0x[0-9a-f]|\(null\)|$)`),
		regexp.MustCompile(`^[RE]?IP: (?:[0-9a-f]{3}[0-24-689ac-e]:)?(` + symbol + `)(?: [^\[]*)?$`), // cut, or with bytes in it that are none of a name
		regexp.MustCompile(`^(?:RIP +\[<[0-9a-f]+>\]|EIP is at) +(` + symbol + `)\+0x`),
	},
	trap: []string{
		`(?:asm_)?(?:exc|sysvec|common)_\w+`, `\w*apic_timer_interrupt\w*`, `nmi`, `end_repeat_nmi`, `ret_from_intr`, `reschedule_interrupt`, `call_function_\w*interrupt`, `async_page_fault`, `page_fault`, `invalid_op`, `double_fault`, `general_protection`,
	},
	entry: []string{
		`entry_\w+`, `ret_from_fork\w*`, `start_secondary`, `secondary_startup_\w+`, `x86_64_start_\w+`, `tracesys`, `system_call_fastpath`, `sysenter_\w+`,
	},
	report: []string{
		`page_fault_oops`, `no_context`, `\w*bad_area\w*`, `kernelmode_fixup_or_oops`, `do_kern_addr_fault`, `do_(?:user|kern)_addr_fault`, `mm_fault_error`, `spurious_\w*fault`,
		`do_(?:error_)?trap\w*`, `do_int3`, `do_page_fault`, `__do_page_fault`, `do_invalid_op`, `do_general_protection`, `do_double_fault`, `do_nmi`, `default_do_nmi`, `nmi_handle`, `handle_stack_overflow`,
	},
}
