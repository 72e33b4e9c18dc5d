package oops

import (
	"bytes"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// The bounds of a report, whatever the console holds; LineMax is the one of a line.
const (
	maxTitle  = 120 // bytes
	maxReport = 200 // messages behind the anchor; an oops takes about 60, of 6.12 with its registers printed twice
	maxFrames = 64
)

// Report is what a console says went wrong. What it does not say is empty.
type Report struct {
	// Title names the crash alike in every boot and layout: it is free of
	// addresses, process ids and compilers' suffixes. Printable ASCII, single
	// spaces, at most 120 bytes.
	Title string `json:"title"`
	// Kind is the sort of report: kasan, kmsan, kcsan, kfence, ubsan, cfi, ibt,
	// oops, bug, slub, warning, lockdep, leak, dma, lockup, stall, hung task,
	// panic, reboot, decompressor or efi stub.
	Kind     string `json:"kind"`
	Function string `json:"function,omitempty"` // the function blamed
	Module   string `json:"module,omitempty"`   // that it is of
	File     string `json:"file,omitempty"`     // of the kernel's source: where the check stands that failed, else of the function
	FileLine int    `json:"file_line,omitempty"`
	Task     string `json:"task,omitempty"`    // the name of the task that ran, or that hangs
	Version  string `json:"version,omitempty"` // of the kernel
	// Line is the line that the report begins with, without timestamp, caller
	// and control bytes.
	Line string `json:"line"`
}

// Classify returns the first crash report of a whole console log, and whether
// there is one. WARNINGs, and what else the kernel goes on after by design (lockdep,
// kmemleak, DMA-API), count only where asked for; but the one that a panic_on_warn
// kernel died of always does.
func Classify(console []byte, warnings bool) (Report, bool) {
	c := NewClassifier(warnings)
	c.Write(console)
	return c.Report()
}

// A Classifier is Classify for a console that is still being written. It holds
// some ten KiB at most, and is not for use by several goroutines at once.
type Classifier struct {
	lines LineWriter
	scan  scan
}

// NewClassifier returns a Classifier that counts WARNINGs if asked to.
func NewClassifier(warnings bool) *Classifier {
	c := &Classifier{scan: scan{warnings: warnings}}
	c.lines.Each = func(raw []byte) { messages(Clean(raw), c.scan.feed) }
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
		s.frames, s.doubtful = slices.Clip(s.frames), slices.Clip(s.doubtful)
		messages(Clean(bytes.Clone(c.lines.partial)), s.feed)
	}
	return s
}

// scan is what is known after some messages of a console.
type scan struct {
	warnings bool
	previous []byte // the last message
	banner   []byte // "[" if the first banner had a timestamp, empty if not; nil before it
	version  string // by the banner

	// The first report; rule is nil before it.
	rule   *rule
	caller string // the task or CPU that prints it, "T12" or "C0", where the kernel says so
	line   string
	title  string // without detail and function
	detail string
	died   bool // of a WARNING: it counts
	proven bool // the line that rule.proof asks for was there
	ended  bool // nothing more of the report will come
	lines  int  // behind the anchor
	begun  int  // reports so far, those that this one took the place of among them
	task   string
	file   string // by the anchor, with its line
	fileAt int

	// Whom to blame.
	named    place   // by the anchor itself, or the line that rule.site asks for
	pc       place   // by the registers of the first trace
	hasPC    bool    // even if no function was there
	lr       place   // by the link register beside it
	work     place   // what the worker does
	headed   bool    // the first trace's heading was there
	frames   []place // of the first call trace, top first
	doubtful []place // those that the unwinder does not believe in
	traced   bool    // the first trace has ended
}

// counted reports whether the report in hand is a crash.
func (s *scan) counted() bool {
	return s.rule != nil && (!s.rule.warning || s.warnings || s.died) && (s.rule.proof == nil || s.proven)
}

func (s *scan) complete() bool { return s.ended && s.counted() }

// feed takes one message.
func (s *scan) feed(m message) {
	if s.complete() {
		return
	}
	switch {
	case s.rule != nil && s.rule.refuted != nil && s.rule.refuted.Match(m.text):
		s.forget()
		s.begin(m)
	case s.rule != nil && s.rule.proof != nil && !s.proven && !s.ended && s.rule.proof.Match(m.text):
		s.proven = true
		s.follow(m)
	case s.counted() || !s.begin(m):
		if s.rule != nil && !s.ended {
			s.follow(m)
		}
	}
	s.previous = append(s.previous[:0], m.text...)
}

// forget drops the report in hand.
func (s *scan) forget() {
	*s = scan{warnings: s.warnings, previous: s.previous, banner: s.banner, version: s.version, begun: s.begun}
}

