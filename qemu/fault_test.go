package qemu

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSignalled has somebody else send a signal to a QEMU with a guest in it,
// which the kernel does too when memory is short.
func TestSignalled(t *testing.T) {
	kernel := buildGuest(t)
	for _, accel := range accels() {
		for _, test := range []struct {
			signal unix.Signal
			limit  time.Duration
			kind   Kind
			reason string
		}{
			{unix.SIGKILL, far, Infra, "QEMU was ended by a signal: killed (was the host out of memory?)"},
			{unix.SIGTERM, far, Infra, "terminat"}, // by the signal, before QEMU handles it, or with status 0
			{unix.SIGABRT, far, Infra, "QEMU was ended by a signal: aborted"},
			{unix.SIGSTOP, 10 * time.Second, Hang, "still running after the limit of 10s"},
		} {
			t.Run(fmt.Sprint(accel, "/", test.signal), func(t *testing.T) {
				t.Parallel()
				mark := t.TempDir()
				ended := make(chan Result, 1)
				go func() {
					r, err := guest(kernel, accel, `all good\n\h`, mark).Boot(context.Background(), Expect{Pass: passRE, Limit: test.limit})
					if err != nil {
						t.Error(err)
					}
					ended <- r
				}()
				for begin := time.Now(); !signalQEMU(t, mark, test.signal); time.Sleep(10 * time.Millisecond) {
					if time.Since(begin) > far {
						t.Fatal("there was no QEMU")
					}
				}
				r := <-ended
				nothingLeft(t, mark)
				if r.Kind != test.kind || !strings.Contains(r.Reason, test.reason) {
					t.Errorf("%s, reason %q, want %s, %q", r.Kind, r.Reason, test.kind, test.reason)
				}
				if test.kind == Infra && r.Elapsed >= far {
					t.Errorf("took %v", r.Elapsed)
				}
			})
		}
	}
}

// signalQEMU sends a signal to the QEMU with the mark, once it is in its
// sandbox and so about to run its guest.
func signalQEMU(t *testing.T, mark string, signal unix.Signal) bool {
	for _, pid := range marked(t, mark) {
		status, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
		if strings.Contains(string(status), "\nSeccomp:\t2\n") {
			if err := unix.Kill(pid, signal); err != nil {
				t.Fatal(err)
			}
			return true
		}
	}
	return false
}

