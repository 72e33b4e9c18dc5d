package oops

import "regexp"

// firstRules are the reports that read alike on all architectures, but for those
// that an architecture's own table may say better: lastRules. The wordings are
// those of Linux 6.12 and of the older and newer kernels that differ; the kernel's
// file that prints each is named beside it, and in docs/consoles.md.
var firstRules = []rule{
	// Sanitizers: mm/kasan/report.c, mm/kmsan/report.c, kernel/kcsan/report.c,
	// mm/kfence/report.c, lib/ubsan.c (the form with "at F" is UBSAN_TRAP's).
	{
		kind: "kasan", hint: "BUG: KASAN: ", blame: blameTrace,
		anchor: sanitizer("KASAN"), title: "KASAN: $1", not: inlined, end: ruler,
		detail: regexp.MustCompile(`^(Read|Write) (?:of size|at addr) `),
		skip:   names(`kfree\w*`, `kvfree`, `kmem_cache_free`, `_*slab_free\w*`),
	}, {
		kind: "kmsan", hint: "BUG: KMSAN: ", blame: blameTrace,
		anchor: sanitizer("KMSAN"), title: "KMSAN: $1", not: inlined, end: ruler,
	}, {
		kind: "kcsan", hint: "BUG: KCSAN: ", blame: blameTrace,
		anchor: sanitizer("KCSAN"), title: "KCSAN: $1", not: inlined, end: ruler,
	}, {
		kind: "kfence", hint: "BUG: KFENCE: ", blame: blameTrace,
		anchor: sanitizer("KFENCE"), title: "KFENCE: $1", not: inlined, end: ruler,
	}, {
		kind: "ubsan", hint: "UBSAN: ", blame: blameTrace,
		anchor: regexp.MustCompile(`UBSAN: ([\w/ -]+?) (?:in \S+:\d+|at ` + inF + `)`),
		title:  "UBSAN: $1", end: ruler,
	},
	// CFI says what failed in its own line; the BUG or exception behind it is the
	// same crash: kernel/cfi.c. Before 6.1 it was a panic.
	{
		kind: "cfi", hint: "CFI failure at ", blame: blameLine,
		anchor: regexp.MustCompile(`CFI failure at ` + inF), title: "CFI failure",
	}, {
		kind: "cfi", hint: "CFI failure (target", blame: blameTrace,
		anchor: regexp.MustCompile(`Kernel panic - not syncing: CFI failure \(target`), title: "CFI failure",
	},
	// lib/bug.c; lib/list_debug.c and mm/usercopy.c find what others broke.
	{
		kind: "bug", hint: "ernel BUG at ", blame: blamePC,
		anchor: regexp.MustCompile(`kernel BUG at (?:.* )?\S*\blist_debug\.c:\d+!`), title: "BUG: corrupted list",
	}, {
		kind: "bug", hint: "ernel BUG at ", blame: blamePC,
		anchor: regexp.MustCompile(`kernel BUG at (?:.* )?\S*\busercopy\.c:\d+!`), title: "BUG: bad usercopy",
		skip: regexp.MustCompile(`^(?:usercopy_|_*check_|_*copy_|_*raw_copy_|_*inline_copy_)`),
	}, {
		kind: "bug", hint: "ernel BUG at ", blame: blamePC,
		anchor: regexp.MustCompile(`kernel BUG at (?:.* )?\S+:\d+!|Kernel BUG at ` + inF), title: "kernel BUG",
	},
	// mm/page_alloc.c, mm/memory.c, mm/swapfile.c, kernel/sched/core.c.
	{
		kind: "bug", hint: "BUG: scheduling ", blame: blameTrace, end: endOfTask,
		anchor: regexp.MustCompile(`BUG: scheduling while atomic(?:: (?P<T>.+?)/\d+/0x)?`), title: "BUG: scheduling while atomic",
		skip: regexp.MustCompile(`^(?:_*schedule|preempt_schedule|msleep|usleep_range)`),
	}, {
		kind: "bug", hint: "BUG: Bad page ", blame: blameTrace,
		anchor: regexp.MustCompile(`BUG: (Bad page (?:state|map|cache))\b`), title: "BUG: $1",
		not:  regexp.MustCompile(`messages suppressed`),
		skip: regexp.MustCompile(`^(?:free_page_is_bad|free_pages_prepare|free_pages_check|_*free_pages_ok|check_(?:new|free)_page|prep_new_page|get_page_from_freelist|post_alloc_hook|_*(?:set|reset)_page_owner|rmqueue|new_slab|allocate_slab)`),
	},
	// kernel/sched/core.c, lib/smp_processor_id.c, kernel/locking/spinlock_debug.c,
	// kernel/workqueue.c.
	{
		kind: "bug", hint: "BUG: sleeping ", blame: blameTrace, end: endOfTask,
		anchor: regexp.MustCompile(`BUG: sleeping function called from invalid context`), title: "BUG: sleeping function called from invalid context",
	}, {
		kind: "bug", hint: "BUG: using ", blame: blameTrace, end: endOfTask,
		anchor: regexp.MustCompile(`BUG: using (\w+\(\)) in preemptible`), title: "BUG: using $1 in preemptible code",
	}, {
		kind: "bug", hint: " on CPU#", blame: blameTrace, end: endOfTask,
		anchor: regexp.MustCompile(`BUG: ((?:spin|rw|write-|read-)lock(?:[ -][a-z]+)+?) on (?:UP on )?CPU#`), title: "BUG: $1",
	}, {
		kind: "bug", hint: "BUG: workqueue leaked ", blame: blameWork, end: endOfTask,
		anchor: regexp.MustCompile(`BUG: workqueue leaked (?:lock or atomic|atomic, lock or RCU)`), title: "BUG: workqueue leaked lock or atomic",
	},
	// kernel/fork.c, fs/dcache.c, fs/super.c, fs/open.c.
	{
		kind: "bug", hint: "BUG: Bad rss-counter ", blame: blameNone, oneLine: true,
		anchor: regexp.MustCompile(`BUG: Bad rss-counter state`), title: "BUG: Bad rss-counter state",
	}, {
		kind: "bug", hint: "BUG: non-zero ", blame: blameNone, oneLine: true,
		anchor: regexp.MustCompile(`BUG: (non-zero \w+(?: on freeing mm)?)\b`), title: "BUG: $1",
	}, {
		kind: "bug", hint: "still in use", blame: blameTrace,
		anchor: regexp.MustCompile(`BUG: Dentry .*still in use`), title: "BUG: Dentry still in use",
		skip: names(`umount_check`, `d_walk`, `do_one_tree`, `shrink_dcache_for_umount`),
	}, {
		kind: "bug", hint: "VFS: ", blame: blameTrace,
		anchor: regexp.MustCompile(`VFS: (Busy inodes after unmount|Close: file count is (?:0|zero))`), title: "VFS: $1",
	},
	// mm/slub.c.
	{
		kind: "slub", hint: "BUG ", blame: blameTrace, end: endOfTask,
		anchor: regexp.MustCompile(`(?:^|[^\w:] ?)BUG ([\w.:()-]+) \((?:Not tainted|Tainted: [^)]*)\): ([^\[]*[^\[ ])`), title: "BUG $1: $2",
		not:  regexp.MustCompile(`kasan: bad access`),
		skip: names(`print_trailer`, `object_err`, `slab_\w+`, `_*slab_\w+`, `check_\w+`, `alloc_debug_processing`, `free_debug_processing`, `free_to_partial_list`, `on_freelist`, `_*kmem_cache_\w+`, `_*unfreeze_partials`, `put_cpu_partial`, `flush_cpu_slab`, `deactivate_slab`, `kfree`, `discard_slab`, `list_slab_objects`, `shutdown_cache`),
	},
	// Lockdep, kernel/locking/lockdep.c. It goes on without itself, so it counts as a
	// WARNING. Up to 4.10 its headings stand in brackets: "[ INFO: ... ]".
	{
		kind: "lockdep", hint: " dependency detected", blame: blameTrace, end: endOfTask, warning: true,
		anchor: regexp.MustCompile(`\b(?:WARNING|INFO|BUG): possible (?:circular locking|irq lock inversion) dependency detected`), title: "possible deadlock",
		site: lockSite, skip: lockHelpers,
	}, {
		kind: "lockdep", hint: "possible recursive locking", blame: blameTrace, end: endOfTask, warning: true,
		anchor: regexp.MustCompile(`\b(?:WARNING|INFO|BUG): possible recursive locking detected`), title: "possible deadlock",
		site: lockSite, skip: lockHelpers,
	}, {
		kind: "lockdep", hint: "lock order detected", blame: blameTrace, end: endOfTask, warning: true,
		anchor: regexp.MustCompile(`\b(?:WARNING|INFO): \S+-safe -> \S+-unsafe lock order detected`), title: "possible deadlock",
		site: lockSite, skip: lockHelpers,
	}, {
		kind: "lockdep", hint: "inconsistent lock state", blame: blameTrace, end: endOfTask, warning: true,
		anchor: regexp.MustCompile(`\b(?:WARNING|INFO): inconsistent lock state`), title: "inconsistent lock state",
		site: lockSite, skip: lockHelpers,
	}, {
		kind: "lockdep", hint: "uspicious RCU usage", blame: blameTrace, end: endOfTask, warning: true,
		anchor: regexp.MustCompile(`\b(?:WARNING|INFO): suspicious RCU usage`), title: "WARNING: suspicious RCU usage",
		skip: lockHelpers,
	}, {
		kind: "lockdep", hint: "nvalid wait context", blame: blameTrace, end: endOfTask, warning: true,
		anchor: regexp.MustCompile(`BUG: Invalid wait context`), title: "BUG: Invalid wait context",
		site: lockSite, skip: lockHelpers,
	}, {
		kind: "lockdep", hint: "unlock balance", blame: blameTrace, end: endOfTask, warning: true,
		anchor: regexp.MustCompile(`\b(?:WARNING|BUG): bad unlock balance detected`), title: "WARNING: bad unlock balance",
		site: regexp.MustCompile(`is trying to release lock .* at:$|^(?:\[<[0-9a-f]+>\] )?(?P<F>` + symbol + `)\+0x`), skip: lockHelpers,
	}, {
		kind: "lockdep", hint: "held", blame: blameTrace, end: endOfTask, warning: true,
		anchor: regexp.MustCompile(`\b(?:WARNING|BUG|INFO): (?:.+/\d+ )?(still has locks held|held lock freed|lock held when returning to user space)`), title: "WARNING: $1",
		site: lockSite, skip: lockHelpers, // who took it
	}, {
		kind: "lockdep", hint: "lock was not taken", blame: blameTrace, end: endOfTask, warning: true,
		anchor: regexp.MustCompile(`\b(?:WARNING|BUG|INFO): [Nn]ested lock was not taken`), title: "WARNING: nested lock was not taken",
		skip: lockHelpers,
	}, {
		kind: "lockdep", hint: "non-static key", blame: blameTrace, end: endOfTask, warning: true,
		anchor: regexp.MustCompile(`INFO: trying to register non-static key`), title: "INFO: trying to register non-static key",
		skip: lockHelpers,
	},
	// mm/kmemleak.c; "BUG: memory leak" is how fuzzers print what it finds.
	{
		kind: "leak", hint: "memory leak", blame: blameTrace, warning: true,
		anchor: regexp.MustCompile(`kmemleak: \d+ new suspected memory leaks|BUG: memory leak`), title: "memory leak",
		skip: regexp.MustCompile(`^(?:kmemleak_|create_object|sock_kmalloc|new_inode|alloc_inode|\w*alloc_skb\w*|_*alloc_\w*|security_inode_alloc|_*kv?m\w*|_*kmem_\w+|slab_\w+|_*do_kmalloc\w*|pskb_\w+|skb_\w+|sk_(?:prot_)?alloc|mempool_\w+|_*percpu_\w+|pcpu_\w+|_*vmalloc\w*)`),
	},
	// kernel/dma/debug.c: before the WARNING that says no more.
	{
		kind: "dma", hint: "DMA-API: ", blame: blamePC, warning: true,
		anchor: regexp.MustCompile(`DMA-API: (?:\S+ \S+: )?(device driver [a-z ]+[a-z]|exceeded \d+ overlapping mappings|cacheline tracking \w+)`), title: "DMA-API: $1",
		not:  regexp.MustCompile(`disabled|preallocated|debugging (?:enabled|disabled)`),
		skip: names(`check_\w+`, `debug_dma_\w+`, `add_dma_entry`, `active_cacheline_\w+`, `dma_(?:un)?map_\w+`, `dma_(?:free|alloc)_\w+`, `_*dma_map_\w+`, `err_printk`),
	},
	// kernel/panic.c. Since 6.19: "WARNING: FILE:LINE at F, CPU#N: COMM/PID";
	// before 3.14: "WARNING: at FILE:LINE F()".
	{
		kind: "warning", hint: "WARNING: ", blame: blamePC, warning: true,
		anchor: regexp.MustCompile(`WARNING: (?:CPU: \d+ PID: \d+ at (?:\S+:\d+ ?)?|at \S+:\d+ |(?:.* )?\S+:\d+ at )(?:(?P<F>` +
			symbol + `)(?:\+0x|\(\)| \()|0x[0-9a-f]|\[?<[0-9a-f]|$)`),
		title: "WARNING", skip: assertions,
	},
	// kernel/watchdog.c and, on powerpc, arch/powerpc/kernel/watchdog.c;
	// kernel/rcu/tree_stall.h, tree_exp.h and tasks.h; kernel/hung_task.c;
	// kernel/workqueue.c.
	{
		kind: "lockup", hint: "BUG: soft lockup", blame: blamePC, end: endOfTask,
		anchor: regexp.MustCompile(`BUG: soft lockup(?:.*\[(?P<T>.+):\d+\])?`), title: "BUG: soft lockup", skip: stallFinders,
	}, {
		kind: "lockup", hint: "LOCKUP", blame: blamePC, end: endOfTask, anyCPU: true,
		anchor: regexp.MustCompile(`detected hard LOCKUP|CPU \d+ Hard LOCKUP`), title: "BUG: hard lockup", skip: stallFinders,
	}, {
		kind: "lockup", hint: "BUG: workqueue lockup", blame: blameWork, anyCPU: true,
		anchor: regexp.MustCompile(`BUG: workqueue lockup`), title: "BUG: workqueue lockup",
	}, {
		kind: "stall", hint: "INFO: rcu_", blame: blameStall, end: endOfTask, anyCPU: true,
		anchor:  regexp.MustCompile(`INFO: rcu_\w+ (?:self-)?detected (?:expedited )?stall`),
		foreign: regexp.MustCompile(`^rcu_gp_kthread$`), // a starved grace-period thread: a victim
		title:   "INFO: rcu detected stall", skip: stallFinders,
	}, {
		kind: "hung task", hint: "INFO: task ", blame: blameTrace, end: endOfTask,
		anchor: regexp.MustCompile(`INFO: task (?P<T>.+):\d+ blocked (?:in I/O wait )?for more than \d+ seconds`), title: "INFO: task hung",
		skip: sleepers,
	}, {
		kind: "hung task", hint: "INFO: task ", blame: blameTrace, end: endOfTask,
		anchor: regexp.MustCompile(`INFO: task (?P<T>.+):\d+ can't die (?:in|for) more than \d+ seconds`), title: "INFO: task can't die",
		skip: sleepers,
	},
}

