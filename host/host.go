// Package host says how the programs that unlucky needs are installed on this
// machine. What each distribution calls them stands in install.sh, which the
// Makefile runs; this package asks the same file for the line to type.
package host

import (
	"context"
	_ "embed"
	"os/exec"
	"strings"
	"time"
)

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
