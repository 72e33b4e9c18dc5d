package oops

import "strings"

// Lines returns the lines of a console that are not blank, as people read them:
// without control bytes, escape sequences, timestamps and callers, in printable
// ASCII, indented as they were, each message on its own. Lines above 4 KiB are cut
// into pieces.
func Lines(console []byte) (shown []string) {
	eachMessage(console, func(m message) { shown = append(shown, m.shown()) })
	return shown
}

// Excerpt returns the first crash report of a console, the one that [Classify]
// names, in lines like those of [Lines]: from the line that it begins with to its
// last, 200 lines behind that at most, without those that another CPU or task has
// printed in between. It is nil where there is none.
func Excerpt(console []byte, warnings bool) (report []string) {
	s := scan{warnings: warnings}
	last := ""
	eachMessage(console, func(m message) {
		if s.complete() {
			return
		}
		begun := s.begun
		s.feed(m)
		switch {
		case s.begun == begun:
		case s.rule.before && strings.TrimSpace(last) == s.line:
			report = []string{last}
		default:
			report = nil
		}
		if s.rule != nil && (s.caller == "" || s.caller == m.caller || s.rule.anyCPU) {
			report = append(report, m.shown())
		}
		last = m.shown()
	})
	if !s.counted() {
		return nil
	}
	return report
}

// eachMessage calls each with all that a console holds.
func eachMessage(console []byte, each func(message)) {
	l := LineWriter{Each: func(raw []byte) { messages(Clean(raw), each) }}
	l.Write(console)
	l.Flush()
}

// shown is a message for people.
func (m message) shown() string {
	return strings.Repeat(" ", m.indent) + string(m.text)
}
