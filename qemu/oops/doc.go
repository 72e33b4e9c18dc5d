// Package oops turns what a Linux console shows into the title of its first
// crash report: which sort of report, and which function is to blame. It knows
// consoles only, live or pasted, and nothing of what runs the kernel.
//
// What reports look like is data: a rule each in rules.go and in one table an
// architecture (x86.go, arm64.go ...), and the functions that are passed over in
// functions.go. classify.go is the engine: it takes lines, freed of what loggers
// put before them (prefix.go), until a rule begins a report, follows that to its
// end, and names whom the registers and the first trace (frame.go) blame.
// docs/consoles.md lists the reports, and the kernel's file that prints each.
package oops
