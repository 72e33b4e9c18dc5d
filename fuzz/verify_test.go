package fuzz_test

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gonum.org/v1/gonum/stat/distuv"

	"unlucky/fuzz/evidence"
	"unlucky/fuzz/search"
	"unlucky/layout"
	"unlucky/qemu"
	"unlucky/seeds"
)

// results are those of a sweep with some unlucky layouts.
func results(unlucky, of int) *evidence.Results {
	r := &evidence.Results{}
	for n := range of {
		t := evidence.Tried{Record: seeds.Record{Layout: seeds.Seed(uint32(n)), Verdict: seeds.Verdict{Kind: qemu.Pass, Boots: 1}}}
		if n < unlucky {
			t.Kind, t.Found, t.Title = qemu.Crash, true, "int3 in f"
		}
		r.Layouts = append(r.Layouts, t)
	}
	r.Layouts = append(r.Layouts, evidence.Tried{Record: seeds.Record{Layout: seeds.Seed(uint32(of)), Verdict: seeds.Verdict{Kind: qemu.LinkFailed}}})
	return r
}

// The rate of a bug is Clopper and Pearson's lower limit: with 90 % confidence
// so many finds are not luck. So many layouts are asked for as it takes, and no
// fewer than 64.
func TestRate(t *testing.T) {
	for _, test := range []struct {
		unlucky, of int
		least       float64 // one-sided 90 %, from tables
		layouts     int
	}{
		{1, 10, 0.0105, 438}, // 10 ln 0.01 / ln 0.9 = 437.1
		{5, 10, 0.2673, 64},
		{1, 1, 0.1, 64},
		{29, 33, 0.772, 64},
		{6, 64, 0.0502, 90},
		{10, 10, 0.7943, 64},
	} {
		rate := results(test.unlucky, test.of).Rate()
		if rate.Unlucky != test.unlucky || rate.Of != test.of {
			t.Errorf("%d of %d are counted as %+v", test.unlucky, test.of, rate)
		}
		if math.Abs(rate.Least-test.least) > 0.0006 {
			t.Errorf("%d of %d: at least %.4f, want %.4f", test.unlucky, test.of, rate.Least, test.least)
		}
		// As the limit is defined: the chance of so many finds, or more.
		chance := 0.0
		for k := test.unlucky; k <= test.of; k++ {
			chance += distuv.Binomial{N: float64(test.of), P: rate.Least}.Prob(float64(k))
		}
		if math.Abs(chance-0.1) > 1e-9 {
			t.Errorf("%d of %d: at %.4f so many come with a chance of %g, want 0.1", test.unlucky, test.of, rate.Least, chance)
		}
		n := rate.Layouts(0.99)
		if n != test.layouts || rate.Chance(n) > 0.01 || n > 64 && rate.Chance(n-1) <= 0.01 {
			t.Errorf("%d of %d: %d layouts are asked for, want %d; all pass with a chance of %g", test.unlucky, test.of, n, test.layouts, rate.Chance(n))
		}
	}
	if rate := results(0, 5).Rate(); rate.Least != 0 || rate.Of != 5 {
		t.Errorf("nothing found: %+v", rate)
	}
	// From tables: the rule of three, and its like for 99 %.
	for _, test := range []struct {
		n          int
		confidence float64
		most       float64
	}{{0, 0.99, 1}, {1, 0.95, 0.95}, {10, 0.95, 0.2589}, {59, 0.95, 0.0495}, {299, 0.95, 0.00997}, {64, 0.99, 0.0694}, {459, 0.99, 0.00998}} {
		if most := evidence.Most(test.n, test.confidence); math.Abs(most-test.most) > 0.0001 {
			t.Errorf("%d pass: at most %.5f fail with confidence %g, want %.5f", test.n, most, test.confidence, test.most)
		}
	}
}

// at is the index of a function's section in a layout.
func at(t *testing.T, sections []layout.Section, function string) int {
	t.Helper()
	i := slices.IndexFunc(sections, func(s layout.Section) bool { return s.Function == function })
	if i < 0 {
		t.Fatalf("no function %s", function)
	}
	return i
}

