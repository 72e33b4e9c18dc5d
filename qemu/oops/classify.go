package oops

import (
	"bytes"
	"slices"
	"strings"
)

// The bounds of a report, whatever the console holds; LineMax is the one of a line.
const (
	maxTitle  = 120 // bytes
	maxReport = 200 // lines behind the anchor; an oops takes about 60, of 6.12 with its registers printed twice
	maxFrames = 64
)

// Report is what a console says went wrong.
type Report struct {
	// Title names the crash alike in every boot and layout: it is free of
	// addresses, process ids and compilers' suffixes. Printable ASCII, single
	// spaces, at most 120 bytes.
	Title string `json:"title"`
	// Kind is the sort of report: kasan, kmsan, kcsan, kfence, ubsan, cfi, ibt,
	// oops, bug, warning, lockup, stall, hung task, panic, reboot or decompressor.
	Kind     string `json:"kind"`
	Function string `json:"function,omitempty"` // the function blamed; empty if none is known
	// Line is the line that the report begins with, without timestamp, caller
	// and control bytes.
	Line string `json:"line"`
}

// Classify returns the first crash report of a whole console log, and whether
// there is one. WARNINGs count only where asked for; but the WARNING that a
// panic_on_warn kernel died of always does.
func Classify(console []byte, warnings bool) (Report, bool) {
	c := NewClassifier(warnings)
	c.Write(console)
	return c.Report()
}

// A Classifier is Classify for a console that is still being written. It holds
// a few KiB at most, and is not for use by several goroutines at once.
type Classifier struct {
	lines LineWriter
	scan  scan
}

// NewClassifier returns a Classifier that counts WARNINGs if asked to.
func NewClassifier(warnings bool) *Classifier {
	c := &Classifier{scan: scan{warnings: warnings}}
	c.lines.Each = c.scan.feed
	return c
}

// Write takes the next bytes of the console, cut anywhere. It never fails.
func (c *Classifier) Write(p []byte) (int, error) {
	if c.scan.complete() {
		return len(p), nil
	}
	return c.lines.Write(p)
}

// Report returns the first crash report as far as it is known by now, and
// whether there is one.
func (c *Classifier) Report() (Report, bool) {
	s := c.withLastLine()
	return s.report()
}

// Complete reports whether all that the report has to say has been said, so
// that it changes no more and the guest may be stopped.
func (c *Classifier) Complete() bool {
	// The decompressor halts without ending its line.
	if bytes.HasSuffix(c.lines.partial, []byte("-- System halted")) {
		s := c.withLastLine()
		return s.complete()
	}
	return c.scan.complete()
}

// withLastLine is the scan as it would be if the last line ended here.
func (c *Classifier) withLastLine() scan {
	s := c.scan
	if !s.complete() && len(c.lines.partial) > 0 {
		s.previous = bytes.Clone(s.previous)
		s.frames = slices.Clip(s.frames)
		s.feed(bytes.Clone(c.lines.partial))
	}
	return s
}

// scan is what is known after some lines of a console.
type scan struct {
	warnings bool
	previous []byte // the last line that was not blank
	banner   []byte // "[" if the first banner had a timestamp, empty if not; nil before it

	// The first report; rule is nil before it.
	rule   *rule
	caller string // the task or CPU that prints it, "T12" or "C0", where the kernel says so
	line   string
	title  string // without detail and function
	detail string
	died   bool // of a WARNING: it counts
	ended  bool // nothing more of the report will come
	lines  int  // behind the anchor
	begun  int  // reports so far, those that this one took the place of among them

	// Whom to blame.
	named  string   // by the anchor itself
	rip    string   // by the RIP line of the first trace
	hasRIP bool     // even if no function was in it
	frames []string // of the first call trace, top first
	traced bool     // the first trace has ended
}

// counted reports whether the report in hand is a crash.
func (s *scan) counted() bool {
	return s.rule != nil && (!s.rule.warning || s.warnings || s.died)
}

func (s *scan) complete() bool { return s.ended && s.counted() }

// feed takes one line, and overwrites it.
func (s *scan) feed(raw []byte) {
	line, caller, stamped := splitPrefix(Clean(raw))
	if len(line) == 0 || s.complete() {
		return
	}
	if s.counted() || !s.begin(line, caller, stamped) {
		if s.rule != nil && !s.ended {
			s.follow(line, caller)
		}
	}
	s.previous = append(s.previous[:0], line...)
}

// begin starts a report if line begins one, in place of a WARNING that does not
// count.
func (s *scan) begin(line []byte, caller string, stamped bool) bool {
	r, groups := match(line)
	if r == nil {
		return false
	}
	if r.second && !s.again(stamped) {
		return false
	}
	if s.rule != nil && r.kind == "panic" && ofWarning.Match(line) {
		s.died, s.ended = true, true
		return true
	}
	text := string(r.anchor.Expand(nil, []byte(r.title), line, groups))
	anchor := line
	if r.before && groups[2] == groups[3] {
		text += string(s.previous)
		anchor = s.previous
	}
	named := ""
	if i := r.anchor.SubexpIndex("F"); i > 0 && groups[2*i] >= 0 {
		named = cleanSymbol(string(line[groups[2*i]:groups[2*i+1]]))
	}
	*s = scan{
		warnings: s.warnings, previous: s.previous, banner: s.banner,
		rule: r, caller: caller, line: string(anchor), title: cleanText(text), named: named, ended: r.oneLine, begun: s.begun + 1,
	}
	return true
}

