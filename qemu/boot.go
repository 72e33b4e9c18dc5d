package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"syscall"
	"time"

	"unlucky/host"
	"unlucky/qemu/oops"
)

// Kind is the kind of verdict on one layout.
type Kind string

// The kinds of verdict.
const (
	Pass       Kind = "pass"        // the pass line was seen, QEMU ended by itself, and the console shows no crash
	Crash      Kind = "crash"       // the console shows one, or QEMU ended without the pass line
	Hang       Kind = "hang"        // the time limit came first
	LinkFailed Kind = "link-failed" // there was nothing to boot; never from Boot
	Duplicate  Kind = "duplicate"   // the layout is that of another seed, which has the verdict; never from Boot
	Infra      Kind = "infra"       // QEMU, KVM or a program in their place failed: nothing was learnt about the guest
)

// Expect says what a good boot looks like.
type Expect struct {
	// Pass matches the line that a good boot prints. It is tried on each line
	// of the console, without control bytes, escape sequences, printk's
	// prefixes and the spaces around. It must not be nil: QEMU ends with
	// status 0 after a panic as well.
	Pass *regexp.Regexp
	// Infra, unless it is nil, matches a line of the console or of stderr by which the
	// machine, not its kernel, is known to have failed.
	Infra *regexp.Regexp
	// Warnings makes the kernel's WARNING reports count as crashes.
	Warnings bool
	// Limit is the longest that QEMU may run, in wall-clock time without what
	// it waits for a CPU. It is never
	// left out where nobody watches, as a halted guest never ends; 0 is none.
	Limit time.Duration
}

// Result is what one boot showed.
type Result struct {
	Kind    Kind
	Title   string        // of a crash or a hang: free of addresses, at most 120 bytes of ASCII
	Report  oops.Report   // of a crash that the console shows, otherwise zero
	Console []byte        // raw, with its control bytes: the first 256 KiB and the last 768 KiB
	Stderr  string        // of QEMU, or the program in its place, cut likewise at 64 KiB
	By      string        // QEMU, or the program in its place
	Reason  string        // one line: for infra the evidence of it, for a hang the limit
	Elapsed time.Duration // wall-clock time
	Started time.Duration // of that, until the guest's first byte
	// Early tells that the pass line came before the kernel has said that it runs
	// the first program: whatever happens behind it can pass.
	Early bool
}

// UnexpectedExit is the title of a crash that shows nothing else.
const UnexpectedExit = "unexpected exit"

// Sizes of what is kept. A kernel's boot is some 20 to 60 KiB; a loop of
// oopses fills any disk. The first crash is near the start, a hang at the end.
const (
	consoleHead = 256 << 10
	consoleTail = 768 << 10
	stderrHead  = 48 << 10
	stderrTail  = 16 << 10
)

// How long a guest that has crashed is given to complete its trace: an early
// exception halts for ever, and a loop of reports never ends.
const (
	crashQuiet = 2 * time.Second  // without any output
	crashTrace = 10 * time.Second // in all
)

