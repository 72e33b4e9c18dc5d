package search

import (
	"fmt"
	"slices"
	"testing"

	"unlucky/layout"
)

// The boots that minimize takes for bugs of each kind, and how many of its answers are
// wrong: -benchtime 30x plays 30 bugs.
func BenchmarkPlay(b *testing.B) {
	sections := playText(1500)
	h, err := layout.NewHunt(sections)
	if err != nil {
		b.Fatal(err)
	}
	for _, flaky := range []bool{false, true} {
		for _, k := range layout.BugKinds {
			b.Run(fmt.Sprintf("flaky=%v/%s", flaky, k.Name), func(b *testing.B) {
				bugs, err := h.Draw(k, b.N)
				if err != nil {
					b.Fatal(err)
				}
				plans, err := h.Failing(b.Context(), 512, bugs...)
				if err != nil {
					b.Fatal(err)
				}
				var boots []int
				sum, wrong := 0, 0
				for n, bug := range bugs {
					if plans[n] == nil {
						continue
					}
					got, right, err := Play(b.Context(), b.TempDir(), h, sections, bug, *plans[n], flaky, func(string, ...any) {})
					if err != nil {
						b.Fatal(err)
					}
					boots = append(boots, got.Minimized.Boots)
					sum += got.Minimized.Boots
					if !right {
						wrong++
						b.Logf("wrong, %d boots: %v %q", got.Minimized.Boots, got.Minimized.Culprits, got.Minimized.Notes)
					}
				}
				if boots == nil {
					b.Skip("no layout shows any")
				}
				slices.Sort(boots)
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(float64(sum)/float64(len(boots)), "boots/answer")
				b.ReportMetric(float64(boots[(len(boots)*9+9)/10-1]), "90%")
				b.ReportMetric(float64(boots[len(boots)-1]), "most")
				b.ReportMetric(100*float64(wrong)/float64(len(boots)), "%wrong")
			})
		}
	}
}
