package oops

import (
	"regexp"
	"strings"
)

// rule says how one kind of crash report begins on a Linux console, how it is
// named, and which function it blames. The rules are tried in order; the first
// that fits names the report. The wordings are those of Linux 6.12 (the file is
// named beside each) and of the older and newer kernels that differ.
type rule struct {
	kind   string
	hint   string         // stands in every line that anchor takes: a quick first test
	anchor *regexp.Regexp // the report's first line, prefixes stripped; group F is the function, if the line names it
	not    *regexp.Regexp // lines that anchor takes and that are no crash
	title  string         // regexp.Expand template over anchor; " in F" comes behind it
	blame  blame

	detail  *regexp.Regexp // group 1 of the first later line that matches is added to the title
	skip    *regexp.Regexp // frames that are never to blame here, besides plumbing
	foreign *regexp.Regexp // a frame of traces that are not of what failed
	end     *regexp.Regexp // a line that ends the report, besides endOfReport

	warning bool // counts only where warnings are asked for
	anyCPU  bool // the trace is printed by another CPU or task than the anchor
	oneLine bool // nothing follows: complete at once
	before  bool // where group 1 is empty, it is the last line before that is not blank
	second  bool // the first such line of a console is no crash
}

// blame is where a report's function is looked for. Plumbing is passed over,
// and named only if there is nothing else.
type blame int

const (
	blameNone  blame = iota
	blameRIP         // the anchor's F, else the RIP line, else the call trace
	blameLine        // the anchor's F even if it is plumbing, else as blameRIP
	blameTrace       // the anchor's F, else the call trace
	blameStall       // the frame above the entry into the kernel: the top one is chance
)

const (
	symbol = `[A-Za-z_$][\w$.]*`
	inF    = `(?:(?P<F>` + symbol + `)\+0x|)` // %pS: a bare address where kallsyms knows no name
)

// sanitizer is the first line of the reports of one of the sanitizers.
func sanitizer(name string) *regexp.Regexp {
	return regexp.MustCompile(`BUG: ` + name + `: ([\w -]+?)(?: in (?:(?P<F>` + symbol + `)|0x)|$|[^\w -])`)
}