// Boot runs the machine until it ends by itself, its crash is known, its time
// is up, or ctx is done; then nothing of it is left running. The error is one
// of starting QEMU or of ctx: whatever QEMU and the guest do is a Result.
//
// Evidence that QEMU itself failed (its end by a signal, a nonzero status, or
// an error of KVM's on stderr while it lives on) is Infra, whatever the console
// shows. So isa-debug-exit and -action panic=exit-failure, by which a guest
// chooses a nonzero status, give Infra too: leave them out of Args. It is the same
// with a program in QEMU's place, but that only e tells its words.
func (m Machine) Boot(ctx context.Context, e Expect) (Result, error) {
	if err := ctx.Err(); err != nil {
		return Result{}, fmt.Errorf("boot: %w", err)
	}
	host.Trace(ctx, "", m.Argv())
	if m.RAM != nil {
		if err := m.RAM.clear(); err != nil {
			return Result{}, fmt.Errorf("boot: clearing the guest's memory: %w", err)
		}
	}
	if m.Core != nil {
		var err error
		if m.qmp, err = m.Core.begin(); err != nil {
			return Result{}, fmt.Errorf("boot: %w", err)
		}
		defer m.qmp.Close()
	}
	begin := time.Now()
	cmd, err := m.Command(context.Background()) // a process group is more than ctx would end
	if err != nil {
		return Result{}, err
	}
	p, err := start(cmd, m.conduct(e))
	closeAll(cmd.ExtraFiles)
	if m.Debugger != nil {
		m.Debugger.theirs.Close() // so that its end is told by that of QEMU
	}
	if err != nil {
		return Result{}, err
	}
	if m.Core != nil {
		m.qmp.Close() // so that its end is told by that of QEMU
		p.farewell = func() bool { return ctx.Err() != nil || m.Core.take() }
	}
	defer context.AfterFunc(ctx, p.kill)()
	if e.Limit > 0 {
		defer p.limit(e.Limit)()
	}

	log := newStderrLog(p)
	logged := make(chan struct{})
	go func() {
		defer close(logged)
		io.Copy(log, p.stderr)
		log.lines.Flush()
	}()
	c := newConsole(e)
	c.follow(p)
	<-logged
	status, ours := p.wait()
	if err := ctx.Err(); err != nil {
		return Result{}, fmt.Errorf("boot: %w", err)
	}

	r := Result{By: p.how.name, Console: c.kept.bytes(), Stderr: string(log.kept.bytes()), Elapsed: time.Since(begin), Early: c.early}
	if r.Started = r.Elapsed; !c.first.IsZero() {
		r.Started = c.first.Sub(begin)
	}
	report, crashed := c.crash.Report()
	failure := log.failure(status, ours)
	switch {
	case c.failure != "":
		r.Kind, r.Reason = Infra, c.failure
	case failure != "":
		r.Kind, r.Reason = Infra, failure
	case crashed:
		r.Kind, r.Title, r.Report = Crash, report.Title, report
	case ours: // neither ctx nor QEMU's failure nor a crash, so the limit
		r.Kind, r.Reason = Hang, fmt.Sprintf("still running after the limit of %v", e.Limit)
		// A guest that printed until the end did not stop at its last line.
		if p.killed.Sub(c.last) < min(crashQuiet, e.Limit/4) {
			r.Title = "hang: output without end"
		} else {
			r.Title = oops.Hang(c.lastLine)
		}
	case !c.passed:
		r.Kind, r.Title = Crash, UnexpectedExit
	default:
		r.Kind = Pass
	}
	return r, nil
}

// console takes in what the guest prints.
type console struct {
	kept     clip
	crash    *oops.Classifier
	lines    oops.LineWriter
	passed   bool
	early    bool      // passed before the first program
	failure  string    // the first line by which the machine has failed
	lastLine string    // the last that is not empty, cleaned
	first    time.Time // of the first output, or zero
	last     time.Time // of the last output
	anchor   time.Time // when the crash was first seen, or zero
}

func newConsole(e Expect) *console {
	c := &console{
		kept:  clip{headMax: consoleHead, tailMax: consoleTail},
		crash: oops.NewClassifier(e.Warnings),
		last:  time.Now(),
	}
	c.lines.Each = func(line []byte) {
		if line = oops.Text(line); len(line) == 0 {
			return
		}
		c.lastLine = string(line)
		if c.failure == "" && e.Infra != nil && e.Infra.Match(line) {
			c.failure = c.lastLine
		}
		c.early = c.early || c.passed && firstProgram.Match(line)
		c.passed = c.passed || e.Pass.Match(line)
	}
	return c
}

// firstProgram is what the kernel prints before user space (init/main.c,
// run_init_process).
var firstProgram = regexp.MustCompile(`^Run \S+ as init process$`)

// Write never fails.
func (c *console) Write(b []byte) (int, error) {
	c.last = time.Now()
	if c.first.IsZero() {
		c.first = c.last
	}
	c.kept.Write(b)
	c.lines.Write(b)
	c.crash.Write(b)
	if bytes.IndexByte(b, '\n') >= 0 { // QEMU writes byte by byte, and half a line can mislead
		if _, crashed := c.crash.Report(); !crashed {
			c.anchor = time.Time{}
		} else if c.anchor.IsZero() {
			c.anchor = c.last
		}
	}
	return len(b), nil
}

