package qemu

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// mostPatience bounds how long a boot may take, as a multiple of its limit.
const mostPatience = 20

// limit ends p when it has run for that long, not counting what it has waited for a
// CPU: on a machine that others keep busy a guest that is as good as any would hang.
func (p *process) limit(limit time.Duration) (stop func() bool) {
	began := time.Now()
	last, then, waited := cpu{}, began, time.Duration(0)
	var timer *time.Timer
	set := make(chan struct{})
	timer = time.AfterFunc(limit, func() {
		<-set
		now, at := p.cpu(), time.Now()
		more := now.waited - last.waited
		if now.runnable { // it may wait right now, which is counted only once it has run
			more = max(more, at.Sub(then)-(now.ran-last.ran))
		}
		waited += max(more, 0)
		last, then = now, at
		left := limit - (at.Sub(began) - waited)
		if left < limit/20 || at.Sub(began) > mostPatience*limit {
			p.kill()
			return
		}
		timer.Reset(left)
	})
	close(set)
	return timer.Stop
}

// cpu is what a process has had of the CPUs: of its threads, the one that has run the
// most, which is that of the guest's CPU.
type cpu struct {
	ran, waited time.Duration
	runnable    bool // it runs, or waits to
}

// cpu reads that (/proc/PID/task/TID, in proc_pid_stat(5) and the kernel's
// Documentation/scheduler/sched-stats.rst). It is zero where that is not told, and for
// a program that boots a guest elsewhere.
func (p *process) cpu() (most cpu) {
	if p.how.grace > 0 {
		return cpu{}
	}
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", p.cmd.Process.Pid))
	for _, dir := range threads {
		schedstat, err1 := os.ReadFile(filepath.Join(dir, "schedstat"))
		stat, err2 := os.ReadFile(filepath.Join(dir, "stat"))
		var ran, waited int64 // ns
		if n, _ := fmt.Sscan(string(schedstat), &ran, &waited); err1 != nil || err2 != nil || n < 2 {
			continue // it has ended
		}
		if time.Duration(ran) >= most.ran {
			name := bytes.LastIndexByte(stat, ')') // which may have anything in it
			most = cpu{time.Duration(ran), time.Duration(waited), bytes.HasPrefix(stat[name+1:], []byte(" R"))}
		}
	}
	return most
}
