// Package host is the machine that this runs on: how the programs that unlucky
// needs are installed and run, what memory and disk there is, who holds a lock, and
// folders that outlive no run.
package host

import (
	"context"
	_ "embed"
	"os/exec"
	"strings"
	"time"
)

// script knows what each distribution calls a program; the Makefile runs it, too.
//
//go:embed install.sh
var script string

// patience is how long a package manager may think: the line is part of an error
// that somebody waits for.
const patience = 20 * time.Second

// Install is the line that installs needs, which are names in the table of
// install.sh; it says too what this distribution has no package for.
func Install(needs ...string) string {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", append([]string{"-s", "--", "--print"}, needs...)...)
	cmd.Stdin = strings.NewReader(script)
	cmd.WaitDelay = time.Second
	if out, err := cmd.Output(); err == nil {
		return strings.TrimSpace(string(out))
	}
	return "install " + strings.Join(needs, " ")
}
