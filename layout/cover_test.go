package layout

import (
	"fmt"
	"testing"
)

// smallText is a .text of functions of many sizes, with some of larger and of
// smaller alignment, and one that is placed by hand.
func smallText() []Section {
	layout := []Section{{Name: ".head.text", Output: ".text", Address: 0xffffffff81000000, Size: 0x91, Align: 1, Index: 1}}
	end := layout[0].Address + layout[0].Size
	for i := range 600 {
		s := Section{Name: fmt.Sprint(".text.f", i), Output: ".text", Size: 16 + mix(1, uint64(i))%400, Align: 16, Text: true,
			Index: i + 2, Group: 1 + i/301}
		switch {
		case i == 300:
			s.Name, s.Text, s.Align, s.Group = ".noinstr.text", false, 64, 0
		case i%97 == 5:
			s.Align = 64
		case i%53 == 7:
			s.Align = 4
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
// each block of 4, 16, 64 and 256 seeds, in the first block and in later ones;
// where the order changes, of 4 and 16.
func TestCoverExact(t *testing.T) {
	t.Parallel()
	layout := smallText()
	for _, first := range []uint32{1, 257, 257 + 32, 513, 1 + 256*78, 1<<32 - 255 - 256, 1<<32 - 15} {
		for _, modulus := range []uint64{64, 256, 1024, 4096} {
			if (first-1)/256%2 == 1 && modulus > 256 {
				continue
			}
			count := make([]map[uint64]int, len(layout))
			for n := range uint32(modulus / 16) {
				addresses, err := Place(layout, ".text", Cover.Plan(first+n, layout))
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
				if !s.Text {
					continue
				}
				want := int(max(1, modulus/max(16, s.Align)))
				if len(count[i]) != want {
					t.Fatalf("from seed %d: %s, aligned to %d, was at %d residues mod %d, want %d", first, s.Name, s.Align, len(count[i]), modulus, want)
				}
				for r, times := range count[i] {
					if times != int(modulus/16)/want {
						t.Fatalf("from seed %d: %s was %d times at %#x mod %d", first, s.Name, times, r, modulus)
					}
				}
			}
		}
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
	for _, seed := range []uint32{513, 514, 600, 768} {
		for _, p := range coverPlan(seed, layout).Paddings {
			if !stiff[p.Section] {
				t.Errorf("seed %d is a rotation and has %d bytes before %s", seed, p.Bytes, p.Section)
			}
		}
	}
	cuts := func(seed uint32) (at map[string]bool, grown uint64) {
		at = map[string]bool{}
		for _, p := range coverPlan(seed, layout).Paddings {
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
	// A gap of 0 is no padding, so seeds that are cut alike differ by a few.
	cut, _ := cuts(5)
	alike, _ := cuts(6)
	if n := both(cut, alike); n < len(cut)*9/10-len(stiff) {
		t.Errorf("of %d gaps only %d are there in the next seed", len(cut), n)
	}
	for _, other := range []uint32{21, 1029} {
		anew, _ := cuts(other)
		if n := both(cut, anew); n > len(cut)/2 {
			t.Errorf("of %d gaps %d are there in seed %d too", len(cut), n, other)
		}
	}
	_, grown := cuts(1029)
	plan := coverPlan(1029, layout).Paddings
	if n := len(cut); n < 60 || n > 130 {
		t.Errorf("%d gaps among 600 functions", n)
	}
	if mean := grown / uint64(len(plan)); mean < 1500 || mean > 2600 {
		t.Errorf(".text grows by %d bytes a gap", mean)
	}
}
