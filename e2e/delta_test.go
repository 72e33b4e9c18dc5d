package e2e

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"unlucky/layout"
	"unlucky/linker"
	"unlucky/linker/kbuild"
	"unlucky/scenarios"
)

// A delta link gives the images of lld, byte for byte, padded and in other orders, from 6.1
// to the newest kernel and of arm64. Only the first of each kind and template are lld's. make test-builds
// compares 1,024 layouts, and 128 in other orders.
func TestDelta(t *testing.T) {
	needKernels(t)
	cover, shuffle, first := 64, 64, 8
	if os.Getenv("UNLUCKY_BUILDS") != "" {
		cover, shuffle, first = 1024, 128, 16 // of eight templates, of both kinds
	}
	plans := func(sections []layout.Section) []layout.Plan {
		return append(append(plansOf(layout.Cover, 1, cover, sections), plansOf(layout.Shuffle, 1, shuffle, sections)...), plansOf(layout.Text, 1, 8, sections)...)
	}
	for _, pkg := range []string{"linux-source-6.1", "linux-source-6.12", "linux-source"} {
		t.Run(pkg, func(t *testing.T) {
			scenario := "kcfi-seal"
			if pkg != "linux-source-6.12" { // as TestKernels has them
				source, _ := kernelSource(t, pkg)
				scenario = kernelScenario(t, pkg, source)
			}
			s, err := scenarios.Load(scenario)
			if err != nil {
				t.Fatal(err)
			}
			checkDelta(t, s.Kernel, plans, first)
		})
	}
	t.Run("arm64", func(t *testing.T) {
		needARM64(t)
		s, err := scenarios.Load("boot-arm64")
		if err != nil {
			t.Fatal(err)
		}
		n := cover + shuffle + 8
		checkDelta(t, s.Kernel, plans, n*3/4) // lld mends the others for the erratum
		s.Kernel.LinkWithout = []string{kbuild.FixErratum}
		checkDelta(t, s.Kernel, plans, first)
	})
}

// checkDelta holds the images of plans by delta against lld's, of which no more are linked
// by lld than first, and those that are due to be compared.
func checkDelta(t *testing.T, k scenarios.Kernel, plans func([]layout.Section) []layout.Plan, first int) {
	t.Helper()
	delta, pass := linkPlans(t, k, linker.Delta, plans), linkPlans(t, k, linker.Pass, plans)
	sameImages(t, delta, pass)
	n := len(pass.digests)
	if due := n/256 + 1; delta.by[linker.Delta] < n-first-due || pass.by[linker.Pass] < n-4-due {
		t.Errorf("of %d layouts: %v and %v", n, delta.by, pass.by)
	}
	t.Logf("%d images are the same: %v in %v, %v in %v", n, delta.by, delta.took, pass.by, pass.took)
}

// linkedPlans are what links have given.
type linkedPlans struct {
	digests []string
	by      map[linker.Way]int
	took    time.Duration
}

// linkPlans links plans, one after the other.
func linkPlans(t *testing.T, spec scenarios.Kernel, by linker.Way, plans func([]layout.Section) []layout.Plan) (r linkedPlans) {
	t.Helper()
	_, sections, w := openKernel(t, spec, by)
	r.by = map[linker.Way]int{}
	for n, plan := range plans(sections) {
		image, err := w.Link(t.Context(), plan)
		if err != nil {
			t.Fatal(n, err)
		}
		digest, err := image.Digest()
		if err = errors.Join(err, image.Remove()); err != nil {
			t.Fatal(err)
		}
		r.digests = append(r.digests, digest)
		r.by[image.By]++
		r.took += image.Steps.Link + image.Steps.Kallsyms
	}
	return r
}

// openKernel prepares a kernel and has a worker that links its layouts in one way.
func openKernel(t testing.TB, spec scenarios.Kernel, by linker.Way) (*linker.Kernel, []layout.Section, *linker.Worker) {
	t.Helper()
	k, err := linker.Prepare(t.Context(), kbuild.CacheDir(), spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	k.By = by
	k.Note = func(format string, a ...any) { t.Logf(by.String()+": "+format, a...) }
	sections, err := k.Layout(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w, err := k.NewWorker()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return k, sections, w
}

// plansOf are those of a strategy's seeds.
func plansOf(s layout.Strategy, first, last int, sections []layout.Section) (plans []layout.Plan) {
	for seed := first; seed <= last; seed++ {
		plans = append(plans, s.Plan(uint32(seed), sections))
	}
	return plans
}

// sameImages holds images of the same plans against each other.
func sameImages(t *testing.T, got, want linkedPlans) {
	t.Helper()
	for i := range want.digests {
		if got.digests[i] != want.digests[i] {
			t.Errorf("layout %d is %.12s by %v, %.12s by %v", i, got.digests[i], got.by, want.digests[i], want.by)
		}
	}
}

// BenchmarkLink is what a layout costs without its boot, in CPU time of the program and
// of all that it runs, from the plan to an image that is checked against it.
func BenchmarkLink(b *testing.B) {
	s, err := scenarios.Load("kcfi-seal")
	if err != nil {
		b.Fatal(err)
	}
	for _, strategy := range []layout.Strategy{layout.Text, layout.Cover, layout.Shuffle} {
		for _, by := range []linker.Way{linker.Delta, linker.Pass} {
			b.Run(strings.Split(string(strategy), "/")[0]+"/"+by.String(), func(b *testing.B) {
				_, sections, w := openKernel(b, s.Kernel, by)
				link := func(plan layout.Plan) {
					image, err := w.Link(b.Context(), plan)
					if err = errors.Join(err, image.Remove()); err != nil {
						b.Fatal(err)
					}
				}
				plans := plansOf(strategy, 1, 64, sections)
				for _, plan := range plans { // some are compared, or make templates
					link(plan)
				}
				begin := cpuTime(b)
				for n := 0; b.Loop(); n++ {
					link(plans[n%len(plans)])
				}
				b.ReportMetric(float64(cpuTime(b)-begin)/1e6/float64(b.N), "cpu-ms/op")
			})
		}
	}
}

// cpuTime is that of this process and of all that it has waited for.
func cpuTime(b *testing.B) (total time.Duration) {
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if err := unix.Getrusage(who, &u); err != nil {
			b.Fatal(err)
		}
		total += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return total
}
