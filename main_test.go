package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
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
	for _, command := range []string{"sweep", "replay", "minimize", "scenarios", "doctor", "patch", "classify", "coverage", "clean"} {
		if err := run(context.Background(), []string{command, "-no-such-flag"}, nil, os.Stderr); !errors.As(err, &usageError{}) {
			t.Errorf("%s -no-such-flag: error %v", command, err)
		}
	}
}
