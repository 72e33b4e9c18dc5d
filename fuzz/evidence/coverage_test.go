package evidence

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"gonum.org/v1/gonum/mathext/prng"

	"unlucky/layout"
	"unlucky/qemu"
	"unlucky/seeds"
)

// fewFunctions is a .text of functions of all alignments, of sections that are
// placed by hand, and of one without a symbol.
func fewFunctions() []layout.Section {
	sections := []layout.Section{{Name: ".init", Output: ".init", Address: 0x1000, Size: 64, Align: 16, Function: "init"}}
	end := uint64(0x10000)
	for _, s := range []layout.Section{
		{Name: ".head.text", Size: 0x91, Align: 1, Function: "start"},
		{Name: ".text.one", Size: 7, Align: 1, Moves: true, Function: "one"},
		{Name: ".text.two", Size: 40, Align: 16, Moves: true, Function: "two", Entry: 11},
		{Name: ".text.line", Size: 100, Align: 64, Moves: true, Function: "line", Entry: 16},
		{Name: ".text.page", Size: 5000, Align: 4096, Moves: true, Function: "page"},
		{Name: ".noinstr.text", Size: 300, Align: 16, Function: "entry"},
		{Name: ".text.nameless", Size: 16, Align: 16, Moves: true},
		{Name: ".text.last", Size: 16, Align: 8192, Moves: true, Function: "last"},
	} {
		s.Output, s.Address = ".text", layout.AlignUp(end, s.Align)
		end = s.Address + s.Size
		sections = append(sections, s)
	}
	return append(sections, layout.Section{Name: ".rodata", Output: ".rodata", Address: 0x90000, Size: 64, Align: 16, Function: "table"})
}

func addressesOf(layout []layout.Section) (out []uint64) {
	for _, s := range layout {
		out = append(out, s.Address)
	}
	return out
}

// figures are totals in brief.
func figures(t Totals) string {
	var out []string
	for _, r := range t.Residues {
		out = append(out, fmt.Sprintf("%d/%d", r.Seen, r.Of))
	}
	return strings.Join(out, " ")
}

func TestCoverageAdd(t *testing.T) {
	t.Parallel()
	layout := fewFunctions()
	c, err := NewCoverage(layout)
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Totals(); got.Functions != 5 || got.Fixed != 2 || got.Layouts != 0 || got.Neighbours.Baseline != 3 || got.Neighbours.Seen != 0 {
		t.Errorf("%+v", got)
	}
	if f := c.Fixed(); len(f) != 2 || f[0].Function != "start" || f[1].Function != "entry" {
		t.Errorf("fixed: %+v", f)
	}
	moved := func(by uint64, functions ...string) []uint64 {
		out := addressesOf(layout)
		for i, s := range layout {
			if slices.Contains(functions, s.Function) {
				out[i] += by
			}
		}
		return out
	}
	unknown := addressesOf(layout)
	unknown[3], unknown[1], unknown[7] = 0, 0, 0
	for _, test := range []struct {
		name       string
		addresses  []uint64
		residues   string
		neighbours int
	}{
		{"the baseline", addressesOf(layout), "5/71 5/278 5/4418", 3},
		{"again", addressesOf(layout), "5/71 5/278 5/4418", 3},
		{"by a byte", moved(1, "one"), "6/71 6/278 6/4418", 3},
		{"by a modulus", moved(64, "one", "two"), "6/71 8/278 8/4418", 3},
		{"by another", moved(256, "one", "two", "line"), "6/71 8/278 11/4418", 3},
		{"by a line", moved(64, "line"), "6/71 9/278 12/4418", 3},
		{"by the largest", moved(3*8192, "one", "two", "line", "page", "last"), "6/71 9/278 12/4418", 3},
		{"some unknown", unknown, "6/71 9/278 12/4418", 3},
	} {
		c.Add(test.addresses)
		if got := c.Totals(); figures(got) != test.residues || got.Neighbours.Seen != test.neighbours {
			t.Errorf("%s: %s and %d neighbours, want %s and %d", test.name, figures(got), got.Neighbours.Seen, test.residues, test.neighbours)
		}
	}
	if n := c.Totals().Layouts; n != 8 {
		t.Errorf("%d layouts", n)
	}
	var names []string
	for _, f := range c.Functions() {
		names = append(names, f.Name)
		if f.Name == "line" && (f.Address != layout[4].Address+16 || f.Section != ".text.line" || f.Residues != [3]Residues{{64, 1, 1}, {256, 2, 4}, {4096, 3, 64}}) {
			t.Errorf("%+v", f)
		}
	}
	if want := []string{"one", "two", "line", "last", "page"}; !slices.Equal(names, want) {
		t.Errorf("the least covered first: %v, want %v", names, want)
	}
}

