package report

import (
	"testing"
	"time"

	"unlucky/fuzz/evidence"
	"unlucky/layout"
	"unlucky/qemu"
	"unlucky/seeds"
)

// The chart has few bars whatever the times are, and no verdict is lost.
func TestChart(t *testing.T) {
	for _, years := range []int{0, 1, 30, 7000} {
		for _, n := range []int{1, 2, 59, 60, 61, 1000} {
			var tried []evidence.Tried
			for i := range n {
				at := time.Date(2026+years*i/n, 1, 1, 0, 0, i, 0, time.UTC)
				tried = append(tried, evidence.Tried{Record: seeds.Record{Layout: seeds.Seed(uint32(i)), Verdict: seeds.Verdict{Kind: qemu.Pass}, At: at}})
			}
			for _, timed := range []bool{true, false} {
				if !timed {
					tried[0].At = time.Time{}
				}
				c := newChart(tried)
				sum := 0
				for _, b := range c.Bars {
					for _, p := range b.Parts {
						sum += p.N
					}
				}
				if c.Timed != timed || c.Width > maxBars || sum != n {
					t.Errorf("%d layouts in %d years: %d bars with %d verdicts, by time: %t", n, years, c.Width, sum, c.Timed)
				}
			}
		}
	}
}

// A layout that no linker has made is refused, and takes neither memory nor time.
func TestMapOfNonsense(t *testing.T) {
	section := func(address, size uint64) layout.Section {
		return layout.Section{Name: ".text.f", Output: ".text", Function: "f", Moves: true, Address: address, Size: size, Align: 16}
	}
	first := section(16, 16)
	for _, layout := range [][]layout.Section{
		{first, section(32, ^uint64(0))},
		{first, section(64, 16), section(32, 16)},
		{first, section(^uint64(0)-15, 16)},
	} {
		if m, err := newMap(layout, make([]float64, len(layout)), nil); err == nil {
			t.Errorf("%v: a map of %d cells", layout, len(m.Cells))
		}
	}
	m, err := newMap([]layout.Section{first, section(32, 16), section(^uint64(0)-31, 16)}, []float64{0, 30, 0}, nil)
	if err != nil || len(m.Cells) > maxCells || m.Cells[0].Class != "l5" {
		t.Errorf("a map of %d cells, %v", len(m.Cells), err)
	}
}
