package evidence

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"unlucky/layout"
	"unlucky/qemu"
	"unlucky/seeds"
)

// manyFunctions is a .text of so many functions of many sizes.
func manyFunctions(n int) []layout.Section {
	sections := []layout.Section{{Name: ".head.text", Output: ".text", Address: 0xffffffff81000000, Size: 0x91, Align: 1, Index: 1}}
	end := sections[0].Address + sections[0].Size
	for i := range n {
		s := layout.Section{Name: fmt.Sprint(".text.f", i), Output: ".text", Align: 16, Moves: true, Function: fmt.Sprint("f", i),
			Address: layout.AlignUp(end, 16), Size: 16 + mixed(1, uint64(i))%400, Index: i + 2, Group: 1}
		end = s.Address + s.Size
		sections = append(sections, s)
	}
	return sections
}

// sweptAs are the results of a sweep in which verdict gives each layout its
// title, by where the functions of these numbers are; "" is a pass.
func sweptAs(t testing.TB, sections []layout.Section, s layout.Strategy, first, last uint32, verdict func(at func(function int) uint64) string) *Results {
	t.Helper()
	r := &Results{Header: seeds.Header{Scenario: "made up"}, Layout: sections, Dirs: []string{"here"}}
	for seed := first; seed <= last; seed++ {
		plan := s.Plan(seed, sections)
		addresses, err := layout.Place(sections, plan)
		if err != nil {
			t.Fatal(err)
		}
		record := seeds.Record{Layout: seeds.Seed(seed), Verdict: seeds.Verdict{Kind: qemu.Pass, Title: "pass", Boots: 1}, Plan: plan.Digest()}
		if title := verdict(func(f int) uint64 { return addresses[f+1] }); title != "" {
			record.Kind, record.Title, record.Crashes = qemu.Crash, title, 1
		}
		r.Layouts = append(r.Layouts, Tried{Record: record, Strategy: s, Dir: "here"})
	}
	return r
}