var rules = []rule{
	// Sanitizers: mm/kasan/report.c, mm/kmsan/report.c, kernel/kcsan/report.c,
	// mm/kfence/report.c, lib/ubsan.c (the form with "at F" is UBSAN_TRAP's).
	{
		kind: "kasan", hint: "BUG: KASAN: ", blame: blameTrace,
		anchor: sanitizer("KASAN"), title: "KASAN: $1", end: ruler,
		detail: regexp.MustCompile(`^(Read|Write) (?:of size|at addr) `),
	}, {
		kind: "kmsan", hint: "BUG: KMSAN: ", blame: blameTrace,
		anchor: sanitizer("KMSAN"), title: "KMSAN: $1", end: ruler,
	}, {
		kind: "kcsan", hint: "BUG: KCSAN: ", blame: blameTrace,
		anchor: sanitizer("KCSAN"), title: "KCSAN: $1", end: ruler,
	}, {
		kind: "kfence", hint: "BUG: KFENCE: ", blame: blameTrace,
		anchor: sanitizer("KFENCE"), title: "KFENCE: $1", end: ruler,
	}, {
		kind: "ubsan", hint: "UBSAN: ", blame: blameTrace,
		anchor: regexp.MustCompile(`UBSAN: ([\w/ -]+?) (?:in \S+:\d+|at ` + inF + `)`),
		title:  "UBSAN: $1", end: ruler,
	},
	// CFI, IBT and jump labels say what failed in their own line; the BUG or
	// invalid opcode behind it is the same crash. kernel/cfi.c,
	// arch/x86/kernel/cet.c, arch/x86/kernel/jump_label.c.
	{
		kind: "cfi", hint: "CFI failure at ", blame: blameLine,
		anchor: regexp.MustCompile(`CFI failure at ` + inF), title: "CFI failure",
	}, {
		kind: "ibt", hint: "Missing ENDBR: ", blame: blameLine,
		anchor: regexp.MustCompile(`Missing ENDBR: ` + inF), title: "missing ENDBR",
	}, {
		kind: "bug", hint: "jump_label: Fatal ", blame: blameLine,
		anchor: regexp.MustCompile(`jump_label: Fatal kernel bug, unexpected op at ` + inF),
		title:  "jump_label: unexpected op",
	},
	// Page faults: arch/x86/mm/fault.c. Up to 5.0 and on Arm the wording is
	// "unable to handle kernel ...".
	{
		kind: "oops", hint: "kernel NULL pointer dereference", blame: blameRIP,
		anchor: regexp.MustCompile(`(?:BUG: |BUG: unable to handle |Unable to handle )kernel NULL pointer dereference`),
		title:  "BUG: unable to handle kernel NULL pointer dereference",
	}, {
		kind: "oops", hint: "nable to handle ", blame: blameRIP,
		anchor: regexp.MustCompile(`(?:BUG: u|U)nable to handle (?:page fault for address|kernel paging request)`),
		title:  "BUG: unable to handle kernel paging request",
	},
	// lib/bug.c; lib/list_debug.c and mm/usercopy.c find what others broke.
	{
		kind: "bug", hint: "kernel BUG at ", blame: blameRIP,
		anchor: regexp.MustCompile(`kernel BUG at (?:.* )?\S*\blist_debug\.c:\d+!`), title: "BUG: corrupted list",
	}, {
		kind: "bug", hint: "kernel BUG at ", blame: blameRIP,
		anchor: regexp.MustCompile(`kernel BUG at (?:.* )?\S*\busercopy\.c:\d+!`), title: "BUG: bad usercopy",
		skip: regexp.MustCompile(`^(?:usercopy_|_*check_|_*copy_|_*raw_copy_|_*inline_copy_)`),
	}, {
		kind: "bug", hint: "ernel BUG at ", blame: blameRIP,
		anchor: regexp.MustCompile(`kernel BUG at (?:.* )?\S+:\d+!|Kernel BUG at ` + inF), title: "kernel BUG",
	}, {
		kind: "bug", hint: "BUG: ", blame: blameTrace, // mm/page_alloc.c, mm/memory.c, kernel/sched/core.c
		anchor: regexp.MustCompile(`BUG: (Bad page state|Bad page map|scheduling while atomic)\b`), title: "BUG: $1",
		not:  regexp.MustCompile(`messages suppressed`),
		skip: regexp.MustCompile(`^(?:bad_page|print_bad_pte|__schedule|schedule|preempt_schedule)`),
	},
	// kernel/panic.c. Since 6.19: "WARNING: FILE:LINE at F, CPU#N: COMM/PID";
	// before 3.14: "WARNING: at FILE:LINE F()".
	{
		kind: "warning", hint: "WARNING: ", blame: blameRIP, warning: true,
		anchor: regexp.MustCompile(`WARNING: (?:CPU: \d+ PID: \d+ at (?:\S+:\d+ ?)?|at \S+:\d+ |(?:.* )?\S+:\d+ at )(?:(?P<F>` +
			symbol + `)\+0x|0x[0-9a-f]|\[?<[0-9a-f]|$)`),
		title: "WARNING",
	},
	// kernel/watchdog.c, kernel/rcu/tree_stall.h, tree_exp.h and tasks.h, kernel/hung_task.c.
	{
		kind: "lockup", hint: "BUG: soft lockup", blame: blameRIP, end: endOfTask,
		anchor: regexp.MustCompile(`BUG: soft lockup`), title: "BUG: soft lockup",
	}, {
		kind: "lockup", hint: "hard LOCKUP on cpu", blame: blameRIP, end: endOfTask, anyCPU: true,
		anchor: regexp.MustCompile(`Watchdog detected hard LOCKUP on cpu`), title: "BUG: hard lockup",
	}, {
		kind: "stall", hint: "INFO: rcu_", blame: blameStall, end: endOfTask, anyCPU: true,
		anchor:  regexp.MustCompile(`INFO: rcu_\w+ (?:self-)?detected (?:expedited )?stall`),
		foreign: regexp.MustCompile(`^rcu_gp_kthread$`), // a starved grace-period thread: a victim
		title:   "INFO: rcu detected stall",
	}, {
		kind: "hung task", hint: "INFO: task ", blame: blameTrace, end: endOfTask,
		anchor: regexp.MustCompile(`INFO: task .+:\d+ blocked (?:in I/O wait )?for more than \d+ seconds`), title: "INFO: task hung",
		skip: regexp.MustCompile(`^_*(?:schedule|io_schedule|context_switch|preempt_schedule|(?:do_)?wait_for_|wait_on_|wait_woken|bit_wait|out_of_line_wait_|percpu_down_|percpu_rwsem_)`),
	},
	// arch/x86/kernel/traps.c, arch/x86/mm/extable.c.
	{
		kind: "panic", hint: "PANIC: double fault", blame: blameRIP,
		anchor: regexp.MustCompile(`PANIC: double fault`), title: "PANIC: double fault",
	}, {
		kind: "panic", hint: "PANIC: early exception", blame: blameRIP, end: endOfTask,
		anchor: regexp.MustCompile(`PANIC: early exception`), title: "PANIC: early exception",
	},
	// Exceptions: __die_header in arch/x86/kernel/dumpstack.c; "Oops: " stands
	// before all of them since 6.10. The user-space form has "ip:" in place of
	// the error code: "traps: prog[12] general protection fault ip:...".
	{
		kind: "oops", hint: "[#", blame: blameRIP,
		anchor: regexp.MustCompile(`\b(general protection fault|stack segment|divide error|invalid opcode|int3)(?:, .*)?: [0-9a-f]{4}\b`),
		not:    userFault, title: "$1",
	}, {
		kind: "oops", hint: "Oops: ", blame: blameRIP, // a page fault whose first line is lost
		anchor: regexp.MustCompile(`Oops: (?:Oops: )?[0-9a-f]{4,16} \[#\d+\]`), title: "Oops",
	}, {
		kind: "oops", hint: "[#", blame: blameRIP,
		anchor: regexp.MustCompile(`(?:\bOops: |^)([A-Za-z#][^:]*): [0-9a-f]{4} \[#\d+\]`),
		not:    userFault, title: "Oops: $1",
	},
	{
		kind: "panic", hint: "Kernel panic - not syncing: ", // kernel/panic.c
		anchor: regexp.MustCompile(`Kernel panic - not syncing: (.*)`), title: "kernel panic: $1",
		not: regexp.MustCompile(`end Kernel panic`),
	}, {
		kind: "reboot", hint: "Linux version ", second: true, oneLine: true, // init/version-timestamp.c
		anchor: regexp.MustCompile(`^Linux version \d`), title: "unexpected kernel reboot",
	}, {
		kind: "decompressor", hint: "-- System halted", before: true, oneLine: true, // arch/x86/boot/compressed/error.c
		anchor: regexp.MustCompile(`^(.*?) *-- System halted`), title: "decompressor: $1",
	},
}

