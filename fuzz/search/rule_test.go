package search

import (
	"slices"
	"testing"

	"unlucky/seeds"
)

// TestUnsettled plays rules of one page residue: what the table tells of each, and how
// many boots that takes of the 256 that there are.
func TestUnsettled(t *testing.T) {
	const step, modulus, at = 16, 4096, 0x5a0
	between := func(first, last uint64) func(uint64) bool {
		return func(a uint64) bool { return (a-first)%modulus <= (last-first)%modulus }
	}
	for _, test := range []struct {
		name  string
		fails func(residue uint64) bool
		most  int // boots
		says  string
	}{
		{"one residue", between(at, at), 12, "crashes when `f` is at 0x5a0 mod 0x1000; moved alone by 16 bytes it passes"},
		{"a few", between(0x590, 0x5d0), 16, "crashes when `f` is at 0x590 to 0x5d0 mod 0x1000; moved alone by 64 bytes it passes"},
		{"up to the page's end", between(0x5a0, 0xff0), 20, "crashes when `f` is at 0x5a0 to 0xff0 mod 0x1000; moved alone by 2656 bytes it passes"},
		{"over the page's end", between(0x400, 0x70), 26, "crashes when `f` is at 0x0 to 0x70 or 0x400 to 0xff0 mod 0x1000; moved alone by 2784 bytes it passes"},
		{"all but one, which is known", func(a uint64) bool { return a != 0x300 }, 30, "crashes when `f` is at 0x0 to 0x2f0 or 0x310 to 0xff0 mod 0x1000; moved alone by 3424 bytes it passes"},
		{"another one far away", func(a uint64) bool { return a == at || a == (at+1024)%modulus }, 12, "crashes when `f` is at 0x5a0 or 0x9a0 mod 0x1000; moved alone by 16 bytes it passes"},
	} {
		t.Run(test.name, func(t *testing.T) {
			known := map[uint64]Answer{0: Fails}
			if d := uint64(0x300+modulus-at) % modulus; !test.fails(0x300) {
				known[d] = Passes // as where the function is in the layout that passes
			}
			c := seeds.Culprit{Bounded: true, Functions: []seeds.Function{{Name: "f", Address: 0xffffffff81000000 + at, Moved: true}}}
			for range modulus {
				rows := unsettled(known, step, modulus, true)
				if len(rows) == 0 {
					break
				}
				for _, d := range rows[:min(2, len(rows))] {
					if _, ok := known[d]; ok || d%step != 0 || d >= modulus {
						t.Fatalf("asks for %d", d)
					}
					known[d] = Passes
					if test.fails((at + d) % modulus) {
						known[d] = Fails
					}
				}
			}
			if rows := unsettled(known, step, modulus, true); rows != nil {
				t.Fatalf("it does not end: %d", rows)
			}
			for d, a := range known {
				row := seeds.Residue{Bytes: d, Boots: seeds.Boots{Boots: 1}}
				if a == Fails {
					row.Crashes = 1
				}
				c.Residues = append(c.Residues, row)
			}
			slices.SortFunc(c.Residues, func(a, b seeds.Residue) int { return int(a.Bytes) - int(b.Bytes) })
			c.SetModulus(modulus)
			if got := c.String(); got != test.says {
				t.Errorf("says\n%s\nwant\n%s", got, test.says)
			}
			if len(known) > test.most {
				t.Errorf("%d boots, at most %d wanted", len(known), test.most)
			}
			t.Logf("%d boots", len(known))
		})
	}
}
