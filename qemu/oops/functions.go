package oops

import "regexp"

// Functions by what they do in a trace, as regexps of whole names as cleanSymbol
// leaves them. An architecture's own are in its table.

// reporting is what prints a report or leads to it: never to blame, and never named.
var reporting = []string{
	`_*v?panic`, `nmi_panic`, `panic_saved_regs`, `check_panic_on_warn`, `_*warn(?:_slowpath)?\w*`, `_*warn_printk`, `_*report_bug`, `handle_bug`, `fixup_bug`, `add_taint`,
	`dump_stack\w*`, `_*dump_stack\w*`, `dump_backtrace\w*`, `_*show_(?:stack|regs|trace|registers)\w*`, `sched_show_task`, `print_(?:report|address|error|memory_error)\w*`, `end_report`, `abort`,
	`_*die(?:_\w+)?`, `oops_(?:begin|end|enter|exit)`, `bust_spinlocks`,
	`_*(?:kasan|kmsan|kcsan|kfence|asan|msan|tsan|hwasan)_\w+`, `_*ubsan_\w+`, `check_memory_region\w*`, `__sanitizer_\w+`, `write_comp_data`, `check_kcov_mode`, `val_to_string`, `handle_overflow`,
	`_*might_(?:sleep|resched|fault)\w*`, `_*might_sleep\w*`, `__schedule_bug`, `check_preemption_disabled`, `debug_smp_processor_id`, `__this_cpu_preempt_check`,
	`spin_(?:bug|dump)`, `rwlock_bug`, `do_raw_(?:spin|read|write)_\w+`, `debug_spin_\w+`,
	`lockdep_\w+`, `debug_(?:check_no_locks|lockdep)_\w+`, `print_(?:circular|deadlock|usage|irq|bad|unlock|collision|kernel|freed|lock|unlock_imbalance|bfs)_\w+`,
	`_*lock_(?:acquire|release|acquired|contended|set_class|downgrade)\w*`, `validate_chain`, `check_(?:prevs?_add|noncircular|irq_usage|deadlock|wait_context|usage|path)\w*`,
	`mark_(?:lock|usage|held_locks|irqflags)\w*`, `register_lock_class`, `look_up_lock_class`, `hlock_class`, `find_held_lock`, `reacquire_held_locks`, `valid_state`, `assign_lock_key`, `save_trace`, `(?:perf_)?trace_(?:event_raw_event_)?lock\w*`,
	`rcu_lockdep_current_cpu_online`, `trace_(?:hard|soft)irqs_\w+`, `check_flags`,
	`__stack_chk_fail`, `\w*_warn_saturate`, `debug_print_object`, `bad_page`, `print_bad_pte`, `print_bad_page_map`,
}

