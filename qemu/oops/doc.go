// Package oops turns what a Linux console shows into the title of its first
// crash report: which sort of report, and which function is to blame. It knows
// consoles only, live or pasted, and nothing of what runs the kernel.
package oops
