package e2e

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

	"unlucky/cli"
	"unlucky/seeds"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"unlucky": func() { os.Exit(cli.Main()) }})
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
			if err := os.CopyFS(tree, os.DirFS("../linker/testdata/tiny")); err != nil {
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