// chores is what does a chore for whoever is to blame: assertions, locks, memory,
// strings, lists, and the thunks that every branch may go through.
var chores = []string{
	// assertions whose callers failed, and the bookkeeping of debug options
	`_*fortify_(?:panic|report)`, `skb_(?:panic|over_panic|under_panic)`, `_*skb_(?:put|push|pull)`, `ass(?:ert)?fail`, `_*(?:phys|virt)_(?:addr|to_phys|to_page)\w*`,
	`_*debug_check_no_obj_freed`, `_*debug_object_\w+`, `should_fail\w*`, `fail_dump`, `_*free_pages_(?:ok|prepare)`, `_*refcount_\w+`, `ref_tracker_\w+`, `rust_helper_\w+`, `rust_begin_unwind`, `_?core\w*panicking\w*`, `_R\w*(?:panicking|begin_unwind)\w*`, `usercopy_abort`, `usercopy_warn`, `_*check_(?:heap_)?object\w*`,
	`__seqprop_\w+`, `_*bad_usercopy`, `_*local_bh_(?:en|dis)able\w*`,
	// stack walkers
	`arch_stack_walk\w*`, `stack_trace_\w+`, `save_stack\w*`, `unwind_get_\w+`, `walk_stackframe`, `profile_pc`, `stack_depot_\w+`, `set_track\w*`, `__read_once_word_nocheck`, `read_word_at_a_time`,
	// printing
	`_?printk\w*`, `vprintk\w*`, `_*dev_\w*printk\w*`, `_*dev_(?:err|warn|info)`, `va_format`, `format_decode`, `console_(?:unlock|lock|trylock|flush_all|lock_spinning_\w+|emit_next_record)`, `_*vs?c?n?printf`, `string`, `hex_string`, `pointer`, `hex_dump_to_buffer`, `print_hex_dump\w*`,
	// locks, reference counts, atomic and bit operations
	`_*(?:native_|pv_|do_)*(?:queued|raw)_(?:spin|read|write)_(?:\w+_)?(?:try|un)?lock\w*`, `_*(?:spin|read|write)_(?:try|un)?lock\w*`,
	`_*mutex_\w+`, `_*(?:down|up)_(?:read|write)\w*`, `_*(?:down|up)(?:_killable|_interruptible|_timeout|_trylock|_common)?`, `rwsem_\w+`, `call_rwsem_\w+`, `osq_\w+`, `_*rt_mutex_\w+`, `_*rt_spin_\w+`, `_*ww_mutex_\w+`, `arch_(?:spin|read|write)_\w+`, `ticket_spin_\w+`,
	`ldsem_\w+`, `_*ldsem_\w+`, `_*percpu_(?:down|up)_\w+`, `percpu_rwsem_\w+`, `_*srcu_read_(?:un)?lock\w*`, `_*rcu_read_(?:un)?lock\w*`, `_*seqcount_\w+`,
	`_*(?:arch_|raw_)?atomic(?:64|_long)?_\w+`, `_*(?:arch_)?(?:test|set|clear|change|find)_(?:and_(?:set|clear|change)_)?bit\w*`, `_*read_once\w*`, `instrument_\w+`, `_*(?:raw_)?(?:io)?(?:read|write)(?:[bwlq]|8|16|32|64)(?:_relaxed)?`, `_*kref_\w+`, `kobject_(?:get|put|cleanup)`, `(?:get|put)_device`, `_*lock_sock\w*`, `release_sock`,
	// memory, strings, lists, trees
	`_*mem(?:cpy|set|move|cmp|chr|scan|dup)\w*`, `_*str(?:n|l|s)?(?:len|cpy|scpy|cmp|cat|chr|str|pbrk|sep|spn|dup|casecmp)\w*`, `rep_(?:movs|stos)_\w+`,
	`_*(?:raw_|arch_)?copy_(?:from|to|in)_(?:user|kernel)\w*`, `_*(?:raw_|arch_)?clear_user\w*`, `(?:clear|copy)_page\w*`, `_*(?:get|put)_user_\w*`, `copy_user_\w+`,
	`_*h?p?l?list_\w+`, `_*rb_\w+`, `rb(?:tree)?_\w+`, `klist_\w+`, `_*radix_tree_\w+`, `_*xas?_\w+`, `id[ar]_\w+`, `mas_\w+`, `_*rhashtable_\w+`, `_*rht_\w+`,
	`crc(?:16|32|64|_itu_t|_ccitt|_t10dif)\w*`, `_compound_head`, `compound_head`,
	// allocators
	`_*k[vmzc]*alloc(?:_node|_array|_large|_node_track_caller|_large_node|_node_noprof|_noprof)*`, `_*kmalloc\w*`, `_*kvmalloc\w*`, `_*krealloc\w*`, `_*do_kmalloc\w*`, `_*kmem_cache_(?:alloc|free|zalloc)\w*`, `kfree`, `kvfree`, `vfree`,
	`_*slab_(?:free|post_alloc|pre_alloc)\w*`, `_*do_slab_free`, `_*free_slab`, `_*v[mz]alloc\w*`, `_*alloc_(?:frozen_)?pages?\w*`, `kmemdup\w*`, `free_large_kmalloc`, `_*get_free_pages\w*`, `kmalloc_slab`, `cache_(?:alloc|free)\w*`,
	// waiting and waking, timers, work
	`_*wake_up(?:_common\w*|_locked\w*|_sync\w*|_poll\w*|_process|_bit|_pollfree)?`, `try_to_wake_up`, `finish_wait`, `(?:prepare_to|init)_wait\w*`, `_*(?:add|remove)_wait_queue\w*`, `autoremove_wake_function`, `default_wake_function`, `complete(?:_all)?`, `(?:do_)?wait_for_(?:common|completion)\w*`, `kthread_stop\w*`, `_*swake_up\w*`,
	`lock_timer_base`, `_*mod_timer\w*`, `_*(?:try_to_)?del_timer\w*`, `_*(?:try_to_)?(?:timer_delete|del_timer)\w*`, `detach_(?:if_pending|timer)`, `add_timer\w*`, `enqueue_timer`, `timer_is_static_object`, `hrtimer_(?:cancel|try_to_cancel|active)`,
	`_*(?:flush|cancel|queue|drain|destroy)_(?:delayed_)?work\w*`, `work_is_static_object`, `start_flush_work`, `insert_work`,
	// the way from a system call's entry
	`(?:__)?do_(?:fast_)?syscall_\w+`, `x64_sys_call`, `ia32_sys_call`,
	// thunks that every indirect branch or return may go through, and CFI's checks,
	// __cfi_slowpath_diag and __cfi_check_fail as cleaned
	`\w*(?:return|indirect)\w*_thunk\w*`, `__x86_\w*thunk\w*`, `slowpath(?:_diag)?`, `check_fail`, `handle_cfi_failure`,
}