// follow reads the console of p to its end, and kills p once its crash is known.
func (c *console) follow(p *process) {
	buf := make([]byte, 32<<10)
	for {
		n, err := p.stdout.Read(buf)
		if n > 0 && !p.silenced() {
			c.Write(buf[:n])
		}
		var deadline time.Time // none
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) || err == nil && (c.crash.Complete() || c.failure != ""):
			p.kill()
		case err != nil:
			c.lines.Flush()
			c.crash.Write([]byte("\n")) // the last line may lack its end
			return
		case !c.anchor.IsZero():
			deadline = c.last.Add(crashQuiet)
			if end := c.anchor.Add(crashTrace); end.Before(deadline) {
				deadline = end
			}
		}
		p.stdout.SetReadDeadline(deadline)
	}
}

// fatal is what QEMU prints on stderr when it or KVM has failed; after the KVM
// ones it can stay alive for ever (QEMU: accel/kvm/kvm-all.c, kvm_cpu_exec;
// target/i386/kvm/kvm.c, kvm_arch_handle_exit; softmmu/runstate.c, qemu_kill_report).
var fatal = regexp.MustCompile(`(?i)KVM internal error|kvm run failed|KVM: entry failed|KVM: unknown exit|` +
	`failed to [gs]et MSR|could not access KVM|failed to initialize kvm|assertion .*failed|` +
	`out of memory|cannot allocate memory|terminating on signal`)

// harmless is a line of stderr that is no evidence of anything.
var harmless = regexp.MustCompile(`(?i)\bwarning:`)

// stderrLog takes in what QEMU, or a program in its place, says itself.
type stderrLog struct {
	how conduct

	kept  clip
	lines oops.LineWriter
	told  string // QEMU's first line that is no warning, a program's last
	fatal string // the first line that is fatal
}

// newStderrLog returns the log of p, which it ends at the first fatal line.
func newStderrLog(p *process) *stderrLog {
	q := &stderrLog{how: p.how, kept: clip{headMax: stderrHead, tailMax: stderrTail}}
	q.lines.Each = func(line []byte) {
		if len(bytes.TrimSpace(line)) == 0 || harmless.Match(line) || p.silenced() {
			return
		}
		text := string(bytes.TrimSpace(oops.Clean(bytes.Clone(line))))
		if q.told == "" || q.how.grace > 0 {
			q.told = text
		}
		if q.fatal == "" && p.how.fatal != nil && p.how.fatal.MatchString(text) {
			q.fatal = text
			p.kill()
		}
	}
	return q
}

// Write never fails.
func (q *stderrLog) Write(b []byte) (int, error) {
	q.kept.Write(b)
	q.lines.Write(b)
	return len(b), nil
}

// failure returns in one line the evidence that QEMU, or the program in its place,
// failed, or "". SIGTERM gives status 0 of QEMU, and is known by its line on stderr only.
func (q *stderrLog) failure(status syscall.WaitStatus, ours bool) string {
	var how string
	switch {
	case q.fatal != "":
		return q.fatal
	case status.Signaled() && !ours:
		how = q.how.name + " was ended by a signal: " + status.Signal().String()
		if status.Signal() == syscall.SIGKILL {
			how += " (was the host out of memory?)"
		}
	case status.Exited() && status.ExitStatus() != 0 && !ours:
		how = fmt.Sprintf("%s exit status %d", q.how.name, status.ExitStatus())
	default:
		return ""
	}
	if q.told != "" {
		how += ": " + q.told
	}
	return how
}

// clip keeps the first headMax and the last tailMax bytes of a stream.
type clip struct {
	headMax, tailMax int
	head, tail       []byte
	cut              int64 // bytes that are gone between the two
}

// Write never fails.
func (c *clip) Write(b []byte) (int, error) {
	n := len(b)
	k := min(n, c.headMax-len(c.head))
	c.head = append(c.head, b[:k]...)
	c.tail = append(c.tail, b[k:]...)
	if len(c.tail) > 2*c.tailMax {
		c.trim()
	}
	return n, nil
}

// trim drops all but the last tailMax bytes of the tail.
func (c *clip) trim() {
	if over := len(c.tail) - c.tailMax; over > 0 {
		c.tail = append(c.tail[:0], c.tail[over:]...)
		c.cut += int64(over)
	}
}

// bytes returns what was kept, with a line that tells how much is missing.
func (c *clip) bytes() []byte {
	c.trim()
	kept := bytes.Clone(c.head)
	if c.cut > 0 {
		kept = fmt.Appendf(kept, "\n[unlucky: %d bytes cut]\n", c.cut)
	}
	return append(kept, c.tail...)
}
