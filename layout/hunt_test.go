package layout

import (
	"slices"
	"testing"
)

// Functions that are aligned to less stand closer together, and what is aligned to
// more, or placed by hand, stays so.
func TestRealigned(t *testing.T) {
	t.Parallel()
	layout := smallText()
	got, err := Realigned(layout, 1)
	if err != nil {
		t.Fatal(err)
	}
	if step := StepOf(got); step != 1 {
		t.Errorf("the step is %d", step)
	}
	for i, s := range got {
		switch {
		case s.Align != layout[i].Align && (layout[i].Align != 16 || s.Align != 1), s.Address%max(1, s.Align) != 0:
			t.Errorf("%s: %+v", layout[i].Name, s)
		case i > 0 && s.Address < got[i-1].Address+got[i-1].Size:
			t.Errorf("%s overlaps", s.Name)
		}
	}
	if last := len(got) - 1; got[last].Address >= layout[last].Address {
		t.Errorf("the last is at %#x, was at %#x", got[last].Address, layout[last].Address)
	}
}

// Each kind of bug can be drawn and is none that the baseline shows; the seeds
// that crash are those whose layouts do; and a kind's bugs are not another's.
func TestHunt(t *testing.T) {
	t.Parallel()
	layout := smallText()
	last := layout[len(layout)-1]
	layout = append(layout, Section{Name: ".text..__x86.return_thunk", Output: ".text", Address: AlignUp(last.Address+last.Size, 64), Size: 64, Align: 64, Index: last.Index + 1})
	h, err := NewHunt(layout)
	if err != nil {
		t.Fatal(err)
	}
	const bugs, seeds = 10, 300 // with some of another order
	found := map[string]int{}
	for _, k := range BugKinds {
		drawn, err := h.Draw(k, bugs)
		if err != nil {
			t.Fatal(err)
		}
		for _, bug := range drawn {
			if bug.Crashes(h.pass) {
				t.Errorf("%s: the baseline shows it", k.Name)
			}
		}
		for _, s := range []Strategy{Text, Cover, Shuffle} {
			all, err := h.Crashes(t.Context(), s, seeds, true, drawn...)
			if err != nil {
				t.Fatal(err)
			}
			first, err := h.Crashes(t.Context(), s, seeds, false, drawn...)
			if err != nil {
				t.Fatal(err)
			}
			for b := range drawn {
				var want []int
				for seed := 1; seed <= seeds; seed += 7 {
					p, err := NewPlaced(layout, s.Plan(uint32(seed), layout))
					if err != nil {
						t.Fatal(err)
					}
					if drawn[b].Crashes(p) {
						want = append(want, seed)
					}
				}
				got := slices.DeleteFunc(slices.Clone(all[b]), func(seed int) bool { return seed%7 != 1 })
				if !slices.Equal(got, want) {
					t.Fatalf("%s by %s: of every seventh seed %v crash, want %v", k.Name, s, got, want)
				}
				if len(all[b]) > 0 {
					found[k.Name+" "+string(s)]++
					if !slices.Equal(first[b], all[b][:1]) {
						t.Fatalf("%s by %s: first %v of %v", k.Name, s, first[b], all[b])
					}
				}
			}
		}
	}
	// What the strategies are for.
	for _, name := range []string{"line cover/3", "canary cover/3", "page, last third cover/3", "pair cover/3", "neighbours shuffle/1", "neighbours cover/3"} {
		if found[name] < bugs/2 {
			t.Errorf("%s finds %d of %d bugs", name, found[name], bugs)
		}
	}
	if n := found["neighbours text/1"]; n > 0 {
		t.Errorf("padding has brought neighbours together, %d times", n)
	}
	if _, err := h.PlantedBug("canary"); err == nil {
		t.Error("a kernel without canary_victim has its bug")
	}
}