// Neighbours are ordered pairs, in whatever order the functions are.
func TestCoverageNeighbours(t *testing.T) {
	t.Parallel()
	sections := []layout.Section{{Name: ".head.text", Output: ".text", Address: 0x1000, Size: 16, Align: 16}}
	for i, size := range []uint64{16, 20, 32} {
		sections = append(sections, layout.Section{Name: fmt.Sprint(".text.", i), Function: string('a' + rune(i)), Output: ".text",
			Address: 0x1010 + uint64(i)*32, Size: size, Align: 16, Moves: true})
	}
	sections[1].Address, sections[1].Size = 0x1010, 32
	c, err := NewCoverage(sections)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name    string
		a, b, c uint64
		want    int
	}{
		{"the baseline", 0x1010, 0x1030, 0x1050, 2},
		{"all apart", 0x1010, 0x1040, 0x1070, 2},
		{"b a, c apart", 0x1030, 0x1010, 0x1100, 3},
		{"b a again", 0x2030, 0x2010, 0x2100, 3},
		{"c a b", 0x1050, 0x1070, 0x1030, 4}, // a b was in the baseline
		{"the baseline again", 0x1010, 0x1030, 0x1050, 4},
		{"c b a", 0x1070, 0x1050, 0x1030, 5},
		{"a c, b unknown", 0x1010, 0, 0x1030, 6},
		{"all again", 0x1010, 0x1030, 0x1050, 6},
	} {
		c.Add([]uint64{0, test.a, test.b, test.c})
		if got := c.Totals().Neighbours; got.Seen != test.want || got.Baseline != 2 {
			t.Errorf("%s: %+v, want %d of 2", test.name, got, test.want)
		}
	}
}

// The counts are those of sets of addresses, for any layouts in any order.
func TestCoverageIsSets(t *testing.T) {
	t.Parallel()
	sections := namedText()
	c, err := NewCoverage(sections)
	if err != nil {
		t.Fatal(err)
	}
	type residue struct {
		function int
		modulus  uint64
		residue  uint64
	}
	residues, neighbours := map[residue]bool{}, map[[2]int]bool{}
	random := rand.New(rand.NewPCG(1, 2))
	for n := range uint32(60) {
		addresses := make([]uint64, len(sections))
		if n%2 == 0 {
			if addresses, err = layout.Place(sections, layout.Text.Plan(n, sections)); err != nil {
				t.Fatal(err)
			}
		} else { // shuffled on both sides of what is fixed, one in three with a gap
			order, fixed := random.Perm(len(sections)), slices.IndexFunc(sections[1:], func(s layout.Section) bool { return !s.Moves })+1
			slices.SortStableFunc(order, func(i, j int) int { return cmp.Compare(i, fixed) - cmp.Compare(j, fixed) })
			end := uint64(0x400000)
			for _, i := range order {
				addresses[i] = layout.AlignUp(end+random.Uint64N(3)/2*64, sections[i].Alignment())
				end = addresses[i] + sections[i].Size
			}
		}
		c.Add(addresses)
		var order []int
		for i, a := range addresses {
			if !layout.Movable(sections, i) {
				continue
			}
			if addresses[i] == 0 {
				t.Fatal("not placed")
			}
			order = append(order, i)
			for _, modulus := range moduli {
				residues[residue{i, modulus, a % modulus}] = true
			}
		}
		slices.SortFunc(order, func(i, j int) int { return cmp.Compare(addresses[i], addresses[j]) })
		for n, j := range order[1:] {
			if i := order[n]; addresses[j]-addresses[i]-sections[i].Size < sections[j].Alignment() {
				neighbours[[2]int{i, j}] = true
			}
		}
	}
	got := c.Totals()
	sum := 0
	for _, r := range got.Residues {
		sum += r.Seen
	}
	if sum != len(residues) || got.Neighbours.Seen != len(neighbours) || sum < 10_000 || len(neighbours) < 5000 {
		t.Errorf("%s and %d neighbours, by sets %d and %d", figures(got), got.Neighbours.Seen, len(residues), len(neighbours))
	}
	byFunction := 0
	for _, f := range c.Functions() {
		for _, r := range f.Residues {
			byFunction += r.Seen
		}
	}
	if byFunction != sum {
		t.Errorf("the functions have %d residues, all have %d", byFunction, sum)
	}
}