var (
	ruler     = regexp.MustCompile(`^={10,}$`)
	endOfTask = regexp.MustCompile(`^</TASK>`)
	userFault = regexp.MustCompile(`\bip:[0-9a-f]+ sp:|\berror:[0-9a-f]+ in `)

	// endOfReport ends any report: its own last line, the panic that it led to,
	// a second oops while the first was being printed.
	endOfReport = regexp.MustCompile(`^---\[ end (?:trace|Kernel panic)|^Kernel panic - not syncing: |^Kernel Offset: |^Rebooting in |-- System halted|\[#(?:[2-9]|\d\d+)\]`)

	// ofWarning is a panic that a WARNING led to (check_panic_on_warn): the
	// WARNING is the crash, counted or not.
	ofWarning = regexp.MustCompile(`panic_on_warn set|system warned too often`)

	// noReport is a line that quotes: the kernel command line may hold anything.
	noReport = regexp.MustCompile(`^(?:Kernel command line|Command line|Unknown kernel command line parameters)\b`)

	ripLine   = regexp.MustCompile(`^(?:[RE]IP: (?:([0-9a-f]{4}):)?|pc : )(?:\[<[0-9a-f]+>\] +)*(` + symbol + `)?`)
	traceLine = regexp.MustCompile(`^(?:Call [Tt]race:|</TASK>)`)
	frameLine = regexp.MustCompile(`^(?:\[<[0-9a-f]+>\] +)?(` + symbol + `)\+0x[0-9a-f]+/0x[0-9a-f]+(?: (?:\[[^\]]*\]|\([A-Z]+\)))*$`)
)

// plumbing is what stands between a failure and its report, or does a chore for
// whoever is to blame: never blamed if anything else is there.
var plumbing = regexp.MustCompile(`^(?:` + strings.Join([]string{
	// panics, warnings, traps, and the printing of reports
	`panic`, `nmi_panic`, `check_panic_on_warn`, `_*warn\w*`, `\w*_warn_saturate`, `_*report_bug`, `handle_bug`,
	`dump_stack\w*`, `_*dump_stack`, `show_(?:stack|regs|trace)\w*`, `sched_show_task`, `print_(?:report|address|error)\w*`, `end_report`,
	`_*die(?:_\w+)?`, `oops_\w+`, `page_fault_oops`, `no_context`, `\w*bad_area\w*`, `kernelmode_fixup_or_oops`, `do_(?:user|kern)_addr_fault`,
	`(?:asm_)?(?:exc|sysvec)_\w+`, `do_(?:error_)?trap\w*`, `do_int3`, `do_page_fault`, `page_fault`, `async_page_fault`, `invalid_op`, `do_invalid_op`,
	`_?printk\w*`, `vprintk\w*`, `console_\w+`, `_*vs?c?n?printf`, `__stack_chk_fail`,
	// sanitizers and checks
	`_*(?:kasan|kmsan|kcsan|kfence|ubsan|asan|msan|tsan|hwasan)_\w+`, `check_memory_region\w*`, `refcount_\w+`,
	// locks
	`_*(?:native_|pv_|do_)*(?:queued|raw)_(?:spin|read|write)_(?:\w+_)?(?:try|un)?lock\w*`, `_*(?:spin|read|write)_(?:try|un)?lock\w*`,
	`_*mutex_\w+`, `_*(?:down|up)_(?:read|write)\w*`, `_*(?:down|up)`, `rwsem_\w+`, `_*lock_(?:acquire|release|acquired)`, `osq_\w+`, `rt_mutex_\w+`,
	// memory, strings, lists, trees
	`_*mem(?:cpy|set|move|cmp|chr|scan|dup)\w*`, `_*str(?:n|l|s)?(?:len|cpy|scpy|cmp|cat|chr|str|pbrk|sep|spn|dup|casecmp)\w*`, `rep_(?:movs|stos)_\w+`,
	`_*(?:raw_)?copy_(?:from|to)_\w+`, `(?:clear|copy)_page\w*`, `_*h?p?l?list_\w+`, `_*rb_\w+`, `rb(?:tree)?_\w+`,
	// thunks that every indirect branch or return may go through
	`\w*(?:return|indirect)\w*_thunk\w*`, `__x86_\w*thunk\w*`,
}, `|`) + `)$`)

