package cli

import (
	"fmt"
	"slices"
	"strings"
)

// The texts of the usage, the help of each command and the man page.
const (
	synopsis = "unlucky COMMAND [ARGUMENTS] [flags]"
	purpose  = "find kernel crashes that depend on the layout of the image"
	about    = `SCENARIO is the name of a built-in scenario or a YAML file: what kernel to
build, how to boot it, and what a crash looks like. SEEDFILE is a file that a
sweep has saved; it is all that replay, minimize and bundle need. One that asks for a
kernel that was never built here, for further arguments of QEMU, or for a command
in its place (guest.command) could run programs of whoever wrote it: it is
refused without -trust. DIR is a folder that sweep -o has written. Flags may stand before and behind the arguments.
`
)

// exitStatus is one meaning of an exit status.
type exitStatus struct {
	Code    int
	of      string // a command, or "" for all
	meaning string
}

var exitStatuses = []exitStatus{
	{0, "", "done"},
	{ExitFailed, "", "something failed"},
	{ExitFailed, "verify", "cannot tell"},
	{ExitFailed, "minimize", "came to its limit before the smallest"},
	{ExitFailed, "sweep", "has shown nothing: all boots fail alike, or no layout links"},
	{exitUsage, "", "usage"},
	{ExitNo, "replay", "did not reproduce"},
	{ExitNo, "sweep", "-fail or -bisect found an unlucky layout"},
	{ExitNo, "verify", "not fixed"},
	{exitCannotTell, "sweep", "-bisect cannot tell: the kernel does not build or link, or QEMU or guest.command failed; git skips the commit"},
	{exitEndBisect, "sweep", "-bisect was called wrongly: git ends the bisection"},
	{ExitInterrupted, "", "interrupted by ^C, SIGTERM or SIGHUP: what was done is kept, and the same command goes on"},
	{143, "", "ended at once by a second SIGTERM (a second ^C: by SIGINT); what was written is kept"},
}

// Says is a meaning in a list of those of many commands.
func (e exitStatus) Says() string {
	if e.of == "" {
		return e.meaning
	}
	return e.of + ": " + e.meaning
}

// statuses are the exit statuses of a command, nil if it has none of its own.
func (c *command) statuses() (all []exitStatus) {
	for _, e := range exitStatuses {
		if e.of == c.Name() || e.of == "" {
			all = append(all, e)
		}
	}
	if !slices.ContainsFunc(all, func(e exitStatus) bool { return e.of != "" }) {
		return nil
	}
	return all
}

// usage is the help of the whole program.
func usage(all []*command) string {
	var b strings.Builder
	fmt.Fprintf(&b, "unlucky: %s.\n\nUsage: %s\n\nCommands:\n", purpose, synopsis)
	for _, c := range all {
		fmt.Fprintf(&b, "    %-42s %s\n", strings.TrimSpace("unlucky "+c.Name()+" "+c.args), c.summary)
	}
	fmt.Fprintf(&b, "    %-42s %s\n", "unlucky COMMAND -h", "print the flags of a command, and examples, as help COMMAND does")
	fmt.Fprintf(&b, "    %-42s %s\n\n%s\nExamples:\n", "unlucky -version", "print the version of this program", about)
	for _, c := range all {
		if len(c.examples) > 0 {
			fmt.Fprintf(&b, "    %s\n", c.examples[0])
		}
	}
	b.WriteString("\nExit status:\n")
	for _, e := range exitStatuses {
		fmt.Fprintf(&b, "    %-3d  %s\n", e.Code, e.Says())
	}
	return b.String()
}

// help is what -h prints.
func (c *command) help() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Usage: %s\n\n%s\n", c.Synopsis(), indent(c.summary))
	if strings.Contains(c.Synopsis(), "[flags]") {
		b.WriteString("\nFlags:\n")
		c.SetOutput(&b)
		c.PrintDefaults()
	}
	if len(c.examples) > 0 {
		fmt.Fprintf(&b, "\nExamples:\n%s\n", indent(strings.Join(c.examples, "\n")))
	}
	if all := c.statuses(); all != nil {
		b.WriteString("\nExit status:\n")
		for _, e := range all {
			fmt.Fprintf(&b, "  %-3d  %s\n", e.Code, e.meaning)
		}
	}
	return b.String()
}