// begin starts a report if a message begins one, in place of one that does not
// count. Of two WARNINGs in a row the second may be the first one's own.
func (s *scan) begin(m message) bool {
	r, groups := match(m.text)
	if r == nil {
		return false
	}
	if r.second && !s.again(m) {
		return false
	}
	if s.rule != nil && r.kind == "panic" && ofWarning.Match(m.text) {
		// Before 4.10 the trace came behind the panic that a WARNING led to.
		s.died, s.ended = true, s.hasPlace()
		return true
	}
	if s.rule != nil && s.rule.warning && r.warning && !s.ended {
		return false
	}
	text := string(r.anchor.Expand(nil, []byte(r.title), m.text, groups))
	anchor := m.text
	if r.before && groups[2] == groups[3] {
		text += string(s.previous)
		anchor = s.previous
	}
	s.forget()
	s.rule, s.caller, s.ended = r, m.caller, r.oneLine
	s.line, s.title = string(anchor), cleanText(text)
	s.begun++
	if f := group(r.anchor, m.text, groups, "F"); f != "" {
		s.named = placeOf(f, "", after(m.text, f))
	}
	s.task = group(r.anchor, m.text, groups, "T")
	if source := sourceLine.FindSubmatch(m.text); source != nil {
		s.file = string(source[1])
		s.fileAt, _ = strconv.Atoi(string(source[2]))
	}
	return true
}

// again reports whether this banner is a second one of the kernel's: it has a
// timestamp where the first had one, so /proc/version does not count.
func (s *scan) again(m message) bool {
	stamp := []byte{}
	if m.stamped {
		stamp = []byte("[")
	}
	if s.banner == nil {
		s.banner = stamp
		s.version, _, _ = strings.Cut(string(m.text[len("Linux version "):]), " ")
		return false
	}
	return bytes.Equal(s.banner, stamp)
}

// follow takes a message behind the anchor.
func (s *scan) follow(m message) {
	if s.lines++; s.lines >= maxReport {
		s.ended = true
	}
	line := m.text
	if s.caller != "" && m.caller != s.caller && !s.rule.anyCPU {
		s.ended = s.ended || endOfAll.Match(line)
		return // another CPU prints in between
	}
	if endOfAll.Match(line) || endOfReport.Match(line) && (s.hasPlace() || !panicLine.Match(line)) {
		s.ended = true
		return
	}
	if s.rule.detail != nil && s.detail == "" {
		if m := s.rule.detail.FindSubmatch(line); m != nil {
			s.detail = " " + string(m[1])
		}
	}
	if s.rule.site != nil && s.named.function == "" {
		if groups := s.rule.site.FindSubmatchIndex(line); groups != nil {
			s.named = place{function: cleanSymbol(group(s.rule.site, line, groups, "F"))}
		}
	}
	s.about(line)
	s.trace(line)
	if end := s.rule.end; end != nil && end.Match(line) && (end != endOfTask || s.traced) {
		s.ended = true
	}
}

// hasPlace reports whether there is somebody to blame by now, or nobody will be.
func (s *scan) hasPlace() bool {
	suspects := []place{s.named, s.pc}
	if s.headed {
		suspects = append(suspects, s.stack()...)
	}
	_, known := s.culprit(suspects)
	return known || s.rule.blame == blameNone
}

// about takes a line that says what ran: which task, which work, which kernel.
func (s *scan) about(line []byte) {
	for _, it := range []struct {
		known *string
		by    *regexp.Regexp
	}{{&s.task, taskText}, {&s.version, versionText}} {
		if *it.known == "" {
			if m := it.by.FindSubmatch(line); m != nil {
				*it.known = string(bytes.Join(m[1:], nil))
			}
		}
	}
	if s.work.function == "" {
		if m := workText.FindSubmatch(line); m != nil {
			s.work = placeOf(string(m[1]), "", string(line))
		}
	}
}

// trace takes a line that may be of the first trace: a register, a heading, a
// frame. Frames before the heading are something else's, unless it is lost.
func (s *scan) trace(line []byte) {
	if s.traced {
		return
	}
	switch {
	case heading.Match(line):
		switch {
		case !s.headed, len(s.frames)+len(s.doubtful) == 0, s.rule.blame == blameStall && !s.hasPlace():
			s.frames, s.doubtful = nil, nil // something else's, none, or of a task that runs elsewhere
		case s.rule.foreign != nil && slices.ContainsFunc(s.frames, func(p place) bool { return s.rule.foreign.MatchString(p.function) }):
			s.pc, s.hasPC, s.frames, s.doubtful = place{}, false, nil, nil
		default:
			s.traced = true
		}
		s.headed = true
		return
	case otherTrace.Match(line):
		s.traced = s.headed && len(s.frames)+len(s.doubtful) > 0
		return
	}
	if p, ok := register(pcLines, line); ok {
		if !s.hasPC {
			s.pc, s.hasPC = p, true
			if s.rule.blame == blameStall {
				s.frames, s.doubtful = nil, nil // so far they were of the interrupt that found the stall
			}
		}
		return
	}
	if p, ok := register(callerLines, line); ok {
		if s.lr.function == "" {
			s.lr = p
		}
		return
	}
	places, doubtful := parseFrame(string(line))
	frames := &s.frames
	if doubtful {
		frames = &s.doubtful
	}
	for _, p := range places {
		// Arm names most functions twice, and those of decoded inlined calls.
		if n := len(*frames); n < maxFrames && (len(places) == 1 || n == 0 || (*frames)[n-1].function != p.function) {
			*frames = append(*frames, p)
		}
	}
}

