package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"

	"github.com/agext/levenshtein"

	"unlucky/host"
	"unlucky/qemu"
)

// command is what a command says of itself, from which its help, the usage, the
// completions and the man page are made, and what it does.
type command struct {
	*flag.FlagSet          // with its name
	args          string   // what it takes beside flags: "SCENARIO", "[SCENARIO]", "DIR..."
	min, max      int      // how many arguments that are
	summary       string   // one line
	examples      []string // command lines
	long          bool     // it runs programs, and takes long: it has -q and -v
	run           func(context.Context, call) error
	ended         func(args []string, err error) error // nil, or what any end of it is to be taken for

	quiet, verbose bool
}

// call is what a command is run with.
type call struct {
	args []string // all; to run, those that are no flags
	in   io.Reader
	out  io.Writer
	scr  *screen
}

// commands are all commands, in the order of the usage. A command runs once: its
// flags keep what they were given.
func commands() []*command {
	var all []*command
	for _, c := range []struct {
		name string
		make func(*flag.FlagSet) *command
	}{
		{"sweep", sweep}, {"replay", replay}, {"minimize", minimize}, {"bundle", bundle}, {"verify", verify}, {"autopsy", autopsyCommand},
		{"list", list}, {"suspects", suspects}, {"report", reportCommand}, {"coverage", coverage}, {"merge", merge},
		{"prepare", prepare}, {"scenarios", listScenarios}, {"doctor", doctor}, {"fetch", fetch}, {"patch", patch},
		{"classify", classify}, {"bench", bench}, {"hunt", hunt}, {"clean", clean},
		{"completion", completion}, {"man", man},
	} {
		f := flag.NewFlagSet(c.name, flag.ContinueOnError)
		f.SetOutput(io.Discard)
		made := c.make(f)
		if made.FlagSet = f; made.long {
			f.BoolVar(&made.quiet, "q", false, "print results and errors only")
			f.BoolVar(&made.verbose, "v", false, "print each program that is run, such as make, ld.lld and QEMU, ready to paste")
		}
		all = append(all, made)
	}
	return all
}

func names(all []*command) (names []string) {
	for _, c := range all {
		names = append(names, c.Name())
	}
	return names
}

// start runs a command, or prints its help.
func (c *command) start(ctx context.Context, with call) error {
	args := with.args
	rest, err := c.parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		_, err := io.WriteString(with.out, c.help())
		return err
	case err == nil:
		with.args, with.scr.quiet = rest, c.quiet
		if c.verbose {
			ctx = host.WithTrace(ctx, func(dir string, argv []string) {
				in := ""
				if dir != "" {
					in = "cd " + qemu.Quote([]string{dir}) + " && "
				}
				with.scr.note("+ %s%s", in, qemu.Quote(argv))
			})
		}
		err = c.run(ctx, with)
	}
	if errors.As(err, &usageError{}) {
		err = helped{err, append(c.suggest(err), "unlucky "+c.Name()+" -h")}
	}
	if c.ended != nil {
		err = c.ended(args, err)
	}
	return err
}

// Synopsis is how a command is called.
func (c *command) Synopsis() string {
	text := strings.TrimSpace("unlucky " + c.Name() + " " + c.args)
	c.VisitAll(func(*flag.Flag) { text = strings.TrimSuffix(text, " [flags]") + " [flags]" })
	return text
}

// parse parses flags, which may stand before and after the arguments, and returns
// these.
func (c *command) parse(args []string) (rest []string, err error) {
	for {
		if err := c.Parse(args); errors.Is(err, flag.ErrHelp) {
			return nil, err
		} else if err != nil {
			return nil, usageError{fmt.Errorf("%s: %w", c.Name(), err)}
		}
		if args = c.Args(); len(args) == 0 {
			break
		}
		rest, args = append(rest, args[0]), args[1:]
	}
	for _, name := range []string{"j", "smp"} { // 0 is their default, which is another number
		if given(c.FlagSet, name) && c.Lookup(name).Value.String() == "0" {
			return nil, usageError{fmt.Errorf("%s: -%s 0: at least 1, or leave it out", c.Name(), name)}
		}
	}
	switch {
	case c.quiet && c.verbose:
		return nil, usageError{errors.New("-q and -v exclude each other")}
	case len(rest) < c.min || len(rest) > c.max:
		return nil, usageError{fmt.Errorf("usage: %s", c.Synopsis())}
	}
	return rest, nil
}

// given tells whether a flag stands on the command line.
func given(f *flag.FlagSet, name string) (found bool) {
	f.Visit(func(g *flag.Flag) { found = found || g.Name == name })
	return found
}

// suggest asks for a flag that may have been meant by one that there is not.
func (c *command) suggest(err error) []string {
	_, name, found := strings.Cut(err.Error(), "flag provided but not defined: -") // package flag has no type for it
	if !found {
		return nil
	}
	var flags []string
	c.VisitAll(func(f *flag.Flag) { flags = append(flags, "-"+f.Name) })
	return didYouMean("-"+name, flags)
}

// didYouMean asks for the known name that is nearest to one that is not, unless
// more than a third of that would have to be changed.
func didYouMean(name string, known []string) []string {
	least, best := (len(name)+2)/3, ""
	for _, k := range known {
		if d := levenshtein.Distance(name, k, nil); d < least || d == least && best == "" {
			least, best = d, k
		}
	}
	if best == "" {
		return nil
	}
	return []string{fmt.Sprintf("did you mean %s?", best)}
}