// entry is a function through which the kernel is entered or a task begins,
// and those below it whose argument decides what they do; names as cleaned.
var entry = regexp.MustCompile(`^(?:` + strings.Join([]string{
	`(?:__)?do_(?:fast_)?syscall_\w+`, `entry_\w+`, `x64_sys_call`, `sys_(?:ioctl|p?read(?:v|64)?|p?write(?:v|64)?)`, `ksys_(?:read|write)`,
	`kthread`, `worker_thread`, `process_one_work`, `process_scheduled_works`, `ret_from_fork\w*`,
	`kernel_init\w*`, `do_initcalls`, `do_one_initcall`, `do_basic_setup`, `start_kernel`, `do_idle`, `cpu_startup_entry`, `start_secondary`,
	`(?:asm_)?(?:sysvec|exc|common)_\w+`, `_*do_softirq`, `handle_softirqs`,
}, `|`) + `)$`)

// volatile is what differs from boot to boot in a line's text.
var volatile = []struct {
	re   *regexp.Regexp
	repl func(string) string
}{
	{regexp.MustCompile(symbol + `\+0x[0-9a-f]+(?:/0x[0-9a-f]+)?`), cleanSymbol},
	{regexp.MustCompile(`\[\d+\]`), func(string) string { return "[PID]" }},
	{regexp.MustCompile(`\b(?:0x)?[0-9a-fA-F]{5,}\b`), cleanNumber},
	{regexp.MustCompile(`\b(?:CPU|cpu)(?:[#:] ?| )\d+\b`), func(s string) string { return s[:len("CPU")] }},
}

var (
	// What compilers hang on a name: foo.llvm.123, foo.cold, foo.isra.0,
	// foo.constprop.0, foo.part.0; C itself has no dots in names.
	offsetOrSuffix = regexp.MustCompile(`^([^.+]+)[.+].*$`)
	madePrefix     = regexp.MustCompile(`^(?:__(?:pfx|cfi)_)+`)
	syscallPrefix  = regexp.MustCompile(`^(?:_{2,}(?:x64|ia32|x32|arm64|riscv|s390x|se|do)_(?:compat_)?sys_|SyS_)`)
)

// cleanSymbol strips offset, compilers' suffixes and prefixes, and the wrappers
// of system calls from a symbol as the kernel prints it.
func cleanSymbol(s string) string {
	s = offsetOrSuffix.ReplaceAllString(s, "$1")
	if bare := madePrefix.ReplaceAllString(s, ""); bare != "" {
		s = bare
	}
	return syscallPrefix.ReplaceAllString(s, "sys_")
}

// cleanNumber takes a run of hexadecimal digits for an address, a long number,
// or what it says: a word, a small value such as exitcode=0x0000000b.
func cleanNumber(s string) string {
	digits, prefixed := strings.CutPrefix(s, "0x")
	decimal := strings.Trim(digits, "0123456789") == ""
	switch {
	case prefixed && len(strings.TrimLeft(digits, "0")) <= 4:
		return s
	case prefixed, len(digits) == 16, !decimal && len(digits) >= 8:
		return "ADDR"
	case decimal:
		return "NUM"
	}
	return s
}

// cleanText makes the words of a line fit for a title.
func cleanText(s string) string {
	for _, v := range volatile {
		s = v.re.ReplaceAllStringFunc(s, v.repl)
	}
	return strings.Join(strings.Fields(s), " ")
}
