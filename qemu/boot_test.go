package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"unlucky/qemu/oops"
)

// passRE is the line that the tests' guests print when all is well.
var passRE = regexp.MustCompile(`^all good$`)

// far is a limit that no boot may reach that is to be stopped before it.
const far = time.Minute

// A page fault as Linux 6.12 prints it: whole, and without its end.
const (
	halfOops = `[    0.412345] BUG: unable to handle page fault for address: ffffffff81234567
[    0.412346] #PF: supervisor write access in kernel mode
[    0.412347] #PF: error_code(0x0003) - permissions violation
[    0.412348] Oops: Oops: 0003 [#1] SMP
[    0.412349] CPU: 0 UID: 0 PID: 1 Comm: init Not tainted 6.12.0 #1
[    0.412350] RIP: 0010:seal_one+0x12/0x40
[    0.412351] Code: 90 90 90
`
	oopsText = halfOops + `[    0.412352] Call Trace:
[    0.412353]  <TASK>
[    0.412354]  apply_seals+0x45/0x80
[    0.412355]  kernel_init+0x15/0x1c0
[    0.412356]  </TASK>
[    0.412357] ---[ end trace 0000000000000000 ]---
[    0.412358] RIP: 0010:seal_one+0x12/0x40
[    0.412359] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000009
[    0.412360] ---[ end Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000009 ]---
`
	oopsTitle = "BUG: unable to handle kernel paging request in seal_one"
)

// guestTests are command lines of the guest in testdata/guest, which tells
// what they mean; line ends in them are written as \n for it.
var guestTests = []struct {
	name   string
	append string
	limit  time.Duration
	kind   Kind
	title  string
}{
	{"pass", "booting\nall good\n\\t", far, Pass, ""},
	{"pass with a printk prefix", "[    1.234567][    T1] all good\\r\n\\t", far, Pass, ""},
	{"pass without the end of the line", `all good\t`, far, Pass, ""},
	{"pass between escape sequences", "\\e[2J\\e[1;32mall good\\e[0m\\r\n\\ec\\t", far, Pass, ""},
	{"pass line quoted", "no: all good\n\\t", far, Crash, "unexpected exit"},
	{"oops then it ends", oopsText + `\t`, far, Crash, oopsTitle},
	{"oops then it halts", oopsText + `\h`, far, Crash, oopsTitle},
	{"oops for ever", oopsText + `\l`, far, Crash, oopsTitle},
	{"half an oops then it halts", halfOops + `\h`, far, Crash, oopsTitle},
	{"half an oops then it ends", halfOops + `\t`, far, Crash, oopsTitle},
	{"crash after the pass line", "all good\n" + oopsText + `\t`, far, Crash, oopsTitle},
	{"crash before the pass line", oopsText + "all good\n\\t", far, Crash, oopsTitle},
	{"triple fault", `\t`, far, Crash, "unexpected exit"},
	{"triple fault after some text", "SMP alternatives: Using kCFI\n\\t", far, Crash, "unexpected exit"},
	{"silence", `\h`, time.Second, Hang, "hang: no output"},
	{"halt", "[    0.123456] mapped 0xffffffff81000000 on 12 CPUs, x86\\e[0m\\r\n\\h", time.Second, Hang, "hang: no output after mapped ADDR on NUM CPUs, x86"},
	{"halt in a line", `Run /init as`, time.Second, Hang, "hang: no output after Run /init as"},
	{"halt after the pass line", "all good\n\\h", time.Second, Hang, "hang: no output after all good"},
	{"output without end", "tick\n\\l", time.Second, Hang, ""},
	{"line without end", `tick\l`, time.Second, Hang, ""},
}

