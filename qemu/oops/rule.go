package oops

import (
	"regexp"
	"slices"
	"strings"
)

// rule says how one kind of crash report begins on a Linux console, how it is
// named, and which function it blames. The rules are tried in order; the first
// that fits names the report.
type rule struct {
	kind   string
	hint   string         // stands in every line that anchor takes: a quick first test
	anchor *regexp.Regexp // the report's first line, prefixes stripped; group F is the function, if the line names it
	not    *regexp.Regexp // lines that anchor takes and that are no crash
	title  string         // regexp.Expand template over anchor; " in F" comes behind it
	blame  blame

	detail  *regexp.Regexp // group 1 of the first later line that matches is added to the title
	site    *regexp.Regexp // group F of the first later line that matches is the function
	skip    *regexp.Regexp // frames that are never to blame here, besides plumbing
	foreign *regexp.Regexp // a frame of traces that are not of what failed
	end     *regexp.Regexp // a line that ends the report, besides endOfReport
	proof   *regexp.Regexp // a later line without which it was no crash
	refuted *regexp.Regexp // a later line with which it was no crash

	warning bool // counts only where warnings are asked for
	anyCPU  bool // the trace is printed by another CPU or task than the anchor
	oneLine bool // nothing follows: complete at once
	before  bool // where group 1 is empty, it is the last line before that is not blank
	second  bool // the first such line of a console is no crash
}

// blame is where a report's function is looked for. Plumbing is passed over,
// and named only if there is nothing else.
type blame int

const (
	blameNone  blame = iota
	blamePC          // the anchor's F, else the place that the registers name, else the call trace
	blameLine        // the anchor's F even if it is plumbing, else as blamePC
	blameTrace       // the anchor's F, else the call trace
	blameTrap        // the frame that an exception interrupted, no other
	blameStall       // the frame above the entry into the kernel: the top one is chance
	blameWork        // the work that a worker is busy with
)

// architecture is what one architecture's consoles have of their own.
type architecture struct {
	rules  []rule
	pc     []*regexp.Regexp // lines that say where; group 1 is the function, empty if there is none at the address
	caller []*regexp.Regexp // lines that say where that was called from, by the link register
	trap   []string         // frames through which an exception enters the kernel
	entry  []string         // other frames between user space, or a task's beginning, and the kernel's own functions
	report []string         // frames of its exceptions, from the entry to the report
}

var architectures = []*architecture{&arm64, &arm, &riscv, &powerpc, &s390, &mips, &loongarch, &x86}

// The tables as one: an architecture is not told by most of a console's lines, and
// none has what another one would take for its own.
var (
	rules     = allRules()
	ruleHints = newHints(hintsOf(rules))

	pcLines     = collect(func(a *architecture) []*regexp.Regexp { return a.pc })
	callerLines = collect(func(a *architecture) []*regexp.Regexp { return a.caller })

	// trapped is a frame at which the kernel was interrupted.
	trapped = names(collect(func(a *architecture) []string { return a.trap })...)

	// unnamed is what is in the trace of whatever fails: it is never blamed.
	unnamed = names(slices.Concat(reporting,
		collect(func(a *architecture) []string { return a.trap }),
		collect(func(a *architecture) []string { return a.entry }),
		collect(func(a *architecture) []string { return a.report }))...)

	// plumbing is what stands between a failure and its report, or does a chore for
	// whoever is to blame: not blamed if anything else is there.
	plumbing = names(chores...)

	// entry is a function through which the kernel is entered or a task begins,
	// and those below it whose argument decides what they do.
	entry = names(slices.Concat(dispatchers, collect(func(a *architecture) []string { return a.entry }), collect(func(a *architecture) []string { return a.trap }))...)
)

func allRules() []rule {
	return slices.Concat(firstRules, collect(func(a *architecture) []rule { return a.rules }), lastRules)
}

func hintsOf(rules []rule) (texts []string) {
	for _, r := range rules {
		texts = append(texts, r.hint)
	}
	return texts
}

func collect[T any](of func(*architecture) []T) (all []T) {
	for _, a := range architectures {
		all = append(all, of(a)...)
	}
	return all
}

// names matches any of some functions, each a regexp of its whole name as cleanSymbol
// leaves it.
func names(of ...string) *regexp.Regexp {
	return regexp.MustCompile(`^(?:` + strings.Join(of, `|`) + `)$`)
}

// match returns the rule whose report line begins, or nil.
func match(line []byte) (*rule, []int) {
	for i := ruleHints.in(line, 0); i >= 0; i = ruleHints.in(line, i+1) {
		r := &rules[i]
		if groups := r.anchor.FindSubmatchIndex(line); groups != nil {
			if r.not != nil && r.not.Match(line) || noReport.Match(line) {
				return nil, nil
			}
			return r, groups
		}
	}
	return nil, nil
}

// group returns a named group of a match, or "".
func group(re *regexp.Regexp, line []byte, groups []int, name string) string {
	if i := re.SubexpIndex(name); i > 0 && groups[2*i] >= 0 {
		return string(line[groups[2*i]:groups[2*i+1]])
	}
	return ""
}