// Culprits of another kernel are put where they failed there, and nothing else
// is moved within its page.
func TestRestore(t *testing.T) {
	t.Parallel()
	k := tiny(t, nil)
	sections, err := k.Layout(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	fill := func(n int) string { return sections[at(t, sections, "victim")+n].Function }
	function := func(name string, address uint64) seeds.Function {
		return seeds.Function{Name: name, Section: ".text." + name, Address: address, Moved: true}
	}
	touching := func(f seeds.Function) seeds.Function { f.Touching = true; return f }
	still := func(f seeds.Function) seeds.Function { f.Moved = false; return f }
	fails := func(bytes ...uint64) (table []seeds.Residue) {
		for _, b := range bytes {
			table = append(table, seeds.Residue{Bytes: b, Boots: seeds.Boots{Boots: 1, Crashes: 1}}, seeds.Residue{Bytes: b + 16, Boots: seeds.Boots{Boots: 1}})
		}
		return table
	}
	var everywhere []uint64
	for n := range uint64(100) {
		everywhere = append(everywhere, 32*n)
	}
	head := sections[slices.IndexFunc(sections, func(s layout.Section) bool { return s.Output == ".text" })]
	renamed := function("victim", 0x1020)
	renamed.Section = ".text.victim.llvm.123"
	for _, test := range []struct {
		name    string
		culprit seeds.Culprit
		moves   int    // residues that there are plans for
		notes   string // all of them
	}{
		{"one", seeds.Culprit{Functions: []seeds.Function{function("victim", 0xffffffff81234020)}, Residues: fails(0, 64, 512)}, 3, ""},
		{"no table", seeds.Culprit{Functions: []seeds.Function{function("victim", 0x1fe0)}}, 1, ""},
		{"another section", seeds.Culprit{Functions: []seeds.Function{renamed}}, 1, ""},
		{"touching", seeds.Culprit{Functions: []seeds.Function{function(fill(-1), 0x10), touching(function("victim", 0x1020))}, Residues: fails(0, 32)}, 2, ""},
		{"three in a row", seeds.Culprit{Functions: []seeds.Function{function(fill(-1), 0x10), touching(function("victim", 0x1020)), touching(function(fill(1), 0x1030))}, Residues: fails(0, 32)}, 2, ""},
		{"brought together", seeds.Culprit{Functions: []seeds.Function{function(fill(40), 0x40), touching(function("victim", 0x20))}, Residues: fails(0, 128)}, 2, ""},
		{"neighbours that do not touch", seeds.Culprit{Functions: []seeds.Function{function(fill(-1), 0x410), function("victim", 0x420)}, Residues: fails(0, 32)}, 2, ""},
		{"far apart, the first moves", seeds.Culprit{Functions: []seeds.Function{function(fill(-50), 0x10), still(function(fill(50), 0x870))}, Residues: fails(0, 32)}, 2, ""},
		{"in another order", seeds.Culprit{Functions: []seeds.Function{function(fill(50), 0x10), still(function(fill(-50), 0x870))}}, 1, ""},
		{"everywhere", seeds.Culprit{Functions: []seeds.Function{function("victim", 0x20)}, Residues: fails(everywhere...)}, 16, "16 of the 100 residues at which it fails are tried"},
		{"misaligned", seeds.Culprit{Functions: []seeds.Function{function("victim", 0x28)}}, 0, "victim cannot be put at 0x28 mod 0x1000: it is aligned to 16 bytes now"},
		{"gone", seeds.Culprit{Functions: []seeds.Function{function("victim", 0x20), function("nobody", 0x20)}}, 0, "there is no function nobody any more"},
		{"fixed", seeds.Culprit{Functions: []seeds.Function{{Name: head.Function, Section: head.Name}}}, 0, head.Function + " cannot be moved by itself"},
	} {
		t.Run(test.name, func(t *testing.T) {
			plans, notes := search.Restore(sections, test.culprit)
			if got := strings.Join(notes, "; "); got != test.notes {
				t.Errorf("notes %q, want %q", got, test.notes)
			}
			if want := 4 * test.moves; len(plans) != want { // in four surroundings
				t.Fatalf("%d plans, want %d", len(plans), want)
			}
			met := map[string]int{}
			for n, plan := range plans {
				checkRestored(t, sections, test.culprit, plan, n/test.moves, met)
			}
			if len(met) != test.moves {
				t.Errorf("it is put at %v, want %d different residues", met, test.moves)
			}
		})
	}

	t.Run("linked", func(t *testing.T) {
		plans, _ := search.Restore(sections, seeds.Culprit{Functions: []seeds.Function{function(fill(40), 0x40), touching(function("victim", 0x20))}})
		image, err := linkerOf(t, k).Link(t.Context(), plans[1])
		if err != nil {
			t.Fatal(err)
		}
		at := symbols(t, image.Path)
		if first, second := at[fill(40)], at["victim"]; first%layout.Modulus != 0x40 || second <= first || second-first > 128 {
			t.Errorf("%s is linked to %#x, and victim to %#x", fill(40), first, second)
		}
	})
}

// checkRestored checks a plan by its addresses. Surrounding is 0 for the
// baseline, else a seed. met counts where the first function is.
func checkRestored(t *testing.T, sections []layout.Section, c seeds.Culprit, plan layout.Plan, surrounding int, met map[string]int) {
	t.Helper()
	place := func(p layout.Plan) []uint64 {
		addresses, err := layout.Place(sections, p)
		if err != nil {
			t.Fatal(err)
		}
		return addresses
	}
	got, base := place(plan), place(layout.Plan{})
	if surrounding > 0 {
		base = place(layout.Cover.Plan(uint32(surrounding), sections))
	}
	order, err := layout.Order(sections, plan.Order)
	if err != nil {
		t.Fatal(err)
	}
	before := map[int]int{}
	for n, i := range order[1:] {
		before[i] = order[n]
	}
	culprits := map[int]bool{}
	bytes := uint64(0)
	for n, f := range c.Functions {
		i := at(t, sections, f.Name)
		culprits[i] = true
		b := before[i]
		gap := got[i] - layout.AlignUp(got[b]+sections[b].Size, sections[i].Align)
		if f.Touching {
			if first := at(t, sections, c.Functions[n-1].Name); b != first || gap != 0 {
				t.Errorf("%s is %d bytes behind %s", f.Name, gap, sections[b].Function)
			}
			continue
		}
		if gap < 16 {
			t.Errorf("%s touches %s", f.Name, sections[b].Function)
		}
		moved := (got[i] + sections[i].Entry - f.Address) % layout.Modulus
		switch {
		case n == 0:
			bytes = moved
			met[fmt.Sprint(bytes)]++
		case f.Moved && moved != bytes, !f.Moved && moved != 0:
			t.Errorf("%s is moved by %d bytes, %s by %d", c.Functions[0].Name, bytes, f.Name, moved)
		}
	}
	if ok := bytes == 0 || slices.ContainsFunc(c.Residues, func(r seeds.Residue) bool { return r.Bytes == bytes && r.Crashes > 0 }); !ok {
		t.Errorf("moved by %d bytes it did not fail", bytes)
	}
	for i, s := range sections {
		if s.Output == ".text" && layout.Movable(sections, i) && !culprits[i] && (got[i]-base[i])%layout.Modulus != 0 {
			t.Fatalf("%s is moved too, from %#x to %#x", s.Function, base[i], got[i])
		}
	}
}

// found are the results of a sweep of tiny, and what minimizing its first find
// has shown.
func found(t *testing.T, k kernel, dir string) (*evidence.Results, []seeds.File) {
	t.Helper()
	f := unluckySeed(t, k, scenario("canary"), dir)
	answer, err := minimize(t, k, f, filepath.Join(t.TempDir(), "min.yaml")).Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all, err := evidence.ReadResults([]string{dir}, t.Logf)
	if err != nil || len(all) != 1 {
		t.Fatalf("%d sweeps, error %v", len(all), err)
	}
	return all[0], []seeds.File{*answer}
}

// A crash that does not show itself in every boot is looked for with as many boots
// as its rate asks for.
func TestVerifyFlaky(t *testing.T) {
	slow(t)
	t.Parallel()
	k := tiny(t, nil)
	dir := t.TempDir()
	results, answers := found(t, k, dir)
	for i := range results.Layouts {
		if l := &results.Layouts[i]; l.Found {
			l.Boots, l.Crashes = 31, 26
		}
	}
	mended := tiny(t, replacing(t, "main.c", canaryAt, "at % 64 == 0x21"))
	s := sweep(mended, scenario("canary"), t.TempDir(), 1, 6, 2)
	v := &search.Verify{Sweep: s, Found: results, Minimized: answers, Confidence: 0.5}
	got, err := v.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// 25 of 30: with 90 % confidence at least 0.7126, and 0.2874^5 is below 0.002.
	if c := got.Culprits; len(c) != 1 || c[0].Layouts != 4 || c[0].Boots != 4*5 || c[0].Failed {
		t.Errorf("culprits %+v, want 5 boots of each layout", c)
	}
	if got.Passed != 6 {
		t.Errorf("%d layouts pass, want 6: %v", got.Passed, got)
	}
}