func TestBootGuest(t *testing.T) {
	kernel := buildGuest(t)
	for _, accel := range accels() {
		for _, test := range guestTests {
			t.Run(accel+"/"+test.name, func(t *testing.T) {
				t.Parallel()
				mark := t.TempDir()
				text := strings.ReplaceAll(test.append, "\n", `\n`)
				begin, _, _ := strings.Cut(text, `\`)
				var r Result
				// On a busy machine a guest may print nothing in a second, or at its end.
				for limit := test.limit; limit <= far; limit *= 4 {
					var err error
					if r, err = guest(kernel, accel, text, mark).Boot(context.Background(), Expect{Pass: passRE, Limit: limit}); err != nil {
						t.Fatal(err)
					}
					nothingLeft(t, mark)
					if (r.Kind == Hang) != strings.Contains(r.Reason, limit.String()) {
						t.Errorf("limit %v: %s, reason %q", limit, r.Kind, r.Reason)
					}
					if r.Kind != Hang || bytes.HasPrefix(r.Console, []byte(begin)) && (begin == "" || r.Started <= limit/2) {
						break
					}
				}
				if r.Kind != test.kind {
					t.Fatalf("%s (%s: %s), want %s; %d bytes of console, which begins:\n%.2000s", r.Kind, r.Title, r.Reason, test.kind, len(r.Console), r.Console)
				}
				if r.Title != test.title && test.title != "" {
					t.Errorf("title %q, want %q", r.Title, test.title)
				}
				if test.kind != Hang && r.Elapsed >= test.limit {
					t.Errorf("was not stopped before its limit of %v", test.limit)
				}
				if (r.Report.Title != "") != (test.title == oopsTitle) {
					t.Errorf("report %+v", r.Report)
				}
				// Stopped or not, what was printed is kept as it was printed.
				if !bytes.HasPrefix(r.Console, []byte(begin)) || len(r.Console) > consoleHead+consoleTail+100 {
					t.Errorf("%d bytes of console, which begins:\n%.200s", len(r.Console), r.Console)
				}
				if strings.Contains(text, `\e[2J`) && !bytes.HasPrefix(r.Console, []byte("\x1b[2J\x1b[1;32mall")) {
					t.Errorf("console %q lacks its escape sequences", r.Console)
				}
			})
		}
	}
}

// TestBootInt3 has the guest do what some nested KVMs cannot. Either way it is
// over at once, and only KVM's own failure is Infra.
func TestBootInt3(t *testing.T) {
	kernel := buildGuest(t)
	for _, accel := range accels() {
		mark := t.TempDir()
		r, err := guest(kernel, accel, `all good\n\i`, mark).Boot(context.Background(), Expect{Pass: passRE, Limit: far})
		if err != nil {
			t.Fatal(err)
		}
		nothingLeft(t, mark)
		switch {
		case r.Elapsed >= far:
			t.Errorf("%s: was not stopped before its limit", accel)
		case r.Kind == Pass:
		case accel == "kvm" && r.Kind == Infra && strings.HasPrefix(r.Reason, "KVM internal error"):
			t.Logf("KVM is partial here: %s", r.Reason)
		default:
			t.Errorf("%s: %s: %s %s", accel, r.Kind, r.Title, r.Reason)
		}
	}
}

// fakeTests are shell scripts in QEMU's place, for what QEMU cannot be made to do.
var fakeTests = []struct {
	name   string
	script string
	limit  time.Duration
	kind   Kind
	reason string // contained in Reason, or in Title for a crash
}{
	{"pass", `echo all good`, far, Pass, ""},
	{"warning on stderr", `echo "qemu: warning: host doesn't support requested feature" >&2; echo all good`, far, Pass, ""},
	{"warning of something fatal", `echo "qemu: warning: failed to set MSR 0x10a" >&2; echo all good`, far, Pass, ""},
	{"chatter on stderr", `echo "qemu: pc.rom: using default" >&2; echo all good`, far, Pass, ""},
	{"KVM error, alive", `echo all good; echo KVM internal error. Suberror: 1 >&2; sleep 100`, far, Infra, "KVM internal error. Suberror: 1"},
	{"KVM error after a crash, alive", `echo "$OOPS" | head -2; echo KVM internal error. Suberror: 1 >&2; sleep 100`, far, Infra, "KVM internal error. Suberror: 1"},
	{"KVM error, alive, children too", `sleep 100 & echo 'error: kvm run failed Bad address' >&2; sleep 100`, far, Infra, "kvm run failed"},
	{"KVM error without the end of its line", `printf 'KVM internal error. Suberror: 1' >&2`, far, Infra, "KVM internal error"},
	{"no KVM", `echo 'Could not access KVM kernel module: Permission denied' >&2; exit 1`, far, Infra, "Could not access KVM"},
	{"MSR", `echo 'qemu: warning: x' >&2; echo 'qemu: error: failed to set MSR 0x10a to 0x1' >&2; kill -ABRT $$`, far, Infra, "failed to set MSR 0x10a"},
	{"assertion", "echo \"qemu: kvm.c:3213: kvm_buf_set_msrs: Assertion \\`ret == n' failed.\" >&2; kill -ABRT $$", far, Infra, "Assertion"},
	{"abort", `echo all good; kill -ABRT $$`, far, Infra, "aborted"},
	{"segmentation fault", `echo all good; kill -SEGV $$`, far, Infra, "segmentation fault"},
	{"killed by another", `echo all good; kill -KILL $$`, far, Infra, "out of memory"},
	{"SIGTERM and status 0", `echo all good; echo 'qemu: terminating on signal 15 from pid 1 (init)' >&2`, far, Infra, "terminating on signal 15"},
	{"status 1", `echo 'qemu: warning: x' >&2; echo 'qemu: could not load kernel' >&2; exit 1`, far, Infra, "exit status 1: qemu: could not load kernel"},
	{"status 33", `echo all good; exit 33`, far, Infra, "exit status 33"},
	{"crash and status 1", `echo "$OOPS" | head -2; exit 1`, far, Infra, "exit status 1"},
	{"crash", `echo "$OOPS"; sleep 100`, far, Crash, oopsTitle},
	{"nothing", ``, far, Crash, "unexpected exit"},
	{"child left behind", `sleep 100 & echo all good`, far, Pass, ""},
	{"child out of reach", `setsid sleep 2 & sleep 0.1; echo all good`, far, Pass, ""},
	{"both pipes closed, alive", `exec >&- 2>&-; exec sleep 100`, time.Second, Hang, "limit of 1s"},
	{"stopped", `kill -STOP $$`, time.Second, Hang, "limit of 1s"},
	{"SIGTERM ignored", `trap '' TERM INT HUP; echo all good; sleep 100`, time.Second, Hang, "limit of 1s"},
	{"output without end", `exec yes "$(seq 40 | tr '\n' ' ')"`, time.Second, Hang, "limit of 1s"},
	{"line without end", `exec tr '\0' x </dev/zero`, time.Second, Hang, "limit of 1s"},
	{"stderr without end", `exec yes >&2`, time.Second, Hang, "limit of 1s"},
	{"stderr line without end", `exec tr '\0' x </dev/zero >&2`, time.Second, Hang, "limit of 1s"},
}

func TestBootFake(t *testing.T) {
	t.Setenv("OOPS", oopsText)
	for _, test := range fakeTests {
		t.Run(test.name, func(t *testing.T) {
			mark := enterable(t)
			fake := filepath.Join(mark, "qemu")
			// All scripts are written before any is run: a program that is
			// still open for writing, in a child just forked too, does not start.
			writeScript(t, fake, test.script)
			t.Parallel()
			r, err := Machine{Binary: fake}.Boot(context.Background(), Expect{Pass: passRE, Limit: test.limit})
			if err != nil {
				t.Fatal(err)
			}
			nothingLeft(t, mark)
			if r.Kind != test.kind {
				t.Fatalf("%s (%s: %s), want %s; stderr %.200q", r.Kind, r.Title, r.Reason, test.kind, r.Stderr)
			}
			if evidence := r.Reason + r.Title; !strings.Contains(evidence, test.reason) {
				t.Errorf("evidence %q, want %q in it", evidence, test.reason)
			}
			if r.Kind != Hang && r.Elapsed >= test.limit {
				t.Errorf("was not stopped before its limit of %v", test.limit)
			}
			if r.Kind == Infra && (r.Title != "" || r.Report != (oops.Report{})) {
				t.Errorf("a finding: %q, %+v", r.Title, r.Report)
			}
			if len(r.Console) > consoleHead+consoleTail+100 || len(r.Stderr) > stderrHead+stderrTail+100 || len(r.Title) > 120 {
				t.Errorf("%d bytes of console, %d of stderr, %d of title", len(r.Console), len(r.Stderr), len(r.Title))
			}
			if test.name == "output without end" && !bytes.Contains(r.Console, []byte(" bytes cut]\n")) {
				t.Errorf("%d bytes of console, and nothing says that it was cut", len(r.Console))
			}
		})
	}
}

// TestBootCrashKeepsPrinting has a report that never completes in a console
// that never is silent.
func TestBootCrashKeepsPrinting(t *testing.T) {
	if testing.Short() {
		t.Skipf("NOT TESTED with -short: a guest that oopses without end, which takes %v", crashTrace)
	}
	mark := enterable(t)
	fake := filepath.Join(mark, "qemu")
	writeScript(t, fake, `echo 'BUG: kernel NULL pointer dereference, address: 0000000000000008'; while :; do echo tick; sleep 0.2; done`)
	r, err := Machine{Binary: fake}.Boot(context.Background(), Expect{Pass: passRE, Limit: far})
	if err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, mark)
	if r.Kind != Crash || r.Elapsed >= far {
		t.Errorf("%s after %v: %s %s", r.Kind, r.Elapsed, r.Title, r.Reason)
	}
}

// A guest that waits for a CPU most of the time is not taken for one that hangs.
func TestBootStarved(t *testing.T) {
	kernel, dir := buildGuest(t), enterable(t)
	real, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Fatal(err)
	}
	// On one CPU, behind others.
	wrapper := filepath.Join(dir, "qemu")
	writeScript(t, wrapper, "exec taskset -c 0 nice -n 2 "+real+` "$@"`)
	m := guest(kernel, "tcg", "booting\\nall good\\n\\t", t.TempDir())
	m.Binary = wrapper
	alone, err := m.Boot(t.Context(), Expect{Pass: passRE, Limit: far})
	if err != nil || alone.Kind != Pass {
		t.Fatalf("alone: %s, %v", alone.Kind, err)
	}
	for others := 3; ; others++ {
		ctx, stop := context.WithCancel(t.Context())
		for range others {
			if err := exec.CommandContext(ctx, "taskset", "-c", "0", "sh", "-c", "while :; do :; done").Start(); err != nil {
				t.Fatal(err)
			}
		}
		r, err := m.Boot(ctx, Expect{Pass: passRE, Limit: 2 * alone.Elapsed})
		stop()
		if err != nil || r.Kind != Pass {
			t.Fatalf("behind %d others: %s in %v, %s, %v; alone it took %v", others, r.Kind, r.Elapsed, r.Reason, err, alone.Elapsed)
		}
		if r.Elapsed > 2*alone.Elapsed {
			return
		}
		if others > 8 {
			t.Fatalf("behind %d others it took %v, alone %v: it was not starved", others, r.Elapsed, alone.Elapsed)
		}
	}
}

func TestBootCancelled(t *testing.T) {
	kernel := buildGuest(t)
	for _, accel := range accels() {
		mark := t.TempDir()
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(300*time.Millisecond, cancel)
		r, err := guest(kernel, accel, `all good\n\h`, mark).Boot(ctx, Expect{Pass: passRE, Limit: far})
		nothingLeft(t, mark)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: cancelled: %s, %v", accel, r.Kind, err)
		}
		if _, err := guest(kernel, accel, `\t`, mark).Boot(ctx, Expect{Pass: passRE, Limit: far}); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: cancelled before: %v", accel, err)
		}
	}
}

// TestBootAtOnce boots several machines from several goroutines.
func TestBootAtOnce(t *testing.T) {
	kernel := buildGuest(t)
	mark := t.TempDir()
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			line := fmt.Sprintf(`guest %d\nall good\n\t`, i)
			r, err := guest(kernel, "tcg", line, mark).Boot(context.Background(), Expect{Pass: passRE, Limit: far})
			if want := fmt.Sprintf("guest %d\nall good\n", i); err != nil || r.Kind != Pass || string(r.Console) != want {
				t.Errorf("guest %d: %s, console %q, %v", i, r.Kind, r.Console, err)
			}
		})
	}
	group.Wait()
	nothingLeft(t, mark)
}