func suspicion(t *testing.T, r *Results) *Suspicion {
	t.Helper()
	s, err := r.Suspects(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	again, err := r.Suspects(t.Context(), nil)
	a, err1 := json.Marshal(s)
	b, err2 := json.Marshal(again)
	if err := errors.Join(err, err1, err2); err != nil || !bytes.Equal(a, b) {
		t.Errorf("the same results give %s, then %s (%v)", a, b, err)
	}
	return s
}

// brief is a suspicion in a few words; of each bug the first suspect alone.
func brief(s *Suspicion) (out []string) {
	bug := 0
	for _, u := range s.Suspects {
		if u.Bug == bug || u.Chance > Sure {
			continue
		}
		bug = u.Bug
		names := func(functions []SuspectFunction) string {
			var out []string
			for _, f := range functions {
				if f.Next != "" {
					f.Name += ">" + f.Next
				}
				out = append(out, f.Name)
			}
			return strings.Join(out, " ")
		}
		text := names(u.Functions)
		if u.With != nil {
			text += " - " + names(u.With)
		}
		for _, r := range u.Residues {
			text += fmt.Sprintf(" %#x-%#x", r.First, r.Last)
		}
		out = append(out, fmt.Sprintf("%s mod %d: %d/%d %d/%d", text, u.Modulus, u.There.Fails, u.There.Of, u.Elsewhere.Fails, u.Elsewhere.Of))
	}
	return out
}

// Planted bugs of each kind are found first, and what is not there is not.
func TestSuspects(t *testing.T) {
	t.Parallel()
	sections := manyFunctions(700)
	flaky := rand.New(rand.NewPCG(3, 4))
	for _, test := range []struct {
		name        string
		first, last uint32
		verdict     func(at func(int) uint64) string
		want        []string // what brief begins with, of each bug
		tooFew      string
	}{
		{"nothing fails", 1, 64, func(func(int) uint64) string { return "" }, nil, "nothing has failed in 64 layouts: there is nothing to explain"},
		{"all fail", 1, 64, func(func(int) uint64) string { return "oops" }, nil, "64 of 64 layouts fail: some must pass, too, to tell a function by"},
		{"too few", 257, 272, func(at func(int) uint64) string { return when("oops", at(500)%256 == 0x30) }, nil,
			"1 of 16 layouts fail: too few to tell a function by; if one decides, about 81 layouts are needed at the least; where each failure is another pair of functions, more layouts may never tell"},
		{"a cache line", 257, 320, func(at func(int) uint64) string { return when("oops", at(500)%64 == 0x20) },
			[]string{"f500 0x20-0x20 mod 64: 14/14 0/50"}, ""},
		{"two residues apart", 257, 320, func(at func(int) uint64) string { return when("oops", at(500)%32 == 0x10) },
			[]string{"f500 0x10-0x10 mod 32: 33/33 0/31"}, ""},
		{"256 bytes", 257, 384, func(at func(int) uint64) string { return when("oops", at(500)%256 == 0x30) },
			[]string{"f500 0x30-0x30 mod 256: 6/6 0/122"}, ""},
		{"a cache line, a run that no cut has parted", 1, 40, func(at func(int) uint64) string { return when("oops", at(500)%64 == 0x30) },
			[]string{"f499 f500 f501 f502 f503 f504 f505 f506 f507 0x30-0x30 mod 64: 10/10 0/30"}, ""},
		{"half a line", 257, 320, func(at func(int) uint64) string { return when("oops", at(500)%32 == 0x10) },
			[]string{"f500 0x10-0x10 mod 32"}, ""},
		{"128 bytes", 257, 384, func(at func(int) uint64) string { return when("oops", at(500)%128 == 0x10) },
			[]string{"f500 0x10-0x10 mod 128"}, ""},
		{"512 bytes", 257, 768, func(at func(int) uint64) string { return when("oops", at(500)%512 == 0x10) },
			[]string{"f500 0x10-0x10 mod 512"}, ""},
		{"1 KiB", 257, 1024, func(at func(int) uint64) string { return when("oops", at(500)%1024 == 0x10) },
			[]string{"f500 0x10-0x10 mod 1024"}, ""},
		{"2 KiB", 257, 1280, func(at func(int) uint64) string { return when("oops", at(500)%2048 == 0x10) },
			[]string{"f500 0x10-0x10 mod 2048"}, ""},
		{"round the end of a page", 257, 512, func(at func(int) uint64) string { return when("oops", (at(500)+0x200)%4096 < 0x400) },
			[]string{"f500 0xe00-0x1f0 mod 4096: 68/68 0/188"}, ""},
		{"a distance", 257, 448, func(at func(int) uint64) string { return when("oops", (at(100)-at(500))%256 == 0x40) },
			[]string{"f100 - f500 0x40-0x40 mod 256"}, ""},
		{"flaky", 257, 384, func(at func(int) uint64) string { return when("oops", at(500)%64 == 0x20 && flaky.IntN(4) > 0) },
			[]string{"f500 0x20-0x20 mod 64"}, ""},
		{"kept apart by title, one hidden by the other", 257, 384, func(at func(int) uint64) string {
			return when("one", at(300)%64 < 0x20) + when("two", at(300)%64 >= 0x20 && at(650)%64 >= 0x20)
		}, []string{"f300 0x0-0x10 mod 64: 64/64 0/64", "f650 0x20-0x30 mod 64"}, ""},
		{"kept apart without titles", 257, 512, func(at func(int) uint64) string {
			return when(fmt.Sprint("oops in f", at(9)%4096), at(300)%64 == 0 || at(650)%256 < 0x40)
		}, []string{"f650 0x0-0x30 mod 256: 65/65", "f300 0x0-0x0 mod 64: 46/46 0/145"}, ""},
		{"by chance", 257, 384, func(at func(int) uint64) string { return when("oops", mixed(at(1), at(2))%8 == 0) }, nil, "enough to tell one function at one residue mod 256, and there is none"},
		{"each another pair of neighbours", 193, 448, func(at func(int) uint64) string {
			return when("oops", slices.ContainsFunc([]int{20, 60, 130, 190, 250, 330, 420, 480, 550, 640, 690}, func(f int) bool {
				return slices.ContainsFunc([]int{8, 77, 111, 222, 333, 444, 505, 555, 606, 666, 680}, func(g int) bool { return at(g) == layout.AlignUp(at(f)+sections[f+1].Size, 16) })
			}))
		}, nil, "31 of 256 layouts fail, all of them among the 120 in another order than the baseline's: new neighbours decide; where each failure is another pair"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := suspicion(t, sweptAs(t, sections, layout.Cover, test.first, test.last, test.verdict))
			got := brief(s)
			if !slices.EqualFunc(got, test.want, strings.HasPrefix) || !strings.Contains(s.TooFew, test.tooFew) || (s.TooFew == "") != (test.tooFew == "") {
				t.Errorf("suspects %q, too few %q; want %q, %q", got, s.TooFew, test.want, test.tooFew)
			}
			best := slices.Max(s.Scores)
			if test.want == nil {
				if best > -math.Log10(Sure) {
					t.Errorf("a score of %g without a suspect", best)
				}
				return
			}
			u := s.Suspects[0]
			score := s.Scores[slices.IndexFunc(sections, func(l layout.Section) bool { return l.Name == u.Functions[0].Section })]
			if math.Abs(score+math.Log10(u.Chance)) > 1e-6 || len(u.Layouts) != u.There.Fails {
				t.Errorf("score %g, of a chance of %g; %d layouts of %d", score, u.Chance, len(u.Layouts), u.There.Fails)
			}
		})
	}
}

