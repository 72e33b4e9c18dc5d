package qemu

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// board is a machine that a shell script boots.
func board(script string, args ...string) Machine {
	return Machine{
		Program: append([]string{"sh", "-c", script, "board"}, args...),
		Kernel:  "vm linux", Initrd: "initrd", Append: "console=ttyS0 quiet", Slot: "3", Accel: ByProgram,
	}
}

// What a program does, and what is learnt of it.
func TestProgram(t *testing.T) {
	const (
		begun = `printf 'BUG: unable to handle page fault for address: 1234\nRIP: 0010:f+0x1/0x2\n'; `
		oops  = begun + `echo '---[ end trace 0000000000000000 ]---'; `
	)
	for _, test := range []struct {
		name, script, kind, says string // what the reason or the title has
		limit                    time.Duration
	}{
		{"pass", `echo all good`, "pass", "", far},
		{"nothing", ``, "crash", UnexpectedExit, far},
		{"crash, and its own end", oops + `exit 0`, "crash", "paging request in f", far},
		{"crash, and no end", oops + `exec sleep 1000`, "crash", "paging request in f", far},
		{"status", `echo all good; echo the switch is dead >&2; exit 3`, "infra", "sh exit status 3: the switch is dead", far},
		{"status before a crash is known", begun + `exit 1`, "infra", "sh exit status 1", far},
		{"signal", `kill -SEGV $$`, "infra", "sh was ended by a signal: segmentation fault", far},
		{"words on the console", `echo board 3 is dead; echo all good`, "infra", "board 3 is dead", far},
		{"words on stderr", `echo all good; echo board 3 is dead >&2; sleep 1000`, "infra", "board 3 is dead", far},
		{"QEMU's words are not its own", `echo out of memory >&2; echo all good`, "pass", "", far},
		{"hang", `echo booting; exec sleep 1000`, "hang", "booting", time.Second},
		{"hang, and a last word", `trap 'echo board 3 is dead; echo all good; exit 4' TERM; echo booting; sleep 1000 & wait`, "hang", "booting", time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r, err := board(test.script).Boot(t.Context(), Expect{Pass: passRE, Infra: regexp.MustCompile(`board \d+ is dead`), Limit: test.limit})
			if err != nil || string(r.Kind) != test.kind || !strings.Contains(r.Reason+r.Title, test.says) {
				t.Errorf("%s %q %q, %v; want %s, %q", r.Kind, r.Title, r.Reason, err, test.kind, test.says)
			}
			if r.By != "sh" {
				t.Errorf("booted by %q", r.By)
			}
			if test.kind == "hang" && string(r.Console) != "booting\n" {
				t.Errorf("the console is %q", r.Console)
			}
		})
	}
}

// A program is told what to boot by its arguments and by its environment, and
// what is printed for people does the same.
func TestProgramWords(t *testing.T) {
	m := board(`printf '%s|' "$@" "$UNLUCKY_IMAGE" "$UNLUCKY_INITRD" "$UNLUCKY_APPEND" "$UNLUCKY_SLOT"`,
		"--kernel={image}", "{initrd},{slot}", "{append}", "{other}", "$HOME *")
	const want = `--kernel=vm linux|initrd,3|console=ttyS0 quiet|{other}|$HOME *|vm linux|initrd|console=ttyS0 quiet|3|`
	r, err := m.Boot(t.Context(), Expect{Pass: passRE, Limit: far})
	if err != nil || string(r.Console) != want {
		t.Errorf("told %q, %v; want %q", r.Console, err, want)
	}
	out, err := exec.Command("sh", "-c", Quote(m.Argv())).Output()
	if err != nil || string(out) != want {
		t.Errorf("pasted, told %q, %v", out, err)
	}
	m.Program = slices.Clone(m.Program)
	m.Program[0] = filepath.Join(t.TempDir(), "nosuch")
	if _, err := m.Version(t.Context()); err == nil || !strings.Contains(err.Error(), "there is no program "+m.Program[0]) {
		t.Errorf("error %v", err)
	}
	if _, err := m.Boot(t.Context(), Expect{Pass: passRE, Limit: far}); err == nil || !strings.Contains(err.Error(), "guest.command") {
		t.Errorf("error %v", err)
	}
}

// A program that is to end may power its board off first, and nothing of it is left.
func TestProgramEnds(t *testing.T) {
	off := filepath.Join(t.TempDir(), "off")
	ctx, cancel := context.WithCancel(t.Context())
	m := board(`trap 'echo >"$1"; exit 0' TERM; sleep 1000 & echo "$!" >"$1.child"; echo ready; wait`, off)
	go func() {
		for {
			if text, _ := os.ReadFile(off + ".child"); len(text) > 0 {
				cancel()
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	if _, err := m.Boot(ctx, Expect{Pass: passRE}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(off); err != nil {
		t.Error("the board is still on")
	}
	pid, err := os.ReadFile(off + ".child")
	if err != nil {
		t.Fatal(err)
	}
	for begin := time.Now(); ; time.Sleep(time.Millisecond) { // what is killed takes a moment to go
		state, err := os.ReadFile(filepath.Join("/proc", strings.TrimSpace(string(pid)), "stat"))
		if err != nil || strings.Contains(string(state), ") Z ") {
			break
		}
		if time.Since(begin) > far {
			t.Fatalf("its child still runs: %s", state)
		}
	}

	// One that does not end is ended after its grace.
	cmd := exec.Command("sh", "-c", `trap '' TERM; echo ready; while :; do sleep 1; done`)
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	p, err := start(cmd, conduct{name: "sh", grace: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	p.stdout.Read(make([]byte, 6))
	p.kill()
	if status, ours := p.wait(); !ours || status.Signal() != syscall.SIGKILL {
		t.Errorf("ended with %v, by us: %t", status, ours)
	}
}