// again reports whether this banner is a second one of the kernel's: it has a
// timestamp where the first had one, so /proc/version does not count.
func (s *scan) again(stamped bool) bool {
	stamp := []byte{}
	if stamped {
		stamp = []byte("[")
	}
	if s.banner == nil {
		s.banner = stamp
		return false
	}
	return bytes.Equal(s.banner, stamp)
}

// match returns the rule whose report line begins, or nil.
func match(line []byte) (*rule, []int) {
	for i := range rules {
		r := &rules[i]
		if !bytes.Contains(line, []byte(r.hint)) {
			continue
		}
		if groups := r.anchor.FindSubmatchIndex(line); groups != nil {
			if r.not != nil && r.not.Match(line) || noReport.Match(line) {
				return nil, nil
			}
			return r, groups
		}
	}
	return nil, nil
}

// follow takes a line behind the anchor.
func (s *scan) follow(line []byte, caller string) {
	if s.lines++; s.lines >= maxReport {
		s.ended = true
	}
	if endOfReport.Match(line) {
		s.ended = true
		return
	}
	if s.caller != "" && caller != s.caller && !s.rule.anyCPU {
		return // another CPU prints in between
	}
	if s.rule.detail != nil && s.detail == "" {
		if m := s.rule.detail.FindSubmatch(line); m != nil {
			s.detail = " " + string(m[1])
		}
	}
	s.trace(line)
	if end := s.rule.end; end != nil && end.Match(line) && (end != endOfTask || s.traced) {
		s.ended = true
	}
}

// trace takes a line that may be of the first trace: a RIP line, a heading, a
// frame. "?" marks frames that the unwinder does not believe in.
func (s *scan) trace(line []byte) {
	if s.traced {
		return
	}
	if traceLine.Match(line) {
		if len(s.frames) == 0 {
			return
		}
		foreign := s.rule.foreign
		if foreign != nil && slices.ContainsFunc(s.frames, foreign.MatchString) {
			s.rip, s.hasRIP, s.frames = "", false, nil
			return
		}
		s.traced = true
		return
	}
	if m := ripLine.FindSubmatch(line); m != nil {
		if user := len(m[1]) > 0 && strings.IndexByte("37bf", m[1][3]) >= 0; !user && !s.hasRIP {
			s.rip, s.hasRIP = cleanSymbol(string(m[2])), true
			if s.rule.blame == blameStall {
				s.frames = nil // so far they were of the interrupt that found the stall
			}
		}
		return
	}
	if m := frameLine.FindSubmatch(line); m != nil && len(s.frames) < maxFrames {
		s.frames = append(s.frames, cleanSymbol(string(m[1])))
	}
}

// report names the report in hand.
func (s *scan) report() (Report, bool) {
	if !s.counted() {
		return Report{}, false
	}
	r := Report{Title: s.title + s.detail, Kind: s.rule.kind, Function: s.blamed(), Line: s.line}
	if r.Function != "" {
		r.Title += " in " + r.Function
	}
	r.Title = strings.TrimSpace(r.Title[:min(len(r.Title), maxTitle)])
	return r, true
}

// blamed returns the function that the report is about, or "".
func (s *scan) blamed() string {
	switch s.rule.blame {
	case blameNone:
		return ""
	case blameStall:
		return s.stalled()
	case blameLine:
		if s.named != "" {
			return s.named
		}
	}
	suspects := append([]string{s.named}, s.frames...)
	if s.rule.blame != blameTrace {
		suspects = slices.Insert(suspects, 1, s.rip)
	}
	suspects = slices.DeleteFunc(suspects, func(f string) bool { return f == "" })
	return s.firstOf(suspects)
}

// stalled returns the function just above the kernel's entry: what the stalled
// CPU was asked to do, as opposed to where the interrupt happened to find it.
func (s *scan) stalled() string {
	suspects := s.frames
	if s.rip != "" {
		suspects = append([]string{s.rip}, suspects...)
	}
	if i := slices.IndexFunc(suspects, entry.MatchString); i > 0 {
		above := slices.Clone(suspects[:i])
		slices.Reverse(above)
		return s.firstOf(above)
	}
	return s.firstOf(suspects)
}

// firstOf returns the first suspect that is not plumbing; if all are, the first.
func (s *scan) firstOf(suspects []string) string {
	for _, f := range suspects {
		if !plumbing.MatchString(f) && (s.rule.skip == nil || !s.rule.skip.MatchString(f)) {
			return f
		}
	}
	if len(suspects) > 0 {
		return suspects[0]
	}
	return ""
}