// Residues go in the step that the functions have.
func TestSuspectsStep(t *testing.T) {
	t.Parallel()
	for step, want := range map[uint64]string{4: "f500 0x14-0x14 mod 64: ", 1: "f500 0x15-0x15 mod 32: "} {
		sections := manyFunctions(700)
		for i := range sections {
			sections[i].Align = step
		}
		s := suspicion(t, sweptAs(t, sections, layout.Cover, 1, 192, func(at func(int) uint64) string {
			return when("oops", step == 4 && at(500)%64 == 0x14 || step == 1 && at(500)%32 == 0x15)
		}))
		if got := brief(s); len(got) != 1 || !strings.HasPrefix(got[0], want) {
			t.Errorf("step %d: suspects %q, too few %q", step, got, s.TooFew)
		}
	}
}

// Where new neighbours decide, each order has others.
func TestSuspectsNeighbours(t *testing.T) {
	t.Parallel()
	sections := manyFunctions(700)
	r := sweptAs(t, sections, layout.Cover, 1, 40, func(func(int) uint64) string { return "" })
	other := sweptAs(t, sections, layout.Shuffle, 1, 64, func(at func(int) uint64) string {
		touch := func(f, g int) bool { return at(g) == layout.AlignUp(at(f)+sections[f+1].Size, 16) }
		for f := 0; f < 700; f += 28 {
			for g := 7; g < 700; g += 31 {
				if g != f+1 && touch(f, g) {
					return "oops"
				}
			}
		}
		return ""
	})
	r.Layouts = append(r.Layouts, other.Layouts...)
	if s := suspicion(t, r); len(brief(s)) > 0 || !strings.Contains(s.TooFew, "all of them among the 64 in another order than the baseline's: new neighbours decide; where each failure is another pair of functions, more layouts may never tell") {
		t.Errorf("suspects %q, too few %q", brief(s), s.TooFew)
	}
}

// A distance that has a bound is told with functions that are near the two, as long as
// their order is that of the baseline: between neighbours there is little room.
func TestSuspectsBound(t *testing.T) {
	t.Parallel()
	sections := manyFunctions(700)
	for _, nearer := range []bool{false, true} {
		far := sections[601].Address - sections[101].Address + 0x1f000
		verdict := func(at func(int) uint64) string { return when("oops", (at(600)-at(100) > far) != nearer) }
		r := sweptAs(t, sections, layout.Cover, 1, 40, verdict)
		for _, first := range []uint32{65, 129} { // between them are other orders
			r.Layouts = append(r.Layouts, sweptAs(t, sections, layout.Cover, first, first+39, verdict).Layouts...)
		}
		s := suspicion(t, r)
		if len(s.Suspects) == 0 || s.TooFew != "" {
			t.Errorf("nearer %v: %s", nearer, s.TooFew)
			continue
		}
		var f, g int
		best := s.Suspects[0]
		if best.Bound == nil || best.Bound.Nearer != nearer {
			t.Errorf("nearer %v: %+v", nearer, best)
			continue
		}
		fmt.Sscanf(best.Functions[0].Name, "f%d", &f)
		fmt.Sscanf(best.With[0].Name, "f%d", &g)
		if f < 520 || f > 680 || g < 60 || g > 160 || best.There.Fails < 20 || best.Elsewhere.Fails > 0 {
			t.Errorf("nearer %v: f%d less f%d, %+v, %+v", nearer, f, g, best.There, best.Elsewhere)
		}
	}
}