// TestOutlivesThread shows that a process does not die with the thread that
// asked for it, for all that it has a Pdeathsig.
func TestOutlivesThread(t *testing.T) {
	mark := enterable(t)
	fake := filepath.Join(mark, "qemu")
	writeScript(t, fake, `sleep 0.5; echo alive`)
	started := make(chan *process)
	var short func()
	short = func() {
		runtime.LockOSThread() // and no unlock: the thread ends with the goroutine
		if unix.Gettid() == os.Getpid() {
			go short() // the main thread does not end
			select {}
		}
		cmd, err := Machine{Binary: fake}.Command(t.Context())
		if err != nil {
			t.Error(err)
		}
		p, err := start(cmd, Machine{}.conduct(Expect{}))
		if err != nil {
			t.Error(err)
		}
		started <- p
	}
	go short()
	p := <-started
	if p == nil {
		return
	}
	out, _ := io.ReadAll(p.stdout)
	status, ours := p.wait()
	nothingLeft(t, mark)
	if string(out) != "alive\n" || status != 0 || ours {
		t.Errorf("printed %q, status %v", out, status)
	}
}

// TestDiesWithProgram kills a program in the middle of a boot: this test,
// started again.
func TestDiesWithProgram(t *testing.T) {
	const kernelVar, markVar = "UNLUCKY_TEST_KERNEL", "UNLUCKY_TEST_NAME"
	if kernel := os.Getenv(kernelVar); kernel != "" {
		guest(kernel, "tcg", `\h`, os.Getenv(markVar)).Boot(context.Background(), Expect{Pass: passRE, Limit: far})
		return
	}
	mark := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestDiesWithProgram$")
	cmd.Env = append(os.Environ(), kernelVar+"="+buildGuest(t), markVar+"="+mark)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// The program has the mark too.
	for begin := time.Now(); len(marked(t, mark)) < 2; time.Sleep(10 * time.Millisecond) {
		if time.Since(begin) > far {
			t.Error("it started no QEMU")
			break
		}
	}
	cmd.Process.Kill()
	cmd.Wait()
	nothingLeft(t, mark)
}