// lastRules are those whose words an architecture's own rules use, too.
var lastRules = []rule{
	// kernel/panic.c and who calls it. The stack protector names the function.
	{
		kind: "panic", hint: "stack is corrupted in: ", blame: blameNone,
		anchor: regexp.MustCompile(`Kernel panic - not syncing: (stack-protector: Kernel stack is corrupted in: .*)`), title: "kernel panic: $1",
	}, {
		kind: "panic", hint: "corrupted stack end", blame: blameTrace, // kernel/sched/core.c
		anchor: regexp.MustCompile(`Kernel panic - not syncing: (corrupted stack end) detected`), title: "kernel panic: $1",
		skip: regexp.MustCompile(`^(?:_*schedule|_*preempt_schedule|_*cond_resched|retint_kernel)`),
	}, {
		kind: "panic", hint: "Kernel panic - not syncing: ",
		anchor: regexp.MustCompile(`Kernel panic - not syncing: (.*)`), title: "kernel panic: $1",
		not: regexp.MustCompile(`end Kernel panic`),
	}, {
		kind: "reboot", hint: "Linux version ", second: true, oneLine: true, // init/version-timestamp.c
		anchor: regexp.MustCompile(`^Linux version \d`), title: "unexpected kernel reboot",
	}, {
		kind: "decompressor", hint: "-- System halted", before: true, oneLine: true, // arch/*/boot/compressed
		anchor: regexp.MustCompile(`^(.*?) *-- System halted`), title: "decompressor: $1",
	}, {
		kind: "efi stub", hint: "EFI stub: ERROR: ", // drivers/firmware/efi/libstub
		anchor: regexp.MustCompile(`EFI stub: ERROR: (.*?)[!. ]*$`), title: "EFI stub: $1",
		not:     regexp.MustCompile(`FIRMWARE BUG|Secure Boot`), // it goes on
		refuted: regexp.MustCompile(`^(?:Linux version |Booting (?:Linux on|the kernel)|(?:Kernel c|C)ommand line: |Run /)`),
	},
}