// Functions that have always moved as one are ties: one that straddles a border where
// it fails is the likeliest.
func TestSuspectsTied(t *testing.T) {
	t.Parallel()
	sections := manyFunctions(700)
	straddles := func(at func(int) uint64, f int) bool { return at(f)%256+sections[f+1].Size > 256 }
	told := 0
	for f := 500; f < 520; f++ {
		if sections[f+1].Size < 64 || sections[f+1].Size > 250 {
			continue
		}
		s := suspicion(t, sweptAs(t, sections, layout.Cover, 1, 40, func(at func(int) uint64) string { return when("oops", straddles(at, f)) }))
		if len(s.Suspects) == 0 || s.Suspects[0].Rank != 1 || len(s.Suspects[0].Functions) < 2 {
			continue // no tie
		}
		told++
		if first := s.Suspects[0].Functions[0]; first.Name != fmt.Sprint("f", f) || !first.Straddles {
			t.Errorf("f%d: %+v", f, s.Suspects[0].Functions)
		}
	}
	if told < 3 {
		t.Errorf("%d ties", told)
	}
}

// Two that fail only where they touch are told from each of them, though cuts
// hold them apart in some of the layouts.
func TestSuspectsTouch(t *testing.T) {
	t.Parallel()
	sections := manyFunctions(700)
	touch := func(at func(int) uint64, f int) bool {
		return at(f+1) == layout.AlignUp(at(f)+sections[f+1].Size, 16) // layout[f+1] is f
	}
	told := 0
	for f := 100; f < 140; f++ {
		apart := 0
		s := suspicion(t, sweptAs(t, sections, layout.Cover, 1, 128, func(at func(int) uint64) string {
			if !touch(at, f) {
				apart++
			}
			return when("oops", touch(at, f) && at(f)%64 < 0x20)
		}))
		if apart == 0 || apart == 128 {
			continue
		}
		told++
		// A pair that the same cuts hold apart is as good.
		i := slices.IndexFunc(s.Suspects, func(u Suspect) bool {
			return u.Functions[0].Name == fmt.Sprint("f", f) && u.Functions[0].Next == fmt.Sprint("f", f+1)
		})
		if i < 0 || s.Suspects[i].Chance > s.Suspects[0].Chance || s.Suspects[i].Elsewhere.Fails > 0 ||
			!slices.Equal(s.Suspects[i].Residues, []Span{{0, 0x10}}) || s.TooFew != "" {
			t.Errorf("f%d and f%d, apart in %d layouts: suspects %q, too few %q", f, f+1, apart, brief(s), s.TooFew)
		}
	}
	if told < 10 {
		t.Errorf("only %d pairs were held apart by a cut", told)
	}
}

func when(title string, fails bool) string {
	if fails {
		return title
	}
	return ""
}

// Verdicts dealt at random are taken for a rule as seldom as is claimed.
func TestSuspectsFalseAlarms(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(5, 6))
	sections := manyFunctions(20)
	for _, test := range []struct {
		share  float64 // of layouts that fail
		sweeps int
	}{{0.15, 1000}, {0.5, 50}} {
		share, sweeps := test.share, test.sweeps
		passes := func(func(int) uint64) string { return "" }
		verdicts := &verdicts{layout: sections, step: layout.Step, tried: sweptAs(t, sections, layout.Cover, 257, 256+40, passes).Layouts}
		if err := verdicts.place(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		var alive []int
		for l := range verdicts.tried {
			alive = append(alive, l)
		}
		alarms, tried := 0, 0
		for range sweeps {
			for l := range verdicts.tried {
				r := &verdicts.tried[l].Record
				r.Kind, r.Title = qemu.Pass, "pass"
				if random.Float64() < share {
					r.Kind, r.Title = qemu.Crash, []string{"one", "two", "three"}[random.IntN(3)]
				}
			}
			r, err := verdicts.compare(t.Context(), alive)
			if err != nil {
				t.Fatal(err)
			}
			if len(r.rules) > 0 {
				tried++
				if r.chance(r.rules[0]) <= Sure {
					alarms++
				}
			}
		}
		t.Logf("%.0f %% fail: %d false alarms in %d sweeps, %d of which were enough to tell", 100*share, alarms, sweeps, tried)
		// The number of alarms is itself a draw: 3.1 standard deviations more
		// come once in a thousand times.
		if most := float64(sweeps)*Sure + 3.1*math.Sqrt(float64(sweeps)*Sure*(1-Sure)); float64(alarms) > most || tried < sweeps/2 {
			t.Errorf("%d false alarms in %d sweeps, want %.0f at most", alarms, tried, most)
		}
	}
}

