// Package cli is the command line: a file a command, what they share beside it.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"unlucky/host"
	"unlucky/scenarios"
)

// Exit statuses.
const (
	ExitFailed      = 1
	exitUsage       = 2
	ExitNo          = 3
	exitCannotTell  = 125 // git bisect run: skip this commit
	exitEndBisect   = 128 // git bisect run: end, as no commit will fare better
	ExitInterrupted = 130
)

// exit is an error that only carries an exit status; all has been said.
type exit int

func (e exit) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// usageError is bad input on the command line.
type usageError struct{ error }

// helped is an error with what may help, as whole command lines or questions.
type helped struct {
	error
	hints []string
}

func (e helped) Unwrap() error { return e.error }

// Main is the whole program: it returns its exit status.
func Main() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop) // a second ^C ends the program at once
	return Run(ctx, os.Args[1:], os.Stdin, os.Stdout)
}

// Run runs a command line, whose messages go to standard error, and returns the exit
// status.
func Run(ctx context.Context, args []string, in io.Reader, out io.Writer) int {
	return status(run(ctx, args, in, colouring(out)), newScreen(os.Stderr))
}

func run(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	if len(args) == 0 {
		return helped{usageError{errors.New("no command")}, []string{"unlucky -h"}}
	}
	switch args[0] {
	case "-h", "-help", "--help", "help":
		if len(args) == 1 {
			_, err := io.WriteString(out, usage(commands()))
			return err
		}
		args = []string{args[1], "-h"}
	case "-version", "--version":
		_, err := fmt.Fprintln(out, "unlucky", programVersion())
		return err
	}
	all := commands()
	i := slices.IndexFunc(all, func(c *command) bool { return c.Name() == args[0] })
	if i < 0 {
		return helped{usageError{fmt.Errorf("there is no command %q", args[0])}, append(didYouMean(args[0], names(all)), "unlucky -h")}
	}
	return all[i].start(ctx, call{args: args[1:], in: in, out: out, scr: newScreen(os.Stderr)})
}

// status prints an error the way all errors are printed, and returns the exit
// status.
func status(err error, s *screen) int {
	var code exit
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	case errors.Is(err, context.Canceled):
		s.error(errors.New("interrupted"))
		return ExitInterrupted
	}
	s.error(err)
	if h := new(helped); errors.As(err, h) {
		for _, hint := range h.hints {
			s.hint(hint)
		}
	}
	if h := new(host.HintError); errors.As(err, &h) {
		s.hint(h.Hint)
	}
	if u := new(scenarios.UnknownError); errors.As(err, &u) {
		for _, hint := range didYouMean(u.Name, scenarios.Names()) {
			s.hint(hint)
		}
	}
	if errors.As(err, &usageError{}) {
		return exitUsage
	}
	return ExitFailed
}

// indent puts each line of s two columns to the right of what it belongs to.
func indent(s string) string {
	return "  " + strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n  ")
}