// dispatchers are the functions through which the kernel is entered or a task
// begins on all architectures, and those below them whose argument decides what
// they do: a stall is in what they call.
var dispatchers = []string{
	// system calls
	`(?:__)?do_(?:fast_)?syscall_\w+`, `x64_sys_call`, `ia32_sys_call`,
	`(?:compat_)?(?:sys|SyS)_(?:ioctl|p?read(?:v|v2|64)?|p?write(?:v|v2|64)?|sendmsg|sendmmsg|sendto|sendfile(?:64)?|recvmsg|recvmmsg|recvfrom|setsockopt|getsockopt|close|mmap\w*|socketcall|dup2)`,
	`compat_SyS_\w+`, `ksys_\w+`, `_{2,4}sys_\w+`, `do_vfs_ioctl`, `vfs_(?:read|write|readv|writev|ioctl|iter_\w+|fsync\w*|fallocate)`,
	`(?:new_sync_|__vfs_|call_|do_iter_|do_loop_|__kernel_)(?:read|write)\w*`, `do_(?:readv|writev|preadv|pwritev|sendfile|splice\w*)`,
	`_*sock_(?:sendmsg|recvmsg|read_iter|write_iter|ioctl|do_ioctl|setsockopt|common_setsockopt)\w*`, `do_sock_\w+`, `do_rwalk`,
	`(?:vm_mmap_pgoff|do_mmap|call_mmap|_*mmap_region|mmap_file|_*mmap_new_\w+)`,
	`_?netlink_(?:sendmsg|unicast\w*|rcv_skb|dump\w*)`, `nfnetlink_rcv\w*`, `genl_rcv`, `rtnetlink_rcv_msg`, `genl_rcv_msg`, `genl_(?:family|bind)\w*_rcv_msg\w*`,
	// work, threads, initcalls, idling
	`kthread`, `worker_thread`, `process_one_work`, `process_scheduled_works`, `smpboot_thread_fn`, `run_ksoftirqd`, `cpu_stopper_thread`,
	`kernel_init\w*`, `do_initcalls`, `do_one_initcall`, `do_basic_setup`, `start_kernel`, `do_idle`, `cpu_startup_entry`,
	// interrupts: softirqs, timers, the network
	`_*do_softirq\w*`, `handle_softirqs`, `_*irq_exit\w*`, `(?:hrtimer_)?run_\w*softirq`, `tasklet_(?:hi_)?action\w*`, `net_rx_action`, `net_tx_action`,
	`_*run_timers?(?:_base)?`, `call_timer_fn`, `expire_timers`, `_*hrtimer_run_queues`, `hrtimer_interrupt`, `rcu_do_batch`, `rcu_core\w*`, `rcu_process_callbacks`, `blk_done_softirq`, `irq_work_run\w*`, `irq_work_single`,
	`_*napi_poll\w*`, `process_backlog`, `_*netif_receive_skb\w*`, `netif_receive_skb\w*`, `_*handle_irq_event\w*`, `handle_\w+_irq`, `generic_handle_\w*irq\w*`,
	`_*flush_smp_call_function_queue`, `generic_smp_call_function\w*`,
	// page faults, and what is done on the way to user space
	`_*handle_mm_fault`, `do_(?:fault|read_fault|cow_fault|shared_fault|anonymous_page|pte_missing)`, `_*do_fault`, `handle_pte_fault`, `do_user_addr_fault`,
	`exit_to_user_?mode\w*`, `_*exit_to_user_mode\w*`, `syscall_(?:exit_to_user_mode|return_slowpath)\w*`, `prepare_exit_to_usermode`, `task_work_run`, `tracehook_notify_resume`, `_*_fput`, `resume_user_mode_work`,
}

