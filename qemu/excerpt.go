package qemu

import (
	"bytes"
	"strings"
)

// Lines returns the lines of a console that are not blank, as people read them:
// without control bytes, escape sequences, timestamps and callers, in printable
// ASCII, indented as they were. Lines above 4 KiB are cut into pieces.
func Lines(console []byte) (shown []string) {
	each := func(raw []byte) {
		if text := show(raw); text != "" {
			shown = append(shown, text)
		}
	}
	l := lines{each: each}
	l.Write(console)
	l.flush()
	return shown
}

// Excerpt returns the first crash report of a console, the one that [Classify]
// names, in lines like those of [Lines]: from the line that it begins with to its
// last, 200 lines behind that at most. It is nil where there is none.
func Excerpt(console []byte, warnings bool) (report []string) {
	s := scan{warnings: warnings}
	last := ""
	l := lines{each: func(raw []byte) {
		text := show(raw) // feed overwrites raw
		if text == "" || s.complete() {
			return
		}
		begun := s.begun
		if s.feed(raw); s.begun != begun {
			if report = nil; s.rule.before {
				report = []string{last}
			}
		}
		if s.rule != nil {
			report = append(report, text)
		}
		last = text
	}}
	l.Write(console)
	l.flush()
	if !s.counted() {
		return nil
	}
	return report
}

// show is a line for people.
func show(raw []byte) string {
	line := clean(bytes.Clone(raw))
	text, _, stamped := splitPrefix(line)
	before := line[:bytes.LastIndex(line, text)]
	indent := len(before) - len(bytes.TrimRight(before, " "))
	if stamped {
		indent = max(0, indent-1) // the space behind a timestamp or a caller
	}
	if len(text) == 0 {
		return ""
	}
	return strings.Repeat(" ", indent) + string(text)
}
