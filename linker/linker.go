// Package linker makes kernel images of chosen layouts: it prepares a kernel
// once (unpack, patch, configure, make), pads and orders input sections of its
// vmlinux.o by a [Plan], and links each plan with the kernel's own link-vmlinux.sh.
//
// It does not know where a plan comes from, nor what becomes of an image.
package linker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// Progress is told how far a long step has come. Step is a line for people;
// total is 0 where it is not known beforehand. A step ends when the next one
// starts or the call returns.
type Progress func(step string, done, total int64)

// HintError is a failure that the user can mend; Hint says how.
type HintError struct {
	Err  error
	Hint string
}

func (e *HintError) Error() string { return e.Err.Error() }
func (e *HintError) Unwrap() error { return e.Err }

func hint(err error, format string, a ...any) error {
	return &HintError{err, fmt.Sprintf(format, a...)}
}

// command runs a program in a process group of its own, without input, and
// kills the whole group when ctx ends. env is the complete environment.
func command(ctx context.Context, dir string, env []string, out io.Writer, argv ...string) error {
	_, err := spend(ctx, 0, dir, env, out, argv...)
	return err
}

// low is the nice value of links: they take what boots leave. Boots have a time
// limit, and a boot and a link on one CPU at the same time are slower than one
// after the other.
const low = 19

// spend is command at a nice value; it returns the CPU time that was spent.
func spend(ctx context.Context, nice int, dir string, env []string, out io.Writer, argv ...string) (time.Duration, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, env, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Start()
	if err == nil {
		if nice != 0 {
			syscall.Setpriority(syscall.PRIO_PROCESS, cmd.Process.Pid, nice) // without it, as well
		}
		err = cmd.Wait()
	}
	switch {
	case ctx.Err() != nil:
		return 0, ctx.Err()
	case errors.Is(err, exec.ErrNotFound):
		return 0, hint(fmt.Errorf("%s is not installed", argv[0]), "unlucky doctor tells the line that installs it")
	case err != nil:
		return 0, err
	}
	return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), nil
}

// output runs a program and returns what it printed; an error carries its
// last lines.
func output(ctx context.Context, dir string, env []string, argv ...string) ([]byte, error) {
	var buf bytes.Buffer
	if err := command(ctx, dir, env, &buf, argv...); err != nil {
		return buf.Bytes(), fmt.Errorf("%s: %w%s", strings.Join(argv, " "), err, indentTail(buf.Bytes(), 8))
	}
	return buf.Bytes(), nil
}

// indentTail is the last n lines of a log, indented to follow an error.
func indentTail(log []byte, n int) string {
	lines := strings.Split(strings.TrimSpace(string(log)), "\n")
	if len(lines) == 1 && lines[0] == "" {
		return ""
	}
	return "\n\t" + strings.Join(lines[max(0, len(lines)-n):], "\n\t")
}

// environment is what programs started by this package see of the user's own:
// no compiler flags, make flags or locale that would change the build.
func environment(path string, extra ...string) []string {
	env := []string{"PATH=" + path, "LC_ALL=C", "HOME=" + os.Getenv("HOME"), "TMPDIR=" + os.TempDir()}
	return append(env, extra...)
}
