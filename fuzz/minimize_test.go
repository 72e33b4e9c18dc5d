package fuzz_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"unlucky/fuzz"
	"unlucky/fuzz/evidence"
	"unlucky/fuzz/search"
	"unlucky/layout"
	"unlucky/qemu"
	"unlucky/scenarios"
	"unlucky/seeds"
)

// unluckySeed sweeps tiny for an unlucky seed that is not in tried, and returns its
// saved file.
func unluckySeed(t *testing.T, k kernel, s scenarios.Scenario, dir string) seeds.File {
	t.Helper()
	sw := sweep(k, s, dir, 0, 63, 2)
	sw.StopAfter = 1
	r, err := sw.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range r.Layouts {
		if l.Found {
			f, err := seeds.Read(filepath.Join(r.Dir, l.Path))
			if err != nil {
				t.Fatal(err)
			}
			return f
		}
	}
	t.Fatalf("no unlucky layout:\n%s", verdicts(r))
	return seeds.File{}
}

// minimize is a Minimize of a saved layout of tiny.
func minimize(t *testing.T, k kernel, f seeds.File, path string) *search.Minimize {
	return &search.Minimize{
		Kernel: k, Guest: fuzz.NewGuest(f.Scenario, ""), Failed: f, Path: path, Workers: 2,
		Template: seeds.Template{Scenario: f.Scenario, Tools: f.Tools, Object: k.Digest, Initrd: f.Digests.Initrd},
		Note:     func(format string, a ...any) { t.Logf(format, a...) }, Step: func(search.Progress) {},
	}
}

// slow leaves a test out with -short, and with nothing else.
func slow(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("NOT TESTED with -short: it links and boots a small guest for ten seconds and more")
	}
}

const canaryAt = "at % 64 == 0x20"

// addresses are those of the functions of tiny's baseline.
func addresses(t *testing.T) map[string]uint64 {
	layout, err := tiny(t, nil).Layout(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	at := map[string]uint64{}
	for _, s := range layout {
		at[s.Function] = s.Address + s.Entry
	}
	return at
}

func TestMinimize(t *testing.T) {
	slow(t)
	t.Parallel()
	at := addresses(t)
	for _, test := range []struct {
		name, condition string
		culprits        []string
		table           []string // of the first
	}{
		{"residue", canaryAt,
			[]string{"crashes when `victim` is at 0x20 mod 0x40; moved alone by 16 bytes it passes"},
			[]string{"0 fails", "16 passes", "32 passes", "48 passes"}},
		{"touching", canaryAt + fmt.Sprint(" && at - (unsigned long)fill359 == ", at["victim"]-at["fill359"]),
			[]string{"crashes when `fill359` at 0x0 is directly followed by `victim` at 0x20 mod 0x40; moved by 16 bytes they pass"},
			[]string{"0 fails", "16 passes", "32 passes", "48 passes"}},
		{"pair", "(at ^ (unsigned long)fill210) % 64 == 0",
			[]string{"crashes when `fill210` and `victim` are at the same residue mod 0x40; 16 bytes nearer they pass"},
			[]string{"0 fails", "16 passes", "32 passes", "48 passes"}},
		{"half a line", "at % 32 == 0",
			[]string{"crashes when `victim` is at 0x0 mod 0x20; moved alone by 16 bytes it passes"},
			[]string{"0 fails", "16 passes"}},
		{"several", canaryAt + " || (unsigned long)fill120 % 64 == 0x20", nil, nil}, // which of them the seed has is not known
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.name != "residue" {
				slow(t)
			}
			t.Parallel()
			k := tiny(t, replacing(t, "main.c", canaryAt, "("+test.condition+")"))
			dir := t.TempDir()
			f := unluckySeed(t, k, scenario("canary"), dir)
			f.Scenario.Guest.Ablate = nil
			m := minimize(t, k, f, filepath.Join(dir, "min.yaml"))
			m.Switches = []string{"quiet", "canary=off"}
			got, err := m.Run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d boots", got.Minimized.Boots)
			var culprits []string
			for _, c := range got.Minimized.Culprits {
				culprits = append(culprits, c.String())
			}
			if test.culprits != nil {
				if d := cmp.Diff(test.culprits, culprits); d != "" {
					t.Fatal(d)
				}
				var table []string
				for _, r := range got.Minimized.Culprits[0].Residues {
					table = append(table, fmt.Sprint(r.Bytes, " ", r.Verdict()))
				}
				if d := cmp.Diff(test.table, table); d != "" {
					t.Error(d)
				}
			} else {
				t.Log(culprits)
			}
			if v := got.Minimized.Switches; len(v) != 2 || v[0].Verdict() != "fails" || v[1].Verdict() != "passes" {
				t.Errorf("switches %+v", v)
			}
			if n := len(got.Plan.Paddings); n > 3 {
				t.Errorf("the smallest plan has %d paddings", n)
			}
			// The file is one that replay takes; its plan fails, the twin passes.
			saved, err := seeds.Read(m.Path)
			if err != nil {
				t.Fatal(err)
			}
			l := linkerOf(t, k)
			image, err := fuzz.Relink(t.Context(), saved, k, l, k.Digest, saved.Tools)
			if err != nil {
				t.Fatal(err)
			}
			if r, err := m.Guest.Boot(t.Context(), image.Path); err != nil || r.Kind != qemu.Crash {
				t.Errorf("the smallest plan: %v, %v", r.Kind, err)
			}
			if image, err = l.Link(t.Context(), *saved.Minimized.Twin); err != nil {
				t.Fatal(err)
			}
			if r, err := m.Guest.Boot(t.Context(), image.Path); err != nil || r.Kind != qemu.Pass {
				t.Errorf("its twin: %v, %v", r.Kind, err)
			}
		})
	}
}