func BenchmarkBoot(b *testing.B) {
	kernel := buildGuest(b)
	for _, accel := range accels() {
		b.Run(accel, func(b *testing.B) {
			for b.Loop() {
				r, err := guest(kernel, accel, `all good\n\t`, "benchmark").Boot(context.Background(), Expect{Pass: passRE, Limit: far})
				if err != nil || r.Kind != Pass {
					b.Fatalf("%s: %s %s, %v", r.Kind, r.Title, r.Reason, err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "boots/s")
		})
	}
}

// FuzzConsole: what is read from a console does not depend on how its bytes
// came, everything is bounded, and a title is short printable ASCII.
func FuzzConsole(f *testing.F) {
	f.Add([]byte("booting\nall good\r\n"), uint8(1))
	f.Add([]byte("[    0.123456] \x1b[1mmapped 0xffff0000 12\x1b[0m"), uint8(7))
	f.Add([]byte(oopsText), uint8(100))
	f.Add(bytes.Repeat([]byte("all good"), oops.LineMax), uint8(255))
	f.Add(bytes.Repeat([]byte("all good"), oops.LineMax), uint8(6)) // oops.LineMax is no multiple of 7
	f.Add([]byte("\x00\x1b]0;title\x00\n\xff\x1b[31mpanic\x07"), uint8(0))
	f.Fuzz(func(t *testing.T, data []byte, size uint8) {
		checkConsole(t, data, 1)
		checkConsole(t, data, int(size)+1)
	})
}

// checkConsole are the laws of FuzzConsole, for pieces of one size.
func checkConsole(t *testing.T, data []byte, size int) {
	whole, pieces := newConsole(Expect{Pass: passRE}), newConsole(Expect{Pass: passRE})
	whole.Write(data)
	for rest := data; len(rest) > 0; {
		n := min(len(rest), size)
		pieces.Write(rest[:n])
		rest = rest[n:]
	}
	for _, c := range []*console{whole, pieces} { // as follow does at the end
		c.lines.Flush()
		c.crash.Write([]byte("\n"))
	}
	if whole.passed != pieces.passed || whole.lastLine != pieces.lastLine {
		t.Errorf("whole: %t, %q; in pieces of %d: %t, %q", whole.passed, whole.lastLine, size, pieces.passed, pieces.lastLine)
	}
	report, crashed := whole.crash.Report()
	if inPieces, too := pieces.crash.Report(); inPieces != report || too != crashed {
		t.Errorf("whole: %t %+v; in pieces of %d: %t %+v", crashed, report, size, too, inPieces)
	}
	if len(data) <= consoleHead+consoleTail && !bytes.Equal(pieces.kept.bytes(), data) {
		t.Errorf("%d bytes of %d kept", len(pieces.kept.bytes()), len(data))
	}
	for _, title := range []string{oops.Hang(whole.lastLine), report.Title} {
		if len(title) > 120 || regexp.MustCompile(`[^ -~]|  |^ | $`).MatchString(title) {
			t.Errorf("title %q of %d bytes", title, len(title))
		}
	}
}

// cpuTime is what this process has spent, which other load does not change much.
func cpuTime() time.Duration {
	var u unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestLongLine has a guest print 100 MB without a line end, which takes a few
// times as long as plain text does, whatever it is.
func TestLongLine(t *testing.T) {
	const size = 100 << 20
	var plain time.Duration
	for _, piece := range []string{"a", "\x00", "\x1b", "\x1b]0;", "]", "BUG: \xff"} {
		c := newConsole(Expect{Pass: passRE})
		block := bytes.Repeat([]byte(piece), 32<<10/len(piece))
		begin := cpuTime()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		c.Write([]byte("booting\n"))
		for n := 0; n < size; n += len(block) {
			c.Write(block)
		}
		c.Write([]byte("\n" + oopsText))
		runtime.GC()
		runtime.ReadMemStats(&after)
		took := cpuTime() - begin
		t.Logf("%q: %v, %.0f MB/s", piece, took.Round(time.Millisecond), size/took.Seconds()/1e6)
		if piece == "a" {
			plain = took
		} else if took > 15*plain {
			t.Errorf("%q took %v, plain text %v", piece, took, plain)
		}
		if held := int64(after.HeapAlloc) - int64(before.HeapAlloc); held > 8<<20 {
			t.Errorf("%q: %d MiB held", piece, held>>20)
		}
		if kept := len(c.kept.bytes()); kept > consoleHead+consoleTail+100 {
			t.Errorf("%q: %d bytes kept", piece, kept)
		}
		if r, crashed := c.crash.Report(); !crashed || len(r.Title) > 120 || strings.ContainsAny(r.Title, "\x00\x1b") {
			t.Errorf("%q: %t, title %q", piece, crashed, r.Title)
		}
	}
}

func TestClip(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{"", ""},
		{"abc", "abc"},
		{"abcdefgh", "abcdefgh"},
		{"abcdefghi", "abc\n[unlucky: 1 bytes cut]\nefghi"},
		{"abcdefghijklmnopqrstuvwxyz", "abc\n[unlucky: 18 bytes cut]\nvwxyz"},
	} {
		for size := 1; size <= len(test.in)+1; size++ {
			c := clip{headMax: 3, tailMax: 5}
			for rest := test.in; rest != ""; {
				n := min(size, len(rest))
				c.Write([]byte(rest[:n]))
				rest = rest[n:]
			}
			if got := string(c.bytes()); got != test.want {
				t.Errorf("%q in pieces of %d: %q, want %q", test.in, size, got, test.want)
			}
		}
	}
}

// guest returns the machine that boots the kernel of testdata/guest, which
// reads what to do from its command line. Its processes carry the mark.
func guest(kernel, accel, line, mark string) Machine {
	return Machine{
		Binary: "qemu-system-x86_64", Type: "microvm,acpi=off", Accel: accel, CPU: "qemu64", CPUs: 1, MemoryMiB: 16,
		Kernel: kernel, Append: line, Args: []string{"-name", mark},
	}
}

// accels returns the accelerators to test under.
var accels = sync.OnceValue(func() []string {
	if err := KVM(); err != nil {
		fmt.Fprintf(os.Stderr, "\n*** KVM IS NOT TESTED, only TCG: %v ***\n\n", err)
		return []string{"tcg"}
	}
	return []string{"tcg", "kvm"}
})

// buildGuest compiles and links testdata/guest and returns the image's path.
func buildGuest(tb testing.TB) string {
	object, image := filepath.Join(tb.TempDir(), "guest.o"), filepath.Join(tb.TempDir(), "guest")
	for _, argv := range [][]string{
		{tool(tb, "clang"), "--target=i386-none-elf", "-ffreestanding", "-O1", "-Wall", "-Wextra", "-Werror", "-c", "-o", object, "testdata/guest/guest.c"},
		{tool(tb, "ld.lld"), "--image-base=0x100000", "-e", "_start", "-o", image, object},
	} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			tb.Fatalf("%s: %v\n%s", Quote(argv), err, out)
		}
	}
	return image
}

