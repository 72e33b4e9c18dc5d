// Package cli is the command line: a file a command, what they share beside it.
package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"unlucky/host"
)

const usage = `unlucky finds kernel crashes that depend on the layout of the image.

Usage:
    unlucky sweep SCENARIO [flags]     link and boot many layouts, save the unlucky seeds
    unlucky replay SEEDFILE [flags]    link one saved layout again and boot it; or boot a bundle
    unlucky minimize SEEDFILE [flags]  find the functions whose addresses make a saved layout fail
    unlucky bundle SEEDFILE [flags]    put all that shows the crash with QEMU alone into one file, with a text to mail
    unlucky verify DIR [flags]         say whether a fix mends what a sweep has found
    unlucky list DIR...                list what sweeps have found, a title a line
    unlucky suspects DIR... [flags]    rank the functions whose addresses go with failing
    unlucky report DIR... [-o FILE]    write a page about sweeps: findings, coverage, a map of suspects
    unlucky coverage DIR... [flags]    say at which addresses sweeps have tried each function
    unlucky merge DIR... [flags]       read many sweeps, such as the shards of one, as one
    unlucky prepare SCENARIO [-o FILE] build the kernel and write it as one file, for sweep -kernel on other machines
    unlucky scenarios                  list the built-in scenarios
    unlucky scenarios show NAME        print one as YAML, to copy and edit
    unlucky doctor [SCENARIO] [flags]  say what is missing, what a sweep of this kernel would build, and whether KVM works
    unlucky fetch PACKAGE              fetch a kernel's source package, as a sweep does by itself, and print its path
    unlucky patch [-revert] DIR        patch the scripts/link-vmlinux.sh of a kernel tree, for plain make
    unlucky classify [-json] FILE...|- print the crash titles of console logs, a line each
    unlucky bench [SCENARIO]           measure layouts an hour: by hand, by a sweep, and the least they can cost
    unlucky hunt [SCENARIO]            compare strategies: layouts to the first crash of bugs of many kinds
    unlucky clean                      remove the prepared kernels and the sources fetched for them
    unlucky COMMAND -h                 print the flags of a command, as help COMMAND does

SCENARIO is the name of a built-in scenario or a YAML file: what kernel to
build, how to boot it, and what a crash looks like. SEEDFILE is a file that a
sweep has saved; it is all that replay, minimize and bundle need. One that asks for a
kernel that was never built here, for further arguments of QEMU, or for a command
in its place (guest.command) could run programs of whoever wrote it: it is
refused without -trust.

Examples:
    unlucky sweep kcfi-seal -seeds 1:64
    unlucky sweep my.yaml -linux ~/src/linux -for 8h -exec 'mail -s "unlucky: $UNLUCKY_TITLE" me <"$UNLUCKY_FILE"'
    unlucky replay unlucky.out/kcfi-seal/unexpected-exit/7.yaml -boots 10
    unlucky replay unlucky.out/kcfi-seal/unexpected-exit/7.yaml -append cfi=off
    unlucky minimize unlucky.out/kcfi-seal/unexpected-exit/7.yaml -budget 10m
    unlucky bundle unlucky.out/kcfi-seal/unexpected-exit/7.yaml
    unlucky replay kcfi-seal-7.tar.zst
    unlucky coverage unlucky.out/kcfi-seal -n 40
    unlucky verify unlucky.out/kcfi-seal -patch fix.patch
    unlucky prepare canary -o canary.kernel.tar.zst
    unlucky sweep -kernel canary.kernel.tar.zst -seeds 1:1000
    git bisect run unlucky sweep ../my.yaml -linux . -o ../out -seeds 1:32 -stop-after 1 -bisect

Exit status:
    0  done
    1  something failed, verify cannot tell, minimize came to its limit before the smallest, or sweep has
       shown nothing: all boots fail alike, or no layout links
    2  usage
    3  the answer is "no": replay did not reproduce, sweep -fail or -bisect found an unlucky layout,
       verify says "not fixed"
    125  sweep -bisect cannot tell: the kernel does not build or link, or QEMU or guest.command failed
    128  sweep -bisect was called wrongly: git ends the bisection
    130  interrupted by ^C, SIGTERM or SIGHUP: what was done is kept, and the same command goes on
    143  ended at once by a second SIGTERM (a second ^C: by SIGINT); what was written is kept
`

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