const inF = `(?:(?P<F>` + symbol + `)(?:\+0x| \()|)` // %pS: a bare address where kallsyms knows no name

// sanitizer is the first line of the reports of one of the sanitizers.
func sanitizer(name string) *regexp.Regexp {
	return regexp.MustCompile(`BUG: ` + name + `: ([\w -]+?)(?: in (?:(?P<F>` + symbol + `)|0x)| on address |$|[^\w -])`)
}

var (
	inlined   = regexp.MustCompile(`\[inline\]`) // the function that it is in comes with the next line
	ruler     = regexp.MustCompile(`^={10,}$`)
	endOfTask = regexp.MustCompile(`^</TASK>`)
	userFault = regexp.MustCompile(`\bip:[0-9a-f]+ sp:|\berror:[0-9a-f]+ in `)

	// endOfReport ends any report: its own last line, the panic that it led to,
	// a second oops while the first was being printed. endOfAll does whoever says so.
	endOfReport = regexp.MustCompile(`^---\[ end trace|^Kernel panic - not syncing: |\[#(?:[2-9]|\d\d+)\]`)
	endOfAll    = regexp.MustCompile(`^---\[ end Kernel panic|^Kernel Offset: |^Rebooting in |-- System halted`)
	panicLine   = regexp.MustCompile(`^Kernel panic - not syncing: `)

	// ofWarning is a panic that a WARNING led to (check_panic_on_warn): the
	// WARNING is the crash, counted or not.
	ofWarning = regexp.MustCompile(`panic_on_warn set|system warned too often`)

	// noReport is a line that quotes: the kernel command line may hold anything.
	noReport = regexp.MustCompile(`^(?:Kernel command line|Command line|Unknown kernel command line parameters)\b`)

	// heading is the line above a trace; otherTrace is one above the trace of
	// something else that belongs to the report.
	heading    = regexp.MustCompile(`^(?:Call [Tt]race ?:|Call Trace:?$|[Bb]acktrace ?(?:\(crc [0-9a-f]+\))?:|</TASK>)`)
	otherTrace = regexp.MustCompile(`^(?:Allocated by |Freed by |Allocated in |Freed in |allocated by task |freed by task |Last potentially related |Second to last |Uninit was |Local variable |The buggy address |Memory state around |value changed: |Showing all locks held |Last Breaking-Event-Address|page last |page_owner tracks |the existing dependency chain )`)

	// sourceLine is the file and the line of a check that failed.
	sourceLine = regexp.MustCompile(`(?:BUG at|at|in|context at|WARNING:) ([\w./+-]+\.(?:[chS]|rs)):(\d+)`)

	// What dump_stack_print_info, lib/dump_stack.c, says of the task and the kernel;
	// kmemleak, lockdep and hung_task.c say it in their ways.
	taskText    = regexp.MustCompile(`^CPU: .*\bComm: (.+?) +(?:Kdump: loaded +)?(?:Not tainted|Tainted: )|^Pid: \d+, comm: (.+?) +(?:Not tainted|Tainted: )|^Process (.+) \(pid: \d|^comm "(.+)", pid \d|^(.+)/\d+ (?:\[HC\d.* )?(?:is trying to (?:acquire|lock|release)|is freeing memory|takes:|just changed the state)`)
	versionText = regexp.MustCompile(`\b(?:Not tainted|Tainted: [A-Z -]+?) +\(?(\d+\.\d+\S*)|^(\d+\.\d+\S*) #\d+ (?:Not tainted|Tainted)`)

	// workText is print_worker_info's, and show_one_worker_pool's, kernel/workqueue.c.
	workText = regexp.MustCompile(`(?:^Workqueue: \S+|\bin-flight: \d+(?:\(RESCUER\))?:) ?(` + symbol + `)`)

	// lockSite is print_lock's: where a lock was taken, or is about to be.
	lockSite = regexp.MustCompile(`\bat: +(?:\[?<[0-9a-f]+>\]? +)?(?P<F>` + symbol + `)(?:\+0x| \()`)
)