// Where an address as such decides, no residue does, and that is said.
func TestMinimizeAddress(t *testing.T) {
	slow(t)
	t.Parallel()
	base := addresses(t)["victim"]
	k := tiny(t, replacing(t, "main.c", canaryAt, fmt.Sprintf("at >= %#x && at < %#x", base+96, base+4096)))
	dir := t.TempDir()
	f := unluckySeed(t, k, scenario("canary"), dir)
	m := minimize(t, k, f, filepath.Join(dir, "min.yaml"))
	got, err := m.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c, notes := got.Minimized.Culprits, strings.Join(got.Minimized.Notes, "\n")
	if len(got.Plan.Paddings) != 1 || got.Plan.Paddings[0].Bytes < 80 {
		t.Errorf("plan %+v; want one padding", got.Plan.Paddings)
	}
	if len(c) != 1 || c[0].String() != "crashes by the address of `victim`" || !strings.Contains(notes, "not a residue alone") {
		t.Errorf("culprits %v, notes %q", c, notes)
	}
}

// A crash of a shuffled layout that needs a residue only is minimized without
// the order; one that needs two functions brought together keeps that much of
// it.
func TestMinimizeShuffled(t *testing.T) {
	slow(t)
	t.Parallel()
	sections, err := tiny(t, nil).Layout(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var follows []string // victim directly behind one of many that it is not behind in the baseline
	for _, s := range sections {
		if strings.HasPrefix(s.Function, "fill1") {
			follows = append(follows, fmt.Sprintf("at - (unsigned long)%s == %d", s.Function, layout.AlignUp(s.Size, 16)))
		}
	}
	touching := "(" + strings.Join(follows, " || ") + ")"
	for _, test := range []struct {
		name, condition, culprit string
		strategy                 layout.Strategy
		first, last              uint32
		order                    int // sections out of place, at the most
	}{
		{"residue", canaryAt, "^crashes when `victim` is at 0x20 mod 0x40; ", layout.Shuffle, 1, 64, 0},
		{"touching", touching, "^crashes when `fill1.*` is directly followed by `victim`$", layout.Shuffle, 1, 64, 4},
		{"touching, by cover", touching, "^crashes when `fill1.*` is directly followed by `victim`$", layout.Cover, 257, 512, 4},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			k := tiny(t, replacing(t, "main.c", canaryAt, test.condition))
			dir := t.TempDir()
			sw := sweep(k, scenario("canary"), dir, test.first, test.last, 2)
			sw.StopAfter, sw.Strategy = 1, test.strategy
			r, err := sw.Run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			i := slices.IndexFunc(r.Layouts, func(l seeds.Record) bool { return l.Found })
			if i < 0 || r.Baseline.Found {
				t.Fatalf("no unlucky layout, or the baseline:\n%s", verdicts(r))
			}
			f, err := seeds.Read(filepath.Join(r.Dir, r.Layouts[i].Path))
			if err != nil {
				t.Fatal(err)
			}
			got, err := minimize(t, k, f, filepath.Join(dir, "min.yaml")).Run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d boots; %v", got.Minimized.Boots, got.Plan)
			c := got.Minimized.Culprits
			if len(c) != 1 || !regexp.MustCompile(test.culprit).MatchString(c[0].String()) {
				t.Fatalf("culprits %v", c)
			}
			if p := got.Plan; len(p.Order) > test.order || len(p.Order) == 0 && test.order > 0 || len(p.Paddings) > 3 {
				t.Errorf("the smallest plan is %+v", p)
			}
			// What is saved is linked again without the seed.
			saved, err := seeds.Read(filepath.Join(dir, "min.yaml"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := fuzz.Relink(t.Context(), saved, k, linkerOf(t, k), k.Digest, saved.Tools); err != nil {
				t.Error(err)
			}
		})
	}
}

// A crash in two of three boots is minimized to the same function.
func TestMinimizeFlaky(t *testing.T) {
	slow(t)
	t.Parallel()
	k := tiny(t, replacing(t, "main.c", canaryAt, canaryAt+" && (__builtin_ia32_rdtsc() >> 6) % 3"))
	dir := t.TempDir()
	f := unluckySeed(t, k, scenario("canary"), dir)
	got, err := minimize(t, k, f, filepath.Join(dir, "min.yaml")).Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r := got.Minimized.Failing
	t.Logf("%d of %d boots fail; %d boots", r.Crashes, r.Boots, got.Minimized.Boots)
	// Its table may be wrong where it was flaky and never showed that.
	if c := got.Minimized.Culprits; len(c) != 1 || len(c[0].Functions) != 1 || c[0].Functions[0].Name != "victim" {
		t.Errorf("culprits %v", c)
	}
}

// Another crash than the one looked for is saved, and decides nothing.
func TestMinimizeMatch(t *testing.T) {
	slow(t)
	t.Parallel()
	k := tiny(t, replacing(t, "main.c", `	if (has(line, "canary")`, `	if (has(line, "canary") && (unsigned long)fill120 % 64 == 0x10) {
		put("kernel BUG at tiny.c:1!\n" "RIP: 0010:fill120+0x1b/0x20\n" "---[ end trace 0000000000000000 ]---\n");
		for (;;)
			__asm__ volatile("cli; hlt");
	}
	if (has(line, "canary")`))
	dir := t.TempDir()
	s := scenario("canary")
	s.Verdict.Crash = scenarios.Regexp{Regexp: regexp.MustCompile("invalid opcode")}
	f := unluckySeed(t, k, s, dir)
	got, err := minimize(t, k, f, filepath.Join(dir, "min.yaml")).Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if c := got.Minimized.Culprits; len(c) != 1 || !strings.HasPrefix(c[0].String(), "crashes when `victim` is at 0x20 mod 0x40") {
		t.Errorf("culprits %v", c)
	}
	others, _ := filepath.Glob(filepath.Join(dir, "min.*BUG*.yaml"))
	for _, path := range others {
		if o, err := seeds.Read(path); err != nil || o.Title == f.Title || o.Plan == nil {
			t.Errorf("%s: %+v, %v", path, o, err)
		}
	}
	t.Logf("other crashes saved: %v", others)
}

func TestMinimizeInterrupted(t *testing.T) {
	slow(t)
	t.Parallel()
	k := tiny(t, nil)
	dir := t.TempDir()
	f := unluckySeed(t, k, scenario("canary"), dir)
	whole, err := minimize(t, k, f, filepath.Join(dir, "whole.yaml")).Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "pieces.yaml")
	pieces := 0
	for {
		ctx, cancel := context.WithCancel(t.Context())
		m := minimize(t, k, f, path)
		m.Note = func(string, ...any) {}
		if pieces%2 == 1 { // the sweep has grown, and says something else
			m.Suspects = []evidence.Suspect{{
				Functions: []evidence.SuspectFunction{{Section: []string{".text.victim", ".text.fill100"}[pieces/2%2]}},
				Modulus:   64, Residues: []evidence.Span{{First: 0, Last: 63}},
			}}
		}
		boots := 0
		m.Step = func(p search.Progress) {
			if boots == 0 {
				boots = p.Boots
			}
			if p.Boots >= boots+4 {
				cancel()
			}
		}
		got, err := m.Run(ctx)
		cancel()
		if errors.Is(err, context.Canceled) {
			if pieces++; pieces > 100 {
				t.Fatal("no progress")
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(whole.Minimized.Culprits, got.Minimized.Culprits); d != "" || pieces < 3 {
			t.Errorf("in %d pieces: %s", pieces, d)
		}
		return
	}
}

func TestMinimizeErrors(t *testing.T) {
	slow(t)
	t.Parallel()
	k := tiny(t, nil)
	dir := t.TempDir()
	f := unluckySeed(t, k, scenario("canary"), dir)
	path := filepath.Join(dir, "min.yaml")
	for _, test := range []struct {
		name string
		edit func(*search.Minimize)
		want string
	}{
		{"does not fail", func(m *search.Minimize) { m.Guest = fuzz.NewGuest(scenario(""), "") }, "the failing end is missing: seed"},
		{"never passes", func(m *search.Minimize) { m.Guest.Expect.Pass = regexp.MustCompile("never") }, "the passing end is missing"},
		{"a twin", func(m *search.Minimize) { m.Failed.Kind = qemu.Pass }, "there is nothing to minimize"},
		{"another kernel", func(m *search.Minimize) { m.Template.Object = strings.Repeat("1", 64) }, "vmlinux.o is not the one of the saved seed"},
		{"lld's padding", func(m *search.Minimize) { m.Failed.Strategy = string(layout.LLD) }, "strategy lld"},
	} {
		m := minimize(t, k, f, path)
		m.Note = func(string, ...any) {}
		test.edit(m)
		if _, err := m.Run(t.Context()); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want %q", test.name, err, test.want)
		}
		os.Remove(strings.TrimSuffix(path, ".yaml") + ".journal")
	}
	// At the limit of boots the best so far is saved, and said to be no minimum.
	m := minimize(t, k, f, path)
	m.MaxBoots = 12
	got, err := m.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if notes := strings.Join(got.Minimized.Notes, "\n"); !strings.Contains(notes, "not minimal") || got.Crashes == 0 {
		t.Errorf("notes %q, %d crashes", notes, got.Crashes)
	}
}

// The addresses of hybrids are those of the linked images.
func TestHybrids(t *testing.T) {
	slow(t)
	t.Parallel()
	k := tiny(t, nil)
	sections, err := k.Layout(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, fail := range map[string]layout.Plan{
		"text": layout.Text.Plan(1, sections), "shuffle": layout.Shuffle.Plan(1, sections), "cover": layout.Cover.Plan(300, sections),
	} {
		if name != "text" && fail.Order == nil {
			t.Fatalf("%s: no order", name)
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testHybrids(t, k, sections, fail, layout.Text.Plan(2, sections))
		})
	}
}

func testHybrids(t *testing.T, k kernel, sections []layout.Section, fail, pass layout.Plan) {
	h, err := layout.NewHybrids(sections, fail, pass)
	if err != nil {
		t.Fatal(err)
	}
	l := linkerOf(t, k)
	link := func(p layout.Plan) map[string]uint64 {
		image, err := l.Link(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		return symbols(t, image.Path)
	}
	all := layout.Choice{On: make([]bool, h.Len())}
	none := layout.Choice{On: make([]bool, h.Len())}
	for f := range all.On {
		all.On[f] = true
	}
	failing, passing := link(fail), link(pass)
	for name, same := range map[string][2]map[string]uint64{
		"failing": {failing, link(h.Plan(all, nil, 0))}, "passing": {passing, link(h.Plan(none, nil, 0))},
	} {
		if d := cmp.Diff(same[0], same[1]); d != "" {
			t.Errorf("the hybrid with everything %s is another layout: %s", name, d)
		}
	}
	// Variants are moved as a whole, from the first slack on.
	for _, c := range []layout.Choice{all, none} {
		image, moved := link(h.Plan(c, nil, 0)), link(h.Plan(c, nil, 1))
		names := slices.SortedFunc(maps.Keys(image), func(a, b string) int { return int(int64(image[a] - image[b])) })
		var by uint64
		n := 0
		for _, name := range names {
			if !strings.HasPrefix(name, "fill") {
				continue
			}
			d := moved[name] - image[name]
			if d < by || d%layout.Modulus != 0 {
				t.Fatalf("%s is moved by %#x in the variant, what stands before it by %#x", name, d, by)
			}
			if by = d; d > 0 {
				n++
			}
		}
		if n < 250 || len(fail.Paddings) == 0 && c.On[0] && n < 300 {
			t.Errorf("only %d functions are moved in the variant", n)
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	for n := range 12 {
		c := layout.Choice{On: make([]bool, h.Len()), Open: map[int]bool{}}
		move := map[int]uint64{}
		side := false
		for f := range c.On {
			if random.IntN(1+n) == 0 {
				side = !side
			}
			c.On[f] = side
			if random.IntN(20) == 0 {
				c.Open[f] = true
			}
			if random.IntN(50) == 0 && h.Section(f).Align <= 16 {
				move[f] = uint64(random.IntN(256)) * 16
			}
		}
		image := link(h.Plan(c, move, n%3))
		for f := range c.On {
			s := h.Section(f)
			name := s.Function
			want := passing[name]
			if c.On[f] {
				want = failing[name] + move[f]
			}
			if (image[name]-want)%layout.Modulus != 0 {
				t.Fatalf("%s is at %#x, want %#x mod %#x", name, image[name], want, layout.Modulus)
			}
			if f == 0 {
				continue
			}
			before := h.Section(f - 1)
			if name == "" || before.Function == "" {
				continue
			}
			gap := image[name] - image[before.Function] - before.Size
			touches := gap < max(16, s.Align)
			if must := c.On[f] && c.On[f-1] && move[f] == move[f-1] && h.Touch(f) && !c.Open[f]; must != touches && (c.On[f] || c.On[f-1]) {
				t.Errorf("%s is %d bytes behind %s: touching %v, want %v", name, gap, before.Function, touches, must)
			}
		}
	}
}