// tool returns the newest of an LLVM tool's versions that is installed.
func tool(tb testing.TB, name string) string {
	for version := 22; version >= 14; version-- {
		if path, err := exec.LookPath(fmt.Sprintf("%s-%d", name, version)); err == nil {
			return path
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		tb.Fatalf("no %s: apt-get install clang lld: %v", name, err)
	}
	return path
}

// writeScript writes a program of /bin/sh. All its processes carry its path as
// a mark: the shell in its arguments, its children in their environment.
func writeScript(tb testing.TB, path, body string) {
	text := "#!/bin/sh\nulimit -c 0\nexport UNLUCKY_TEST_SCRIPT=$0\n" + body + "\n" // no core files from those that abort
	// A child that is forked while the file is open for writing would hold it
	// so until it runs something itself: "text file busy".
	syscall.ForkLock.RLock()
	err := os.WriteFile(path, []byte(text), 0o755)
	syscall.ForkLock.RUnlock()
	if err != nil {
		tb.Fatal(err)
	}
}

// enterable is a temporary folder for a program that stands in for QEMU, which
// root runs as another user.
func enterable(tb testing.TB) string {
	dir := tb.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		tb.Fatal(err)
	}
	return dir
}

// nothingLeft fails the test if a process with the mark, the path of a folder
// of the test's own, is alive, in whatever process group.
func nothingLeft(t *testing.T, mark string) {
	t.Helper()
	// What was killed can take a moment to be gone.
	for begin := time.Now(); time.Since(begin) < 10*time.Second; time.Sleep(10 * time.Millisecond) {
		if len(marked(t, mark)) == 0 {
			return
		}
	}
	t.Errorf("processes left: %v", marked(t, mark))
}

// marked returns the ids of the living processes with the mark in their
// arguments or their environment.
func marked(t *testing.T, mark string) (pids []int) {
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil || len(processes) == 0 {
		t.Fatalf("no processes in /proc: %v", err)
	}
	for _, dir := range processes {
		args, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		environ, _ := os.ReadFile(filepath.Join(dir, "environ"))
		if bytes.Contains(args, []byte(mark)) || bytes.Contains(environ, []byte(mark)) {
			pid, _ := strconv.Atoi(filepath.Base(dir))
			pids = append(pids, pid)
		}
	}
	return pids
}