// The test is Fisher's: its values are those of the sums of binomials.
func TestFisher(t *testing.T) {
	t.Parallel()
	const n = 40
	binomial := func(n, k int) float64 { return math.Exp(choose(n, k)) }
	r := &comparison{alive: make([]int, n), logs: make([]float64, n+1)}
	for i := 2; i <= n; i++ {
		r.logs[i] = r.logs[i-1] + math.Log(float64(i))
	}
	compared := 0
	for fails := 1; fails < n; fails += 3 {
		for of := 1; of < n; of += 2 {
			for k := max(0, fails+of-n); k <= min(fails, of); k++ {
				if k*n <= fails*of {
					continue // no more than luck gives
				}
				want := 0.0
				for i := k; i <= min(fails, of); i++ {
					want += binomial(fails, i) * binomial(n-fails, of-i) / binomial(n, of)
				}
				compared++
				if got := math.Exp(r.log(0, fails, of, k, notTold)); math.Abs(got-want) > 1e-9*want {
					t.Fatalf("%d of %d where %d of %d fail: %g, want %g", k, of, fails, n, got, want)
				}
			}
		}
	}
	if compared < 1000 {
		t.Errorf("only %d compared", compared)
	}
}

// What cannot be placed is said.
func TestSuspectsOfLLD(t *testing.T) {
	t.Parallel()
	r := &Results{LayoutErr: errors.New("the layout is missing")}
	if _, err := r.Suspects(t.Context(), nil); err == nil || err != r.LayoutErr {
		t.Errorf("error %v, want %v", err, r.LayoutErr)
	}
	if _, err := (&Results{}).Suspects(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "strategy lld") {
		t.Errorf("error %v", err)
	}
	sections := manyFunctions(20)
	r = sweptAs(t, sections, layout.Cover, 1, 8, func(func(int) uint64) string { return "" })
	r.Layouts[3].Strategy = layout.LLD
	r.Layouts[4].Kind = qemu.LinkFailed
	if s := suspicion(t, r); s.Layouts != 6 || s.Omitted != 1 {
		t.Errorf("%d layouts, %d omitted; want 6 and 1", s.Layouts, s.Omitted)
	}
	r.Layouts[5].Plan = "another"
	if _, err := r.Suspects(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "its plan is not the one") {
		t.Errorf("error %v", err)
	}
}

// More layouts than fit the memory are thinned evenly.
func TestThin(t *testing.T) {
	t.Parallel()
	all := make([]Tried, 10)
	for i := range all {
		all[i].Layout = seeds.Seed(uint32(i))
	}
	for n, want := range map[int]string{12: "[0 1 2 3 4 5 6 7 8 9]", 10: "[0 1 2 3 4 5 6 7 8 9]", 4: "[0 2 5 7]"} {
		var got []seeds.ID
		for _, l := range thin(all, n) {
			got = append(got, l.Layout)
		}
		if fmt.Sprint(got) != want {
			t.Errorf("%d of them: %v, want %s", n, got, want)
		}
	}
}

// BenchmarkSuspects compares 10,000 layouts of a small kernel, in which two bugs
// fail, once they are placed: each function has moved by itself.
func BenchmarkSuspects(b *testing.B) {
	const layouts, functions = 10_000, 9_000
	random := rand.New(rand.NewPCG(7, 8))
	t := &verdicts{layout: manyFunctions(functions), step: layout.Step}
	t.order = make([]uint64, layouts)
	for f := range functions {
		h := history{sections: []int{f + 1}, at: make([]uint16, layouts)}
		for l := range h.at {
			h.at[l] = uint16(random.IntN(layout.Modulus / layout.Step))
		}
		t.histories = append(t.histories, h)
	}
	var alive []int
	for l := range layouts {
		r := seeds.Record{Verdict: seeds.Verdict{Kind: qemu.Pass}}
		switch {
		case t.histories[500].at[l]%16 == 3:
			r.Kind, r.Title = qemu.Crash, "one"
		case t.histories[700].at[l] < 12:
			r.Kind, r.Title = qemu.Crash, "two"
		}
		t.tried = append(t.tried, Tried{Record: r})
		alive = append(alive, l)
	}
	b.ReportAllocs()
	for b.Loop() {
		r, err := t.compare(b.Context(), alive)
		if err != nil {
			b.Fatal(err)
		}
		if r.rules[0].group != 500 {
			b.Fatal("the wrong function")
		}
	}
}