// TestRefuses has QEMU, or what is in its place, not get as far as a guest.
func TestRefuses(t *testing.T) {
	kernel, dir := buildGuest(t), enterable(t)
	garbage := filepath.Join(dir, "garbage")
	if err := os.WriteFile(garbage, []byte("no kernel"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, reason string
		change       func(*Machine)
	}{
		{"CPU", "exit status 1: qemu-system-x86_64: unable to find CPU model 'no-such'", func(m *Machine) { m.CPU = "no-such" }},
		{"machine", "unsupported machine type", func(m *Machine) { m.Type = "no-such" }},
		{"accelerator", "invalid accelerator", func(m *Machine) { m.Accel = "no-such" }},
		{"option", "-no-such: invalid option", func(m *Machine) { m.Args = append(m.Args, "-no-such") }},
		{"memory", "Cannot allocate memory", func(m *Machine) { m.MemoryMiB = 1 << 40 }},
		{"no kernel", "could not open kernel file '" + dir + "/none'", func(m *Machine) { m.Kernel = filepath.Join(dir, "none") }},
		{"not a kernel", "exit status 1", func(m *Machine) { m.Kernel = garbage }},
		{"a folder", "exit status 1", func(m *Machine) { m.Kernel = dir }},
		{"missing library", "error while loading shared libraries: libgone.so", func(m *Machine) { m.Binary = lacking(t, dir) }},
	} {
		m := guest(kernel, "tcg", `all good\n\t`, dir)
		test.change(&m)
		r, err := m.Boot(t.Context(), Expect{Pass: passRE, Limit: far})
		if err != nil || r.Kind != Infra || !strings.Contains(r.Reason, test.reason) || r.Elapsed >= far {
			t.Errorf("%s: %s %q after %v, %v; want %q", test.name, r.Kind, r.Reason, r.Elapsed, err, test.reason)
		}
	}
	nothingLeft(t, dir)

	orphan := filepath.Join(dir, "orphan")
	if err := os.WriteFile(orphan, []byte("#!/nowhere/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := Machine{Binary: orphan}.Boot(t.Context(), Expect{Pass: passRE, Limit: far})
	if err == nil || !strings.Contains(err.Error(), "what it needs to be loaded is not there") {
		t.Errorf("without its interpreter: %v", err)
	}
}

// lacking builds a program whose shared library has gone since.
func lacking(t *testing.T, dir string) string {
	t.Helper()
	path := func(name string) string { return filepath.Join(dir, name) }
	for name, text := range map[string]string{"gone.c": "int gone(void) { return 0; }\n", "main.c": "int gone(void);\nint main(void) { return gone(); }\n"} {
		if err := os.WriteFile(path(name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{
		{"-shared", "-fPIC", "-o", path("libgone.so"), path("gone.c")},
		{"-o", path("lacking"), path("main.c"), "-L" + dir, "-lgone"},
	} {
		if out, err := exec.Command(tool(t, "clang"), args...).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	if err := os.Remove(path("libgone.so")); err != nil {
		t.Fatal(err)
	}
	return path("lacking")
}

// TestFlood has a program in QEMU's place write 2 GB, in a process of its own
// so that its memory can be told.
func TestFlood(t *testing.T) {
	if testing.Short() {
		t.Skip("NOT TESTED with -short: a guest that prints 2 GB, some 30 s")
	}
	const limit = 5 * time.Second // enough for more than is kept, however slow the reader
	if mark := os.Getenv(againVar); mark != "" {
		begin := time.Now()
		r, err := Machine{Binary: filepath.Join(mark, "qemu")}.Boot(t.Context(), Expect{Pass: passRE, Limit: limit})
		if err != nil {
			t.Fatal(err)
		}
		if r.Kind != Hang && r.Kind != Pass {
			t.Errorf("%s %s %s", r.Kind, r.Title, r.Reason)
		}
		if took := time.Since(begin); took > limit+2*time.Second {
			t.Errorf("took %v", took)
		}
		if n := len(r.Console); n > consoleHead+consoleTail+100 || len(r.Stderr) > stderrHead+stderrTail+100 {
			t.Errorf("%d bytes of console, %d of stderr", n, len(r.Stderr))
		}
		cut := regexp.MustCompile(`\[unlucky: (\d+) bytes cut\]`).FindSubmatch(append(r.Console, r.Stderr...))
		if cut == nil {
			t.Fatal("nothing was cut")
		}
		text, _ := os.ReadFile("/proc/self/status")
		peak := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(text)
		kb, _ := strconv.Atoi(string(peak[1]))
		t.Logf("FIGURES %s: %s bytes cut, peak of %d MiB in %v", r.Kind, cut[1], kb>>10, r.Elapsed.Round(time.Millisecond))
		if kb > 64<<10 {
			t.Errorf("memory of %d MiB", kb>>10)
		}
		return
	}
	for _, test := range []struct{ name, script string }{
		{"lines", `yes | head -c 2G`},
		{"one line", `head -c 2G /dev/zero`},
		{"long lines", `head -c 2G /dev/zero | tr '\0' x | fold -w 100000`},
		{"escapes", `yes "$(printf '\033]0;title')" | head -c 2G`},
		{"stderr", `yes | head -c 2G >&2; sleep 9`},
		{"one line of stderr", `head -c 2G /dev/zero >&2; sleep 9`},
	} {
		mark := enterable(t)
		writeScript(t, filepath.Join(mark, "qemu"), test.script)
		out, err := again(t, os.Args[0], mark, nil)
		if err != nil || !strings.Contains(out, "--- PASS") {
			t.Errorf("%s: %v\n%s", test.name, err, out)
		}
		t.Logf("%s: %s", test.name, regexp.MustCompile(`FIGURES.*`).FindString(out))
		nothingLeft(t, mark)
	}
}