// register reads a line of a register dump, by the forms that are given.
func register(forms []*regexp.Regexp, line []byte) (place, bool) {
	for _, re := range forms {
		if m := re.FindSubmatch(line); m != nil {
			if len(m[1]) == 0 {
				return place{}, true
			}
			return placeOf(string(m[1]), "", after(line, string(m[1]))), true
		}
	}
	return place{}, false
}

// after is what stands behind a name in a line.
func after(line []byte, name string) string {
	_, tail, _ := strings.Cut(string(line), name)
	return tail
}

// report names the report in hand.
func (s *scan) report() (Report, bool) {
	if !s.counted() {
		return Report{}, false
	}
	p := s.blamed()
	r := Report{
		Title: s.title + s.detail, Kind: s.rule.kind, Line: s.line, Task: s.task, Version: s.version,
		Function: p.function, Module: p.module, File: p.file, FileLine: p.line,
	}
	if s.file != "" {
		r.File, r.FileLine = s.file, s.fileAt
	}
	if r.Function != "" {
		r.Title += " in " + r.Function
	}
	r.Title = strings.TrimSpace(r.Title[:min(len(r.Title), maxTitle)])
	return r, true
}

// blamed returns the place that the report is about; it may have no function.
func (s *scan) blamed() place {
	switch s.rule.blame {
	case blameNone:
		return place{}
	case blameStall:
		return s.stalled()
	case blameTrap:
		return s.firstOf(s.interrupted())
	case blameWork:
		if s.work.function != "" {
			return s.work
		}
	case blameLine:
		if s.named.function != "" {
			return s.named
		}
	}
	suspects := []place{s.named}
	if s.rule.blame == blamePC || s.rule.blame == blameLine {
		suspects = append(suspects, s.pc)
		if s.pc.function == "" || idle(s.pc.function) { // nowhere, or a helper that may have no frame
			suspects = append(suspects, s.lr)
		}
	}
	return s.firstOf(append(suspects, s.stack()...))
}

// stack returns the frames of the trace, those that the unwinder does not believe
// in only where there are no others.
func (s *scan) stack() []place {
	frames := s.frames
	if len(frames) == 0 {
		frames = s.doubtful
	}
	return slices.DeleteFunc(slices.Clone(frames), func(p place) bool { return p.start && p.function != s.pc.function })
}

// interrupted returns the frames below the last of the exception's own.
func (s *scan) interrupted() []place {
	frames := s.stack()
	is := func(p place) bool { return trapped.MatchString(p.function) }
	at := slices.IndexFunc(frames, is)
	if at < 0 {
		return nil
	}
	for at < len(frames) && is(frames[at]) {
		at++
	}
	return frames[at:]
}

// stalled returns the function just above the kernel's entry: what the stalled
// CPU was asked to do, as opposed to where the interrupt happened to find it.
func (s *scan) stalled() place {
	suspects := s.stack()
	if below := s.interrupted(); len(below) > 0 && !s.hasPC {
		suspects = below // without the interrupt that found the stall
	}
	if s.pc.function != "" {
		suspects = append([]place{s.pc}, suspects...)
	}
	i := slices.IndexFunc(suspects, func(p place) bool { return entry.MatchString(p.function) })
	if i <= 0 {
		return s.firstOf(suspects)
	}
	above := slices.Clone(suspects[:i])
	slices.Reverse(above)
	if p, ok := s.culprit(above); ok {
		return p
	}
	if s.work.function != "" {
		return s.work
	}
	return s.firstOf(append(above, suspects[i:]...))
}

// idle reports whether a function is passed over.
func idle(f string) bool { return plumbing.MatchString(f) || unnamed.MatchString(f) }

// culprit returns the first suspect that is not plumbing.
func (s *scan) culprit(suspects []place) (place, bool) {
	for _, p := range suspects {
		if p.function != "" && !idle(p.function) && (s.rule.skip == nil || !s.rule.skip.MatchString(p.function)) {
			return p, true
		}
	}
	return place{}, false
}

// firstOf returns the culprit; if all are plumbing, the first that may be named.
func (s *scan) firstOf(suspects []place) place {
	if p, ok := s.culprit(suspects); ok {
		return p
	}
	for _, p := range suspects {
		if p.function != "" && !unnamed.MatchString(p.function) {
			return p
		}
	}
	return place{}
}