// commandError is one of a command, whose help may help.
type commandError struct {
	error
	command string
}

func (e commandError) Unwrap() error { return e.error }

// Main is the whole program: it returns its exit status.
func Main() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop) // a second ^C ends the program at once
	return Run(ctx, os.Args[1:], os.Stdin, os.Stdout)
}

// Run runs a command line, whose messages go to standard error, and returns the exit
// status.
func Run(ctx context.Context, args []string, in io.Reader, out io.Writer) int {
	return status(run(ctx, args, in, out), newScreen(os.Stderr))
}

type command func(ctx context.Context, args []string, in io.Reader, out io.Writer) error

func commands() map[string]command {
	return map[string]command{
		"sweep": sweep, "replay": replay, "minimize": minimize, "bundle": bundle, "verify": verify,
		"list": list, "suspects": suspects, "report": reportCommand, "coverage": coverage, "merge": merge,
		"scenarios": listScenarios, "doctor": doctor, "patch": patch, "classify": classify,
		"prepare": prepare, "fetch": fetch, "bench": bench, "hunt": hunt, "clean": clean,
	}
}

func run(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	if len(args) == 0 {
		return usageError{errors.New("no command")}
	}
	switch args[0] {
	case "-h", "-help", "--help", "help":
		if len(args) == 1 {
			fmt.Fprint(out, usage)
			return nil
		}
		args = []string{args[1], "-h"}
	}
	command, ok := commands()[args[0]]
	if !ok {
		return usageError{fmt.Errorf("there is no command %q", args[0])}
	}
	err := command(ctx, args[1:], in, out)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if errors.As(err, &usageError{}) {
		return commandError{err, args[0]}
	}
	return err
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
	case errors.As(err, &usageError{}):
		s.error(err)
		help := "unlucky -h"
		if of := new(commandError); errors.As(err, of) {
			help = "unlucky " + of.command + " -h"
		}
		s.hint(help)
		return exitUsage
	case errors.Is(err, context.Canceled):
		s.error(errors.New("interrupted"))
		return ExitInterrupted
	}
	s.error(err)
	if h := new(host.HintError); errors.As(err, &h) {
		s.hint(h.Hint)
	}
	return ExitFailed
}

// parse parses flags that may stand before and after the arguments, of which
// there must be min to max.
func parse(f *flag.FlagSet, args []string, out io.Writer, synopsis string, min, max int) ([]string, error) {
	f.SetOutput(io.Discard)
	f.Usage = func() {}
	var rest []string
	for {
		err := f.Parse(args)
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprintf(out, "Usage: unlucky %s\n\n", synopsis)
			f.SetOutput(out)
			f.PrintDefaults()
			return nil, err
		}
		if err != nil {
			return nil, usageError{fmt.Errorf("%s: %w", f.Name(), err)}
		}
		if args = f.Args(); len(args) == 0 {
			break
		}
		rest, args = append(rest, args[0]), args[1:]
	}
	for _, name := range []string{"j", "smp"} { // 0 is their default, which is another number
		if given(f, name) && f.Lookup(name).Value.String() == "0" {
			return nil, usageError{fmt.Errorf("%s: -%s 0: at least 1, or leave it out", f.Name(), name)}
		}
	}
	if len(rest) < min || len(rest) > max {
		return nil, usageError{fmt.Errorf("usage: unlucky %s", synopsis)}
	}
	return rest, nil
}

// given tells whether a flag stands on the command line.
func given(f *flag.FlagSet, name string) (found bool) {
	f.Visit(func(g *flag.Flag) { found = found || g.Name == name })
	return found
}

// indent puts each line of s two columns to the right of what it belongs to.
func indent(s string) string {
	return "  " + strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n  ")
}
