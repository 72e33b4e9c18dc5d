package oops

import (
	"bytes"
	"strings"
)

// Lines returns the lines of a console that are not blank, as people read them:
// without control bytes, escape sequences, timestamps and callers, in printable
// ASCII, indented as they were. Lines above 4 KiB are cut into pieces.
func Lines(console []byte) (shown []string) {
	each := func(raw []byte) {
		if text, _ := show(raw); text != "" {
			shown = append(shown, text)
		}
	}
	l := LineWriter{Each: each}
	l.Write(console)
	l.Flush()
	return shown
}

// Excerpt returns the first crash report of a console, the one that [Classify]
// names, in lines like those of [Lines]: from the line that it begins with to its
// last, 200 lines behind that at most, without those that another CPU or task has
// printed in between. It is nil where there is none.
func Excerpt(console []byte, warnings bool) (report []string) {
	s := scan{warnings: warnings}
	last := ""
	l := LineWriter{Each: func(raw []byte) {
		text, caller := show(raw) // feed overwrites raw
		if text == "" || s.complete() {
			return
		}
		begun := s.begun
		s.feed(raw)
		switch {
		case s.begun == begun:
		case s.rule.before && strings.TrimSpace(last) == s.line:
			report = []string{last}
		default:
			report = nil
		}
		if s.rule != nil && (s.caller == "" || s.caller == caller || s.rule.anyCPU) {
			report = append(report, text)
		}
		last = text
	}}
	l.Write(console)
	l.Flush()
	if !s.counted() {
		return nil
	}
	return report
}

// show is a line for people, and its caller.
func show(raw []byte) (shown, caller string) {
	line := Clean(bytes.Clone(raw))
	text, caller, stamped := splitPrefix(line)
	before := line[:bytes.LastIndex(line, text)]
	indent := len(before) - len(bytes.TrimRight(before, " "))
	if stamped {
		indent = max(0, indent-1) // the space behind a timestamp or a caller
	}
	if len(text) == 0 {
		return "", ""
	}
	return strings.Repeat(" ", indent) + string(text), caller
}
