package layout

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"testing"
)

// smallText is a .text of functions of many sizes, with some of larger and of
// smaller alignment, and one that is placed by hand.
func smallText() []Section { return textOf(16) }

// textOf is such a text whose functions have an alignment.
func textOf(align uint64) []Section {
	layout := []Section{{Name: ".head.text", Output: ".text", Address: 0xffffffff81000000, Size: 0x91, Align: 1, Index: 1}}
	end := layout[0].Address + layout[0].Size
	for i := range 600 {
		s := Section{Name: fmt.Sprint(".text.f", i), Output: ".text", Size: 16 + mix(1, uint64(i))%400, Align: align, Moves: true,
			Index: i + 2, Group: 1 + i/301}
		switch {
		case i == 300:
			s.Name, s.Moves, s.Align, s.Group = ".noinstr.text", false, 64, 0
		case i > 560:
			s.Name = fmt.Sprint(".text.unlikely.f", i)
		case i%97 == 5:
			s.Align = 64
		case i%53 == 7:
			s.Align = max(1, align/4)
		case i%201 == 9:
			s.Align = 4096
		}
		s.Address = (end + s.Align - 1) &^ (s.Align - 1)
		end = s.Address + s.Size
		layout = append(layout, s)
	}
	return layout
}

// Each function is at each of its residues as often as any other of them, in
// each block of layouts that a modulus takes, in the first block and in later ones;
// where the order changes, modulo 64 and 256.
func TestCoverExact(t *testing.T) {
	t.Parallel()
	for _, step := range []uint64{64, 16, 4, 1} {
		layout, units := textOf(step), uint32(Modulus/step)
		if got := StepOf(layout); got != step {
			t.Fatalf("the step of functions aligned to %d is %d", step, got)
		}
		firsts := []uint32{0, units, units + units/8, 2 * units, 78 * units, -units}
		if step == 1 { // each block has 4,096 layouts
			firsts = []uint32{0, units + units/8}
		}
		for _, first := range firsts {
			for _, modulus := range []uint64{64, 256, 1024, 4096} {
				if first/units%2 == 1 && modulus > 256 || step == 1 && modulus > 1024 {
					continue
				}
				count := make([]map[uint64]int, len(layout))
				for n := range uint32(modulus / step) {
					addresses, err := Place(layout, residuesPlan(first+n, step, layout))
					if err != nil {
						t.Fatal(err)
					}
					for i, a := range addresses {
						if count[i] == nil {
							count[i] = map[uint64]int{}
						}
						count[i][a%modulus]++
					}
				}
				for i, s := range layout {
					if !s.Moves {
						continue
					}
					want := int(max(1, modulus/max(step, s.Align)))
					if len(count[i]) != want {
						t.Fatalf("step %d, from layout %d: %s, aligned to %d, was at %d residues mod %d, want %d", step, first, s.Name, s.Align, len(count[i]), modulus, want)
					}
					for r, times := range count[i] {
						if times != int(modulus/step)/want {
							t.Fatalf("step %d, from layout %d: %s was %d times at %#x mod %d", step, first, s.Name, times, r, modulus)
						}
					}
				}
			}
		}
	}
}

// A round of cover has 40 of its own layouts, without a hole to the next round, and 24
// orders; where the step is 1 all that give each residue mod 64. The version before had
// no rounds.
func TestCoverRounds(t *testing.T) {
	t.Parallel()
	for step, padded := range map[uint64]uint32{64: 40, 16: 40, 4: 40, 1: 64} {
		layout, round := textOf(step), padded+24
		for seed, n := range map[uint32]uint32{1: 0, padded: padded - 1, round + 1: padded, round + padded: 2*padded - 1, 10*round + 7: 10*padded + 6} {
			if Cover.Plan(seed, layout).Digest() != residuesPlan(n, step, layout).Digest() {
				t.Errorf("step %d: seed %d is not layout %d", step, seed, n)
			}
		}
		for _, seed := range []uint32{padded + 1, round, 2*round - 5} {
			if Cover.Plan(seed, layout).Digest() != Shuffle.Plan(seed, layout).Digest() {
				t.Errorf("step %d: seed %d is no shuffle", step, seed)
			}
		}
	}
	h := sha256.New()
	for _, first := range []uint32{1, 200, 257, 300, 513, 768, 769, 1029, 1<<32 - 20} {
		for n := range uint32(20) {
			fmt.Fprintln(h, cover2.Plan(first+n, smallText()).Digest())
		}
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != "21464e4b2bd8eb1083711f162d7703f465c927eb85c6bc66587b3c6e23ed5ad9" {
		t.Errorf("cover/2 has other plans than it had: %s", got)
	}
}

// The third block opens no gap; the others leave most neighbours
// touching, other ones in the next block; and .text does not grow without
// bound.
func TestCoverRuns(t *testing.T) {
	t.Parallel()
	layout := smallText()
	stiff := map[string]bool{layout[1].Name: true} // or behind one that is
	for i, s := range layout[1:] {
		stiff[s.Name] = stiff[s.Name] || s.Align > 16 || layout[i].Align > 16
	}
	for _, n := range []uint32{512, 513, 599, 767} {
		for _, p := range residuesPlan(n, 16, layout).Paddings {
			if !stiff[p.Section] {
				t.Errorf("layout %d is a rotation and has %d bytes before %s", n, p.Bytes, p.Section)
			}
		}
	}
	cuts := func(n uint32) (at map[string]bool, grown uint64) {
		at = map[string]bool{}
		for _, p := range residuesPlan(n, 16, layout).Paddings {
			at[p.Section] = true
			grown += p.Bytes
		}
		return at, grown
	}
	both := func(a, b map[string]bool) (n int) {
		for name := range a {
			if b[name] && !stiff[name] {
				n++
			}
		}
		return n
	}
	// A gap of 0 is no padding, so layouts that are cut alike differ by a few.
	cut, _ := cuts(4)
	alike, _ := cuts(5)
	if n := both(cut, alike); n < len(cut)*9/10-len(stiff) {
		t.Errorf("of %d gaps only %d are there in the next layout", len(cut), n)
	}
	for _, other := range []uint32{20, 1028} {
		anew, _ := cuts(other)
		if n := both(cut, anew); n > len(cut)/2 {
			t.Errorf("of %d gaps %d are there in layout %d too", len(cut), n, other)
		}
	}
	_, grown := cuts(1028)
	plan := residuesPlan(1028, 16, layout).Paddings
	if n := len(cut); n < 60 || n > 130 {
		t.Errorf("%d gaps among 600 functions", n)
	}
	if mean := grown / uint64(len(plan)); mean < 1500 || mean > 2600 {
		t.Errorf(".text grows by %d bytes a gap", mean)
	}
}