// variedFunctions is a .text of functions of many sizes, with some of larger and of
// smaller alignment, and one that is placed by hand.
func variedFunctions() []layout.Section {
	sections := []layout.Section{{Name: ".head.text", Output: ".text", Address: 0xffffffff81000000, Size: 0x91, Align: 1, Index: 1}}
	end := sections[0].Address + sections[0].Size
	for i := range 600 {
		s := layout.Section{Name: fmt.Sprint(".text.f", i), Output: ".text", Size: 16 + mixed(1, uint64(i))%400, Align: 16, Moves: true,
			Index: i + 2, Group: 1 + i/301}
		switch {
		case i == 300:
			s.Name, s.Moves, s.Align, s.Group = ".noinstr.text", false, 64, 0
		case i%97 == 5:
			s.Align = 64
		case i%53 == 7:
			s.Align = 4
		case i%201 == 9:
			s.Align = 4096
		}
		s.Address = (end + s.Align - 1) &^ (s.Align - 1)
		end = s.Address + s.Size
		sections = append(sections, s)
	}
	return sections
}

// namedText is variedFunctions, each section with a function.
func namedText() []layout.Section {
	layout := variedFunctions()
	for i := range layout {
		layout[i].Function = strings.TrimPrefix(layout[i].Name, ".text.")
	}
	return layout
}

// Strategy cover completes mod 64 with its 4th layout, mod 256 with its 16th, and mod
// 4096 with the 256th of those that keep the order, which is seed 400.
func TestCoverageOfCover(t *testing.T) {
	t.Parallel()
	sections := namedText()
	c, err := NewCoverage(sections)
	if err != nil {
		t.Fatal(err)
	}
	complete := map[uint64]uint32{}
	for seed := uint32(1); seed <= 400; seed++ {
		addresses, err := layout.Place(sections, layout.Cover.Plan(seed, sections))
		if err != nil {
			t.Fatal(err)
		}
		c.Add(addresses)
		all := [len(moduli)]bool{true, true, true}
		for _, f := range c.Functions() {
			i := slices.IndexFunc(sections, func(s layout.Section) bool { return s.Function == f.Name })
			for m, r := range f.Residues {
				if align := sections[i].Alignment(); align >= 16 && r.Seen < r.Of || r.Seen > r.Of {
					all[m] = false
				}
			}
		}
		for m, r := range c.Totals().Residues {
			if all[m] && complete[r.Modulus] == 0 {
				complete[r.Modulus] = seed
			}
		}
	}
	if complete[64] != 4 || complete[256] != 16 || complete[4096] <= 256 {
		t.Errorf("complete after %v layouts", complete)
	}
}

func TestNoCoverage(t *testing.T) {
	t.Parallel()
	two := fewFunctions()
	for i := range 3 {
		two = append(two, layout.Section{Name: fmt.Sprint(".text.unlikely.", i), Output: ".text.unlikely", Size: 16, Moves: true, Function: "f"})
	}
	for _, test := range []struct {
		layout []layout.Section
		want   string
	}{
		{nil, "no function that can be moved"},
		{fewFunctions()[:2], "no function that can be moved"},
		{two, ".text and .text.unlikely both have functions"},
	} {
		if _, err := NewCoverage(test.layout); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("error %v, want %q", err, test.want)
		}
	}
}