// stallFinders are in the trace of a stall because it is looked for there.
var stallFinders = names(
	`_*schedule\w*`, `_*cond_resched\w*`, `preempt_schedule\w*`, `dump_cpu_task`, `_*rcu_(?:check|print|dump|sched_clock|pending|gp|exp|stall|force|implicit|is)_\w*`, `rcu_sched_clock_irq`, `rcu_pending`, `(?:print|check)_(?:other_)?cpu_stall\w*`, `update_process_times`, `tick_\w+`, `_*sched_show_\w+`,
	`nmi_(?:cpu|trigger)_\w+`, `_*trigger_\w+_backtrace\w*`, `arch_trigger_\w+`, `watchdog_\w+`, `printk_stack_address`, `(?:native_)?(?:safe_)?halt`, `ipi_cpu_\w+`, `_*csd_lock_wait\w*`, `csd_lock_wait`, `synchronize_rcu_expedited_wait\w*`,
)

// sleepers are in the trace of whoever waits.
var sleepers = regexp.MustCompile(`^(?:_*(?:schedule|io_schedule|context_switch|preempt_schedule|(?:do_)?wait_for_|wait_on_|wait_woken|bit_wait|out_of_line_wait_|percpu_down_|percpu_rwsem_)` +
	`|__switch_to$|__wait_rcu_gp$|__synchronize_srcu|kthread_stop|_*flush_work|wait_\w*event|_*bit_wait|_*lock_sock|_*synchronize_rcu_\w+|_*(?:folio|page)_(?:wait|lock)_|_*folio_lock|_*filemap_fdatawait|filemap_fdatawait|folio_wait_|wait_on_page_|_*lock_page|jbd2_log_wait|rcu_barrier_|_*rwbase_\w+|do_nanosleep|msleep|usleep_range|usb_start_wait_urb|jump_label_|_*rwsem_|_*rpc_)`)

// lockHelpers are lock functions that lockdep's reports name, and what wraps them;
// of a deadlock it is their caller that is meant.
var lockHelpers = names(`rcu_\w+`, `_*lock_sock\w*`, `_*raw_\w+lock\w*`, `_*seqcount_\w+`, `trace_\w+`, `perf_trace_\w+`, `lock_timer_base`)

// assertions are functions whose WARNING tells of their caller.
var assertions = names(`kobject_\w+`, `_*proc_register`, `proc_register`, `_*proc_create\w*`, `_*vmalloc_\w+`, `drop_nlink`, `cleanup_srcu_struct`, `_*do_kernel_fault`, `mark_buffer_dirty`, `fast_dput`, `dput`, `_*call_rcu\w*`, `_*vunmap`, `init_timer_key`, `kfree_skb\w*`, `usb_submit_urb`)
