package fuzz

import (
	"fmt"

	"unlucky/qemu"
	"unlucky/scenarios"
	"unlucky/seeds"
)

// doubts are the reasons why what a sweep has seen so far may say nothing of
// layouts, each with the line of the scenario to look at; idle tells that it has
// shown nothing: no layout had a verdict of its own.
func (r *Report) doubts(s scenarios.Scenario) (doubts []string, idle bool) {
	var booted []seeds.Record
	for _, l := range append([]seeds.Record{r.Baseline}, r.Layouts...) {
		if Booted(l.Kind) {
			booted = append(booted, l)
		}
	}
	doubt := func(format string, a ...any) { doubts = append(doubts, fmt.Sprintf(format, a...)) }
	if n := len(r.Layouts); n > 0 && r.Count(qemu.LinkFailed) == n {
		doubt("none of %d layouts links, so nothing was shown: another -strategy may (text pads what a linker script takes)", n)
		return doubts, true
	}
	count := func(which func(seeds.Record) bool) (n int) {
		for _, l := range booted {
			if which(l) {
				n++
			}
		}
		return n
	}
	passed := count(func(l seeds.Record) bool { return l.Kind == qemu.Pass })
	hung := count(func(l seeds.Record) bool { return l.Kind == qemu.Hang })
	alike := count(func(l seeds.Record) bool { return l.Title == booted[0].Title })
	switch n := len(booted); {
	case n == 0 || passed > 0:
	case hung == n:
		doubt("every boot has hung: is guest.limit, %s, too short, or does no good boot print verdict.pass, %q", s.Guest.Limit, s.Verdict.Pass)
		idle = true
	case alike == n && n > 1:
		doubt("all layouts fail alike, so nothing was shown of layouts: probably not a layout bug, or no good boot prints verdict.pass, %q", s.Verdict.Pass)
		idle = true
	case len(r.Layouts) > 0 || !r.Baseline.Found || booted[0].Title == qemu.UnexpectedExit:
		doubt("no boot has passed: does a good one print verdict.pass, %q", s.Verdict.Pass)
	}
	if others, unlucky := r.Others(), r.Unlucky(); s.Verdict.Crash.Regexp != nil && len(others) > 0 &&
		(len(unlucky) == 0 || len(others[0].Layouts) > len(unlucky[0].Layouts)) {
		doubt("the crash seen most, %q, is not the one looked for: is verdict.crash, %q, meant so", others[0].Title, s.Verdict.Crash)
	}
	return doubts, idle
}
