package host

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

// Run runs a program in a process group of its own, without input, and
// kills the whole group when ctx ends. env is the complete environment.
func Run(ctx context.Context, dir string, env []string, out io.Writer, argv ...string) error {
	_, err := RunNice(ctx, 0, dir, env, out, argv...)
	return err
}

// RunNice is Run at a nice value; it returns the CPU time that was spent.
func RunNice(ctx context.Context, nice int, dir string, env []string, out io.Writer, argv ...string) (time.Duration, error) {
	Trace(ctx, dir, argv)
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
		return 0, Hint(fmt.Errorf("%s is not installed", argv[0]), "unlucky doctor tells the line that installs it")
	case err != nil:
		return 0, err
	}
	return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), nil
}

// Output runs a program and returns what it printed; an error carries its
// last lines.
func Output(ctx context.Context, dir string, env []string, argv ...string) ([]byte, error) {
	var buf bytes.Buffer
	if err := Run(ctx, dir, env, &buf, argv...); err != nil {
		return buf.Bytes(), fmt.Errorf("%s: %w%s", strings.Join(argv, " "), err, LastLines(buf.Bytes(), 8))
	}
	return buf.Bytes(), nil
}

// LastLines are the last n lines of a log, indented to follow an error.
func LastLines(log []byte, n int) string {
	lines := strings.Split(strings.TrimSpace(string(log)), "\n")
	if len(lines) == 1 && lines[0] == "" {
		return ""
	}
	return "\n\t" + strings.Join(lines[max(0, len(lines)-n):], "\n\t")
}

// Environment is what the programs of a build see of the user's own, and more:
// no compiler flags, make flags or locale that would change the build.
func Environment(path string, extra ...string) []string {
	env := []string{"PATH=" + path, "LC_ALL=C", "HOME=" + os.Getenv("HOME"), "TMPDIR=" + os.TempDir()}
	return append(env, extra...)
}
