package evidence

import (
	"regexp"
	"strings"
	"testing"

	"unlucky/qemu"
	"unlucky/scenarios"
	"unlucky/seeds"
)

func TestDoubts(t *testing.T) {
	pass := seeds.Record{Verdict: seeds.Verdict{Kind: qemu.Pass}}
	bug := seeds.Record{Verdict: seeds.Verdict{Kind: qemu.Crash, Title: "int3 in f", Found: true}, Path: "int3-in-f/1.yaml"}
	exits := seeds.Record{Verdict: seeds.Verdict{Kind: qemu.Crash, Title: qemu.UnexpectedExit, Found: true}, Path: "unexpected-exit/1.yaml"}
	hang := seeds.Record{Verdict: seeds.Verdict{Kind: qemu.Hang, Title: "hang: no output", Found: true}, Path: "hang--no-output/1.yaml"}
	after := seeds.Record{Verdict: seeds.Verdict{Kind: qemu.Hang, Title: "hang: no output after x", Found: true}, Path: "hang--no-output-after-x/1.yaml"}
	other := seeds.Record{Verdict: seeds.Verdict{Kind: qemu.Crash, Title: "kernel BUG in g"}, Path: "kernel-BUG-in-g/1.yaml"}
	none := seeds.Record{Verdict: seeds.Verdict{Kind: qemu.LinkFailed}}
	for _, test := range []struct {
		name     string
		baseline seeds.Record
		layouts  []seeds.Record
		crash    string
		want     string // the beginnings of the doubts
		idle     bool
	}{
		{"all pass", pass, []seeds.Record{pass, pass}, "int3", "", false},
		{"some crash", pass, []seeds.Record{pass, bug}, "", "", false},
		{"all layouts crash", pass, []seeds.Record{bug, bug}, "", "", false},
		{"the baseline crashes", bug, []seeds.Record{pass, bug}, "", "", false},
		{"only the baseline so far", pass, nil, "", "", false},
		{"it crashes as looked for", bug, nil, "", "", false},
		{"it crashes otherwise", other, nil, "int3", `no boot has passed|the crash seen most, "kernel BUG in g"`, false},
		{"it ends", exits, nil, "", "no boot has passed", false},
		{"it hangs", hang, nil, "", "every boot has hung: is guest.limit, 1m0s,", true},
		{"all hang", hang, []seeds.Record{after, hang}, "", "every boot has hung", true},
		{"no layout links", pass, []seeds.Record{none, none}, "", "none of 2 layouts links", true},
		{"some link", pass, []seeds.Record{none, pass}, "", "", false},
		{"all end", exits, []seeds.Record{exits, exits}, "", "all layouts fail alike", true},
		{"all crash alike", bug, []seeds.Record{bug, none}, "", "all layouts fail alike", true},
		{"none passes", exits, []seeds.Record{bug, exits}, "", "no boot has passed", false},
		{"another crash", pass, []seeds.Record{other, other, bug, pass}, "int3", `the crash seen most, "kernel BUG in g", is not the one looked for: is verdict.crash, "int3",`, false},
		{"another crash, seldom", pass, []seeds.Record{other, bug, bug, pass}, "int3", "", false},
	} {
		s := scenarios.Scenario{}
		s.Guest.Limit = scenarios.Duration(60e9)
		s.Verdict.Pass.Regexp = regexp.MustCompile("good")
		if test.crash != "" {
			s.Verdict.Crash.Regexp = regexp.MustCompile(test.crash)
		}
		r := &Report{Baseline: test.baseline, Layouts: test.layouts}
		got, idle := r.Weigh(s)
		want := strings.FieldsFunc(test.want, func(r rune) bool { return r == '|' })
		same := len(got) == len(want) && idle == test.idle
		for i := range want {
			same = same && strings.HasPrefix(got[i], want[i])
		}
		if !same {
			t.Errorf("%s: %q, idle %v; want %q, %v", test.name, got, idle, want, test.idle)
		}
	}
}
