package layout

import (
	"slices"
	"testing"
)

// Each kind of bug can be drawn and is none that the baseline shows; the seeds
// that crash are those whose layouts do; and a kind's bugs are not another's.
func TestHunt(t *testing.T) {
	t.Parallel()
	layout := smallText()
	h, err := NewHunt(layout)
	if err != nil {
		t.Fatal(err)
	}
	const bugs, seeds = 20, 300 // with some of another order
	found := map[string]int{}
	for _, k := range BugKinds {
		drawn, err := h.Draw(k, bugs)
		if err != nil {
			t.Fatal(err)
		}
		for _, bug := range drawn {
			if bug(h.pass) {
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
					p, err := NewPlaced(layout, ".text", s.Plan(uint32(seed), layout))
					if err != nil {
						t.Fatal(err)
					}
					if drawn[b](p) {
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
	for _, name := range []string{"line cover/2", "canary cover/2", "page, last third cover/2", "pair cover/2", "neighbours shuffle/1", "neighbours cover/2"} {
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