// What the journal says of layouts is what counting them at their verdict
// said.
func TestCoverageRecall(t *testing.T) {
	t.Parallel()
	sections := namedText()
	fresh := func() *Coverage {
		c, err := NewCoverage(sections)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	live := fresh()
	records := []seeds.Record{{Layout: seeds.Baseline, Verdict: seeds.Verdict{Kind: qemu.Pass}, Plan: layout.Plan{}.Digest()}}
	live.Add(addressesOf(sections))
	for seed, kind := range []qemu.Kind{qemu.Pass, qemu.LinkFailed, qemu.Crash, qemu.Infra, qemu.Hang, qemu.Pass} {
		plan := layout.Cover.Plan(uint32(seed), sections)
		records = append(records, seeds.Record{Layout: seeds.Seed(uint32(seed)), Verdict: seeds.Verdict{Kind: kind}, Plan: plan.Digest()})
		addresses, err := layout.Place(sections, plan)
		if err != nil {
			t.Fatal(err)
		}
		if kind != qemu.LinkFailed && kind != qemu.Infra {
			live.Add(addresses)
		}
	}
	by := func(s layout.Strategy) (tried []Tried) {
		for _, r := range records {
			tried = append(tried, Tried{Record: r, Strategy: s})
		}
		return tried
	}
	recalled := fresh()
	watching := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() { // as the progress line does
		for {
			select {
			case <-watching:
				return
			default:
				recalled.Totals()
			}
		}
	})
	var told []int
	untold, err := recalled.Recall(t.Context(), by(layout.Cover), func(done, total int) { told = append(told, done, total) })
	close(watching)
	watch.Wait()
	if err != nil || untold != 0 || recalled.Totals() != live.Totals() || recalled.Totals().Layouts != 5 {
		t.Errorf("recalled %+v (%d not, %v), counted %+v", recalled.Totals(), untold, err, live.Totals())
	}
	if want := []int{1, 5, 2, 5, 3, 5, 4, 5, 5, 5}; !slices.Equal(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}

	ofLLD := fresh()
	if untold, err := ofLLD.Recall(t.Context(), by(layout.LLD), nil); err != nil || untold != 4 || ofLLD.Totals().Layouts != 1 {
		t.Errorf("strategy lld: %d untold, %v, %+v", untold, err, ofLLD.Totals())
	}
	if _, err := fresh().Recall(t.Context(), by(layout.Text), nil); err == nil || !strings.Contains(err.Error(), "its plan is not the one that has booted") {
		t.Errorf("another strategy's plans: %v", err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if _, err := fresh().Recall(ended, by(layout.Cover), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

// coverageOf is a coverage of so many functions, and the addresses of some
// layouts of strategy cover.
func coverageOf(b *testing.B, functions int) (c *Coverage, addresses [][]uint64) {
	sections := []layout.Section{{Name: ".head.text", Output: ".text", Address: 1 << 21, Size: 0x91, Align: 1}}
	end := sections[0].Address + sections[0].Size
	for i := range functions {
		s := layout.Section{Name: fmt.Sprint(".text.f", i), Output: ".text", Align: 16, Moves: true, Function: "f",
			Address: layout.AlignUp(end, 16), Size: 16 + mixed(1, uint64(i))%400}
		end = s.Address + s.Size
		sections = append(sections, s)
	}
	c, err := NewCoverage(sections)
	if err != nil {
		b.Fatal(err)
	}
	for seed := range uint32(64) {
		a, err := layout.Place(sections, layout.Cover.Plan(seed, sections))
		if err != nil {
			b.Fatal(err)
		}
		addresses = append(addresses, a)
	}
	return c, addresses
}

// BenchmarkCoverageAdd is the counting of a layout, for as many functions as a
// small kernel and x86_64_defconfig have.
func BenchmarkCoverageAdd(b *testing.B) {
	for _, functions := range []int{10_808, 56_853} {
		b.Run(fmt.Sprint(functions), func(b *testing.B) {
			c, addresses := coverageOf(b, functions)
			b.ReportAllocs()
			for n := 0; b.Loop(); n++ {
				c.Add(addresses[n%len(addresses)])
			}
		})
	}
}

// BenchmarkCoverageRecall is the counting of a layout of an earlier run.
func BenchmarkCoverageRecall(b *testing.B) {
	c, _ := coverageOf(b, 10_808)
	r := seeds.Record{Layout: seeds.Seed(7), Verdict: seeds.Verdict{Kind: qemu.Pass}, Plan: layout.Cover.Plan(7, c.layout).Digest()}
	tried := []Tried{{Record: r, Strategy: layout.Cover}}
	for b.Loop() {
		if _, err := c.Recall(b.Context(), tried, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// mixed is a number that looks random, of two.
func mixed(a, b uint64) uint64 {
	g := prng.NewSplitMix64(a)
	g.Seed(g.Uint64() ^ b)
	return g.Uint64()
}
