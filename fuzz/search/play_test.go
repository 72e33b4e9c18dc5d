package search

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"unlucky/layout"
	"unlucky/qemu"
	"unlucky/seeds"
)

// playText is a .text of so many functions of many sizes, the last tenth of them
// unlikely.
func playText(n int) []layout.Section {
	sections := []layout.Section{{Name: ".head.text", Output: ".text", Address: 0xffffffff81000000, Size: 0x91, Align: 1, Index: 1}}
	end := sections[0].Address + sections[0].Size
	size := uint64(1)
	for i := range n {
		size = size*6364136223846793005 + 1442695040888963407
		s := layout.Section{Name: fmt.Sprint(".text.f", i), Output: ".text", Align: 16, Moves: true, Function: fmt.Sprint("f", i),
			Address: layout.AlignUp(end, 16), Size: 16 + size>>33%400, Index: i + 2, Group: 1}
		if i > n*9/10 {
			s.Name, s.Group = fmt.Sprint(".text.unlikely.f", i), 2
		}
		end = s.Address + s.Size
		sections = append(sections, s)
	}
	return append(sections, layout.Section{Name: ".text..__x86.return_thunk", Output: ".text", Address: layout.AlignUp(end, 64), Size: 64, Align: 64, Index: n + 2})
}

// An answer is right, of bugs of any kind, and takes no more boots than this: of one
// function, of several, and of what fails in one boot of two.
func TestPlay(t *testing.T) {
	t.Parallel()
	sections := playText(600)
	h, err := layout.NewHunt(sections)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range layout.BugKinds {
		t.Run(k.Name, func(t *testing.T) {
			t.Parallel()
			bugs, err := h.Draw(k, 2)
			if err != nil {
				t.Fatal(err)
			}
			played := 0
			plans, err := h.Failing(t.Context(), 512, bugs...)
			if err != nil {
				t.Fatal(err)
			}
			for n, bug := range bugs {
				if plans[n] == nil {
					continue
				}
				played++
				for _, flaky := range []bool{false, true} {
					got, right, err := Play(t.Context(), t.TempDir(), h, sections, bug, *plans[n], flaky, t.Logf)
					if err != nil {
						t.Fatalf("%d: %v", n, err)
					}
					most := map[int]int{1: 60, 2: 80, 3: 100}[bug.Decide]
					switch {
					case flaky && bug.Far:
						most = 500
					case flaky:
						most = map[int]int{1: 320, 2: 420, 3: 600}[bug.Decide] // where the first boots flatter the rate or belittle it
					}
					m := got.Minimized
					t.Logf("%d, flaky %v: %d boots", n, flaky, m.Boots)
					if others := len(m.Culprits) - 1; others > 0 {
						most += others * most / 2
					}
					if m.Boots > most || !right && !flaky {
						t.Errorf("%d, flaky %v: %d boots, right: %v: %v %q", n, flaky, m.Boots, right, m.Culprits, m.Notes)
					}
				}
			}
			if played == 0 {
				t.Error("no layout shows any")
			}
		})
	}
}

// A search that is killed, of a bug that crashes in one boot of two, asks on where it was:
// begun again it ends as one that was not killed.
func TestPlayResumed(t *testing.T) {
	t.Parallel()
	sections := playText(400)
	h, err := layout.NewHunt(sections)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range layout.BugKinds {
		if !slices.Contains([]string{"canary", "distance", "pair"}, k.Name) {
			continue
		}
		bugs, err := h.Draw(k, 1)
		if err != nil {
			t.Fatal(err)
		}
		plans, err := h.Failing(t.Context(), 512, bugs...)
		if err != nil {
			t.Fatal(err)
		}
		if plans[0] == nil {
			t.Fatalf("no layout shows %s", k.Name)
		}
		run := func(killed ...int) *seeds.File { // before so many boots each
			m, err := newPlay(t.Context(), t.TempDir(), h, sections, bugs[0], *plans[0], true)
			if err != nil {
				t.Fatal(err)
			}
			boots, boot := 0, m.Guest.Run
			m.Guest.Run = func(machine qemu.Machine, ctx context.Context, expect qemu.Expect) (qemu.Result, error) {
				if len(killed) > 0 && boots == killed[0] {
					return qemu.Result{}, errKilled
				}
				boots++
				return boot(machine, ctx, expect)
			}
			for {
				again := &Minimize{
					Kernel: m.Kernel, Guest: m.Guest, Failed: m.Failed, Template: m.Template, Path: m.Path,
					Workers: m.Workers, Note: m.Note, Step: m.Step,
				}
				answer, _, err := again.run(t.Context())
				if err == nil {
					return answer
				}
				if !errors.Is(err, errKilled) {
					t.Fatal(err)
				}
				killed = killed[1:]
			}
		}
		want, got := run(), run(5, 20, 33, 34, 60)
		if got.Minimized.Boots != want.Minimized.Boots || fmt.Sprint(got.Minimized.Culprits) != fmt.Sprint(want.Minimized.Culprits) {
			t.Errorf("%s: %d boots, %v; not killed %d boots, %v", k.Name, got.Minimized.Boots, got.Minimized.Culprits, want.Minimized.Boots, want.Minimized.Culprits)
		}
	}
}

var errKilled = errors.New("killed")

// A bound from which on two functions pass, as they are further apart: the baseline fails,
// and the answer has both names and the last distance that does.
func TestNearer(t *testing.T) {
	t.Parallel()
	sections := playText(600)
	h, err := layout.NewHunt(sections)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ from, to int }{{100, 400}, {20, 590}, {300, 420}} {
		at := sections[test.to].Address - sections[test.from].Address
		bug := layout.Bug{Functions: []int{test.from, test.to}, Decide: 2, Crashes: func(p *layout.Placed) bool {
			return p.Address[test.to]-p.Address[test.from] <= at+32
		}}
		failing := layout.Plan{Paddings: []layout.Padding{{Section: sections[10].Name, Bytes: 1040}, {Section: sections[test.to].Name, Bytes: 32}}}
		got, right, err := Play(t.Context(), t.TempDir(), h, sections, bug, failing, false, t.Logf)
		if err != nil {
			t.Fatal(err)
		}
		m := got.Minimized
		if !right || m.Culprits[0].Bound == nil || !m.Culprits[0].Bound.Nearer || m.Culprits[0].Bound.Bytes != at+32 || m.Boots > 80 {
			t.Errorf("%v: %d boots, %v, %+v %q; want them to be at most %#x apart", test, m.Boots, m.Culprits, m.Culprits[0].Bound, m.Notes, at+32)
		}
	}
}
