package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"unlucky/seeds"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"unlucky": main})
}

// TestScripts are the behaviours of the command line that a user can see. The
// kernel of these is linker/testdata/tiny, really built, linked and booted.
func TestScripts(t *testing.T) {
	cache := t.TempDir() // one for all, as for a user
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Setenv("XDG_CACHE_HOME", cache)
			env.Setenv("GOCACHE", os.Getenv("GOCACHE"))
			// A folder for programs in which nobody, as whom root's QEMU runs, may look.
			programs, err := os.MkdirTemp("", "unlucky-programs-")
			if err != nil {
				return err
			}
			env.Defer(func() { os.RemoveAll(programs) })
			if err := os.Chmod(programs, 0o755); err != nil {
				return err
			}
			env.Setenv("PROGRAMS", programs)
			tree := filepath.Join(env.WorkDir, "tiny")
			if err := os.CopyFS(tree, os.DirFS("linker/testdata/tiny")); err != nil {
				return err
			}
			scenario, err := os.ReadFile("testdata/tiny.yaml")
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(env.WorkDir, "tiny.yaml"), scenario, 0o644); err != nil {
				return err
			}
			return os.Chmod(filepath.Join(tree, "scripts/link-vmlinux.sh"), 0o755)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// plain asks for output of the last command in which no byte could
			// command a terminal.
			"plain": func(ts *testscript.TestScript, _ bool, _ []string) {
				for _, stream := range []string{"stdout", "stderr"} {
					text := ts.ReadFile(stream)
					if i := strings.IndexFunc(text, func(r rune) bool { return r != '\n' && (r < ' ' || r > '~') }); i >= 0 {
						ts.Fatalf("%s has %.40q", stream, text[i:])
					}
				}
			},
			// unbundle FILE DIR unpacks a bundle.
			"unbundle": func(ts *testscript.TestScript, _ bool, args []string) {
				dir := ts.MkAbs(args[1])
				ts.Check(os.MkdirAll(dir, 0o755))
				_, err := seeds.Unpack(context.Background(), ts.MkAbs(args[0]), dir, func(int64, int64) {})
				ts.Check(err)
			},
			// status N CMD ARGS... runs a command that must end with status N.
			"status": func(ts *testscript.TestScript, _ bool, args []string) {
				want, err := strconv.Atoi(args[0])
				ts.Check(err)
				got := 0
				err = ts.Exec(args[1], args[2:]...)
				var status *exec.ExitError
				if errors.As(err, &status) {
					got = status.ExitCode()
				} else {
					ts.Check(err)
				}
				if got != want {
					ts.Fatalf("%v: exit status %d, want %d", args[1:], got, want)
				}
			},
		},
		ContinueOnError: true,
	})
}

func TestUsageNamesEveryCommand(t *testing.T) {
	for name := range commands() {
		if !strings.Contains(usage, "\n    unlucky "+name+" ") {
			t.Errorf("%s is not in the usage", name)
		}
		if err := run(context.Background(), []string{name, "-no-such-flag"}, nil, os.Stderr); !errors.As(err, &usageError{}) {
			t.Errorf("%s -no-such-flag: error %v", name, err)
		}
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"a\tb\n":                        "a\tb\n",
		"\x1b[2J\x00\x07\x7f\r":         ".[2J....",
		"\x9b31m":                       ".31m", // CSI in 8 bits, and the same in UTF-8
		"\u009b31m":                     ".31m",
		"\u202eevil\u200b\u2028":        ".evil..",
		"/home/m\u00fcller/\u7a0b.yaml": "/home/m\u00fcller/\u7a0b.yaml",
	} {
		if got := printable(in); got != want {
			t.Errorf("printable(%q) = %q, want %q", in, got, want)
		}
	}
	var out strings.Builder
	for _, b := range []byte("x\x1b]0;t\a\r\n\xc2\x9bm\n") { // as a console comes
		printer{&out}.Write([]byte{b})
	}
	if want := "x.]0;t.\n..m\n"; out.String() != want {
		t.Errorf("a console printed as %q, want %q", out.String(), want)
	}
}
