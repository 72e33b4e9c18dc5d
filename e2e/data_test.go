package e2e

import (
	"path/filepath"
	"strings"
	"testing"

	"unlucky/qemu"
	"unlucky/seeds"
)

// The planted overrun is met where objects have other neighbours, replayed, and minimized
// to a buffer and what stands behind it; a healthy kernel passes such layouts, of either
// kind: some pad, and some change the order.
func TestDataPlanted(t *testing.T) {
	needKernels(t)
	r := sweepJSON(t, "overrun", "-seeds", "39:64", "-accel", "tcg", "-stop-after", "1", "-o", t.TempDir())
	if r.Finds() != 1 || r.Baseline.Kind != qemu.Pass {
		t.Fatal(count(r))
	}
	path := filepath.Join(r.Dir, r.Unlucky()[0].Layouts[0].Path)
	if code, out := unlucky(t, "replay", path, "-boots", "2"); code != 0 {
		t.Errorf("exit status %d: %s", code, out)
	}
	m := minimizeJSON(t, path, "-ablate=false", "-o", seeds.MinimizedPath(path))
	for _, c := range m.Minimized.Culprits {
		f := c.Functions
		if len(f) != 2 || !strings.HasPrefix(f[0].Name, "overrun_buffer_") || !strings.HasPrefix(f[1].Name, "overrun_victim_") || !f[1].Touching {
			t.Errorf("%v, want a buffer that is directly followed by a victim", c)
		}
	}
	if len(m.Minimized.Culprits) == 0 || m.Minimized.Boots > 80 {
		t.Errorf("%v in %d boots, want a buffer and a victim in at most 80", m.Minimized.Culprits, m.Minimized.Boots)
	}
	for _, which := range []string{"data", "blocks"} {
		r := sweepJSON(t, "boot", "-sections", which, "-seeds", "39:42", "-accel", "tcg", "-o", t.TempDir())
		if r.Count(qemu.Pass) != 4 || r.Baseline.Kind != qemu.Pass {
			t.Errorf("-sections %s: %s", which, count(r))
		}
	}
}
